"""What each traffic class of a node gets: weights and caps as given, and counters of what it got."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import msgspec

from raylog.errors import UsageError
from raylog.settings import Settings
from raylog.spec import CAP_BYTES_PER_S_MIN, WEIGHT_MAX, QosClass, parse_qos

# Every class is worth twice the next: repair still has a fifteenth of a busy link, for lost redundancy is urgent too.
WEIGHTS: Mapping[QosClass, float] = MappingProxyType(
    {QosClass.READ: 16.0, QosClass.CHECKPOINT: 8.0, QosClass.SHIP: 4.0, QosClass.REPAIR: 2.0}
)


class ClassCounters(msgspec.Struct, frozen=True, kw_only=True):
    """What one class sent since the start, and how long its chunks waited for their turn, all streams together."""

    sent_bytes: int = 0
    sent_chunks: int = 0
    waited_s: float = 0.0

    def plus(self, sent_bytes: int, sent_chunks: int, waited_s: float) -> "ClassCounters":
        return ClassCounters(
            sent_bytes=self.sent_bytes + sent_bytes,
            sent_chunks=self.sent_chunks + sent_chunks,
            waited_s=self.waited_s + waited_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Slices:
    """Weights and caps of one node's sending. A cap is in bytes per second, 0 for none: of the node, of every peer,
    and of classes. Classes that are left out have the default weight and no cap. Raises `UsageError`."""

    weights: Mapping[QosClass, float] = field(default_factory=dict)
    node_cap_bytes_per_s: int = 0
    peer_cap_bytes_per_s: int = 0
    class_caps_bytes_per_s: Mapping[QosClass, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for qos, weight in self.weights.items():
            if not 0 < weight <= WEIGHT_MAX:
                raise UsageError(f"expected a weight above 0 and up to {WEIGHT_MAX} for {parse_qos(qos)}, got {weight}")
        check_cap("the node", self.node_cap_bytes_per_s)
        check_cap("a peer", self.peer_cap_bytes_per_s)
        for qos, cap in self.class_caps_bytes_per_s.items():
            check_cap(f"class {parse_qos(qos)}", cap)

    @classmethod
    def of(cls, settings: Settings) -> "Slices":
        """As `raylog.toml` has them."""
        return cls(
            weights={qos: getattr(settings, f"{qos}_weight") for qos in QosClass},
            node_cap_bytes_per_s=settings.node_cap_bytes_per_s,
            peer_cap_bytes_per_s=settings.peer_cap_bytes_per_s,
            class_caps_bytes_per_s={qos: getattr(settings, f"{qos}_cap_bytes_per_s") for qos in QosClass},
        )

    def weight(self, qos: QosClass) -> float:
        return self.weights.get(qos, WEIGHTS[qos])

    def cap_bytes_per_s(self, qos: QosClass) -> int:
        return self.class_caps_bytes_per_s.get(qos, 0)

    def least_cap_bytes_per_s(self, qos: QosClass) -> int:
        """The narrowest cap that a stream carrying this class is under; 0: none."""
        caps = (self.node_cap_bytes_per_s, self.peer_cap_bytes_per_s, self.cap_bytes_per_s(qos))
        return min((cap for cap in caps if cap), default=0)


def check_cap(of: str, cap_bytes_per_s: int) -> None:
    """Raises `UsageError`."""
    if cap_bytes_per_s and cap_bytes_per_s < CAP_BYTES_PER_S_MIN:
        raise UsageError(
            f"expected a cap of {of} of at least {CAP_BYTES_PER_S_MIN} bytes/s, or 0 for none, got {cap_bytes_per_s}"
        )
