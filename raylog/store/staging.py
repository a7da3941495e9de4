"""Staging in the arena: a putting process seals a shard straight into an extent, and the node adopts it as it lies."""

import threading
from dataclasses import dataclass

from raylog.codec.frame import Frame
from raylog.errors import NoSpace, NotFound, UsageError
from raylog.spec import Durability, new_id
from raylog.store.extents import Extent
from raylog.store.memory import MemoryTier
from raylog.store.policy import belongs_in_arena


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


class StagingArea:
    """The extents of a memory tier that putting processes write into: together no more of it than one shard may have.
    Thread-safe."""

    def __init__(self, memory: MemoryTier) -> None:
        self._memory = memory
        self._stagings: dict[str, MemoryStaging] = {}
        self._lock = threading.Lock()  # the tier's own is taken within it, never around it

    def __contains__(self, stage_id: str) -> bool:
        with self._lock:
            return stage_id in self._stagings

    def stage(self, length: int) -> MemoryStaging | None:
        """An extent of at least `length` bytes; None where there is no room for it."""
        with self._lock:
            staged_bytes = sum(one.length for one in self._stagings.values())
            if not belongs_in_arena(staged_bytes + length, self._memory.capacity_bytes):
                return None
            try:
                extent = self._memory.reserve(length)
            except NoSpace:
                return None
            staging = MemoryStaging(new_id(), self._memory.descriptor, extent)
            self._stagings[staging.stage_id] = staging
            return staging

    def adopt(self, stage_id: str, frame_digest: bytes, durability: Durability, stored_bytes: int) -> Frame:
        """Makes the first `stored_bytes` of a staged extent a shard of the tier that does not give way; frame and
        chunks are checked where they lie. On an error the staging is still there. Raises `DamagedData`, `NotFound`,
        `Conflict`, and `UsageError` for another promise than "memory"."""
        if durability is not Durability.MEMORY:
            raise UsageError(
                f"an extent of the arena is for what is promised in memory, not on {durability}: stage a file"
            )
        extent = self._extent(stage_id, stored_bytes)
        view = self._memory.reserved_view(extent, stored_bytes)
        frame = Frame.read(lambda offset, length: bytes(view[offset : offset + length]), stored_bytes, frame_digest)
        for entry in frame.chunks:
            frame.verify_chunk(entry.number, view[entry.offset : entry.offset + entry.sealed_bytes])
        with self._lock:
            self._memory.keep(frame, extent)
            del self._stagings[stage_id]
        return frame

    def discard(self, stage_id: str) -> None:
        """Ends a staging into which nobody writes any more; nothing to do when it has ended."""
        with self._lock:
            staging = self._stagings.pop(stage_id, None)
            if staging is not None:
                self._memory.release(staging.extent)

    def _extent(self, stage_id: str, stored_bytes: int) -> Extent:
        with self._lock:
            staging = self._stagings.get(stage_id)
        if staging is None or stored_bytes > staging.length:
            raise NotFound(
                f"memory tier {self._memory.path}: no staging {stage_id[:80]!r} of {stored_bytes} bytes; stage again"
            )
        return staging.extent
