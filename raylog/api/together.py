"""A version that several processes seal together: each its own shards, and the first of them commits all."""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from raylog.api.session import Session
from raylog.catalog.manifest import Manifest, decode_signed
from raylog.catalog.parts import Part, base_of
from raylog.catalog.state import Pending
from raylog.errors import Conflict, DeadlineExceeded, RaylogError, Unavailable
from raylog.spec import Reference, Version

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

    def gather(self, session: Session, order: Pending) -> list[tuple[Manifest, Part]]:
        """The other ranks' parts, made for the same order. Raises `Cancelled` when one gave up, `Conflict` when one
        began at another version, `DeadlineExceeded` naming who is missing."""
        parts: dict[int, Part] = {}
        for _ in self._polls():
            parts = session.retried("catalog", "parts", self.version_id)
            if parts.keys() >= set(self.others):
                cluster_id = session.credentials().identity.cluster_id
                found = [parts[rank] for rank in self.others]
                return [(_checked(decode_signed(part.signed, cluster_id)[1], order), part) for part in found]
        missing = sorted(set(self.others) - parts.keys())
        raise DeadlineExceeded(
            f"ranks {missing} of {len(self.others) + 1} did not hand in their part within {self.timeout_s:.0f} s: all "
            "ranks save the same steps"
        )

    def hand_in(self, session: Session, signed: bytes, receipts: list[bytes], shard_ids: Collection[str]) -> Version:
        """Offers this rank's part until the version is there, and returns it. Raises `Cancelled`, `DeadlineExceeded`,
        `Conflict` when the version came without this rank's shards."""
        is_offered = False
        for _ in self._polls():
            found: Version | None = session.retried("catalog", "sealed_together", self.version_id)
            if found is not None:
                manifest = session.manifest(Reference(found.name, found.number))
                if not manifest.distinct_shards().keys() >= set(shard_ids):
                    raise Conflict(f"{found} was committed without what rank {self.rank} had stored for it: save again")
                return found
            session.retried("catalog", "offer_part", signed, receipts)
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

    def committed(self, session: Session) -> Version | None:
        """The version, if it is there."""
        found: Version | None = session.retried("catalog", "sealed_together", self.version_id)
        return found

    def _polls(self) -> Iterator[None]:
        until, pause_s = time.monotonic() + self.timeout_s, POLL_S_MIN
        while time.monotonic() < until:
            yield
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.5, POLL_S_MAX)


def _checked(manifest: Manifest, order: Pending) -> Manifest:
    """A part that goes into the version of this order."""
    found = (manifest.name, manifest.artifact_id, manifest.tenant, base_of(manifest))
    if found != (order.name, order.artifact_id, order.tenant, order.base):
        raise Conflict(
            f"a rank's part was made for {manifest.name} after version {base_of(manifest)}, this one for {order.name} "
            f"after version {order.base}: another writer was first, save again"
        )
    return manifest
