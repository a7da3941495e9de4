"""A node's disks as one: where a new shard goes is the policy's choice, where one lies is looked up.

Every disk is a `DiskTier` of its own, with its own directory. A shard lies on one of them, while it is moved on two; a
copy on any of them counts. Thread-safe.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from raylog.codec.frame import Frame
from raylog.errors import Conflict, DamagedData, NoSpace, NotFound, Unavailable
from raylog.spec import ShardRef, TierKind, Use
from raylog.store.disk import DiskTier, Staging
from raylog.store.pin import Pin
from raylog.store.policy import Disk, choose_disk
from raylog.store.shard_file import DiskReader, DiskWriter

log = logging.getLogger(__name__)
T = TypeVar("T")


class Disks:
    """At least one disk tier; the first is the node's own, beside its identity. Owns them: `close` closes them."""

    def __init__(self, tiers: Sequence[DiskTier], checkpoint_reserve_bytes: int = 0) -> None:
        self.tiers = tuple(tiers)
        self.directory = self.tiers[0].directory
        self._checkpoint_reserve_bytes = checkpoint_reserve_bytes
        self._staged: dict[str, DiskTier] = {}
        self._intended: dict[str, DiskTier] = {}  # marked as cached there, and not begun yet
        self._lock = threading.Lock()

    @property
    def free_bytes(self) -> int:
        return sum(state.free_bytes for state in self.states())

    def states(self) -> list[Disk]:
        """As the policy sees them, in the order of `tiers`. One that does not even tell its size is failing."""
        return [_state(tier) for tier in self.tiers]

    def holder(self, shard_id: str) -> DiskTier | None:
        """The disk that serves the shard: of two that hold it, the faster one."""
        holding = [tier for tier in self.tiers if tier.holds(shard_id)]
        return max(holding, key=_speed, default=None)

    def holds(self, shard_id: str) -> bool:
        return any(tier.holds(shard_id) for tier in self.tiers)

    def kind_of(self, shard_id: str) -> TierKind:
        """Of the disk that holds the shard. Raises `NotFound`."""
        return self._holder(shard_id).kind

    def open(self, shard_id: str) -> DiskReader:
        return self._holder(shard_id).open(shard_id)

    def pin(self, shard_id: str) -> Pin:
        return self._holder(shard_id).pin(shard_id)

    def create(self, frame: Frame, use: Use = Use.DATASET) -> DiskWriter:
        """As `DiskTier.create`, on the disk that has some of the shard already, else on the one that the policy
        chooses."""
        shard_id = frame.header.shard_id
        self.refuse_present(frame)
        begun = next((tier for tier in self.tiers if tier.holds_partial(shard_id)), None)
        with self._lock:
            begun = self._intended.pop(shard_id, begun)
        if begun is not None:
            return begun.create(frame)
        return self._on_some(frame.stored_bytes, use, lambda tier: tier.create(frame))

    def refuse_present(self, frame: Frame) -> None:
        for tier in self.tiers:
            tier.refuse_present(frame)

    def delete(self, shard_id: str) -> None:
        self._everywhere(shard_id, DiskTier.delete)

    def quarantine(self, shard_id: str) -> None:
        self._everywhere(shard_id, DiskTier.quarantine)

    def replace_chunk(self, shard_id: str, number: int, sealed: memoryview) -> None:
        self._everywhere(shard_id, lambda tier, one: tier.replace_chunk(one, number, sealed))

    def shards(self) -> list[ShardRef]:
        """Of a disk that answers nothing there is nothing here: what lay on it is made again from elsewhere."""
        return list({ref.shard_id: ref for tier in self.tiers for ref in _answered(tier, tier.shards)}.values())

    def cached(self) -> list[str]:
        return list(dict.fromkeys(shard_id for tier in self.tiers for shard_id in _answered(tier, tier.cached)))

    def mark_pinned(self, shard_id: str) -> None:
        """Noted on the node's own disk, wherever the shard lies: a move does not change it."""
        self.tiers[0].mark_pinned(shard_id)

    def mark_unpinned(self, shard_id: str) -> None:
        self.tiers[0].mark_unpinned(shard_id)

    def pinned(self) -> list[str]:
        return _answered(self.tiers[0], self.tiers[0].pinned)

    def put_aside(self) -> list[str]:
        return [shard_id for tier in self.tiers for shard_id in _answered(tier, tier.put_aside)]

    def mark_cached(self, frame: Frame) -> None:
        """Notes, on the disk where it will be created, that the shard to come is promised to nobody."""
        shard_id = frame.header.shard_id
        begun = next((tier for tier in self.tiers if tier.holds_partial(shard_id)), None)
        if begun is not None:
            begun.mark_cached(shard_id)
            return

        def mark(tier: DiskTier) -> DiskTier:
            tier.mark_cached(shard_id)
            return tier

        tier = self._on_some(frame.stored_bytes, Use.DATASET, mark)
        with self._lock:
            self._intended[shard_id] = tier

    def mark_kept(self, shard_id: str) -> None:
        with self._lock:
            self._intended.pop(shard_id, None)
        for tier in self.tiers:
            tier.mark_kept(shard_id)

    def stage(self, expected_bytes: int = 0, use: Use = Use.DATASET) -> Staging:
        def begin(tier: DiskTier) -> Staging:
            staging = tier.stage(expected_bytes)
            with self._lock:
                self._staged[staging.stage_id] = tier
            return staging

        return self._on_some(expected_bytes, use, begin)

    def staged(self, stage_id: str, frame_digest: bytes) -> DiskReader:
        return self._of_stage(stage_id).staged(stage_id, frame_digest)

    def adopt(self, stage_id: str, frame: Frame) -> None:
        self._of_stage(stage_id).adopt(stage_id, frame)

    def discard(self, stage_id: str) -> None:
        with self._lock:
            tier = self._staged.pop(stage_id, self.tiers[0])
        tier.discard(stage_id)

    def move(self, shard_id: str, target: DiskTier) -> int:
        """Brings a shard to another disk, durably, before it goes from where it was; how many bytes. Whoever reads it
        there reads on. Raises `NotFound`, `NoSpace`, `DamagedData`, `Unavailable`; then it is where it was."""
        source = self._holder(shard_id)
        if source is target:
            return 0
        with source.open(shard_id) as reader:
            if source.is_cached(shard_id):
                target.mark_cached(shard_id)
            try:
                # A conflict: it is there from a move that was cut off.
                with suppress(Conflict), target.create(reader.frame) as writer:
                    for first, count in writer.missing():
                        for number in range(first, first + count):
                            writer.write_chunk(number, reader.chunk(number))
                    writer.commit()
            except BaseException:
                target.mark_kept(shard_id)
                raise
            moved_bytes = reader.frame.stored_bytes
        with suppress(NotFound):  # deleted meanwhile: then the copy goes too
            source.delete(shard_id)
            source.mark_kept(shard_id)
            return moved_bytes
        target.delete(shard_id)
        raise NotFound(f"shard {shard_id} was deleted while it was moved", shard_id=shard_id)

    def close(self) -> None:
        for tier in self.tiers:
            tier.close()

    def _on_some(self, needed_bytes: int, use: Use, action: Callable[[DiskTier], T]) -> T:
        """On the disk that the policy chooses; one that refuses is a failing one, and the next best is tried. Where
        none has room, the one that has most says so."""
        states, tried = self.states(), set[int]()
        while True:
            left = [state for n, state in enumerate(states) if n not in tried]
            numbers = [n for n in range(len(states)) if n not in tried]
            choice = choose_disk(left, needed_bytes, use, self._checkpoint_reserve_bytes)
            if choice.disk is None:
                able = [n for n in numbers if not states[n].is_failing] or numbers or list(range(len(states)))
                roomiest = max(able, key=lambda n: states[n].free_bytes)
                return action(self.tiers[roomiest])
            chosen = numbers[choice.disk]
            try:
                return action(self.tiers[chosen])
            except (Conflict, NoSpace):
                raise
            except Unavailable as error:
                tried.add(chosen)
                if len(tried) == len(states):
                    raise
                log.warning("another disk is taken: %s", error)

    def _holder(self, shard_id: str) -> DiskTier:
        found = self.holder(shard_id)
        if found is None:
            raise NotFound(f"disk tier {self.directory}: shard {shard_id} is not here", shard_id=shard_id)
        return found

    def _of_stage(self, stage_id: str) -> DiskTier:
        with self._lock:
            return self._staged.get(stage_id, self.tiers[0])

    def _everywhere(self, shard_id: str, action: Callable[[DiskTier, str], None]) -> None:
        found = 0
        for tier in self.tiers:
            with suppress(NotFound):
                action(tier, shard_id)
                found += 1
        if not found:
            raise NotFound(f"disk tier {self.directory}: shard {shard_id} is not here", shard_id=shard_id)


def _state(tier: DiskTier) -> Disk:
    try:
        capacity_bytes, free_bytes, is_failing = tier.capacity_bytes, tier.free_bytes, tier.meter.is_failing
    except (Unavailable, DamagedData) as error:
        log.warning("%s", error)
        tier.meter.failed()
        capacity_bytes, free_bytes, is_failing = 0, 0, True
    return Disk(
        kind=tier.kind,
        capacity_bytes=capacity_bytes,
        free_bytes=free_bytes,
        rates=tier.meter.rates,
        slow=tier.meter.slow,
        is_failing=is_failing,
    )


def _answered(tier: DiskTier, question: Callable[[], list[T]]) -> list[T]:
    try:
        return question()
    except (Unavailable, DamagedData, OSError) as error:
        log.warning("%s does not answer: %s", tier.directory, error)
        tier.meter.failed()
        return []


def _speed(tier: DiskTier) -> tuple[bool, float]:
    return not tier.meter.is_failing, tier.meter.rates.read_bytes_per_s
