"""One shard in the arena of a memory tier: read where it lies, written chunk by chunk in any order."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from raylog.codec.frame import Frame
from raylog.errors import DamagedData, UsageError
from raylog.store.extents import Extent
from raylog.store.progress import Progress


@dataclass(slots=True, eq=False)
class Held:
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


class MemoryWriter:
    """One shard on its way into the arena; see `ShardWriter`.

    One of the two is called once when the writing is over: `committed`, or `closed` with whether to keep what is there.
    """

    def __init__(
        self, held: Held, view: memoryview, *, committed: Callable[[], None], closed: Callable[[bool], None]
    ) -> None:
        self._held, self._committed, self._closed = held, committed, closed
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
        write_frame(self.frame, self._open_view())
        self._view = None
        self._committed()

    def abort(self) -> None:
        self._end(keep=False)

    def close(self) -> None:
        self._end(keep=True)

    def _end(self, keep: bool) -> None:
        if self._view is not None:
            self._view = None
            self._closed(keep)

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


def write_frame(frame: Frame, view: memoryview) -> None:
    """Header, index and trailer to where they stand in the shard's file."""
    header, tail = frame.header_bytes, frame.tail_bytes
    view[: len(header)] = header
    view[len(view) - len(tail) :] = tail
