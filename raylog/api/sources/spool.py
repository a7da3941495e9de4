"""Bytes whose number is not known until they end, kept sealed in a file without a name until they can be put."""

import errno
import os
import tempfile
from io import BufferedIOBase, BufferedReader, RawIOBase
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from raylog.api.sources.content import SourceFile
from raylog.errors import DamagedData, NoSpace
from raylog.units import MIB

BLOCK_BYTES = MIB
_TAG_BYTES = 16
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Spool:
    """What `fill` read, for as long as the spool is open. The file in `folder` has no name, so nothing of it is left
    after a crash, and its key was only ever in this process: each block of a MiB is sealed once, under its number."""

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - closed by `close`
        self._cipher = AESGCM(AESGCM.generate_key(256))
        self.size_bytes = 0

    def fill(self, stream: BufferedIOBase) -> None:
        """Takes all that is left of `stream`, whose `readinto` fills its buffer up to the end; once, in bounded memory.
        Raises `NoSpace`, and what the stream raises."""
        plain, sealed = memoryview(bytearray(BLOCK_BYTES)), memoryview(bytearray(BLOCK_BYTES + _TAG_BYTES))
        number = 0
        while count := stream.readinto(plain):
            assert not self.size_bytes % BLOCK_BYTES, "only the last block is short"
            self._cipher.encrypt_into(_nonce(number), plain[:count], None, sealed[: count + _TAG_BYTES])
            self._write(sealed[: count + _TAG_BYTES])
            number, self.size_bytes = number + 1, self.size_bytes + count

    def source(self, path: str, where: str) -> SourceFile:
        """What was filled in as the file `path` of a source."""
        return SourceFile(path=path, where=where, size_bytes=self.size_bytes, open=self._open, check=lambda: None)

    def _open(self) -> BufferedReader:
        return BufferedReader(_Reader(self), buffer_size=BLOCK_BYTES)

    def read_block(self, number: int, sealed: memoryview, plain: memoryview) -> int:
        """Opens a block into `plain`, by way of `sealed`; how many bytes it has. Raises `DamagedData`."""
        count = max(0, min(BLOCK_BYTES, self.size_bytes - number * BLOCK_BYTES))
        sealed = sealed[: count + _TAG_BYTES]
        got = os.preadv(self._file.fileno(), [sealed], number * (BLOCK_BYTES + _TAG_BYTES)) if count else 0
        try:
            if count:
                self._cipher.decrypt_into(_nonce(number), sealed[:got], None, plain[: max(got - _TAG_BYTES, 0)])
        except (InvalidTag, ValueError):
            message = f"block {number} of what was received is damaged on this machine's disk: send it again"
            raise DamagedData(message) from None
        return count

    def _write(self, sealed: memoryview) -> None:
        try:
            while sealed:
                sealed = sealed[self._file.write(sealed) :]
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            raise NoSpace(f"no room on this machine for what is being received: {error.strerror}") from error

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Reader(RawIOBase):
    """A spool's bytes from any position. Keeps the last block that it opened."""

    def __init__(self, spool: Spool) -> None:
        self._spool, self._position = spool, 0
        self._sealed, self._plain = memoryview(bytearray(BLOCK_BYTES + _TAG_BYTES)), memoryview(bytearray(BLOCK_BYTES))
        self._kept, self._kept_bytes = -1, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + (0, self._position, self._spool.size_bytes)[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        out = memoryview(buffer).cast("B")
        number, start = divmod(self._position, BLOCK_BYTES)
        if number != self._kept:
            self._kept = -1
            self._kept_bytes = self._spool.read_block(number, self._sealed, self._plain)
            self._kept = number
        count = max(0, min(out.nbytes, self._kept_bytes - start))
        out[:count] = self._plain[start : start + count]
        self._position += count
        return count


def _nonce(number: int) -> bytes:
    return number.to_bytes(12, "big")
