"""Opaque files in a shard: which extents of which files, and their bytes one after another (FORMAT.md, "files")."""

from collections.abc import Iterable, Iterator
from typing import Protocol

import msgspec

from raylog.codec.compress import is_compressed_format
from raylog.codec.open import ShardOpener
from raylog.codec.seal import ShardSealer
from raylog.codec.stream import ContentStream
from raylog.errors import SourceError, UsageError
from raylog.units import MIB

PATH_BYTES_MAX = 4096
FILE_BYTES_MAX = 1 << 62
EXTENTS_MAX = 65_536  # in one shard: its list is opened whole
_READ_BYTES = 8 * MIB  # several chunks, so that most are sealed from where they were read


class Source(Protocol):
    """What is needed of a file to be read; `open(path, "rb")` and fsspec's files have it."""

    def seek(self, offset: int, /) -> int: ...
    def read(self, size: int, /) -> bytes: ...
    def readinto(self, buffer: memoryview, /) -> int | None: ...


class FileExtent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`length` bytes from `offset` on of the file `path`, which has `size` bytes, or of a stream so far."""

    path: str
    offset: int
    length: int
    size: int


class _Preamble(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    files: list[FileExtent]


def check_path(path: str) -> str:
    """The path itself if it stays below the folder it will be joined to: relative, parts without `..`, `.`, NUL or
    nothing, in valid UTF-8 of at most 4096 bytes. Raises `UsageError`."""
    encoded = path.encode("utf-8", "surrogatepass")
    if not encoded or len(encoded) > PATH_BYTES_MAX:
        raise UsageError(f"expected a path of 1 to {PATH_BYTES_MAX} bytes, got {len(encoded)}: {path[:80]!r}")
    if "\0" in path or any("\ud800" <= character <= "\udfff" for character in path):
        raise UsageError(f"expected a path in UTF-8 without NUL, got {path!r}: rename the file")
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise UsageError(f"expected a relative path without empty, '.' or '..' parts, got {path!r}")
    return path


def plan_files(sizes: Iterable[tuple[str, int]], shard_bytes: int) -> Iterator[list[FileExtent]]:
    """Distributes files (relative path, size in bytes) over shards of at most `shard_bytes` content, in order.

    A file that does not fit goes on in the next shard; an empty file has one empty extent. Raises `UsageError` for a
    bad path or one given twice.
    """
    extents: list[FileExtent] = []
    room, seen = shard_bytes, set()
    for path, size in sizes:
        if check_path(path) in seen:
            raise UsageError(f"expected every file once, got {path!r} twice")
        seen.add(path)
        offset, is_listed = 0, False
        while offset < size or not is_listed:
            if room == 0 or len(extents) == EXTENTS_MAX:
                yield extents
                extents, room = [], shard_bytes
            length = min(room, size - offset)
            extents.append(FileExtent(path=path, offset=offset, length=length, size=size))
            offset, room, is_listed = offset + length, room - length, True
    if extents:
        yield extents


def files_preamble(extents: list[FileExtent]) -> bytes:
    """The preamble of a shard that holds these extents in this order. Raises `UsageError`."""
    _check_extents(extents)
    return msgspec.msgpack.encode(_Preamble(extents))


def add_extent(sealer: ShardSealer, extent: FileExtent, source: Source) -> None:
    """Adds an extent's bytes, read from the seekable `source`; call it for the preamble's extents in their order.

    A file that is compressed already is stored as it is. Raises `SourceError` when the file ended early, that is,
    when it changed while it was read; give the sealer up then.
    """
    source.seek(0)
    compressible = not is_compressed_format(source.read(8))
    source.seek(extent.offset)
    buffer = memoryview(bytearray(min(_READ_BYTES, extent.length)))
    left_bytes = extent.length
    while left_bytes:
        got_bytes = source.readinto(buffer[: min(left_bytes, len(buffer))])
        if not got_bytes:
            at = extent.offset + extent.length - left_bytes
            raise SourceError(
                f"expected {extent.size} bytes of {extent.path!r}, it ended at {at}: it changed while read"
            )
        sealer.add_bytes(buffer[:got_bytes], compressible=compressible)
        left_bytes -= got_bytes


def read_extents(opener: ShardOpener) -> list[FileExtent]:
    """The extents of a shard, checked: paths stay below their folder and lengths fit. Raises `DamagedData`."""
    try:
        extents = msgspec.msgpack.decode(opener.preamble(), type=_Preamble).files
        _check_extents(extents)
    except (msgspec.DecodeError, UsageError) as error:
        raise opener.damaged(f"its list of files cannot be used: {error}") from None
    listed_bytes = sum(extent.length for extent in extents)
    if listed_bytes != opener.frame.content_bytes:
        raise opener.damaged(f"its extents have {listed_bytes} bytes, its content {opener.frame.content_bytes}")
    return extents


def open_files(
    opener: ShardOpener, paths: frozenset[str] | None = None
) -> Iterator[tuple[FileExtent, Iterator[memoryview]]]:
    """Every extent with its bytes in pieces; `paths` leaves others out, and their chunks closed.

    Raises `DamagedData`, while iterating too; what was written of that file until then must be dropped.
    """
    stream, start = ContentStream(opener), 0
    for extent in read_extents(opener):
        if paths is None or extent.path in paths:
            yield extent, stream.read(start, start + extent.length)
        start += extent.length


def _check_extents(extents: Iterable[FileExtent]) -> None:
    ends: dict[str, int] = {}
    for extent in extents:
        check_path(extent.path)
        end = extent.offset + extent.length
        if not (0 <= extent.offset <= end <= extent.size <= FILE_BYTES_MAX) or extent.length < 0:
            raise UsageError(f"expected an extent inside its file, got {extent}")
        if extent.offset < ends.get(extent.path, 0) or (extent.path in ends and not extent.length):
            raise UsageError(f"expected extents of one file in order and without overlap, got {extent}")
        ends[extent.path] = end
