"""What belongs where in a node's store. Pure; every decision about its tiers stands here, with its reason."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from raylog.spec import TierKind, Use
from raylog.store.device_meter import DeviceRates
from raylog.units import format_bytes

ARENA_SHARE = 0.5  # of the arena, at most, for one shard: a larger one would push out everything else
HIGH_WATERMARK = 0.90  # of a disk: above it, what is worth least moves to a slower one
LOW_WATERMARK = 0.80  # down to here; and what is read often moves up as far as here
SEEK_S = {TierKind.SSD: 0.0001, TierKind.HDD: 0.008, TierKind.REMOTE: 0.05}
PROMOTED_READS_MIN = 2.0  # faded reads, below which a shard stays on its slow disk
ALIKE = 1.5  # disks whose commits differ by less than this factor are filled alike
SPEED_GAP = 2.0  # a disk that reads at less than this times another one's rate is not faster than it


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A disk tier as the policy sees it. `slow`: why it is slower than it was, "" while it is not."""

    kind: TierKind
    capacity_bytes: int
    free_bytes: int
    rates: DeviceRates
    slow: str = ""
    is_failing: bool = False

    @property
    def read_s_per_byte(self) -> float:
        return 1 / self.rates.read_bytes_per_s

    def commit_s(self, stored_bytes: int) -> float:
        """How long a commit of so many bytes takes."""
        return stored_bytes / self.rates.write_bytes_per_s + self.rates.sync_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which of the disks, and why; None: none of them can take it."""

    disk: int | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A shard on one of the disks: its bytes, its reads (faded), and whether it may move down, or go altogether."""

    shard_id: str
    disk: int
    stored_bytes: int
    reads: float
    is_pinned: bool = False
    is_cached: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A shard that is better kept on another disk of the node."""

    shard_id: str
    source: int
    target: int
    stored_bytes: int
    reason: str


def belongs_in_arena(stored_bytes: int, capacity_bytes: int) -> bool:
    """Whether a shard may lie in an arena of this capacity; a larger one streams to disk."""
    return stored_bytes <= ARENA_SHARE * capacity_bytes


def worth(reads: float, stored_bytes: int, disk: Disk) -> float:
    """Seconds that a copy in memory saves per byte that it takes: reads, each by what the disk needs for it."""
    return reads * (disk.read_s_per_byte + SEEK_S.get(disk.kind, 0.0) / max(stored_bytes, 1))


def admits(worth_per_byte: float, stored_bytes: int, victims: Iterable[tuple[float, int]]) -> bool:
    """Whether a shard that is read from disk takes the place of others in the arena, each given by what it is worth per
    byte and its bytes: only if together they are worth less. A scan that reads everything once pushes out nothing."""
    return sum(value * count for value, count in victims) < worth_per_byte * stored_bytes


def choose_disk(disks: Sequence[Disk], stored_bytes: int, use: Use, checkpoint_reserve_bytes: int = 0) -> Choice:
    """Where a new shard goes: an archive to the slowest disk, all else to where its commit is done soonest; never to
    one that fails, to a slow or nearly full one only if there is no other, and into the checkpoints' reserve only
    checkpoints."""
    reserve_bytes = 0 if use is Use.CHECKPOINT else checkpoint_reserve_bytes
    fit = [n for n, disk in enumerate(disks) if not disk.is_failing and disk.free_bytes >= stored_bytes + reserve_bytes]
    if not fit:
        kept = f", {format_bytes(reserve_bytes)} of each kept for checkpoints" if reserve_bytes else ""
        failing = sum(disk.is_failing for disk in disks)
        return Choice(disk=None, reason=f"{len(disks)} disks, {failing} failing{kept}")
    roomy = [n for n in fit if _fill(disks[n], stored_bytes) <= HIGH_WATERMARK] or fit
    able = [n for n in roomy if not disks[n].slow] or roomy
    if use is Use.ARCHIVE:
        best = max(able, key=lambda n: (disks[n].read_s_per_byte, -n))
        return Choice(disk=best, reason=f"an archive goes to the slowest of {len(able)} disks")
    soonest_s = min(disks[n].commit_s(stored_bytes) for n in able)
    alike = [n for n in able if disks[n].commit_s(stored_bytes) <= ALIKE * soonest_s]
    best = min(alike, key=lambda n: (_fill(disks[n], stored_bytes), n))
    avoided = [f"disk {n} is slow ({disks[n].slow})" for n in fit if disks[n].slow and n != best]
    why = f"committed soonest, in {disks[best].commit_s(stored_bytes):.2f} s"
    return Choice(disk=best, reason="; ".join([why, *avoided]))


def plan_moves(disks: Sequence[Disk], stored: Sequence[Stored], moves_max: int) -> list[Move]:
    """What to move between the disks: off a disk that fails or has become slow, what is read most first; off one that
    is above the high watermark, what is worth least; and up to a faster one below the low watermark, what is read
    often."""
    planner = _Moves(disks, moves_max)
    for shard in sorted(stored, key=lambda one: (-one.reads, one.shard_id)):
        disk = disks[shard.disk]
        if disk.slow or disk.is_failing:
            target = planner.slower(shard) if disk.is_failing else planner.faster(shard)
            planner.add(shard, target, f"disk {shard.disk} is slow or fails ({disk.slow or 'errors'})")
    for shard in sorted(stored, key=lambda one: (one.reads, -one.stored_bytes, one.shard_id)):
        limit = LOW_WATERMARK if shard.disk in planner.drained else HIGH_WATERMARK
        if planner.fill(shard.disk) > limit and not shard.is_pinned and not shard.is_cached:
            reason = f"disk {shard.disk} is {planner.fill(shard.disk):.0%} full, and it is read least"
            if planner.add(shard, planner.slower(shard), reason):
                planner.drained.add(shard.disk)
    for shard in sorted(stored, key=lambda one: (-one.reads, one.shard_id)):
        if shard.reads >= PROMOTED_READS_MIN:
            planner.add(shard, planner.faster(shard), f"it was read {shard.reads:.0f} times lately")
    return planner.moves


def has_room_to_spare(disks: Sequence[Disk], stored_bytes: int) -> bool:
    """Whether a copy that nobody was promised fits on a healthy disk below its high watermark."""
    return any(
        not disk.is_failing and disk.free_bytes > stored_bytes and _fill(disk, stored_bytes) <= HIGH_WATERMARK
        for disk in disks
    )


def is_crowded(disks: Sequence[Disk]) -> bool:
    """Whether any is above the high watermark, so that cached copies on it give way."""
    return any(_fill(disk, 0) > HIGH_WATERMARK for disk in disks)


def gives_way(disks: Sequence[Disk], cached: Sequence[Stored], worth_of: Callable[[str], float]) -> list[Stored]:
    """Which cached copies are to go: of each disk above the high watermark, what is worth least, down to the low one.
    `worth_of` orders them by the seconds that they save per byte, having come from elsewhere."""
    going: list[Stored] = []
    for number, disk in enumerate(disks):
        free_bytes = disk.free_bytes
        if 1 - free_bytes / max(disk.capacity_bytes, 1) <= HIGH_WATERMARK:
            continue
        here = sorted(
            (one for one in cached if one.disk == number), key=lambda one: (worth_of(one.shard_id), one.shard_id)
        )
        for one in here:
            if 1 - free_bytes / max(disk.capacity_bytes, 1) <= LOW_WATERMARK:
                break
            if not one.is_pinned:
                free_bytes += one.stored_bytes
                going.append(one)
    return going


class _Moves:
    """A plan in the making."""

    def __init__(self, disks: Sequence[Disk], moves_max: int) -> None:
        self.moves: list[Move] = []
        self.drained: set[int] = set()  # disks above the high watermark, which are brought down to the low one
        self._disks, self._moves_max = disks, moves_max
        self._free = [disk.free_bytes for disk in disks]
        self._moved: set[str] = set()

    def fill(self, disk: int) -> float:
        return 1 - self._free[disk] / max(self._disks[disk].capacity_bytes, 1)

    def faster(self, shard: Stored) -> int | None:
        """The fastest healthy disk below its low watermark that is clearly faster than the shard's own."""
        own = self._disks[shard.disk]
        able = [
            n
            for n, disk in enumerate(self._disks)
            if self._is_able(n, shard)
            and self._fill_with(n, shard) <= LOW_WATERMARK
            and disk.read_s_per_byte * (1.0 if own.slow else SPEED_GAP) <= own.read_s_per_byte
        ]
        return min(able, key=lambda n: (self._disks[n].read_s_per_byte, n), default=None)

    def slower(self, shard: Stored) -> int | None:
        """The next slower healthy disk that has room below its high watermark, else any other one that has."""
        own = self._disks[shard.disk]
        able = [n for n in range(len(self._disks)) if self._is_able(n, shard)]
        most = HIGH_WATERMARK if own.is_failing else min(self.fill(shard.disk), HIGH_WATERMARK)
        able = [n for n in able if self._fill_with(n, shard) < most]
        slower = [n for n in able if self._disks[n].read_s_per_byte >= own.read_s_per_byte] or able
        return min(slower, key=lambda n: (self._disks[n].read_s_per_byte, n), default=None)

    def add(self, shard: Stored, target: int | None, reason: str) -> bool:
        if target is None or shard.shard_id in self._moved or len(self.moves) == self._moves_max:
            return False
        self._moved.add(shard.shard_id)
        self._free[shard.disk] += shard.stored_bytes
        self._free[target] -= shard.stored_bytes
        move = Move(
            shard_id=shard.shard_id, source=shard.disk, target=target, stored_bytes=shard.stored_bytes, reason=reason
        )
        self.moves.append(move)
        return True

    def _is_able(self, number: int, shard: Stored) -> bool:
        disk = self._disks[number]
        return (
            number != shard.disk and not disk.is_failing and not disk.slow and self._free[number] > shard.stored_bytes
        )

    def _fill_with(self, number: int, shard: Stored) -> float:
        return 1 - (self._free[number] - shard.stored_bytes) / max(self._disks[number].capacity_bytes, 1)


def _fill(disk: Disk, stored_bytes: int) -> float:
    return 1 - (disk.free_bytes - stored_bytes) / max(disk.capacity_bytes, 1)
