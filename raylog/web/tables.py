"""A table as bytes to send, batch by batch: an Arrow stream, CSV or one JSON object per line."""

from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any, Protocol

import msgspec
import pyarrow as pa
import pyarrow.csv

from raylog.api.export import batch_reader
from raylog.api.get import Reading
from raylog.errors import UsageError


class _Writer(Protocol):
    def write_batch(self, batch: pa.RecordBatch, /) -> None: ...
    def close(self) -> None: ...


class _Sink:
    """What a writer wrote since it was last taken."""

    closed = False

    def __init__(self) -> None:
        self._written: list[bytes] = []

    def write(self, data: Any) -> int:
        self._written.append(bytes(data))
        return len(self._written[-1])

    def writable(self) -> bool:
        return True

    def flush(self) -> None:
        """Nothing waits here."""

    def take(self) -> bytes:
        written, self._written = b"".join(self._written), []
        return written


class _JsonLines:
    def __init__(self, sink: _Sink, _schema: pa.Schema) -> None:
        self._sink, self._encode = sink, msgspec.json.Encoder().encode

    def write_batch(self, batch: pa.RecordBatch, /) -> None:
        for row in batch.to_pylist():
            self._sink.write(self._encode(row) + b"\n")

    def close(self) -> None:
        """Lines have no end of their own."""


_WRITERS: dict[str, Callable[[_Sink, pa.Schema], _Writer]] = {
    "application/vnd.apache.arrow.stream": pa.ipc.new_stream,
    "text/csv": pyarrow.csv.CSVWriter,
    "application/x-ndjson": _JsonLines,
}
MEDIA_TYPES = tuple(_WRITERS)


def table_pieces(reading: Reading, media_type: str) -> Generator[memoryview]:
    """The whole table as one of `MEDIA_TYPES`, a batch at a time. Raises `UsageError` for what is no table and for
    columns of a type that the form does not have."""
    sink = _Sink()
    with closing(batch_reader(reading, None)) as batches:
        try:
            writer = _WRITERS[media_type](sink, batches.schema)
            for batch in batches:
                writer.write_batch(batch)
                yield memoryview(sink.take())
            writer.close()
            yield memoryview(sink.take())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, TypeError) as error:
            raise UsageError(f"{reading.manifest.name} cannot be had as {media_type}: {error}") from error
