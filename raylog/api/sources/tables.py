"""Parquet and Arrow files as tables, and several files of one format as one table."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from raylog.api.sources import text
from raylog.api.sources.content import SourceFile, TableContent, checked_schema, schema_difference
from raylog.api.sources.formats import Format
from raylog.codec.arrow import MESSAGE_BYTES
from raylog.errors import SourceError
from raylog.units import MIB

BATCH_BYTES = 2 * MIB - MESSAGE_BYTES  # of decoded columns, aimed at: a chunk; the least a stream holds in memory
BATCH_ROWS_MAX = 65536
_PARQUET_BUFFER_BYTES = MIB  # of one column read ahead
_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One file of a table: its schema, its batches, and its rows where the format says them."""

    file: SourceFile
    schema: pa.Schema
    read: Callable[[], Iterator[pa.RecordBatch]] = field(repr=False)
    rows: int | None


def open_tables(files: Sequence[SourceFile], found: Format, where: str) -> TableContent:
    """All `files`, each of format `found`, as one table in their order.

    Raises `SourceError` when a file is empty or malformed, and when schemas differ: both files and the columns are
    named. CSV and JSON lines declare no types: there whole numbers and fractions, or an empty column and any type,
    are one column.
    """
    for file in files:
        if not file.size_bytes:
            raise SourceError(f"{file.where} is empty: expected {found}")
        _refuse_partitions(file)
    if found in (Format.CSV, Format.JSONL):
        schemas = [text.infer_schema(file, found) for file in files]
        schema = text.common_schema(files, schemas)
        parts = [
            Part(file=file, schema=schema, read=partial(text.read, file, found, schema), rows=None) for file in files
        ]
    else:
        parts = [_OPENERS[found](file) for file in files]
        schema = parts[0].schema
        for part in parts[1:]:
            _same_schema(parts[0], part)
    known = [part.rows for part in parts if part.rows is not None]
    return TableContent(
        where=where,
        schema=checked_schema(schema, files[0].where),
        read=partial(_read_parts, parts),
        rows=sum(known) if len(known) == len(parts) else None,
        bytes=sum(file.size_bytes for file in files),
        files=tuple(files),
    )


def _read_parts(parts: Sequence[Part]) -> Iterator[pa.RecordBatch]:
    for part in parts:
        yield from part.read()


def _same_schema(first: Part, other: Part) -> None:
    difference = schema_difference(first.schema, other.schema)
    if difference:
        raise SourceError(
            f"mixed schemas: {first.file.where} and {other.file.where} differ: {difference}; "
            "put them as two artifacts, or as opaque files (as_files)"
        )


def _refuse_partitions(file: SourceFile) -> None:
    """Hive-style folders (`year=2024/`) hold columns in their names, which reading file by file would lose."""
    for part in PurePosixPath(file.path).parts[:-1]:
        if "=" in part:
            raise SourceError(
                f"{file.where} lies in the partition folder {part!r}, whose name is a column: put "
                "pyarrow.dataset.dataset(folder, partitioning='hive') instead, or the folder as opaque files (as_files)"
            )


# Parquet


def _open_parquet(file: SourceFile) -> Part:
    with _explained(file, Format.PARQUET, "its footer"), file.open() as stream, pq.ParquetFile(stream) as parquet:
        schema, rows = parquet.schema_arrow, parquet.metadata.num_rows
        groups = [parquet.metadata.row_group(number) for number in range(parquet.num_row_groups)]
        bytes_decoded = sum(group.total_byte_size for group in groups)
    batch_rows = max(1, min(BATCH_ROWS_MAX, BATCH_BYTES * rows // max(bytes_decoded, 1)))
    return Part(file=file, schema=schema, rows=rows, read=partial(_read_parquet, file, batch_rows))


def _read_parquet(file: SourceFile, batch_rows: int) -> Iterator[pa.RecordBatch]:
    rows = 0
    with (
        file.open() as stream,
        pq.ParquetFile(
            stream, pre_buffer=False, buffer_size=_PARQUET_BUFFER_BYTES, page_checksum_verification=True
        ) as parquet,
    ):
        batches = parquet.iter_batches(batch_size=batch_rows)
        while True:
            with _explained(file, Format.PARQUET, f"after row {rows}"):
                batch = next(batches, None)
            if batch is None:
                return
            rows += batch.num_rows
            yield batch


# Arrow IPC


def _open_arrow(file: SourceFile, found: Format) -> Part:
    with _explained(file, found, "its schema"), file.open() as stream:
        if found is Format.ARROW_FILE:
            with pa.ipc.open_file(stream) as reader:
                schema = reader.schema
        else:
            # A stream may end anywhere between two messages; only the marker tells a whole one from one cut short.
            stream.seek(-min(file.size_bytes, len(_END_OF_STREAM)), 2)
            if stream.read() != _END_OF_STREAM:
                raise SourceError(f"{file.where} is cut short: expected an end-of-stream marker; write it again")
            stream.seek(0)
            with pa.ipc.open_stream(stream) as reader:
                schema = reader.schema
    return Part(file=file, schema=schema, rows=None, read=partial(_read_arrow, file, found))


def _read_arrow(file: SourceFile, found: Format) -> Iterator[pa.RecordBatch]:
    with file.open() as stream:
        with _explained(file, found, "its schema"):
            reader = pa.ipc.open_file(stream) if found is Format.ARROW_FILE else pa.ipc.open_stream(stream)
        with reader:
            numbers = range(reader.num_record_batches) if found is Format.ARROW_FILE else _endless()
            for number in numbers:
                with _explained(file, found, f"at record batch {number}"):
                    try:
                        batch = reader.get_batch(number) if found is Format.ARROW_FILE else reader.read_next_batch()
                    except StopIteration:
                        return
                    batch.validate(full=True)  # offsets in a file are not to be believed
                yield from _slices(batch)


def _endless() -> Iterator[int]:
    number = 0
    while True:
        yield number
        number += 1


def table_batches(table: pa.Table) -> Sequence[pa.RecordBatch]:
    """The rows of a table in batches that fit a chunk each, without a copy."""
    found: Sequence[pa.RecordBatch] = table.to_batches(max_chunksize=_rows_of_batch(table))
    return found


def _slices(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    rows = _rows_of_batch(batch)
    for first in range(0, batch.num_rows, rows):
        yield batch.slice(first, rows)


def _rows_of_batch(rows: pa.Table | pa.RecordBatch) -> int:
    fitting: int = BATCH_BYTES * rows.num_rows // max(rows.nbytes, 1)
    return max(1, min(BATCH_ROWS_MAX, fitting))


@contextmanager
def _explained(file: SourceFile, found: Format, position: str) -> Iterator[None]:
    """What pyarrow says about a malformed file, as a `SourceError` with the file and the position."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        file.check()  # a file that changed is not malformed
        raise SourceError(
            f"{file.where} cannot be read as {found} ({position}): {error}; it is cut short or damaged: write or copy "
            "it again, or put it as an opaque file (as_files)"
        ) from error


_OPENERS: dict[Format, Callable[[SourceFile], Part]] = {
    Format.PARQUET: _open_parquet,
    Format.ARROW_FILE: partial(_open_arrow, found=Format.ARROW_FILE),
    Format.ARROW_STREAM: partial(_open_arrow, found=Format.ARROW_STREAM),
}
