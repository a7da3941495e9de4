"""What a source holds once it is open: a table, files or tensors, each read as a stream of bounded memory."""

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from raylog.codec.units import Load, TaggedUnit, unit_bytes
from raylog.errors import SourceError
from raylog.spec import Kind

NAMED_MAX = 8  # how many names an error lists before it says "and so on"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """One file of a source: `path` is relative and `/`-separated, `where` is what messages call it.

    `open` gives a fresh, seekable binary stream each time, which the caller closes; `check` raises `SourceError` when
    the file is no longer what it was when the source was opened.
    """

    path: str
    where: str
    size_bytes: int
    open: Callable[[], io.BufferedIOBase] = field(repr=False)
    check: Callable[[], None] = field(repr=False)

    def pieces(self, piece_bytes: int, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """`length` bytes from `offset` (by default up to the end) in pieces of at most `piece_bytes`.

        Raises `SourceError` when reading fails or the file has become shorter.
        """
        left = self.size_bytes - offset if length is None else length
        with self.open() as stream:
            if offset:
                stream.seek(offset)
            while left:
                piece = _read(stream, min(piece_bytes, left), self.where)
                if not piece:
                    self.check()
                    raise changed(self.where, f"{self.size_bytes} bytes", f"{self.size_bytes - left} bytes")
                left -= len(piece)
                yield piece


def _read(stream: io.BufferedIOBase, count: int, where: str) -> bytes:
    try:
        return stream.read(count)
    except OSError as error:
        raise SourceError(f"{where}: reading failed at byte {stream.tell()}: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class TableContent:
    """Record batches of one schema. `rows` and `bytes` are hints for progress, None where only reading would tell.

    `is_repeatable` is False when `batches` can be called once only (a reader, a stream).
    """

    where: str
    schema: pa.Schema
    read: Callable[[], Iterable[pa.RecordBatch]] = field(repr=False)
    rows: int | None = None
    bytes: int | None = None
    files: Sequence[SourceFile] = ()
    is_repeatable: bool = True
    kind: Kind = field(default=Kind.ARROW, init=False)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The batches in order, at most a few of them in memory at once, empty ones left out.

        Raises `SourceError` naming the file and the row or line where the source is malformed.
        """
        for batch in self.read():
            if batch.num_rows:
                yield with_schema(batch, self.schema, self.where)

    def check_unchanged(self) -> None:
        """Raises `SourceError` when a file of the source is not what it was at opening. Call after the last read."""
        _check_all(self.files)


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesContent:
    """Opaque files, kept bit for bit under their relative paths."""

    where: str
    files: Sequence[SourceFile]
    kind: Kind = field(default=Kind.FILES, init=False)

    @property
    def bytes(self) -> int:
        """Bytes of all files together."""
        return sum(file.size_bytes for file in self.files)

    def check_unchanged(self) -> None:
        """Raises `SourceError` when a file of the source is not what it was at opening. Call after the last read."""
        _check_all(self.files)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamContent:
    """One opaque file that comes in blocks, of which each becomes a shard; at least one, which may be empty. `read`
    gives them once; a block stays as it is until the next is asked for. `bytes` is None while the length is unknown.
    """

    where: str
    path: str
    read: Callable[[], Iterable[memoryview]] = field(repr=False)
    bytes: int | None = None
    kind: Kind = field(default=Kind.FILES, init=False)

    def check_unchanged(self) -> None:
        """Nothing to compare with: each byte is read once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceTensor:
    """One array: `dtype` as FORMAT.md names it; `load(first, stop)` gives those of its elements, counted row by row,
    as a flat little-endian array (bfloat16 and float8 as unsigned integers of the same width)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int
    load: Callable[[int, int], np.ndarray[Any, Any]] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorsContent:
    """Named arrays. They lie in memory: whoever changes them while they are read gets what was there when read."""

    where: str
    tensors: Sequence[SourceTensor]
    kind: Kind = field(default=Kind.TENSORS, init=False)

    @property
    def bytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(tensor.size_bytes for tensor in self.tensors)

    def check_unchanged(self) -> None:
        """Nothing to compare with: see the class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitsContent:
    """Tensors cut into units (codec/units.py), each with its tag, that a later version may name again. What `load`
    gives must stay as it is."""

    where: str
    tagged: Sequence[TaggedUnit]
    load: Load = field(repr=False)
    kind: Kind = field(default=Kind.TENSORS, init=False)

    def shards(self, shard_bytes: int) -> Iterator[list[TaggedUnit]]:
        """The units of each shard, in order."""
        shard: list[TaggedUnit] = []
        left_bytes = shard_bytes
        for unit, tag in self.tagged:
            size_bytes = unit_bytes(unit)
            if shard and size_bytes > left_bytes:
                yield shard
                shard, left_bytes = [], shard_bytes
            shard.append((unit, tag))
            left_bytes -= size_bytes
        if shard:
            yield shard

    @property
    def bytes(self) -> int:
        """Bytes of all units together."""
        return sum(unit_bytes(unit) for unit, _ in self.tagged)

    def check_unchanged(self) -> None:
        """Nothing to compare with: see the class."""


Content: TypeAlias = TableContent | FilesContent | StreamContent | TensorsContent | UnitsContent


def _check_all(files: Sequence[SourceFile]) -> None:
    for file in files:
        file.check()


def changed(where: str, before: str, after: str) -> SourceError:
    """The error for a file that another process wrote to while it was read."""
    return SourceError(
        f"{where} changed while it was read: expected {before}, got {after}; "
        "nothing was stored: wait until its writer is done, or copy it, and put it again"
    )


def checked_schema(schema: pa.Schema, where: str) -> pa.Schema:
    """`schema` itself; `SourceError` when it has no columns or two of one name (columns are read by name)."""
    if not len(schema):
        raise SourceError(f"{where} has no columns: expected a table with at least one")
    doubled = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if doubled:
        raise SourceError(f"{where} has several columns named {listed(doubled)}: rename them, columns are read by name")
    return schema


def with_schema(batch: pa.RecordBatch, schema: pa.Schema, where: str) -> pa.RecordBatch:
    """`batch` under exactly `schema`: same columns and types, metadata as the schema has it."""
    if batch.schema.equals(schema, check_metadata=True):
        return batch
    difference = schema_difference(schema, batch.schema)
    if difference:
        raise SourceError(f"{where} gave a batch that does not fit its own schema: {difference}")
    return pa.RecordBatch.from_arrays(batch.columns, schema=schema)


def schema_difference(one: pa.Schema, other: pa.Schema) -> str:
    """What differs between two schemas apart from metadata, in words; empty when nothing does."""
    words = []
    for name in [*one.names, *(name for name in other.names if name not in one.names)]:
        here, there = one.get_field_index(name), other.get_field_index(name)
        if there < 0:
            words.append(f"{name!r} is missing in the second")
        elif here < 0:
            words.append(f"{name!r} is missing in the first")
        elif not one.field(here).equals(other.field(there)):
            words.append(f"{name!r} is {_field_text(one.field(here))} and {_field_text(other.field(there))}")
    if not words and one.names != other.names:
        words.append(f"the order of the columns is {listed(one.names)} and {listed(other.names)}")
    return "; ".join(words[:NAMED_MAX]) + ("; and so on" if len(words) > NAMED_MAX else "")


def _field_text(column: pa.Field) -> str:
    return str(column.type) if column.nullable else f"{column.type} not null"


def listed(names: Sequence[str]) -> str:
    """The first few names, quoted."""
    shown = ", ".join(repr(name) for name in names[:NAMED_MAX])
    return shown + (f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else "")
