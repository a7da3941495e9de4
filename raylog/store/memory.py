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
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import Self

from raylog.codec.frame import Frame
from raylog.errors import Conflict, DamagedData, NotFound, UsageError
from raylog.spec import ShardRef, TierKind, new_id
from raylog.store.arena import Arena
from raylog.store.extents import Extent, FreeList, plan_eviction
from raylog.store.files import no_space
from raylog.store.pin import Pin
from raylog.store.progress import Progress

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Held:
    """One extent and the shard in it. The tier's lock guards everything but `progress`."""

    frame: Frame
    extent: Extent
    generation: int
    evictable: bool
    progress: Progress
    lent: set[int] = field(default_factory=set)  # chunks whose place was given out and not yet verified
    is_committed: bool = False
    is_written: bool = True  # a writer is open
    is_gone: bool = False  # no longer listed; the extent follows its last view
    views: int = 0
    used: int = 0

    @property
    def may_go(self) -> bool:
        return not self.views and (self.evictable if self.is_committed else not self.is_written)


def _by_last_use(_shard_id: str) -> float:
    return 0.0


@dataclass(frozen=True, slots=True)
class MemoryStaging:
    """An extent that a putting process fills with one sealed shard: `length` bytes at `offset` of `descriptor`, which
    stays the tier's."""

    stage_id: str
    descriptor: int
    extent: Extent

    @property
    def offset(self) -> int:
        return self.extent.offset

    @property
    def length(self) -> int:
        return self.extent.length


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
        self._shards: dict[str, _Held] = {}
        self._live: dict[int, _Held] = {}
        self._staged: dict[str, MemoryStaging] = {}
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

    def create(self, frame: Frame, *, evictable: bool = False) -> "MemoryWriter":
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
                held = self._place(frame)
            held.is_written, held.evictable = True, evictable
            return MemoryWriter(self, held, self._view(held))

    def stage(self, length: int) -> MemoryStaging:
        """An extent for a putting process, of at most half of the arena together. Raises `NoSpace`."""
        with self._lock:
            self._collect()
            staged_bytes = sum(one.length for one in self._staged.values())
            if staged_bytes + length > self.capacity_bytes // 2:
                raise no_space(
                    f"memory tier {self.path}", "stage a shard", length, self.capacity_bytes // 2 - staged_bytes
                )
            staging = MemoryStaging(new_id(), self._arena.descriptor, self._allocate(length))
            self._staged[staging.stage_id] = staging
            return staging

    def is_staged(self, stage_id: str) -> bool:
        with self._lock:
            return stage_id in self._staged

    def adopt(self, stage_id: str, stored_bytes: int, frame_digest: bytes) -> Frame:
        """Makes the first `stored_bytes` of a staged extent a shard of this tier that does not give way; frame and
        chunks are checked where they lie. On an error the staging is still there. Raises `DamagedData`, `NotFound`,
        `Conflict`."""
        with self._lock:
            staging = self._staged.get(stage_id)
        if staging is None or stored_bytes > staging.length:
            raise NotFound(
                f"memory tier {self.path}: no staging {stage_id[:80]!r} of {stored_bytes} bytes; stage again"
            )
        view = self._arena.view(staging.extent, stored_bytes, lambda: None)
        frame = Frame.read(lambda offset, length: bytes(view[offset : offset + length]), stored_bytes, frame_digest)
        for entry in frame.chunks:
            frame.verify_chunk(entry.number, view[entry.offset : entry.offset + entry.sealed_bytes])
        with self._lock:
            self._refuse_present(frame.header.shard_id)
            self._keep(frame, self._free.trimmed(staging.extent, stored_bytes))
            del self._staged[stage_id]
        return frame

    def discard(self, stage_id: str) -> None:
        """Ends a staging into which nobody writes any more; nothing to do when it has ended."""
        with self._lock:
            staging = self._staged.pop(stage_id, None)
            if staging is not None:
                self._free.release(staging.extent)

    def open(self, shard_id: str) -> "MemoryReader":
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

    def _committed_by_writer(self, held: _Held) -> None:
        with self._lock:
            held.is_committed, held.is_written = True, False
            held.used = next(self._uses)

    def _closed_by_writer(self, held: _Held, keep: bool) -> None:
        with self._lock:
            held.is_written = False
            if not keep:
                self._drop(held)

    # Under the lock.

    def _look(self, shard_id: str) -> tuple[_Held, memoryview]:
        with self._lock:
            held = self._committed(shard_id)
            held.used = next(self._uses)
            return held, self._view(held)

    def _mend_frame(self, held: _Held, view: memoryview) -> None:
        header, tail = held.frame.header_bytes, held.frame.tail_bytes
        if bytes(view[: len(header)]) != header or bytes(view[-len(tail) :]) != tail:
            log.warning(
                "%s: its header or index was damaged and is written anew", self._where(held.frame.header.shard_id)
            )
            _write_frame(held.frame, view)

    def _committed(self, shard_id: str) -> _Held:
        held = self._shards.get(shard_id)
        if held is None or not held.is_committed:
            raise self._not_found(shard_id)
        return held

    def _view(self, held: _Held) -> memoryview:
        held.views += 1
        return self._arena.view(held.extent, held.frame.stored_bytes, partial(self._ended.append, held.generation))

    def _refuse_present(self, shard_id: str) -> None:
        held = self._shards.get(shard_id)
        if held is not None and (held.is_committed or held.is_written):
            state = "is here already" if held.is_committed else "is being written by another writer"
            raise Conflict(f"{self._where(shard_id)} {state}", shard_id=shard_id)

    def _keep(self, frame: Frame, extent: Extent) -> None:
        """What lies in `extent` is this shard, whole."""
        before = self._shards.get(frame.header.shard_id)
        if before is not None:  # what a writer left unfinished
            self._drop(before)
        self._committed_by_writer(self._hold(frame, extent))

    def _place(self, frame: Frame) -> _Held:
        return self._hold(frame, self._allocate(frame.stored_bytes))

    def _allocate(self, length: int) -> Extent:
        extent = self._free.allocate(length)
        if extent is None:
            self._evict(length)
            extent = self._free.allocate(length)
            assert extent is not None
        return extent

    def _hold(self, frame: Frame, extent: Extent) -> _Held:
        held = _Held(frame, extent, next(self._generations), evictable=False, progress=Progress(len(frame.chunks)))
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

    def _candidates(self) -> list[_Held]:
        """Whatever may go, worth least first."""
        may_go = [(self.rank(shard_id), held.used, held) for shard_id, held in self._shards.items() if held.may_go]
        return [held for rank, _, held in sorted(may_go, key=itemgetter(0, 1)) if rank < math.inf]

    def _drop(self, held: _Held) -> None:
        if self._shards.get(held.frame.header.shard_id) is held:
            del self._shards[held.frame.header.shard_id]
        held.is_gone = True
        self._recycle_if_unused(held)

    def _collect(self) -> None:
        while self._ended:
            held = self._live[self._ended.popleft()]
            held.views -= 1
            self._recycle_if_unused(held)

    def _recycle_if_unused(self, held: _Held) -> None:
        if held.is_gone and not held.views:
            del self._live[held.generation]
            self._free.release(held.extent)

    def _where(self, shard_id: str) -> str:
        return f"memory tier {self.path}: shard {shard_id}"

    def _not_found(self, shard_id: str) -> NotFound:
        return NotFound(f"{self._where(shard_id)} is not here; fetch it from another tier or node", shard_id=shard_id)


class MemoryWriter:
    """One shard on its way into the arena; see `ShardWriter`."""

    def __init__(self, tier: MemoryTier, held: _Held, view: memoryview) -> None:
        self._tier, self._held = tier, held
        self._view: memoryview | None = view
        self._contested: set[int] = set()  # came by `write_chunk` while a receiver had their place
        self._lock = threading.Lock()  # of `lent`, `_contested` and the moment at which a chunk counts as found

    @property
    def frame(self) -> Frame:
        return self._held.frame

    def missing(self) -> list[tuple[int, int]]:
        return self._held.progress.missing()

    def write_chunk(self, number: int, sealed: memoryview) -> None:
        if not self._held.progress.is_missing(number):
            return
        self.frame.verify_chunk(number, sealed)
        self._place_of(number)[:] = sealed
        with self._lock:
            self._held.progress.found(number)  # from here on its place is not lent
            if number in self._held.lent:
                self._contested.add(number)

    def chunk_buffer(self, number: int) -> memoryview | None:
        with self._lock:
            if not self._held.progress.is_missing(number) or number in self._held.lent:
                return None
            self._held.lent.add(number)
        return self._place_of(number)

    def commit_chunk(self, number: int) -> None:
        try:
            self.frame.verify_chunk(number, self._place_of(number))
        except DamagedData as error:
            self._held.progress.lost(number)
            # Without the frames below, which hold a view: whoever keeps the error would keep the extent pinned.
            raise error.with_traceback(None) from None
        finally:
            with self._lock:
                self._held.lent.discard(number)
        self._held.progress.found(number)

    def stored_chunk(self, number: int) -> memoryview:
        assert not self._held.progress.is_missing(number)
        return self._place_of(number).toreadonly()

    def commit(self) -> None:
        """As `ShardWriter.commit`. No thread may still be receiving into a `chunk_buffer`: a chunk that came by
        `write_chunk` while its place was lent out is verified once more here, for the lender may have written late."""
        if not self._held.progress.is_complete():
            raise UsageError(
                f"shard {self.frame.header.shard_id}: chunks {self.missing()} are missing; write them first"
            )
        for number in sorted(self._contested):
            self.commit_chunk(number)
        _write_frame(self.frame, self._open_view())
        self._view = None
        self._tier._committed_by_writer(self._held)

    def abort(self) -> None:
        self._end(keep=False)

    def close(self) -> None:
        self._end(keep=True)

    def _end(self, keep: bool) -> None:
        if self._view is not None:
            self._view = None
            self._tier._closed_by_writer(self._held, keep)

    def _open_view(self) -> memoryview:
        view = self._view
        if view is None:
            raise UsageError(f"shard {self.frame.header.shard_id}: the writer has ended; create another")
        return view

    def _place_of(self, number: int) -> memoryview:
        entry = self.frame.chunks[number]
        return self._open_view()[entry.offset : entry.offset + entry.sealed_bytes]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class MemoryReader:
    """A pinned shard of the arena; see `ShardReader`. Its chunks are views of the arena, not copies."""

    def __init__(self, frame: Frame, view: memoryview) -> None:
        self.frame = frame
        self._view: memoryview | None = view.toreadonly()

    def chunk(self, number: int) -> memoryview:
        view = self._view
        if view is None:
            raise UsageError(f"shard {self.frame.header.shard_id}: the reader is closed; open another")
        entry = self.frame.chunks[number]
        return view[entry.offset : entry.offset + entry.sealed_bytes]

    def close(self) -> None:
        self._view = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _write_frame(frame: Frame, view: memoryview) -> None:
    """Header, index and trailer to where they stand in the shard's file."""
    header, tail = frame.header_bytes, frame.tail_bytes
    view[: len(header)] = header
    view[len(view) - len(tail) :] = tail
