"""`seal` and `unseal`: one sealed file by itself, without a cluster. It is one shard, as FORMAT.md says."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from raylog.api.landing import PartialFile, landing_file, refuse_existing
from raylog.api.materialise import read_bytes, read_table, read_tensors, write_files
from raylog.api.seal_content import SealPlan, seal_content
from raylog.api.source import open_source
from raylog.codec.frame import Frame
from raylog.codec.keys import GroupKey, check_key
from raylog.codec.open import ShardOpener
from raylog.codec.seal import CHUNK_BYTES_DEFAULT
from raylog.codec.tensors import Array
from raylog.errors import DamagedData, NotFound, NotPermitted, UsageError
from raylog.spec import SHARD_CONTENT_BYTES_MAX, Kind, ShardRef, new_id, parse_codec
from raylog.units import MIB, format_bytes

NO_TENANT = "0" * 32  # a file by itself belongs to nobody
FILE_CONTENT_BYTES_MAX = SHARD_CONTENT_BYTES_MAX - 64 * MIB  # the rest is for the preamble and the last batch


def seal(source: Any, path: str | os.PathLike[str], key: bytes, *, codec: str = "auto") -> ShardRef:
    """Seals `source` (see `open_source`) into the one file `path`; `key` is 32 random bytes.

    `codec` is "auto" (chosen per chunk by sampling), "none", "lz4" or "zstd". The file appears whole and durable
    under its name or not at all, also after Ctrl-C, and nothing is overwritten. Raises `UsageError` for a key that
    is no key and for content beyond 4 GiB, `SourceError`, `Conflict` when `path` exists, `NoSpace`.
    """
    target = Path(path)
    plan = SealPlan(
        tenant=NO_TENANT,
        artifact_id=new_id(),
        version_id=new_id(),
        key=GroupKey(new_id(), key),
        codec=parse_codec(codec),
        shard_bytes=FILE_CONTENT_BYTES_MAX,
        chunk_bytes=CHUNK_BYTES_DEFAULT,
    )
    refuse_existing(target)
    content = open_source(source)
    if content.kind is not Kind.ARROW and (content.bytes or 0) > FILE_CONTENT_BYTES_MAX:
        raise _too_large(content.where)
    with landing_file(target) as partial:
        place = _OnePlace(partial, content.where)
        (sealed,) = seal_content(content, plan, place.begin)
        partial.land(durably=True)
    return sealed.frame.ref()


class _OnePlace:
    """The only place there is: a second shard would be a second file."""

    def __init__(self, partial: PartialFile, where: str) -> None:
        self._partial, self._where, self._is_taken = partial, where, False

    def begin(self, _sealed_bytes_max: int) -> "_OnePlace":
        if self._is_taken:
            raise _too_large(self._where)
        self._is_taken = True
        return self

    def write_at(self, offset: int, data: memoryview) -> None:
        self._partial.write_at(offset, data)

    def discard(self) -> None:
        """Nothing to do: a file that did not land is removed by its context."""


def unseal(
    path: str | os.PathLike[str], key: bytes, *, to: str | os.PathLike[str] | None = None
) -> pa.Table | dict[str, Array] | bytes | list[Path]:
    """What `seal` put into `path`: a `pa.Table`, a dict of arrays (see `read_tensors`), or the bytes of a single
    file. With `to`, files are written below that folder (see `write_files`) and their paths are returned.

    Every byte is verified before it is returned. Raises `UsageError` for a key that is no key, for several files
    without `to`, and for `to` with anything but files; `NotFound`, `NotPermitted` for another key than the file was
    sealed with, `DamagedData`, `Conflict` when a file below `to` exists.
    """
    check_key(key)
    with _opened(Path(path), key) as opener:
        if to is not None:
            return write_files([opener], Path(to))
        kind = opener.frame.header.kind
        if kind is Kind.ARROW:
            return read_table([opener])
        return read_tensors([opener]) if kind is Kind.TENSORS else read_bytes([opener])


def _too_large(where: str) -> UsageError:
    return UsageError(
        f"{where} holds more than the {format_bytes(FILE_CONTENT_BYTES_MAX)} that go into one sealed file: store it "
        "with client.put, which makes as many shards as it needs, or seal it in parts"
    )


@contextmanager
def _opened(path: Path, key: bytes) -> Iterator[ShardOpener]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise NotFound(f"there is no file {path}: check the path") from error
    except PermissionError as error:
        raise NotPermitted(f"no permission to read {path}: change its mode or owner") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    try:
        yield _opener(descriptor, path, key)
    finally:
        os.close(descriptor)


def _opener(descriptor: int, path: Path, key: bytes) -> ShardOpener:
    def read_at(offset: int, length: int) -> bytes:
        return bytes(_fill(bytearray(length), descriptor, offset, path))

    def read_chunk(number: int) -> memoryview:
        """One chunk, in memory that the next one gets too: an opener is done with it by then."""
        chunk = frame.chunks[number]
        return _fill(memoryview(sealed)[: chunk.sealed_bytes], descriptor, chunk.offset, path)

    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(f"expected a sealed file, got a folder or a device: {path}")
    frame = Frame.read(read_at, status.st_size)
    sealed = bytearray(max(chunk.sealed_bytes for chunk in frame.chunks))
    try:
        return ShardOpener(frame, [GroupKey(frame.header.dek_ids[0], key)], read_chunk)
    except DamagedData as error:
        if getattr(error, "check", None) == "commitment":
            raise NotPermitted(f"the key given is not the one that {path} was sealed with") from error
        raise


def _fill(buffer: bytearray | memoryview, descriptor: int, offset: int, path: Path) -> memoryview:
    view = memoryview(buffer)
    done = 0
    while done < view.nbytes:
        try:
            count = os.preadv(descriptor, [view[done:]], offset + done)
        except OSError as error:
            raise DamagedData(f"{path}: reading failed at byte {offset + done}: {error.strerror}") from error
        if not count:
            raise DamagedData(f"{path}: expected {view.nbytes} bytes at {offset}, the file ended: it was cut short")
        done += count
    return view
