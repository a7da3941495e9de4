"""The parts of versions that several processes seal together, until one of them commits all. Pure: times are passed in.

Kept in memory alone: whoever handed a part in does so again until the version is there, so a catalog that has just
begun gets them all anew.
"""

from dataclasses import dataclass, field

from raylog.errors import Cancelled, Unavailable
from raylog.units import MIB

BYTES_MAX = 512 * MIB
REASON_CHARACTERS_MAX = 1000


@dataclass(frozen=True, slots=True)
class Part:
    """A signed manifest with one process's shards, and the receipts for them."""

    signed: bytes
    receipts: tuple[bytes, ...]

    @property
    def size_bytes(self) -> int:
        return len(self.signed) + sum(map(len, self.receipts))


@dataclass(slots=True)
class _Version:
    seen: float
    reason: str = ""  # for which it was withdrawn
    parts: dict[int, Part] = field(default_factory=dict)


class Parts:
    """`keep_s`: how long after the last word about a version what is known of it is kept."""

    def __init__(self, keep_s: float) -> None:
        self._keep_s = keep_s
        self._versions: dict[str, _Version] = {}

    def offer(self, version_id: str, rank: int, part: Part, now: float) -> None:
        """Raises `Cancelled` when the version was withdrawn, `Unavailable` when there are too many."""
        version = self._look(version_id, now)
        others_bytes = sum(one.size_bytes for v in self._versions.values() for one in v.parts.values())
        if others_bytes + part.size_bytes > BYTES_MAX:
            raise Unavailable(f"parts of {len(self._versions)} versions are waited for already: ask again")
        version.parts[rank] = part

    def of(self, version_id: str, now: float) -> dict[int, Part]:
        """By rank. Raises `Cancelled` when the version was withdrawn."""
        return dict(self._look(version_id, now).parts)

    def withdraw(self, version_id: str, reason: str, now: float) -> None:
        """Nobody waits for it any more; the first reason stays."""
        version = self._known(version_id, now)
        version.reason = version.reason or reason[:REASON_CHARACTERS_MAX] or "no reason was given"
        version.parts.clear()

    def forget(self, version_id: str) -> None:
        """It was committed."""
        self._versions.pop(version_id, None)

    def _look(self, version_id: str, now: float) -> _Version:
        version = self._known(version_id, now)
        if version.reason:
            raise Cancelled(f"another rank gave this save up: {version.reason}")
        return version

    def _known(self, version_id: str, now: float) -> _Version:
        self._versions = {one: found for one, found in self._versions.items() if now - found.seen < self._keep_s}
        version = self._versions.setdefault(version_id, _Version(now))
        version.seen = now
        return version
