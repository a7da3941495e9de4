"""Tables that are objects of this process: pyarrow's, pandas', Ray Data's, and whoever speaks Arrow's C stream."""

import io
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from raylog.api.sources.content import FilesContent, SourceFile, TableContent, checked_schema
from raylog.api.sources.folder import local_files
from raylog.api.sources.tables import BATCH_ROWS_MAX, table_batches
from raylog.errors import SourceError, UsageError


def open_object(source: Any) -> TableContent | None:
    """The table that `source` is, or None when it is no kind of table."""
    if isinstance(source, pa.Table):
        return _from_table(source, "the table")
    if isinstance(source, pa.RecordBatch):
        return _from_table(pa.Table.from_batches([source]), "the record batch")
    if isinstance(source, pa.RecordBatchReader):
        return _from_reader(source, "the record batch reader")
    if _is_of(source, "pyarrow.dataset", "Dataset"):
        return _from_dataset(source)
    if _is_of(source, "pandas", "DataFrame"):
        return _from_pandas(source)
    if _is_of(source, "ray.data", "Dataset"):
        return _from_ray(source)
    if hasattr(source, "__arrow_c_stream__"):
        return _from_stream(source, f"the {type(source).__name__}")
    return None


def open_bytes(source: bytes | bytearray | memoryview) -> FilesContent:
    """`source` as the opaque file `data`; its memory is read in place."""
    view = memoryview(source)
    if not view.nbytes:
        raise SourceError("the bytes are empty: nothing to put")
    if not view.c_contiguous:
        raise UsageError("expected contiguous bytes, got a strided memoryview: pass bytes(view)")
    plain = view.cast("B")
    file = SourceFile(
        path="data",
        where="the bytes",
        size_bytes=plain.nbytes,
        open=lambda: cast(io.BufferedIOBase, pa.BufferReader(plain)),
        check=lambda: None,
    )
    return FilesContent(where="the bytes", files=(file,))


def _is_of(source: Any, module: str, name: str) -> bool:
    """Whether `source` is an instance of `module.name`, without importing it: who has such an object has done so."""
    found = sys.modules.get(module)
    return found is not None and isinstance(source, getattr(found, name, ()))


def _from_table(table: pa.Table, where: str) -> TableContent:
    return TableContent(
        where=where,
        schema=checked_schema(table.schema, where),
        read=partial(table_batches, table),
        rows=table.num_rows,
        bytes=table.nbytes,
    )


def _from_pandas(frame: Any) -> TableContent:
    try:
        table = pa.Table.from_pandas(frame)
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise SourceError(f"the DataFrame does not fit Arrow's types: {error}; convert that column first") from error
    return _from_table(table, "the DataFrame")


def _from_reader(reader: pa.RecordBatchReader, where: str) -> TableContent:
    return TableContent(
        where=where,
        schema=checked_schema(reader.schema, where),
        read=_once(partial(_explained, reader, where), where),
        is_repeatable=False,
    )


def _from_stream(source: Any, where: str) -> TableContent:
    try:
        reader = pa.RecordBatchReader.from_stream(source)
    except pa.ArrowException as error:
        raise UsageError(f"{where} is no table of columns: {error}") from error
    return _from_reader(reader, where)


def _once(read: Callable[[], Iterable[pa.RecordBatch]], where: str) -> Callable[[], Iterable[pa.RecordBatch]]:
    used: list[bool] = []

    def guarded() -> Iterable[pa.RecordBatch]:
        if used:
            raise UsageError(f"{where} can be read once only and was read already: make a new one")
        used.append(True)
        return read()

    return guarded


def _explained(batches: Iterable[pa.RecordBatch], where: str) -> Iterator[pa.RecordBatch]:
    rows = 0
    try:
        for batch in batches:
            rows += batch.num_rows
            yield batch
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{where} failed after row {rows}: {error}") from error


def _from_dataset(dataset: Any) -> TableContent:
    where = "the dataset"
    # Little read-ahead: the default holds sixteen batches of four files in memory.
    scan = partial(dataset.to_batches, batch_size=BATCH_ROWS_MAX, batch_readahead=2, fragment_readahead=1)
    return TableContent(
        where=where,
        schema=checked_schema(dataset.schema, where),
        read=lambda: _explained(scan(), where),
        files=_files_of(dataset),
    )


def _files_of(dataset: Any) -> tuple[SourceFile, ...]:
    """The dataset's local files, so that a change while they are read is noticed."""
    if not _is_of(dataset, "pyarrow.dataset", "FileSystemDataset") or dataset.filesystem.type_name != "local":
        return ()
    return tuple(file for path in dataset.files for file in local_files(Path(path)))


def _from_ray(dataset: Any) -> TableContent:
    """Blocks of a `ray.data.Dataset`, one at a time. Ray's blocks are plaintext in its object store already."""
    where = "the Ray dataset"
    found = dataset.schema()
    if found is None:
        raise SourceError(f"{where} is empty: expected at least one column")
    schema = found.base_schema
    if not isinstance(schema, pa.Schema):  # pandas blocks
        schema = pa.schema(list(zip(found.names, found.types, strict=True)))
    return TableContent(
        where=where,
        schema=checked_schema(schema, where),
        read=lambda: _ray_batches(dataset, schema, where),
    )


def _ray_batches(dataset: Any, schema: pa.Schema, where: str) -> Iterator[pa.RecordBatch]:
    rows = 0
    blocks = iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow"))
    while True:
        try:
            table = next(blocks, None)
            fitted = None if table is None else table.select(schema.names).cast(schema)
        except sys.modules["ray"].exceptions.RayError as error:
            raise SourceError(f"{where} failed after row {rows}: {type(error).__name__}") from error
        except (pa.ArrowException, KeyError, ValueError) as error:
            raise SourceError(f"{where}: the block after row {rows} does not fit the schema: {error}") from error
        if fitted is None:
            return
        rows += fitted.num_rows
        yield from table_batches(fitted)
