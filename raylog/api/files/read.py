"""Files of a version, read at any position: only the shards and chunks that a read touches are brought and opened."""

import io
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from raylog.api.get import Reading
from raylog.codec.files import read_extents
from raylog.codec.stream import ContentStream
from raylog.errors import Unavailable, UsageError

SHARDS_OPEN_MAX = 4  # of one file at a time, each pinned on this node meanwhile


@dataclass(frozen=True, slots=True)
class Span:
    """`length` bytes of a file from `offset` on: in the version's shard number `shard`, from `start` in its stream."""

    shard: int
    start: int
    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length


def list_files(reading: Reading) -> dict[str, list[Span]]:
    """The files of a version by their paths. Brings all of its shards here: their lists of files are sealed in them."""
    found: dict[str, list[Span]] = {}
    for shard in range(len(reading.manifest.shards)):
        with reading.one_open(shard) as opener:
            start = 0
            for extent in read_extents(opener):
                spans = found.setdefault(extent.path, [])
                if extent.offset != (spans[-1].end if spans else 0):
                    raise opener.damaged(f"expected {extent.path!r} to go on where it ended, not at {extent.offset}")
                spans.append(Span(shard, start, extent.offset, extent.length))
                start += extent.length
    return found


def only_file(reading: Reading) -> list[Span]:
    """Where the bytes of a version lie that is one file, as its manifest says; no shard is brought for it."""
    spans: list[Span] = []
    for shard, entry in enumerate(reading.manifest.shards):
        spans.append(Span(shard, 0, spans[-1].end if spans else 0, entry.shard.content_bytes))
    return spans


class FileBytes:
    """The bytes of one file of a version. Thread-safe; close it when done."""

    def __init__(self, reading: Reading, spans: Sequence[Span]) -> None:
        self._reading, self._spans = reading, spans
        self._ends = [span.end for span in spans]
        self._lock = threading.Lock()
        self._open: OrderedDict[int, tuple[ExitStack, ContentStream]] = OrderedDict()
        self._is_closed = False

    @property
    def size_bytes(self) -> int:
        return self._ends[-1]

    def read_into(self, offset: int, out: memoryview) -> int:
        """Fills `out` from `offset` on, up to the file's end; how many bytes that were. Raises `DamagedData` when no
        copy of them can be had whole."""
        length = max(0, min(out.nbytes, self.size_bytes - offset))
        done = 0
        with self._lock:
            if self._is_closed:
                raise UsageError("expected an open file, this one was closed")
            position = bisect_right(self._ends, offset)
            while done < length:
                span = self._spans[position]
                start = offset + done - span.offset
                taken = min(length - done, span.length - start)
                self._read_into(span, span.start + start, out[done : done + taken])
                done, position = done + taken, position + 1
        return length

    def _read_into(self, span: Span, start: int, out: memoryview) -> None:
        was_open = span.shard in self._open
        try:
            self._stream(span).read_into(start, out)
        except Unavailable:
            if not was_open:
                raise
            self._open.pop(span.shard)[0].close()  # its pin went with a connection to the node: there is another now
            self._stream(span).read_into(start, out)

    def _stream(self, span: Span) -> ContentStream:
        if span.shard in self._open:
            self._open.move_to_end(span.shard)
        else:
            if len(self._open) == SHARDS_OPEN_MAX:
                self._open.popitem(last=False)[1][0].close()
            with ExitStack() as kept:
                opener = kept.enter_context(self._reading.one_open(span.shard))
                stream = ContentStream(opener)
                if not any(
                    (extent.offset, extent.length) == (span.offset, span.length) for extent in read_extents(opener)
                ):
                    raise opener.damaged(f"expected {span.length} bytes of a file from {span.offset} on in its list")
                self._open[span.shard] = kept.pop_all(), stream
        return self._open[span.shard][1]

    def close(self) -> None:
        """Lets go of the shards."""
        with self._lock:
            self._is_closed = True
            while self._open:
                self._open.popitem()[1][0].close()


class _Raw(io.RawIOBase):
    def __init__(self, content: FileBytes) -> None:
        self._content = content
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0, /) -> int:
        target = offset + (0, self._position, self._content.size_bytes)[whence]
        if target < 0:
            raise ValueError(f"expected a position from 0, got {target}")
        self._position = target
        return target

    def readinto(self, buffer: Any, /) -> int:
        done = self._content.read_into(self._position, memoryview(buffer).cast("B"))
        self._position += done
        return done

    def readall(self) -> bytes:
        whole = bytearray(max(0, self._content.size_bytes - self._position))
        self.readinto(whole)
        return bytes(whole)

    def close(self) -> None:
        if not self.closed:
            self._content.close()
        super().close()


class FileReader(io.BufferedReader):
    """A file for reading, as `open(path, "rb")` gives one; `size` is its length in bytes."""

    mode = "rb"

    def __init__(self, path: str, content: FileBytes, block_bytes: int) -> None:
        super().__init__(_Raw(content), max(1, min(block_bytes, content.size_bytes)))
        self.path = path
        self.size = content.size_bytes
