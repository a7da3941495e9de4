"""The parts of versions that several processes seal together, until one of them commits all. Pure: times are passed in.

Kept in memory alone: whoever handed a part in does so again until the version is there, so a catalog that has just
begun gets them all anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from raylog.catalog.manifest import LABEL_VALUE_CHARACTERS_MAX, Manifest
from raylog.errors import Cancelled, Unavailable, UsageError
from raylog.units import MIB

BYTES_MAX = 512 * MIB
REASON_CHARACTERS_MAX = 1000
RANK_LABEL, BASE_LABEL, COUNTS_LABEL = "part_rank", "part_base", "entries_by_rank"


def part_labels(rank: int, base: int) -> dict[str, str]:
    """What a part's manifest says of itself in its labels, under its writer's signature: whose it is, and after which
    version."""
    return {RANK_LABEL: str(rank), BASE_LABEL: str(base)}


def counts_label(counts: Sequence[int]) -> dict[str, str]:
    """How many of a version's entries each rank has, rank by rank, as a label; none where they are too many for one."""
    text = ",".join(map(str, counts))
    return {COUNTS_LABEL: text} if len(text) <= LABEL_VALUE_CHARACTERS_MAX else {}


def positions_of(manifest: Manifest, rank: int) -> list[int] | None:
    """Which of a version's entries are a rank's; None where its labels do not say."""
    words = manifest.labels.get(COUNTS_LABEL, "").split(",")
    counts = [int(word) for word in words if word.isascii() and word.isdigit()]
    if sum(counts) != len(manifest.shards) or rank >= len(counts):
        return None
    first = sum(counts[:rank])
    return list(range(first, first + counts[rank]))


def rank_of(manifest: Manifest) -> int:
    """Raises `UsageError` for a manifest that is no part."""
    return _number(manifest, RANK_LABEL)


def base_of(manifest: Manifest) -> int:
    """The version that a part comes after. Raises `UsageError` for a manifest that is no part."""
    return _number(manifest, BASE_LABEL)


def _number(manifest: Manifest, label: str) -> int:
    text = manifest.labels.get(label, "")
    if not (text.isascii() and text.isdigit()):
        raise UsageError(f"expected a part of {manifest.name} with a number as its label {label}, got {text!r}")
    return int(text)


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
        version = self._begin(version_id, now)
        if version.reason:
            raise _given_up(version)
        others_bytes = sum(one.size_bytes for v in self._versions.values() for one in v.parts.values())
        if others_bytes + part.size_bytes > BYTES_MAX:
            raise Unavailable(f"parts of {len(self._versions)} versions are waited for already: ask again")
        version.parts[rank] = part

    def of(self, version_id: str, now: float) -> dict[int, Part]:
        """By rank. Raises `Cancelled` when the version was withdrawn."""
        version = self._versions.get(version_id)
        if version is None:
            return {}
        version.seen = now
        if version.reason:
            raise _given_up(version)
        return dict(version.parts)

    def withdraw(self, version_id: str, reason: str, now: float) -> None:
        """Nobody waits for it any more; the first reason stays."""
        version = self._begin(version_id, now)
        version.reason = version.reason or reason[:REASON_CHARACTERS_MAX] or "no reason was given"
        version.parts.clear()

    def forget(self, version_id: str) -> None:
        """It was committed."""
        self._versions.pop(version_id, None)

    def _begin(self, version_id: str, now: float) -> _Version:
        self._versions = {one: found for one, found in self._versions.items() if now - found.seen < self._keep_s}
        version = self._versions.setdefault(version_id, _Version(now))
        version.seen = now
        return version


def _given_up(version: _Version) -> Cancelled:
    return Cancelled(f"another rank gave this save up: {version.reason}")
