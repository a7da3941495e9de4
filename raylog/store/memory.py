"""The memory tier: sealed shards in an arena that local processes map read-only.

A shard lies in one page-aligned extent, byte for byte as in its file. An extent has a *generation*, never given twice.
It is pinned by its views: as long as a writer, a reader, a pin or any slice that one of them gave exists, the extent
is not recycled, also when its shard was deleted meanwhile. Only when the last view is gone do the bytes become free.
"""

import itertools
import logging
import math
import mmap
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from pathlib import Path

from raylog.codec.frame import Frame
from raylog.errors import Conflict, NotFound, UsageError
from raylog.spec import ShardRef, TierKind
from raylog.store.arena import Arena
from raylog.store.extents import Extent, FreeList, plan_eviction
from raylog.store.files import no_space
from raylog.store.memory_shard import Held, MemoryReader, MemoryWriter, write_frame
from raylog.store.pin import Pin
from raylog.store.progress import Progress

log = logging.getLogger(__name__)


def _by_last_use(_shard_id: str) -> float:
    return 0.0


class MemoryTier:
    """Sealed shards in an arena of `capacity_bytes` at `path`; keeps the promises of `Tier`.

    Nothing survives this process: `close` and the next start remove the arena. When room is needed, the least recently
    used shards that were created `evictable` and that nobody looks at are dropped; others never.
    """

    kind = TierKind.MEMORY

    def __init__(self, path: Path, capacity_bytes: int) -> None:
        if capacity_bytes < mmap.PAGESIZE:
            raise UsageError(f"memory tier {path}: expected a capacity of at least a page, got {capacity_bytes} bytes")
        self.capacity_bytes = capacity_bytes - capacity_bytes % mmap.PAGESIZE
        self._arena = Arena(path, self.capacity_bytes)
        self._free = FreeList(self.capacity_bytes, mmap.PAGESIZE)
        self._shards: dict[str, Held] = {}
        self._live: dict[int, Held] = {}
        self._ended: deque[int] = deque()  # generations of views that are gone; filled from any thread, without a lock
        self._generations = itertools.count(1)
        self._uses = itertools.count(1)
        self.rank: Callable[[str], float] = _by_last_use  # the highest goes last, of equals the last used, inf never
        self._lock = threading.RLock()

    @property
    def path(self) -> Path:
        return self._arena.path

    @property
    def free_bytes(self) -> int:
        with self._lock:
            self._collect()
            return self._free.free_bytes

    @property
    def warm_bytes(self) -> int:
        """How much of the arena has been faulted in ahead of use."""
        return self._arena.warm_bytes

    def create(self, frame: Frame, *, evictable: bool = False) -> MemoryWriter:
        """As `Tier.create`. An `evictable` shard is a copy of something that is safe elsewhere."""
        shard_id = frame.header.shard_id
        with self._lock:
            self._collect()
            self._refuse_present(shard_id)
            held = self._shards.get(shard_id)
            if held is not None and held.frame.digest != frame.digest:
                self._drop(held)
                held = None
            if held is None:
                held = self._hold(frame, self._allocate(frame.stored_bytes))
            held.is_written, held.evictable = True, evictable
            view = self._view(held)
        return MemoryWriter(held, view, committed=partial(self._commit, held), closed=partial(self._end_writing, held))

    @property
    def descriptor(self) -> int:
        """Of the arena, open for writing: for a process that fills a reserved extent."""
        return self._arena.descriptor

    def reserve(self, length: int) -> Extent:
        """An extent that is filled by somebody else, until `keep` or `release`. Raises `NoSpace`."""
        with self._lock:
            self._collect()
            return self._allocate(length)

    def reserved_view(self, extent: Extent, length: int) -> memoryview:
        """The first `length` bytes of a reserved extent; holding it reserves nothing."""
        return self._arena.view(extent, length, lambda: None)

    def keep(self, frame: Frame, extent: Extent) -> None:
        """Makes what lies in the front of a reserved extent a shard that does not give way; the caller has verified it
        there. Raises `Conflict`; then the extent is still reserved."""
        shard_id = frame.header.shard_id
        with self._lock:
            self._refuse_present(shard_id)
            before = self._shards.get(shard_id)
            if before is not None:  # what a writer left unfinished
                self._drop(before)
            self._commit(self._hold(frame, self._free.trimmed(extent, frame.stored_bytes)))

    def release(self, extent: Extent) -> None:
        """Gives back a reserved extent into which nobody writes any more."""
        with self._lock:
            self._free.release(extent)

    def open(self, shard_id: str) -> MemoryReader:
        held, view = self._look(shard_id)
        return MemoryReader(held.frame, view)

    def pin(self, shard_id: str) -> Pin:
        """Holds the shard's extent for a process that maps it, its header and index as this tier knows them; chunks
        are checked by whoever opens them. Raises `NotFound`."""
        held, view = self._look(shard_id)
        self._mend_frame(held, view)
        return Pin(
            frame=held.frame,
            descriptor=self._arena.read_only_descriptor,
            offset=held.extent.offset,
            tier=self.kind,
            generation=held.generation,
            holder=view,
        )

    def is_current(self, generation: int) -> bool:
        """Whether the extent of this generation has not been recycled since."""
        with self._lock:
            self._collect()
            return generation in self._live

    def holds(self, shard_id: str) -> bool:
        with self._lock:
            held = self._shards.get(shard_id)
            return held is not None and held.is_committed

    def delete(self, shard_id: str) -> None:
        with self._lock:
            self._collect()
            held = self._shards.get(shard_id)
            if held is None or (held.is_written and not held.is_committed):
                raise self._not_found(shard_id)
            self._drop(held)

    def quarantine(self, shard_id: str) -> None:
        """Memory has nothing to keep for inspection: the shard is deleted."""
        self.delete(shard_id)

    def set_evictable(self, shard_id: str, evictable: bool) -> None:
        """Whether the shard may give way. Raises `NotFound`."""
        with self._lock:
            self._committed(shard_id).evictable = evictable

    def is_evictable(self, shard_id: str) -> bool:
        """Whether a committed shard may go when room is needed. Raises `NotFound`."""
        with self._lock:
            return self._committed(shard_id).evictable

    def victims(self, stored_bytes: int) -> list[tuple[str, int]] | None:
        """Which shards (id and bytes) would give way to one of `stored_bytes`; None when there is no place for it."""
        with self._lock:
            self._collect()
            candidates = self._candidates()
            plan = plan_eviction(self._free, [held.extent for held in candidates], stored_bytes)
            if plan is None:
                return None
            return [(candidates[index].frame.header.shard_id, candidates[index].frame.stored_bytes) for index in plan]

    def replace_chunk(self, shard_id: str, number: int, sealed: memoryview) -> None:
        held, view = self._look(shard_id)
        held.frame.verify_chunk(number, sealed)
        entry = held.frame.chunks[number]
        view[entry.offset : entry.offset + entry.sealed_bytes] = sealed

    def shards(self) -> list[ShardRef]:
        with self._lock:
            return [held.frame.ref() for held in self._shards.values() if held.is_committed]

    def close(self) -> None:
        self._arena.close()

    # What writers call when they end.

    def _commit(self, held: Held) -> None:
        with self._lock:
            held.is_committed, held.is_written = True, False
            held.used = next(self._uses)

    def _end_writing(self, held: Held, keep: bool) -> None:
        with self._lock:
            held.is_written = False
            if not keep:
                self._drop(held)

    # Under the lock.

    def _look(self, shard_id: str) -> tuple[Held, memoryview]:
        with self._lock:
            held = self._committed(shard_id)
            held.used = next(self._uses)
            return held, self._view(held)

    def _mend_frame(self, held: Held, view: memoryview) -> None:
        header, tail = held.frame.header_bytes, held.frame.tail_bytes
        if bytes(view[: len(header)]) != header or bytes(view[-len(tail) :]) != tail:
            log.warning(
                "%s: its header or index was damaged and is written anew", self._where(held.frame.header.shard_id)
            )
            write_frame(held.frame, view)

    def _committed(self, shard_id: str) -> Held:
        held = self._shards.get(shard_id)
        if held is None or not held.is_committed:
            raise self._not_found(shard_id)
        return held

    def _view(self, held: Held) -> memoryview:
        held.views += 1
        return self._arena.view(held.extent, held.frame.stored_bytes, partial(self._ended.append, held.generation))

    def _refuse_present(self, shard_id: str) -> None:
        held = self._shards.get(shard_id)
        if held is not None and (held.is_committed or held.is_written):
            state = "is here already" if held.is_committed else "is being written by another writer"
            raise Conflict(f"{self._where(shard_id)} {state}", shard_id=shard_id)

    def _allocate(self, length: int) -> Extent:
        extent = self._free.allocate(length)
        if extent is None:
            self._evict(length)
            extent = self._free.allocate(length)
            assert extent is not None
        return extent

    def _hold(self, frame: Frame, extent: Extent) -> Held:
        held = Held(frame, extent, next(self._generations), evictable=False, progress=Progress(len(frame.chunks)))
        held.used = next(self._uses)
        self._shards[frame.header.shard_id] = self._live[held.generation] = held
        return held

    def _evict(self, length: int) -> None:
        candidates = self._candidates()
        plan = plan_eviction(self._free, [held.extent for held in candidates], length)
        if plan is None:
            room = self._free.free_bytes + sum(held.extent.length for held in candidates)
            raise no_space(f"memory tier {self.path}", "hold the shard (the rest is pinned or kept)", length, room)
        for index in plan:
            self._drop(candidates[index])

    def _candidates(self) -> list[Held]:
        """Whatever may go, worth least first."""
        may_go = [(self.rank(shard_id), held.used, held) for shard_id, held in self._shards.items() if held.may_go]
        return [held for rank, _, held in sorted(may_go, key=itemgetter(0, 1)) if rank < math.inf]

    def _drop(self, held: Held) -> None:
        if self._shards.get(held.frame.header.shard_id) is held:
            del self._shards[held.frame.header.shard_id]
        held.is_gone = True
        self._recycle_if_unused(held)

    def _collect(self) -> None:
        while self._ended:
            held = self._live[self._ended.popleft()]
            held.views -= 1
            self._recycle_if_unused(held)

    def _recycle_if_unused(self, held: Held) -> None:
        if held.is_gone and not held.views:
            del self._live[held.generation]
            self._free.release(held.extent)

    def _where(self, shard_id: str) -> str:
        return f"memory tier {self.path}: shard {shard_id}"

    def _not_found(self, shard_id: str) -> NotFound:
        return NotFound(f"{self._where(shard_id)} is not here; fetch it from another tier or node", shard_id=shard_id)
