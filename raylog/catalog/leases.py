"""Which puts are under way, and which shards are left over from one that is not. Pure: times are passed in.

A put names its shards only when it commits; until then its *lease*, held under its version id (which stands in the
header of every shard that it seals), is what tells them from leftovers. It renews the lease while it runs. Leases are
kept in memory alone: a catalog that has just begun takes every put for one under way, for as long as a lease lasts.
"""

from collections.abc import Mapping
from dataclasses import dataclass


class Leases:
    """`lease_s`: how long after its last renewal a put counts as under way."""

    def __init__(self, lease_s: float, now: float) -> None:
        self._lease_s = lease_s
        self._begun = self._pruned = now
        self._renewed: dict[str, float] = {}

    def renew(self, version_id: str, now: float) -> None:
        self._renewed[version_id] = now
        if now >= self._pruned + self._lease_s:
            self._renewed = {one: at for one, at in self._renewed.items() if now - at < self._lease_s}
            self._pruned = now

    def is_live(self, version_id: str, now: float) -> bool:
        return now - self._renewed.get(version_id, self._begun) < self._lease_s


@dataclass(frozen=True, slots=True)
class _Sighting:
    version_id: str
    since: float


class Orphans:
    """Shards on one node that no version names, and since when they have been seen so."""

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._seen: dict[str, _Sighting] = {}

    def look(self, unnamed: Mapping[str, str], leases: Leases, now: float) -> dict[str, list[str]]:
        """What to collect: shards by the version id of the put that they are of. `unnamed`: all shards on the node now
        that no version names, with the version id in their header. A shard is due once no look has found it named or
        its put under way for the grace period."""
        before = self._seen
        self._seen = {
            shard_id: _Sighting(version_id, before[shard_id].since if shard_id in before else now)
            for shard_id, version_id in unnamed.items()
            if not leases.is_live(version_id, now)
        }
        due: dict[str, list[str]] = {}
        for shard_id, sighting in sorted(self._seen.items()):
            if now - sighting.since >= self._grace_s:
                due.setdefault(sighting.version_id, []).append(shard_id)
        return due
