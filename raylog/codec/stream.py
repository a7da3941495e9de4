"""The byte stream of a shard of files or tensors, read by position; a range opens only the chunks it lies in."""

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate

from raylog.codec.open import ShardOpener


class ContentStream:
    """Positions count from 0, the first byte after the preamble. Keeps one opened chunk, so that many small ranges
    in a row open each chunk once. For one thread."""

    def __init__(self, opener: ShardOpener) -> None:
        self._opener = opener
        self._first = opener.frame.units[0].chunks
        self._ends = list(accumulate(unit.content_bytes for unit in opener.units))
        self._kept: tuple[int, memoryview] | None = None

    @property
    def content_bytes(self) -> int:
        """Length of the stream."""
        return self._ends[-1] if self._ends else 0

    def chunks(self, start: int, stop: int) -> range:
        """The numbers of the chunks in which the bytes from `start` to before `stop` lie, at least one."""
        assert 0 <= start < stop <= self.content_bytes
        first, last = bisect_right(self._ends, start), bisect_right(self._ends, stop - 1)
        return range(self._first + first, self._first + last + 1)

    def read(self, start: int, stop: int) -> Iterator[memoryview]:
        """The bytes from `start` to `stop`, in pieces that stay as they are. Raises `DamagedData`."""
        for position, first, last in self._overlaps(start, stop):
            yield self._keep(position)[first:last]

    def read_into(self, start: int, out: memoryview) -> None:
        """Fills `out` from `start` on; a chunk that lies wholly inside is decrypted in place if not compressed."""
        end = 0
        for position, first, last in self._overlaps(start, start + out.nbytes):
            begin, end = end, end + last - first
            if last - first == self._opener.units[position].content_bytes:
                self._opener.chunk(self._first + position, out[begin:end])
            else:
                out[begin:end] = self._keep(position)[first:last]

    def _overlaps(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Chunk position, and where the range begins and ends inside of that chunk."""
        assert 0 <= start <= stop <= self.content_bytes
        position = bisect_right(self._ends, start)
        while start < stop:
            begin = self._ends[position - 1] if position else 0
            last = min(stop, self._ends[position])
            if start < last:
                yield position, start - begin, last - begin
            start, position = last, position + 1

    def _keep(self, position: int) -> memoryview:
        if self._kept is None or self._kept[0] != position:
            self._kept = None
            self._kept = position, self._opener.chunk(self._first + position)
        return self._kept[1]
