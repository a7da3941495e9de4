"""A version that several processes seal together: each its own shards, and the first of them commits all."""

import time
from collections.abc import Callable, Iterator, Sequence
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
    """This process is `rank`; the first, 0, waits for the `others`. `version_id` is the same for all of them and for
    nothing else; `artifact_id`: the artifact's, should this be its first version."""

    rank: int
    others: Sequence[int]
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
            if parts.keys() >= set(self.others):
                cluster_id = session.credentials().identity.cluster_id
                return [
                    (decode_signed(part.signed, cluster_id)[1], part)
                    for rank, part in sorted(parts.items())
                    if rank in self.others
                ]
        missing = sorted(set(self.others) - parts.keys())
        raise DeadlineExceeded(
            f"ranks {missing} of {len(self.others) + 1} did not hand in their part within {self.timeout_s:.0f} s: all "
            "ranks save the same steps"
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
        raise DeadlineExceeded(f"rank 0 did not commit what rank {self.rank} has stored within {self.timeout_s:.0f} s")

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
