"""Which bytes of a fixed space are free: a first-fit free list with coalescing, and what to evict. Pure."""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """A run of bytes; `offset` and `length` are multiples of the page size."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length

    def overlaps(self, other: "Extent") -> bool:
        return self.offset < other.end and other.offset < self.end


class FreeList:
    """The free extents of a space of `capacity_bytes`, in order of address, never two that touch.

    First fit takes low addresses first, so that recycled (warm) pages are taken before fresh ones. Every operation is
    O(number of free extents); an arena holds thousands of shards at most.
    """

    def __init__(self, capacity_bytes: int, page_bytes: int) -> None:
        assert page_bytes > 0
        self.page_bytes = page_bytes
        self.capacity_bytes = capacity_bytes - capacity_bytes % page_bytes
        self._offsets: list[int] = [0] if self.capacity_bytes else []
        self._lengths: list[int] = [self.capacity_bytes] if self.capacity_bytes else []

    @property
    def free_bytes(self) -> int:
        return sum(self._lengths)

    @property
    def largest_bytes(self) -> int:
        """Length of the largest extent that `allocate` could return now."""
        return max(self._lengths, default=0)

    def extents(self) -> list[Extent]:
        return [Extent(offset=o, length=n) for o, n in zip(self._offsets, self._lengths, strict=True)]

    def copy(self) -> "FreeList":
        twin = FreeList(0, self.page_bytes)
        twin.capacity_bytes = self.capacity_bytes
        twin._offsets, twin._lengths = self._offsets.copy(), self._lengths.copy()
        return twin

    def rounded(self, length: int) -> int:
        """`length` in whole pages, at least one."""
        return max(1, -(-length // self.page_bytes)) * self.page_bytes

    def allocate(self, length: int) -> Extent | None:
        """The lowest free extent that holds `length` bytes, or None when no single one does."""
        wanted = self.rounded(length)
        for index, available in enumerate(self._lengths):
            if available >= wanted:
                return self._take(index, wanted)
        return None

    def _take(self, index: int, wanted: int) -> Extent:
        extent = Extent(offset=self._offsets[index], length=wanted)
        if self._lengths[index] == wanted:
            del self._offsets[index], self._lengths[index]
        else:
            self._offsets[index] += wanted
            self._lengths[index] -= wanted
        return extent

    def trimmed(self, extent: Extent, length: int) -> Extent:
        """The front of an allocated extent that holds `length` bytes; what is behind it is free again."""
        kept = Extent(offset=extent.offset, length=self.rounded(length))
        assert kept.length <= extent.length
        if kept.length < extent.length:
            self.release(Extent(offset=kept.end, length=extent.length - kept.length))
        return kept

    def release(self, extent: Extent) -> None:
        """Gives back an extent that `allocate` returned, exactly once; joins it with free neighbours."""
        index = bisect.bisect_left(self._offsets, extent.offset)
        left_end = self._offsets[index - 1] + self._lengths[index - 1] if index else 0
        right_start = self._offsets[index] if index < len(self._offsets) else self.capacity_bytes
        assert extent.length > 0 and left_end <= extent.offset and extent.end <= right_start, "released twice"
        joins_left = index > 0 and left_end == extent.offset
        joins_right = index < len(self._offsets) and right_start == extent.end
        offset, length = extent.offset, extent.length
        if joins_right:
            length += self._lengths[index]
            del self._offsets[index], self._lengths[index]
        if joins_left:
            self._lengths[index - 1] += length
        else:
            self._offsets.insert(index, offset)
            self._lengths.insert(index, length)


def plan_eviction(free: FreeList, candidates: Sequence[Extent], length: int) -> list[int] | None:
    """Which of `candidates` (least recently used first) to free so that `length` bytes can be allocated.

    Adds candidates in their order until a large enough run is free, then keeps only those that lie in that run: a cold
    shard elsewhere is not evicted for nothing. Returns their indices, [] when there is room already, None when even
    freeing all of them makes no room.
    """
    trial = free.copy()
    wanted = free.rounded(length)
    count = 0
    while trial.largest_bytes < wanted:
        if count == len(candidates):
            return None
        trial.release(candidates[count])
        count += 1
    window = trial.allocate(wanted)
    assert window is not None
    return [index for index in range(count) if candidates[index].overlaps(window)]
