"""Between the loop, which has the sockets, and the threads that seal and open: each waits for the other in bounded
memory and time."""

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from concurrent.futures import CancelledError, Executor, Future, wait
from io import BufferedIOBase
from typing import Any, TypeVar

from aiohttp import web

from raylog.errors import Cancelled, SourceError
from raylog.units import MIB, format_bytes
from raylog.web.answers import Stalled, TooLarge

T = TypeVar("T")
PULL_BYTES = MIB  # taken from a connection at once
HEAD_BYTES = 64  # that are kept of a body, for whoever looks at its beginning first
ANSWER_GRACE_S = 10.0  # that a busy loop may take longer than the client was given


class Loop:
    """For a thread: has the loop wait for a client, for at most `stall_s` at a time."""

    def __init__(self, stall_s: float) -> None:
        self._loop, self._stall_s = asyncio.get_running_loop(), stall_s

    def wait_for(self, waiting: Awaitable[T]) -> T:
        """Raises `Stalled` when nothing came in time, `SourceError` when the client has gone or breaks HTTP's rules,
        `Cancelled` when the gateway stops."""

        async def bounded() -> T:
            async with asyncio.timeout(self._stall_s):
                return await waiting

        future = asyncio.run_coroutine_threadsafe(bounded(), self._loop)
        try:
            return future.result(self._stall_s + ANSWER_GRACE_S)
        except TimeoutError:
            future.cancel()
            raise Stalled(f"expected more of the body within {self._stall_s:g} s, got nothing: send it again") from None
        except CancelledError:
            raise Cancelled("the gateway stops: nothing of this upload is stored") from None
        except (ConnectionError, web.RequestPayloadError) as error:
            raise SourceError(f"the upload was cut ({error}): nothing of it is stored, send it again") from None


class BodyStream(BufferedIOBase):
    """A request's body, or a part of it, for a thread to read once, forwards; the first bytes may be read again.

    `pull` gives the next bytes on the loop, some `PULL_BYTES` of them, none at the end. `readinto` fills its buffer up
    to the end. Closing does nothing: whoever reads it opens it anew for each shard. Raises `TooLarge` beyond
    `bytes_max`, `SourceError`.
    """

    def __init__(self, loop: Loop, pull: Callable[[], Awaitable[bytes]], bytes_max: int) -> None:
        self._loop, self._pull, self._bytes_max = loop, pull, bytes_max
        self._head, self._rest = b"", memoryview(b"")  # what was read first; what was pulled and not yet read
        self._pulled_bytes, self._position = 0, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        assert whence == os.SEEK_SET, "where a body ends is not known"
        self._position = offset
        return offset

    def read(self, size: int | None = -1, /) -> bytes:
        assert size is not None and size >= 0, "a body is never read as one piece"
        buffer = bytearray(size)
        return bytes(buffer[: self.readinto(buffer)])

    def readinto(self, buffer: Any, /) -> int:
        out, done = memoryview(buffer).cast("B"), 0
        while done < out.nbytes:
            piece = self._next_piece(out.nbytes - done)
            if not piece:
                break
            out[done : done + len(piece)] = piece
            done += len(piece)
            self._position += len(piece)
        return done

    def close(self) -> None:
        """See the class."""

    def _next_piece(self, size: int) -> memoryview:
        if self._position < len(self._head):
            return memoryview(self._head)[self._position : self._position + size]
        taken_bytes = self._pulled_bytes - len(self._rest)
        if self._position != taken_bytes:
            raise SourceError(f"a body is read once: it is at byte {taken_bytes}, not at {self._position}")
        if not self._rest:
            self._rest = memoryview(self._loop.wait_for(self._pull()))
            self._pulled_bytes += len(self._rest)
            if self._pulled_bytes > self._bytes_max:
                raise TooLarge(f"expected at most {format_bytes(self._bytes_max)}, got more: 'raylog gateway --help'")
        piece, self._rest = self._rest[:size], self._rest[size:]
        self._head += piece[: HEAD_BYTES - len(self._head)]
        return piece


async def from_thread(pool: Executor, pieces: Generator[T]) -> AsyncGenerator[T]:
    """What `pieces` gives, made in threads of `pool`, one ahead of what is taken. Ends them when it is closed."""
    coming = pool.submit(next, pieces, None)
    try:
        while (piece := await asyncio.wrap_future(coming)) is not None:
            coming = pool.submit(next, pieces, None)
            yield piece
    finally:
        pool.submit(_close, coming, pieces)


def _close(coming: Future[Any], pieces: Generator[Any]) -> None:
    wait([coming])  # a generator that runs cannot be closed
    pieces.close()
