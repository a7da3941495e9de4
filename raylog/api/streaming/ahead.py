"""Chunks opened by threads ahead of the loop that takes their rows, as far as a number of bytes; and before that their
shards brought to this node, in the order in which they will be needed."""

import atexit
import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import Self

import pyarrow as pa

from raylog.api.pulls import Pulls
from raylog.api.streaming.chunks import TableChunks
from raylog.api.streaming.columns import Rows
from raylog.api.streaming.order import Parts, Segment, lengths_of
from raylog.errors import Cancelled, RaylogError

log = logging.getLogger("raylog.stream")
BROUGHT_AT_ONCE = 2
MakeRows = Callable[[int, Segment, pa.RecordBatch], Rows]  # of a table's segment, whose chunk is this batch


class _Coming:
    """Rows that a thread or the loop itself opens, whoever comes first; `length` is how many, `size_bytes` count as
    read ahead until they are taken. `is_near`: nothing has to be brought for them."""

    def __init__(self, make: Callable[[], Rows], length: int, size_bytes: int, *, is_near: bool) -> None:
        self.length, self.size_bytes, self.is_near = length, size_bytes, is_near
        self._make, self._begun = make, threading.Lock()
        self.rows: Future[Rows] = Future()

    def open(self) -> None:
        """Unless somebody does already."""
        if not self._begun.acquire(blocking=False):
            return
        try:
            self.rows.set_result(self._make())
        except BaseException as error:
            self.rows.set_exception(error)
            if not isinstance(error, Exception):
                raise


class ReadAhead:
    """The rows of woven tables, table by table; a context manager, for one thread. One chunk of each table at least is
    under way, up to `read_ahead_bytes` of all; of shards that are to be brought here up to `pull_ahead_bytes`. The loop
    that takes rows opens chunks too instead of waiting for the `threads`, if it `may_help` them."""

    def __init__(
        self,
        tables: Sequence[TableChunks],
        parts: Parts,
        make_rows: MakeRows,
        read_ahead_bytes: int,
        pull_ahead_bytes: int,
        threads: int,
        *,
        may_help: bool,
    ) -> None:
        self._tables, self._make_rows, self._limit_bytes = tables, make_rows, read_ahead_bytes
        self._may_help = may_help
        self._pulls = [table.pulls() for table in tables]
        self._bringing = [
            _Bringing(table, segments, pulls, pull_ahead_bytes // len(parts))
            for table, segments, pulls in zip(tables, parts, self._pulls, strict=True)
        ]
        self._following = [iter(segments) for segments in parts]
        self._lengths = lengths_of(parts)
        self._unfinished = [part for part, length in enumerate(self._lengths) if length]
        self._coming: list[deque[_Coming]] = [deque() for _ in parts]
        self._ahead_rows, self._ahead_bytes = [0] * len(parts), 0
        self._present = [(Rows({}, 0), 0) for _ in parts]  # what is being taken from, and up to where it was taken
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="stream")
        self._is_closed = False
        _OPEN.add(self)

    def take(self, part: int, count: int) -> list[Rows]:
        """The next `count` rows of a table, which has them, in pieces. Raises as `TableChunks.batch`."""
        found: list[Rows] = []
        rows, at = self._present[part]
        while count:
            if at == rows.count:
                rows, at = self._next(part), 0
            taken = min(count, rows.count - at)
            found.append(rows.slice(at, taken))
            at += taken
            count -= taken
        self._present[part] = rows, at
        return found

    def _next(self, part: int) -> Rows:
        while not self._coming[part]:
            self._begin(part)
        self._fill()
        coming = self._coming[part].popleft()
        self._ahead_rows[part] -= coming.length
        self._ahead_bytes -= coming.size_bytes
        if self._may_help:
            self._help(coming, part)
        return coming.rows.result()

    def _help(self, needed: _Coming, part: int) -> None:
        """Opens chunks until the needed one is open, that one first; of others only what is near, so that the loop
        never waits for what it does not need yet."""
        for coming in chain((needed,), self._coming[part], *self._coming):
            if needed.rows.done():
                return
            if coming.is_near:
                coming.open()

    def _fill(self) -> None:
        """Begins with what will be needed soonest while the limit allows it."""
        while self._unfinished and self._ahead_bytes < self._limit_bytes:
            self._begin(min(self._unfinished, key=lambda part: self._ahead_rows[part] / self._lengths[part]))

    def _begin(self, part: int) -> None:
        segment = next(self._following[part], None)
        if segment is None:
            self._unfinished.remove(part)
            return
        table = self._tables[part]
        shard = table.shard_of(segment.chunk)
        self._bringing[part].reached(shard)
        coming = _Coming(
            partial(self._open, part, segment),
            segment.stop - segment.start,
            table.content_bytes[segment.chunk],
            is_near=table.is_kept[shard],
        )
        self._executor.submit(coming.open)
        self._coming[part].append(coming)
        self._ahead_rows[part] += coming.length
        self._ahead_bytes += coming.size_bytes

    def _open(self, part: int, segment: Segment) -> Rows:
        return self._make_rows(part, segment, self._tables[part].batch(segment.chunk, self._pulls[part]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends what is under way; the second time nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        for pulls in self._pulls:
            pulls.cancel()
        for bringing in self._bringing:
            bringing.close()
        self._executor.shutdown(cancel_futures=True)


_OPEN: weakref.WeakSet[ReadAhead] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """An iteration that is left in the middle, `next(iter(dataset))`, may live until the process ends, and then until
    after the modules that closing it needs."""
    for ahead in list(_OPEN):
        ahead.close()


class _Bringing:
    """The shards of a table that this node does not keep, brought here `limit_bytes` ahead; for one thread."""

    def __init__(self, table: TableChunks, segments: Sequence[Segment], pulls: Pulls, limit_bytes: int) -> None:
        self._table, self._pulls, self._limit_bytes = table, pulls, limit_bytes
        needed = dict.fromkeys(table.shard_of(segment.chunk) for segment in segments)
        self._coming = deque(position for position in needed if not table.is_kept[position])
        self._ahead: set[int] = set()
        self._ahead_bytes = 0
        self._executor = ThreadPoolExecutor(BROUGHT_AT_ONCE, thread_name_prefix="bring") if self._coming else None

    def reached(self, position: int) -> None:
        """A chunk of this shard is opened next: what follows it may come."""
        if position in self._ahead:
            self._ahead.discard(position)
            self._ahead_bytes -= self._table.stored_bytes[position]
        elif self._coming and self._coming[0] == position:
            self._coming.popleft()  # whoever opens the chunk brings it
        while self._executor is not None and self._coming:
            position = self._coming[0]
            size_bytes = self._table.stored_bytes[position]
            if self._ahead_bytes + size_bytes > self._limit_bytes:
                return
            self._executor.submit(self._bring, self._coming.popleft())
            self._ahead.add(position)
            self._ahead_bytes += size_bytes

    def _bring(self, position: int) -> None:
        try:
            self._table.bring(position, self._pulls)
        except Cancelled:
            pass
        except RaylogError as error:  # it is tried again, and raised, where a chunk of it is opened
            log.info("a shard of %s was not had ahead of its need: %s", self._table.name, error)

    def close(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
