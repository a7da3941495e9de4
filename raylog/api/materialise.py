"""From opened shards back to what was put: a table, files in a folder, bytes, arrays.

Every function takes the shards of one version in their order, as openers, and opens each only when it gets there.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby
from pathlib import Path

import numpy as np
import pyarrow as pa

from raylog.api.landing import LandingFolder, PartialFile
from raylog.api.sources.tensors import DTYPE_KEY
from raylog.codec import arrow, files
from raylog.codec.assemble import TensorAssembly
from raylog.codec.files import FileExtent
from raylog.codec.open import ShardOpener
from raylog.codec.tensors import PAYLOADS, Array
from raylog.errors import DamagedData, UsageError
from raylog.spec import Kind

_WORDS = {Kind.ARROW: "a table", Kind.FILES: "files", Kind.TENSORS: "tensors"}


def read_schema_and_batches(
    openers: Iterable[ShardOpener], columns: Sequence[str] | None = None
) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """The schema of the chosen columns (all for None, in the order given) and the batches, shard by shard.

    Raises `UsageError` for unknown columns and content that is no table, `DamagedData` while iterating too.
    """
    pending = iter(openers)
    first = next(pending)
    expect_kind(first, Kind.ARROW)
    whole = arrow.open_schema(first)
    batches = arrow.open_batches(first, columns)  # refuses unknown columns
    schema = whole if columns is None else pa.schema([whole.field(name) for name in columns], metadata=whole.metadata)
    return schema, chain(batches, _later_batches(pending, whole, columns))


def _later_batches(
    openers: Iterator[ShardOpener], whole: pa.Schema, columns: Sequence[str] | None
) -> Iterator[pa.RecordBatch]:
    for opener in openers:
        expect_kind(opener, Kind.ARROW)
        if not arrow.open_schema(opener).equals(whole, check_metadata=True):
            raise opener.damaged("its schema is not that of the version's other shards")
        yield from arrow.open_batches(opener, columns)


def read_table(openers: Iterable[ShardOpener], columns: Sequence[str] | None = None) -> pa.Table:
    """The whole table, or the chosen columns of it. Raises as `read_schema_and_batches` does."""
    schema, batches = read_schema_and_batches(openers, columns)
    return pa.Table.from_batches(batches, schema)


def write_files(openers: Iterable[ShardOpener], folder: Path) -> list[Path]:
    """Writes all files below `folder`, which is made if it is not there (its parent is not), and returns their paths.

    Each file appears whole, under its final name; an error or Ctrl-C removes what this call wrote. Nothing is
    overwritten and no link inside `folder` is followed. Raises `Conflict` for a path that exists, `UsageError` for
    a place that cannot be written, `NoSpace`, `DamagedData`.
    """
    written: list[Path] = []
    with LandingFolder(folder) as landing:
        for path, extents in groupby(_extents(openers, landing), key=lambda part: part[1].path):
            with landing.file(path.split("/")) as partial:
                _write_extents(partial, extents)
            written.append(folder.joinpath(*path.split("/")))
    return written


_Extent = tuple[ShardOpener, FileExtent, Iterator[memoryview]]


def _extents(openers: Iterable[ShardOpener], landing: LandingFolder) -> Iterator[_Extent]:
    """All extents in order; the bytes of each are to be read before the next is asked for."""
    for opener in openers:
        expect_kind(opener, Kind.FILES)
        for extent in files.read_extents(opener):
            if not extent.offset:
                landing.refuse_existing(extent.path.split("/"))
        for extent, pieces in files.open_files(opener):
            yield opener, extent, pieces


def _write_extents(partial: PartialFile, extents: Iterable[_Extent]) -> None:
    """Writes one file; its extents must follow one another without a gap, in one shard or several."""
    done = 0
    for opener, extent, pieces in extents:
        if extent.offset != done:
            raise opener.damaged(f"expected {extent.path!r} to go on at {done}, got its bytes from {extent.offset} on")
        for piece in pieces:
            partial.write_at(done, piece)
            done += piece.nbytes
    if done != extent.size:
        raise opener.damaged(f"expected {extent.size} bytes of {extent.path!r}, the shards hold {done}")


def read_bytes(openers: Iterable[ShardOpener]) -> bytes:
    """The bytes of the one file in the shards. Raises `UsageError` when there are several, `DamagedData`."""
    whole, size, path = bytearray(), 0, None
    for opener in openers:
        expect_kind(opener, Kind.FILES)
        for extent, pieces in files.open_files(opener):
            if path not in (None, extent.path):
                raise UsageError(
                    f"expected one file to return as bytes, got {path!r} and {extent.path!r}: name a folder"
                )
            if extent.offset != len(whole):
                raise opener.damaged(f"expected {extent.path!r} to go on at {len(whole)}, not at {extent.offset}")
            path, size = extent.path, extent.size
            for piece in pieces:
                whole += piece
    if len(whole) != size:
        raise DamagedData(f"expected {size} bytes of {path!r}, the shards hold {len(whole)}: use another copy")
    return bytes(whole)


def read_tensors(openers: Iterable[ShardOpener], names: Sequence[str] | None = None) -> dict[str, Array]:
    """The arrays by name, in the order they were put in (all for None, else the named ones).

    Types that numpy lacks come as unsigned integers of their width whose dtype says so in its metadata:
    `array.dtype.metadata["raylog_dtype"] == "bfloat16"`; `torch.from_numpy(array).view(torch.bfloat16)` reads them,
    and putting such an array again keeps its type. Raises `UsageError` for names that are not there, `DamagedData`.
    """
    assembly = TensorAssembly(names)
    for opener in openers:
        expect_kind(opener, Kind.TENSORS)
        assembly.add(opener)
    return {name: _typed(array, assembly.dtypes[name]) for name, array in assembly.finish().items()}


def _typed(array: Array, dtype: str) -> Array:
    if dtype not in PAYLOADS:
        return array
    return array.view(np.dtype(array.dtype, metadata={DTYPE_KEY: dtype}))


def expect_kind(opener: ShardOpener, kind: Kind) -> None:
    """Raises `UsageError` unless the shard is of that kind."""
    found = opener.frame.header.kind
    if found is not kind:
        raise UsageError(f"expected {_WORDS[kind]}, got {_WORDS[found]}: read it as what it is")
