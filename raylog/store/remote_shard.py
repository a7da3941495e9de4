"""Sealed shards among remote objects: written from a verified copy, read and checked as off the wire (REMOTE.md)."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from types import TracebackType
from typing import Protocol, Self

from raylog.codec.frame import Frame
from raylog.errors import DamagedData
from raylog.spec import ShardRef, parse_id
from raylog.store.objects import Blob, Limit, Objects
from raylog.units import MIB

RANGE_BYTES = 8 * MIB  # asked for at once: fewer requests than chunks, and little lost with one that fails
RANGES_AT_ONCE = 4
SHARD_CALL_S = 60.0  # of one chunk by itself


class ShardSource(Protocol):
    """A shard that can be copied from: `chunks` gives some of its sealed chunks, each verified by its frame."""

    @property
    def frame(self) -> Frame: ...

    def chunks(self, numbers: Sequence[int], limit: Limit) -> Iterator[tuple[int, memoryview]]: ...


def folder(cluster_id: str) -> str:
    """Where everything of a cluster lies."""
    return f"raylog-{parse_id(cluster_id, 'cluster id')}"


def shard_key(cluster_id: str, shard_id: str) -> str:
    parse_id(shard_id, "shard id")
    return f"{folder(cluster_id)}/shards/{shard_id[:2]}/{shard_id}"


def write_shard(
    objects: Objects, cluster_id: str, frame: Frame, chunks: Callable[[], Iterator[memoryview]], limit: Limit
) -> None:
    """Writes a whole copy; `chunks()` gives its sealed chunks in order, verified, once more after each failure. Raises
    as `Objects.write` and `chunks` do."""
    key = shard_key(cluster_id, frame.header.shard_id)
    objects.write(key, Blob(size=frame.stored_bytes, parts=lambda n: _parts(frame, chunks, n)), limit)


def open_shard(objects: Objects, cluster_id: str, ref: ShardRef, limit: Limit) -> "RemoteReader":
    """A reader of the remote copy, which is the manifest's by its frame digest. Raises `NotFound`, `DamagedData` when
    it was truncated or replaced, `NotPermitted`, `Unavailable`."""
    key = shard_key(cluster_id, ref.shard_id)
    size = objects.size(key, limit)
    where = f"{objects.url}: the copy of shard {ref.shard_id}"
    if size != ref.stored_bytes:
        raise DamagedData(
            f"{where} has {size} bytes, expected {ref.stored_bytes}: it was truncated or replaced",
            shard_id=ref.shard_id,
        )
    frame = Frame.read(lambda at, length: objects.read(key, at, length, limit), size, ref.frame_digest)
    return RemoteReader(objects, key, frame)


class RemoteReader:
    """A `ShardReader` of a remote copy."""

    def __init__(self, objects: Objects, key: str, frame: Frame) -> None:
        self.frame = frame
        self._objects, self._key = objects, key

    def chunk(self, number: int) -> memoryview:
        ((_, sealed),) = self.chunks([number], Limit.within(SHARD_CALL_S))
        return sealed

    def chunks(self, numbers: Sequence[int], limit: Limit) -> Iterator[tuple[int, memoryview]]:
        """These chunks, verified, in order; neighbours are asked for together and a few ranges at once."""
        runs = list(_runs(self.frame, numbers))
        with ThreadPoolExecutor(RANGES_AT_ONCE, thread_name_prefix="remote") as executor:
            for first in range(0, len(runs), RANGES_AT_ONCE):
                some = runs[first : first + RANGES_AT_ONCE]
                for run, data in zip(some, executor.map(lambda run: self._read(run, limit), some), strict=True):
                    yield from self._verified(run, data)

    def _read(self, run: Sequence[int], limit: Limit) -> bytes:
        first, last = self.frame.chunks[run[0]], self.frame.chunks[run[-1]]
        length = last.offset + last.sealed_bytes - first.offset
        return self._objects.read(self._key, first.offset, length, limit)

    def _verified(self, run: Sequence[int], data: bytes) -> Iterator[tuple[int, memoryview]]:
        start = self.frame.chunks[run[0]].offset
        for number in run:
            entry = self.frame.chunks[number]
            sealed = memoryview(data)[entry.offset - start : entry.offset - start + entry.sealed_bytes]
            try:
                self.frame.verify_chunk(number, sealed)
            except DamagedData as error:
                raise DamagedData(f"{self._objects.url}: the remote copy: {error}", **error.__dict__) from error
            yield number, sealed

    def close(self) -> None:
        """Nothing is held open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _parts(frame: Frame, chunks: Callable[[], Iterator[memoryview]], part_bytes: int) -> Iterator[bytes]:
    gathered = bytearray()
    pieces: Iterator[bytes | memoryview] = chain([frame.header_bytes], chunks(), [frame.tail_bytes])
    for piece in pieces:
        gathered += piece
        while len(gathered) >= part_bytes:
            yield bytes(memoryview(gathered)[:part_bytes])
            del gathered[:part_bytes]
    if gathered:
        yield bytes(gathered)


def _runs(frame: Frame, numbers: Sequence[int]) -> Iterator[list[int]]:
    """Neighbouring chunks, together at most `RANGE_BYTES` unless one alone is longer."""
    run: list[int] = []
    run_bytes = 0
    for number in sorted(numbers):
        sealed_bytes = frame.chunks[number].sealed_bytes
        if run and (number != run[-1] + 1 or run_bytes + sealed_bytes > RANGE_BYTES):
            yield run
            run, run_bytes = [], 0
        run.append(number)
        run_bytes += sealed_bytes
    if run:
        yield run
