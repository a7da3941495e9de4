"""One shard as a file of a disk tier: read chunk by chunk, written chunk by chunk in any order."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from raylog.buffers import BufferPool
from raylog.codec.frame import Frame
from raylog.errors import DamagedData, UsageError
from raylog.store.device_meter import DeviceMeter
from raylog.store.files import Descriptor, read_exactly, storage_errors, write_exactly
from raylog.store.progress import Progress

_PEEK_BYTES = 16  # the shortest sealed chunk; ciphertext is all zeros there once in 2^128


class DiskReader:
    """A committed file, open; see `ShardReader`. Each `chunk` reads into a pooled buffer of its own and verifies it."""

    def __init__(self, tier: str, frame: Frame, file: Descriptor, buffers: BufferPool, meter: DeviceMeter) -> None:
        self.frame = frame
        self._tier, self._buffers, self._meter = tier, buffers, meter
        self._file: Descriptor | None = file

    @property
    def descriptor(self) -> int:
        """The open file's number, for handing to another process; the reader keeps and closes it."""
        return self._open_file().number

    def chunk(self, number: int) -> memoryview:
        buffer = self._buffers.take(self.frame.chunks[number].sealed_bytes)
        self.read_chunk_into(number, buffer)
        self.frame.verify_chunk(number, buffer)
        return buffer.toreadonly()

    def forget_cached(self) -> None:
        """Has what follows read from the device, and not from pages that were right when they were written."""
        os.posix_fadvise(self._open_file().number, 0, 0, os.POSIX_FADV_DONTNEED)

    def read_chunk_into(self, number: int, buffer: memoryview) -> None:
        """The chunk as it lies on the disk, not verified: for a buffer that is verified in its own place."""
        file, shard_id = self._open_file(), self.frame.header.shard_id
        where = f"read chunk {number} of shard {shard_id}"
        with storage_errors(self._tier, where, meter=self._meter, shard_id=shard_id, chunk=number):
            offset, began_s = self.frame.chunks[number].offset, time.perf_counter()
            read_exactly(file.number, buffer, offset, f"{self._tier}: {where}", shard_id=shard_id, chunk=number)
            self._meter.read(len(buffer), time.perf_counter() - began_s)

    def _open_file(self) -> Descriptor:
        file = self._file
        if file is None:
            raise UsageError(f"shard {self.frame.header.shard_id}: the reader is closed; open another")
        return file

    def close(self) -> None:
        self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class DiskWriter:
    """A partial file of full length, without a trailer until `commit`; see `ShardWriter`.

    `publish` names the fsynced file as a shard, `ended` is called once when the writing is over.
    """

    def __init__(
        self,
        tier: str,
        frame: Frame,
        path: Path,
        file: Descriptor,
        buffers: BufferPool,
        meter: DeviceMeter,
        *,
        publish: Callable[[], None],
        ended: Callable[[], None],
    ) -> None:
        self.frame = frame
        self._tier, self._path, self._publish, self._ended = tier, path, publish, ended
        self._buffers, self._meter = buffers, meter
        self._written_bytes, self._write_s = 0, 0.0
        self._file: Descriptor | None = file
        self._progress = Progress(len(frame.chunks))

    def find_chunks(self) -> None:
        """Looks which chunks an earlier writer left: those whose bytes match the frame."""
        file = self._open_file()
        for number, entry in enumerate(self.frame.chunks):
            try:
                with storage_errors(self._tier, f"read chunk {number} of {self._path.name}"):
                    if not any(os.pread(file.number, _PEEK_BYTES, entry.offset)):
                        continue  # reserved and never written: not worth reading whole
                    buffer = self._buffers.take(entry.sealed_bytes)
                    read_exactly(file.number, buffer, entry.offset, str(self._path))
                self.frame.verify_chunk(number, buffer)
            except DamagedData:
                continue  # written half, or its pages never reached the disk: it is asked for again
            self._progress.found(number)

    def missing(self) -> list[tuple[int, int]]:
        return self._progress.missing()

    def write_chunk(self, number: int, sealed: memoryview) -> None:
        if self._progress.is_missing(number):
            self.frame.verify_chunk(number, sealed)
            self.write_verified(number, sealed)

    def write_verified(self, number: int, sealed: memoryview) -> None:
        """As `write_chunk`, for bytes that the caller has just verified."""
        file, shard_id = self._open_file(), self.frame.header.shard_id
        with storage_errors(self._tier, f"write chunk {number} of shard {shard_id}", len(sealed), meter=self._meter):
            offset, began_s = self.frame.chunks[number].offset, time.perf_counter()
            write_exactly(file.number, sealed, offset)
            # On Linux this begins to write the range out, so that the disk works while the next chunks come and little
            # is left to the commit's fsync.
            os.posix_fadvise(file.number, offset, len(sealed), os.POSIX_FADV_DONTNEED)
            self._write_s += time.perf_counter() - began_s
            self._written_bytes += len(sealed)
        self._progress.found(number)

    def chunk_buffer(self, number: int) -> memoryview | None:
        return None

    def commit_chunk(self, number: int) -> None:
        raise UsageError(f"shard {self.frame.header.shard_id}: a disk tier lends no chunk_buffer; use write_chunk")

    def stored_chunk(self, number: int) -> memoryview:
        file, entry = self._open_file(), self.frame.chunks[number]
        buffer = self._buffers.take(entry.sealed_bytes)
        with storage_errors(self._tier, f"read chunk {number} of {self._path.name}"):
            read_exactly(file.number, buffer, entry.offset, str(self._path))
        self.frame.verify_chunk(number, buffer)
        return buffer.toreadonly()

    def commit(self) -> None:
        if not self._progress.is_complete():
            raise UsageError(
                f"shard {self.frame.header.shard_id}: chunks {self.missing()} are missing; write them first"
            )
        file, frame = self._open_file(), self.frame
        action = f"commit shard {frame.header.shard_id}"
        with storage_errors(self._tier, action, frame.stored_bytes, meter=self._meter):
            began_s = time.perf_counter()
            try:
                trailer = frame.tail_bytes[len(frame.index_bytes) :]
                write_exactly(file.number, trailer, frame.stored_bytes - len(trailer))
                os.fsync(file.number)
            except OSError:
                # A failed fsync may have dropped dirty pages, and the next one would not say so.
                self.abort()
                raise
            self._publish()
            sync_s = time.perf_counter() - began_s
            self._meter.wrote(self._written_bytes, self._write_s + sync_s, sync_s)
        self._end()

    def abort(self) -> None:
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            self._end()

    def close(self) -> None:
        if self._file is not None:
            self._end()

    def _end(self) -> None:
        self._file = None
        self._ended()

    def _open_file(self) -> Descriptor:
        file = self._file
        if file is None:
            raise UsageError(f"shard {self.frame.header.shard_id}: the writer has ended; create another")
        return file

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
