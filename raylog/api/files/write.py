"""A file that is written: sealed block by block meanwhile, committed when it is closed, or gone without a trace."""

import io
import logging
import queue
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from types import TracebackType
from typing import Any

from raylog.api.sources.content import StreamContent
from raylog.errors import Cancelled, Unavailable, UsageError
from raylog.spec import Version
from raylog.units import MIB

log = logging.getLogger("raylog.files")
BLOCK_BYTES_MAX = 64 * MIB  # gathered before they are sealed as a shard; two such blocks are in memory at once
_LOOK_S = 0.1  # between two looks whether the put is still there
_DISCARD_S = 30.0
PutContent = Callable[[StreamContent], Version]


class FileWriter(io.BufferedIOBase):
    """The file `path` for writing from its first byte on; `put` makes a version of it. For one thread.

    Nothing is visible before `close`, and nothing at all when the `with` that it stands in is left by an exception,
    when it is closed while one is on its way that was not there when it was opened, or when it is not closed. With
    `commits_late` that is for `commit` or `discard` to say, after `close`. `write` and `close` raise what `Client.put`
    raises.
    """

    mode = "wb"

    def __init__(self, path: str, put: PutContent, block_bytes: int, *, commits_late: bool = False) -> None:
        self.path = path
        self._put = put
        self._commits_late = commits_late
        self._block = bytearray(block_bytes)  # no more of it is in memory than was written to
        self._filled = 0
        self._position = 0
        self._stream: _Stream | None = None
        self._error_before = sys.exc_info()[1]
        self._is_over = False
        self._is_dropped = False

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def write(self, data: Any, /) -> int:
        """Takes all of `data`; waits while the block before is sealed."""
        view = memoryview(data).cast("B")
        if self._is_dropped:
            return view.nbytes  # the last of what had it: nobody is there to be told
        if self.closed or self._is_over:
            raise UsageError(f"{self.path} is closed or was given up: open it again")
        try:
            self._fill(view)
        except BaseException:
            self.discard()
            raise
        self._position += view.nbytes
        return view.nbytes

    def _fill(self, rest: memoryview) -> None:
        while rest.nbytes:
            if self._filled == len(self._block):
                self._stream = self._stream or _Stream(self.path, self._put, len(self._block))
                self._block, self._filled = self._stream.swap(self._block), 0
            taken = min(rest.nbytes, len(self._block) - self._filled)
            self._block[self._filled : self._filled + taken] = rest[:taken]
            self._filled += taken
            rest = rest[taken:]

    def commit(self) -> None:
        """Makes what was written the next version."""
        if self._is_over:
            return
        last = memoryview(self._block)[: self._filled]
        try:
            if self._stream is None:
                self._put(_content(self.path, lambda: iter([last]), last.nbytes))
            else:
                self._stream.finish(last)
        except BaseException:
            self.discard()
            raise
        self._end()

    def discard(self) -> None:
        """Keeps nothing of it."""
        if not self._is_over:
            stream = self._stream
            self._end()
            if stream is not None:
                stream.abort()

    def _end(self) -> None:
        self._is_over, self._stream, self._block = True, None, bytearray()
        self._error_before = None  # nor the frames that it names

    def close(self) -> None:
        """Commits, unless that comes later, or an exception is on its way: whatever wraps a file, fsspec's `OpenFile`,
        text or Parquet, calls this and nothing else when its `with` is left by one."""
        if self.closed:
            return
        error = sys.exc_info()[1]
        try:
            if error is not None and error is not self._error_before and not self._is_over:
                log.warning(
                    "%s: closed while %s was on its way, nothing of it is kept", self.path, type(error).__name__
                )
                self.discard()
            elif not self._commits_late:
                self.commit()
        finally:
            super().close()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None:
            self.discard()
        self.close()

    def __del__(self) -> None:
        self._dealloc_warn(self)

    def _dealloc_warn(self, source: object) -> None:
        """Keeps nothing of it: nobody closed it. Python's text and buffered files call this of what they wrap when they
        are dropped, and then close it, which would make a version of half a file."""
        if not self._is_over:
            self._is_dropped = True
            warnings.warn(
                f"{self.path} was not closed: nothing of it is kept", ResourceWarning, stacklevel=2, source=source
            )
            self.discard()


class PackedWriter(io.BufferedIOBase):
    """What goes into `file` through `packer`, which compresses it. Closing it closes both; a packer alone would leave
    `file` open, and nothing would be kept."""

    def __init__(self, packer: Any, file: FileWriter) -> None:
        self._packer, self._file = packer, file

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        position: int = self._packer.tell()
        return position

    def write(self, data: Any, /) -> int:
        """As `FileWriter.write`."""
        self._packer.write(data)
        return memoryview(data).nbytes

    def close(self) -> None:
        """As `FileWriter.close`."""
        if self.closed:
            return
        super().close()
        try:
            self._packer.close()
        finally:  # what was raised there is on its way then: `file` keeps nothing
            self._file.close()

    def __del__(self) -> None:
        """Closes nothing: `file` says that it was not closed."""

    def _dealloc_warn(self, source: object) -> None:
        """As `FileWriter._dealloc_warn`."""
        self._file._dealloc_warn(source)


def _content(path: str, read: Callable[[], Iterator[memoryview]], size_bytes: int | None) -> StreamContent:
    return StreamContent(where=path, path=path.rpartition("/")[2], read=read, bytes=size_bytes)


class _Stream:
    """Blocks on their way from the writer to a put that goes on in a thread of its own. There is one besides that which
    the writer fills.

    The thread is a daemon: a file that is never closed keeps no process from ending; the lease of its put runs out."""

    def __init__(self, path: str, put: PutContent, block_bytes: int) -> None:
        self._path = path
        self._full = queue.Queue[memoryview | None](1)
        self._free = queue.Queue[bytearray]()
        self._free.put(bytearray(block_bytes))
        self._is_aborted = False
        self._outcome: Future[Version] = Future()
        self._thread = threading.Thread(target=self._run, args=(put,), name="write-file", daemon=True)
        self._thread.start()

    def _run(self, put: PutContent) -> None:
        try:
            self._outcome.set_result(put(_content(self._path, self._blocks, None)))
        except BaseException as error:  # noqa: BLE001 - raised in the writer's thread
            self._outcome.set_exception(error)

    def _blocks(self) -> Iterator[memoryview]:
        while (block := self._full.get()) is not None:
            yield block
            assert isinstance(block.obj, bytearray)
            self._free.put(block.obj)
        if self._is_aborted:
            raise Cancelled(f"{self._path}: its writer gave it up")

    def swap(self, block: bytearray) -> bytearray:
        """Gives a full block for one that may be filled. Raises what the put failed with."""
        self._offer(memoryview(block))
        while True:
            with suppress(queue.Empty):
                return self._free.get(timeout=_LOOK_S)
            self._check()

    def _offer(self, block: memoryview | None) -> None:
        while True:
            with suppress(queue.Full):
                self._full.put(block, timeout=_LOOK_S)
                return
            self._check()

    def _check(self) -> None:
        if self._outcome.done():
            self._outcome.result()
            raise Unavailable(f"{self._path}: its put ended before the file did: write it again")

    def finish(self, last: memoryview) -> Version:
        """Seals the last block; returns once the version is committed."""
        self._offer(last)
        self._offer(None)
        return self._outcome.result()

    def abort(self) -> None:
        """Ends the put; what it had stored is taken away when this returns, or soon after where a node is slow."""
        self._is_aborted = True
        with suppress(queue.Empty):
            self._full.get_nowait()
        with suppress(queue.Full):
            self._full.put_nowait(None)
        if not sys.is_finalizing():  # else the thread does not go on any more
            self._thread.join(_DISCARD_S)
