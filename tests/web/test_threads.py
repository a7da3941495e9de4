"""Between loop and threads: a body read once with its beginning twice, bounded, with a deadline; a reader that leaves
ends what was made for it."""

import asyncio
from collections.abc import Awaitable, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylog.errors import SourceError
from raylog.web.answers import Stalled, TooLarge
from raylog.web.threads import BodyStream, Loop, from_thread

T = TypeVar("T")


def with_body(pieces: list[bytes], use: Callable[[BodyStream], T], bytes_max: int = 10_000) -> T:
    """What `use` makes, in a thread, of a body that comes in these pieces."""
    left = iter(pieces)

    async def pull() -> bytes:
        return next(left, b"")

    async def run() -> T:
        return await asyncio.to_thread(use, BodyStream(Loop(5), pull, bytes_max))

    return asyncio.run(run())


@given(pieces=st.lists(st.binary(min_size=1, max_size=300), max_size=8), cut=st.integers(1, 700))
def test_a_body_is_read_shard_by_shard(pieces: list[bytes], cut: int) -> None:
    whole = b"".join(pieces)

    def read(stream: BodyStream) -> bytes:
        got = bytearray()
        while len(got) < len(whole):
            with stream as again:
                again.seek(0)
                assert again.read(8) == whole[:8]
                again.seek(len(got))
                got += again.read(min(cut, len(whole) - len(got)))
        return bytes(got)

    assert with_body(pieces, read) == whole


def test_no_second_time_and_no_more_than_allowed() -> None:
    def back(stream: BodyStream) -> None:
        stream.read(500)
        stream.seek(100)
        stream.read(1)

    with pytest.raises(SourceError, match="read once"):
        with_body([bytes(1000)], back)
    with pytest.raises(TooLarge, match=r"at most 999 B"):
        with_body([bytes(500), bytes(500)], lambda stream: stream.read(2000), bytes_max=999)


def test_a_client_that_sends_nothing_or_goes() -> None:
    def read_from(waiting: Callable[[], Awaitable[bytes]]) -> None:
        async def run() -> None:
            await asyncio.to_thread(BodyStream(Loop(0.1), waiting, 100).read, 1)

        asyncio.run(run())

    async def forever() -> bytes:
        await asyncio.Event().wait()
        return b""

    async def gone() -> bytes:
        raise ConnectionResetError("reset")

    with pytest.raises(Stalled, match=r"within 0\.1 s"):
        read_from(forever)
    with pytest.raises(SourceError, match="nothing of it is stored"):
        read_from(gone)


def test_pieces_come_from_a_thread_and_end_with_their_reader() -> None:
    events: list[str] = []

    def counted(stop: int) -> Generator[int]:
        try:
            for number in range(stop):
                events.append(f"made {number}")
                yield number
            raise SourceError("the end")
        finally:
            events.append("closed")

    async def take(stop: int, few: int) -> list[int]:
        taken = []
        with ThreadPoolExecutor(2) as pool:
            async with aclosing(from_thread(pool, counted(stop))) as coming:
                async for number in coming:
                    taken.append(number)
                    if len(taken) == few:
                        break
        return taken

    assert asyncio.run(take(100, 3)) == [0, 1, 2]
    assert events[-1] == "closed" and len(events) <= 5, "one was made ahead"
    with pytest.raises(SourceError, match="the end"):
        asyncio.run(take(3, 9))
    assert events[-1] == "closed"
