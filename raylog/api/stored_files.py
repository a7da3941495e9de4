"""The files of a version, and parts of one: only the shards that a range lies in are brought to this node."""

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass

from raylog.api.get import Reading
from raylog.api.materialise import expect_kind
from raylog.codec.files import FileExtent, read_extents
from raylog.codec.open import ShardOpener
from raylog.codec.stream import ContentStream
from raylog.errors import DamagedData, NotFound, UsageError
from raylog.spec import Kind


@dataclass(frozen=True, slots=True)
class Part:
    """`length` bytes of a file from `offset` on: those from `start` on in a shard, by the shard's place in its
    version."""

    shard: int
    start: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of a version and where its bytes lie, in order and without a gap."""

    path: str
    size_bytes: int
    parts: tuple[Part, ...]


def list_files(reading: Reading) -> dict[str, int]:
    """Path -> size in bytes, of all files. Brings every shard here. Raises `UsageError` where there are no files."""
    found: dict[str, int] = {}
    with closing(reading.openers()) as openers:
        for opener in openers:
            found |= {extent.path: extent.size for extent in _extents(opener)}
    return found


def only_file(reading: Reading) -> StoredFile:
    """The one file of the version; its first and last shard say that it is the only one.

    Raises `UsageError` for several files, tables and tensors, `DamagedData`.
    """
    lengths = [entry.shard.content_bytes for entry in reading.manifest.shards]
    with closing(reading.openers(positions=sorted({0, len(lengths) - 1}))) as openers:
        ends = [extent for opener in openers for extent in _extents(opener)]
    names = sorted({extent.path for extent in ends})
    if len(names) > 1:
        raise UsageError(
            f"expected a version of one file, got {reading.manifest.name} with {names[0]!r}, {names[1]!r} and so on: "
            "name the file"
        )
    parts = [Part(shard, 0, sum(lengths[:shard]), length) for shard, length in enumerate(lengths)]
    return _whole(ends[-1], parts)


def find_file(reading: Reading, path: str) -> StoredFile:
    """The file `path` of the version. Shards before it are brought here too, and the one after it where it ends with a
    shard: until then a stream says its size so far. Raises `NotFound`, `UsageError` where there are no files,
    `DamagedData`."""
    parts: list[Part] = []
    last: FileExtent | None = None
    with closing(reading.openers()) as openers:
        for shard, opener in enumerate(openers):
            start = 0
            for extent in _extents(opener):
                if extent.path == path:
                    last = extent
                    parts.append(Part(shard, start, extent.offset, extent.length))
                elif last is not None:
                    return _whole(last, parts)
                start += extent.length
    if last is None:
        raise NotFound(f"there is no file {path[:200]!r} in {reading.manifest.name}: list its files")
    return _whole(last, parts)


def read_range(reading: Reading, file: StoredFile, start: int, stop: int) -> Generator[memoryview]:
    """The bytes of `file` from `start` to `stop`, in pieces of at most a chunk. Close it when leaving early. Raises
    `DamagedData` where no copy gives them."""
    wanted = [part for part in file.parts if part.offset < stop and start < part.offset + part.length]
    with closing(reading.openers(positions=[part.shard for part in wanted])) as openers:
        for part, opener in zip(wanted, openers, strict=True):
            first, last = max(start - part.offset, 0), min(stop - part.offset, part.length)
            yield from ContentStream(opener).read(part.start + first, part.start + last)


def _extents(opener: ShardOpener) -> list[FileExtent]:
    expect_kind(opener, Kind.FILES)
    return read_extents(opener)


def _whole(extent: FileExtent, parts: list[Part]) -> StoredFile:
    """The file whose last extent this is."""
    end = 0
    for part in parts:
        if part.offset != end:
            break
        end += part.length
    if end != extent.size:
        raise DamagedData(f"expected {extent.size} bytes of {extent.path!r}, the shards hold {end} in a row")
    return StoredFile(extent.path, extent.size, tuple(parts))
