"""A version as files of the user's: a table as Parquet, Arrow, CSV or JSONL, tensors as .npz, files as they were."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from raylog.api.get import Reading
from raylog.api.landing import landing_file
from raylog.api.materialise import read_schema_and_batches, read_tensors, write_files
from raylog.api.progress import OnProgress
from raylog.codec.open import ShardOpener
from raylog.errors import UsageError
from raylog.spec import Kind


def batch_reader(reading: Reading, columns: Sequence[str] | None) -> pa.RecordBatchReader:
    """The version's batches, shard by shard, in bounded memory. Raises `UsageError` for content that is no table."""
    openers = reading.openers()
    schema, batches = read_schema_and_batches(openers, columns)
    return pa.RecordBatchReader.from_batches(schema, _closing(openers, batches))


def _closing(openers: Generator[ShardOpener], batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    with closing(openers):
        yield from batches


def download(reading: Reading, path: Path, on_progress: OnProgress | None) -> list[Path]:
    """Writes a version to `path`; see `Client.download`. What was begun is removed after an error."""
    with closing(reading.openers(on_progress)) as openers:
        if reading.kind is Kind.FILES:
            return write_files(openers, path)
        with landing_file(path) as partial:
            with open(partial.descriptor, "wb", closefd=False) as sink:
                if reading.kind is Kind.ARROW:
                    _table_writer(path)(sink, *read_schema_and_batches(openers))
                else:
                    _write_arrays(path, sink, openers)
            partial.land(durably=False)
        return [path]


TableWriter = Callable[[BinaryIO, pa.Schema, Iterator[pa.RecordBatch]], None]


def _table_writer(path: Path) -> TableWriter:
    writers: dict[str, TableWriter] = {
        ".parquet": _write_parquet,
        ".arrow": _write_arrow,
        ".csv": _write_csv,
        ".jsonl": _write_jsonl,
    }
    if path.suffix not in writers:
        raise UsageError(f"a table is written as {', '.join(writers)}, got the name {path}: end it in one of these")
    return writers[path.suffix]


def _write_parquet(sink: BinaryIO, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
    with pyarrow.parquet.ParquetWriter(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _write_arrow(sink: BinaryIO, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
    with pa.ipc.new_file(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _write_csv(sink: BinaryIO, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
    with pyarrow.csv.CSVWriter(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _write_jsonl(sink: BinaryIO, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
    encode = msgspec.json.Encoder().encode
    for batch in batches:
        for row in batch.to_pylist():
            sink.write(encode(row) + b"\n")


def _write_arrays(path: Path, sink: BinaryIO, openers: Iterator[ShardOpener]) -> None:
    if path.suffix != ".npz":
        raise UsageError(f"tensors are written as .npz, got the name {path}")
    arrays = read_tensors(openers)
    unknown = [name for name, array in arrays.items() if array.dtype.metadata]
    if unknown:
        raise UsageError(f".npz has no type for {', '.join(unknown[:8])} (bfloat16 or float8): use client.get")
    np.savez(sink, allow_pickle=False, **arrays)
