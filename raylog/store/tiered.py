"""A node's store: its memory tier in front of its disk tier."""

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from raylog.codec.frame import Frame
from raylog.errors import Conflict, DamagedData, NoSpace, NotFound
from raylog.spec import Durability, ShardRef, TierKind, Use
from raylog.store.arena_policy import ArenaPolicy
from raylog.store.cached_copies import CachedCopies
from raylog.store.disk import DiskTier, Staging
from raylog.store.disks import Disks
from raylog.store.hot import HotWriter, PromotingReader
from raylog.store.memory import MemoryTier
from raylog.store.memory_shard import MemoryWriter
from raylog.store.pin import Pin
from raylog.store.policy import belongs_in_arena
from raylog.store.shard_file import DiskReader
from raylog.store.staging import MemoryStaging, StagingArea
from raylog.store.tier import ShardReader, ShardWriter, Tier

log = logging.getLogger(__name__)

_Copy = tuple[Tier, ShardReader]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mending:
    """How many chunks a store replaced by its own bytes, and the chunks that no copy in it has whole."""

    replaced: int
    missing: list[int]


class TieredStore:
    """What the node actor and the processes beside it see as one store.

    With durability disk a shard is safe on disk and, room permitting, hot in the arena, from where it may vanish at any
    time. With durability memory it is in the arena alone and stays there until it is deleted or persisted; when the
    arena has no room it goes to disk instead, which promises more. `memory` is None on a machine without room in
    /dev/shm. Owns both tiers: `close` closes them. Thread-safe.
    """

    def __init__(self, memory: MemoryTier | None, disk: DiskTier | Disks, arena: ArenaPolicy | None = None) -> None:
        self.memory = memory
        self.disk = disk if isinstance(disk, Disks) else Disks([disk])
        self.arena = arena or ArenaPolicy()
        self._staging_area = None if memory is None else StagingArea(memory)
        if memory is not None:
            memory.rank = self.arena.rank
        self._cached = CachedCopies(self.disk, self.arena)

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """Fastest first. A copy on one tier is read, repaired or dropped by itself through its tier."""
        return self.disk.tiers if self.memory is None else (self.memory, *self.disk.tiers)

    def tiers_of(self, shard_id: str) -> list[TierKind]:
        """Where copies of the shard lie here, fastest first."""
        return [tier.kind for tier in self.tiers if tier.holds(shard_id)]

    def open(self, shard_id: str) -> ShardReader:
        """A reader of the fastest copy; a shard on disk is kept in the arena as it is read, if there is free room.
        Raises `NotFound`, `DamagedData`."""
        self.arena.read(shard_id)
        if self.memory is not None:
            with suppress(NotFound):
                return self.memory.open(shard_id)
        reader = self.disk.open(shard_id)
        hot = self._promotion(reader)
        return reader if hot is None else PromotingReader(reader, hot, self._keep_hot)

    def look(self, shard_id: str) -> Frame:
        """The shard's frame, as the fastest copy has it: to see what it is, which is no read of it. Raises `NotFound`,
        `DamagedData`."""
        if self.memory is not None:
            with suppress(NotFound), self.memory.open(shard_id) as reader:
                return reader.frame
        with self.disk.open(shard_id) as reader:
            return reader.frame

    def create(self, frame: Frame, durability: Durability, use: Use = Use.DATASET) -> ShardWriter:
        """A writer whose commit keeps the promise of `durability`. Raises `NoSpace`, `Conflict` as `Tier.create`."""
        self._refuse_present(frame)
        self.arena.arrived(frame.header.shard_id)
        self._cached.promise(frame.header.shard_id)
        if durability is Durability.MEMORY:
            kept = self._arena_writer(frame, evictable=False)
            if kept is not None:
                return kept
            _log_detour(frame)
        writer = self._cached.with_room(lambda: self.disk.create(frame, use))
        if writer.missing() != [(0, len(frame.chunks))]:
            return writer  # resumed: the arena lacks what the disk has
        hot = self._arena_writer(frame, evictable=True)
        return writer if hot is None else HotWriter(writer, hot, self._keep_hot)

    def create_cached(self, frame: Frame, *, displaces: bool = False) -> ShardWriter:
        """A writer of a copy that may go when room is needed: in the arena, or on disk where the arena has none; on
        disk too if it comes from a backup, from where it would be long in coming a second time. `displaces`: on a full
        disk other cached copies give way to it, since somebody waits for this one."""
        self._refuse_present(frame)
        self.arena.arrived(frame.header.shard_id)
        on_disk = self._cached.create_beside(frame) if self.arena.is_from_afar(frame.header.shard_id) else None
        if on_disk is not None and on_disk.missing() != [(0, len(frame.chunks))]:
            return on_disk  # resumed: the arena lacks what the disk has
        cached = self._arena_writer(frame, evictable=True)
        if cached is None and on_disk is None and displaces:
            return self._cached.with_room(lambda: self._cached.create(frame))
        if cached is None:
            return on_disk or self._cached.create(frame)
        return cached if on_disk is None else HotWriter(on_disk, cached, self._keep_hot)

    def persist(self, shard_id: str) -> None:
        """Makes a shard that is in the arena alone durable on disk too; there it is evictable from then on.

        Nothing to do when it is on disk. Raises `NotFound`, `NoSpace`, `Conflict` while another writer writes it.
        """
        if self.memory is None or self.disk.holds(shard_id):
            if not self.disk.holds(shard_id):
                raise self._not_found(shard_id)
            return
        self._copy_to_disk(self.memory, shard_id, self.disk.create)
        self.memory.set_evictable(shard_id, True)

    def pin_copy(self, shard_id: str) -> None:
        """The copy that is here does not give way, be it cached, and stays in the arena once it is there; until
        `unpin_copy` or its deletion, after a restart too. It counts for no more than before. Raises `NotFound`,
        `NoSpace`."""
        if self.memory is not None and not self.disk.holds(shard_id) and self.memory.is_evictable(shard_id):
            self._copy_to_disk(self.memory, shard_id, self._cached.create)  # the arena does not outlive the process
        if not self._cached.pin(shard_id, lambda: bool(self.tiers_of(shard_id))):
            raise self._not_found(shard_id)

    def is_pinned(self, shard_id: str) -> bool:
        return self._cached.is_pinned(shard_id)

    def unpin_copy(self, shard_id: str) -> None:
        """It may give way again, if it is cached; nothing to do where it is not pinned."""
        self._cached.unpin(shard_id)

    def is_cached(self, shard_id: str) -> bool:
        """Whether the copy on disk is promised to nobody."""
        return shard_id in self._cached

    def drop_cached(self, shard_id: str) -> None:
        """The cached copy on disk goes, unless it was promised or pinned meanwhile."""
        self._cached.drop(shard_id)

    def _copy_to_disk(self, memory: MemoryTier, shard_id: str, create: Callable[[Frame], ShardWriter]) -> None:
        with memory.open(shard_id) as reader, self._cached.with_room(lambda: create(reader.frame)) as writer:
            for first, count in writer.missing():
                for number in range(first, first + count):
                    writer.write_chunk(number, reader.chunk(number))
            writer.commit()

    def keep(self, shard_id: str, durability: Durability) -> None:
        """Gives a copy that is here the promise of `durability`. Raises `NotFound`, `NoSpace`."""
        self._cached.promise(shard_id)
        if durability is Durability.DISK:
            self.persist(shard_id)
        elif self.memory is not None and not self.disk.holds(shard_id):
            self.memory.set_evictable(shard_id, False)

    def kept_on(self, shard_id: str) -> TierKind:
        """The tier on which a copy stays until it is deleted. Raises `NotFound` where there is none, or only one that
        may be evicted."""
        on_disk = self._cached.kept_on(shard_id)
        if on_disk is not None:
            return on_disk
        if self.memory is None or not self.memory.holds(shard_id) or self.memory.is_evictable(shard_id):
            raise NotFound(f"store {self.disk.directory}: shard {shard_id} is not kept here", shard_id=shard_id)
        return TierKind.MEMORY

    def delete(self, shard_id: str) -> None:
        """Takes every copy away, the durable one first. Raises `NotFound` when there was none."""
        self._everywhere(shard_id, "delete")

    def quarantine(self, shard_id: str) -> None:
        """Takes every copy out of sight. Raises `NotFound` when there was none."""
        self._everywhere(shard_id, "quarantine")

    def replace_chunk(self, shard_id: str, number: int, sealed: memoryview) -> None:
        """Repairs one chunk in every copy here; see `Tier.replace_chunk`."""
        holders = [tier for tier in self.tiers if tier.holds(shard_id)]
        if not holders:
            raise self._not_found(shard_id)
        for tier in holders:
            tier.replace_chunk(shard_id, number, sealed)

    def mend(self, shard_id: str, numbers: Iterable[int]) -> Mending:
        """Checks chunks in every copy here and replaces a damaged one by the same chunk of a copy that has it whole.
        Raises `NotFound`, and `DamagedData` when a copy's frame is not intact."""
        with ExitStack() as stack:
            copies: list[_Copy] = []
            for tier in self.tiers:
                with suppress(NotFound):
                    copies.append((tier, stack.enter_context(tier.open(shard_id))))
            if not copies:
                raise self._not_found(shard_id)
            found = {number: _mend_chunk(copies, number) for number in numbers}
        return Mending(
            replaced=sum(1 for damaged in found.values() if damaged),
            missing=[number for number, damaged in found.items() if damaged is None],
        )

    def put_aside(self) -> list[str]:
        """Shards of which nothing is left here but damaged files that were put aside."""
        return [one for one in self.disk.put_aside() if not self.tiers_of(one)]

    def shards(self) -> list[ShardRef]:
        """Every shard that lies here, once."""
        in_memory = [] if self.memory is None else self.memory.shards()
        return list({ref.shard_id: ref for ref in (*in_memory, *self.disk.shards())}.values())

    def stage(self, expected_bytes: int = 0, use: Use = Use.DATASET) -> Staging:
        """A file on the disk tier for a putting process of this machine to write one sealed shard into; ended by
        `adopt` or `discard`. Raises `NoSpace` when `expected_bytes` do not fit."""
        return self._cached.with_room(lambda: self.disk.stage(expected_bytes, use))

    def stage_in_memory(self, length: int) -> MemoryStaging | None:
        """An extent of the arena to write one sealed shard of at most `length` bytes into, for a version that promises
        memory; ended as one on disk. None where there is no room for it: then it goes to disk."""
        return None if self._staging_area is None else self._staging_area.stage(length)

    def adopt(self, stage_id: str, frame_digest: bytes, durability: Durability, stored_bytes: int = 0) -> ShardRef:
        """Makes what was put into a staging a shard of this store, with the promise of `durability`; of one in the
        arena, which is for "memory" alone, the first `stored_bytes`.

        The frame is checked against `frame_digest` (32 bytes), then every chunk against the frame. On an error the
        staging is still there. Raises `DamagedData`, `Conflict` when the shard is here already, `NoSpace`, `NotFound`.
        """
        if self._staging_area is not None and stage_id in self._staging_area:
            frame = self._staging_area.adopt(stage_id, frame_digest, durability, stored_bytes)
            self.arena.arrived(frame.header.shard_id)
            return frame.ref()
        with self.disk.staged(stage_id, frame_digest) as staged:
            frame = staged.frame
            self._refuse_present(frame)
            self.arena.arrived(frame.header.shard_id)
            hot = self._arena_writer(frame, evictable=durability is Durability.DISK)
            try:
                self._verify(staged, hot)
                if hot is not None and durability is Durability.MEMORY:
                    hot.commit()
                    self.disk.discard(stage_id)
                    return frame.ref()
                if durability is Durability.MEMORY:
                    _log_detour(frame)
                self.disk.adopt(stage_id, frame)
            except BaseException:
                if hot is not None:
                    hot.abort()
                raise
        if hot is not None:
            self._keep_hot(hot)
        return frame.ref()

    def discard(self, stage_id: str) -> None:
        """Ends a staging that is not adopted and removes its file; nothing to do when it has ended."""
        if self._staging_area is not None:
            self._staging_area.discard(stage_id)
        self.disk.discard(stage_id)

    def pin(self, shard_id: str) -> Pin:
        """Holds the fastest copy in its place for a local process. Raises `NotFound`, `DamagedData`."""
        self.arena.read(shard_id)
        if self.memory is not None:
            with suppress(NotFound):
                return self.memory.pin(shard_id)
        pin = self.disk.pin(shard_id)
        self._cached.read_by(shard_id, pin)
        return pin

    def is_current(self, generation: int) -> bool:
        """Whether what a pin of this generation showed is still the same shard's bytes."""
        return generation == Pin.NO_GENERATION or (self.memory is not None and self.memory.is_current(generation))

    def close(self) -> None:
        for tier in self.tiers:
            tier.close()

    def _arena_writer(self, frame: Frame, *, evictable: bool) -> MemoryWriter | None:
        if self.memory is None or not belongs_in_arena(frame.stored_bytes, self.memory.capacity_bytes):
            return None
        try:
            return self.memory.create(frame, evictable=evictable)
        except (NoSpace, Conflict):  # all is in use, or another reader is promoting this very shard
            return None

    def _promotion(self, reader: DiskReader) -> MemoryWriter | None:
        memory, frame = self.memory, reader.frame
        shard_id = frame.header.shard_id
        disk = self.disk.holder(shard_id)
        if memory is None or disk is None or not belongs_in_arena(frame.stored_bytes, memory.capacity_bytes):
            return None
        self.arena.lies_on(shard_id, frame.stored_bytes, disk.kind, disk.meter.rates)
        has_room = memory.free_bytes >= frame.stored_bytes
        if not has_room and not self.arena.may_admit(shard_id):
            return None
        if not self.arena.admits(shard_id, frame.stored_bytes, memory.victims(frame.stored_bytes)):
            return None
        return self._arena_writer(frame, evictable=True)

    def _keep_hot(self, hot: MemoryWriter) -> None:
        hot.commit()
        shard_id = hot.frame.header.shard_id
        disk = self.disk.holder(shard_id)
        if disk is not None:
            self.arena.lies_on(shard_id, hot.frame.stored_bytes, disk.kind, disk.meter.rates)
        if self.memory is not None and not self.disk.holds(shard_id):
            # Deleted while the copy was made. `delete` goes disk first, so one of the two of us sees the copy.
            with suppress(NotFound):
                self.memory.delete(shard_id)

    @staticmethod
    def _verify(staged: DiskReader, hot: MemoryWriter | None) -> None:
        for number in range(len(staged.frame.chunks)):
            place = None if hot is None else hot.chunk_buffer(number)
            if hot is None or place is None:
                staged.chunk(number)
            else:
                staged.read_chunk_into(number, place)
                del place  # an error of the next line must not hold the view
                hot.commit_chunk(number)

    def _refuse_present(self, frame: Frame) -> None:
        shard_id = frame.header.shard_id
        if self.memory is not None and self.memory.holds(shard_id) and not self.disk.holds(shard_id):
            raise Conflict(f"shard {shard_id} is here already, in memory alone; persist it instead", shard_id=shard_id)
        self.disk.refuse_present(frame)

    def _everywhere(self, shard_id: str, action: str) -> None:
        found = 0
        for tier in reversed(self.tiers):
            with suppress(NotFound):
                getattr(tier, action)(shard_id)
                found += 1
        self._cached.promise(shard_id)  # of the next copy of this name nothing is known
        self._cached.unpin(shard_id)
        self.arena.forget(shard_id)
        if not found:
            raise self._not_found(shard_id)

    def _not_found(self, shard_id: str) -> NotFound:
        return NotFound(f"store {self.disk.directory}: shard {shard_id} is not here", shard_id=shard_id)


def _mend_chunk(copies: Sequence[_Copy], number: int) -> int | None:
    """How many copies of a chunk were damaged and are whole now; None when all of them are damaged."""
    whole, damaged = None, []
    for tier, reader in copies:
        try:
            sealed = reader.chunk(number)
            reader.frame.verify_chunk(number, sealed)
        except DamagedData as error:
            # Its words alone: whoever keeps the error keeps the frames below, and with them the extent.
            log.warning("a copy in %s is damaged: %s", tier.kind, str(error))
            damaged.append((tier, reader.frame.header.shard_id))
        else:
            whole = sealed
    if whole is None:
        return None
    for tier, shard_id in damaged:
        tier.replace_chunk(shard_id, number, whole)
    return len(damaged)


def _log_detour(frame: Frame) -> None:
    log.info("shard %s goes to disk and not to memory: the arena has no room for it", frame.header.shard_id)
