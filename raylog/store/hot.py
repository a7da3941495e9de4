"""Copies in the arena made of what passes anyway: a shard that is received for disk, a shard that is read from disk."""

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from raylog.codec.frame import Frame
from raylog.errors import DamagedData
from raylog.store.memory_shard import MemoryWriter
from raylog.store.shard_file import DiskReader, DiskWriter

Keep = Callable[[MemoryWriter], None]  # commits the copy, unless the shard has been deleted meanwhile


class HotWriter:
    """Writes a shard to disk through the arena: received there, verified once, written from there. See `ShardWriter`.

    The disk alone says what is missing and what is committed. The copy in the arena is kept if it came out whole.
    """

    def __init__(self, disk: DiskWriter, hot: MemoryWriter, keep: Keep) -> None:
        self.frame: Frame = disk.frame
        self._disk, self._hot, self._keep = disk, hot, keep

    def missing(self) -> list[tuple[int, int]]:
        return self._disk.missing()

    def write_chunk(self, number: int, sealed: memoryview) -> None:
        self._disk.write_chunk(number, sealed)
        self._hot.write_chunk(number, sealed)

    def chunk_buffer(self, number: int) -> memoryview | None:
        return self._hot.chunk_buffer(number)

    def commit_chunk(self, number: int) -> None:
        self._hot.commit_chunk(number)
        self._disk.write_verified(number, self._hot.stored_chunk(number))

    def stored_chunk(self, number: int) -> memoryview:
        return self._hot.stored_chunk(number)

    def commit(self) -> None:
        self._disk.commit()
        try:
            if self._hot.missing():
                self._hot.abort()
            else:
                self._keep(self._hot)
        except DamagedData:  # a late receiver wrote into the copy; the disk has the right bytes
            self._hot.abort()

    def abort(self) -> None:
        self._hot.abort()
        self._disk.abort()

    def close(self) -> None:
        self._hot.abort()
        self._disk.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class PromotingReader:
    """Reads a shard from disk straight into the arena; after its last chunk the copy stays. See `ShardReader`."""

    def __init__(self, disk: DiskReader, hot: MemoryWriter, keep: Keep) -> None:
        self.frame: Frame = disk.frame
        self._disk, self._hot, self._keep = disk, hot, keep
        self._is_kept = False
        self._lock = threading.Lock()

    def chunk(self, number: int) -> memoryview:
        buffer = None if self._is_kept else self._hot.chunk_buffer(number)
        if buffer is None:  # read before, or another thread is reading it now
            return self._disk.chunk(number)
        self._disk.read_chunk_into(number, buffer)
        del buffer  # an error of the next line must not hold the view
        self._hot.commit_chunk(number)
        stored = self._hot.stored_chunk(number)
        with self._lock:
            if not self._is_kept and not self._hot.missing():
                self._is_kept = True
                self._keep(self._hot)
        return stored

    def close(self) -> None:
        with self._lock:
            if not self._is_kept:
                self._is_kept = True
                self._hot.abort()
        self._disk.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
