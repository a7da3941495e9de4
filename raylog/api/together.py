"""A version that several processes seal together: each its own shards, and the first of them commits all."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from raylog.api.session import Session
from raylog.catalog.manifest import Manifest, decode_signed
from raylog.catalog.parts import Part
from raylog.catalog.state import Pending
from raylog.errors import DeadlineExceeded, RaylogError, Unavailable
from raylog.spec import Version

POLL_S_MIN, POLL_S_MAX = 0.02, 0.5


def _nothing() -> None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Together:
    """This process is `rank` of `world_size`. `version_id` is the same for all of them and for nothing else;
    `artifact_id`: the artifact's, should this be its first version."""

    rank: int
    world_size: int
    version_id: str
    artifact_id: str
    timeout_s: float
    on_offered: Callable[[], None] = _nothing  # called once this rank's part was handed in

    def order(self, order: Pending) -> Pending:
        """The order of one process, as all of them have it."""
        return order if order.base else msgspec.structs.replace(order, artifact_id=self.artifact_id)

    def gather(self, session: Session) -> list[tuple[Manifest, Part]]:
        """The other ranks' parts. Raises `Cancelled` when one gave up, `DeadlineExceeded` naming who is
        missing."""
        parts: dict[int, Part] = {}
        for _ in self._polls():
            parts = session.retried("catalog", "parts", self.version_id)
            if parts.keys() >= set(range(1, self.world_size)):
                cluster_id = session.credentials().identity.cluster_id
                return [(decode_signed(part.signed, cluster_id)[1], part) for _, part in sorted(parts.items())]
        missing = sorted(set(range(1, self.world_size)) - parts.keys())
        raise DeadlineExceeded(
            f"ranks {missing} of {self.world_size} did not hand in their part within {self.timeout_s:.0f} s: all ranks "
            "call save for the same steps"
        )

    def hand_in(self, session: Session, signed: bytes, receipts: list[bytes]) -> Version:
        """Offers this rank's part until the version is there, and returns it. Raises `Cancelled`,
        `DeadlineExceeded`."""
        is_offered = False
        for _ in self._polls():
            found: Version | None = session.retried("catalog", "sealed_together", self.version_id)
            if found is not None:
                return found
            session.retried("catalog", "offer_part", signed, receipts, self.rank)
            if not is_offered:
                self.on_offered()
                is_offered = True
        raise DeadlineExceeded(f"rank 0 of {self.world_size} did not commit within {self.timeout_s:.0f} s")

    def give_up(self, session: Session, reason: str) -> bool:
        """Tells the other ranks not to wait; False when the version is there already. Raises `Unavailable` when nobody
        says."""
        try:
            return session.withdraw(self.version_id, f"rank {self.rank}: {reason}")
        except RaylogError as error:
            raise Unavailable(f"whether rank 0 committed is not known: {error}") from error

    def _polls(self) -> Iterator[None]:
        until, pause_s = time.monotonic() + self.timeout_s, POLL_S_MIN
        while time.monotonic() < until:
            yield
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.5, POLL_S_MAX)
