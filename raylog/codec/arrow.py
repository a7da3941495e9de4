"""Arrow record batches in a shard: the schema once, then one unit per batch and key group (FORMAT.md, "Arrow").

A batch is cut by rows until each of its IPC messages fits into a chunk, so that a reader opens few chunks for few
rows. What a cut does not make smaller (dictionaries, data behind string views) goes into every piece; where that
would add more than a third, pieces stay longer than a chunk.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa

from raylog.codec.frame import Frame, Unit
from raylog.codec.open import ShardOpener
from raylog.codec.seal import ShardSealer
from raylog.errors import SourceError, UsageError
from raylog.units import KIB

GROUP_KEY = b"raylog:group"
"""Field metadata in the preamble: the key group of a column, in decimal digits; absent for group 0."""
MESSAGE_BYTES = 16 * KIB  # of a chunk, left for what Arrow's message has around the columns
_FILL = 0.97  # rows differ in size; a piece that comes out too large is cut again
_GROWTH_MAX = 1.34  # of all pieces together over the batch: what each piece repeats

_Rows = tuple[int, int]  # first row, number of rows
_Measure = Callable[[int, int], list[int]]  # of (first row, rows): the length of every group's unit

_WRITE_OPTIONS = pa.ipc.IpcWriteOptions(use_threads=False)
_READ_OPTIONS = pa.ipc.IpcReadOptions(use_threads=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """The columns of one key group, by position in the whole schema."""

    columns: tuple[int, ...]
    schema: pa.Schema
    prefix: bytes  # the schema message that a stream of this group begins with
    has_dictionaries: bool

    def dictionary_bytes(self, part: pa.RecordBatch) -> int:
        """Length of the dictionary messages that go before every piece of `part`."""
        if not self.has_dictionaries:
            return 0
        row = part.slice(0, 1)
        return self.serialize(row).nbytes - int(pa.ipc.get_record_batch_size(row))

    def serialize(self, batch: pa.RecordBatch) -> memoryview:
        """The unit: dictionary messages, where the group has any, and the record-batch message."""
        if not self.has_dictionaries:
            return memoryview(batch.serialize())
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self.schema, options=_WRITE_OPTIONS) as writer:
            writer.write_batch(batch)
            end = sink.tell()  # before the end-of-stream mark
        return memoryview(sink.getvalue())[len(self.prefix) : end]

    def deserialize(self, opener: ShardOpener, unit: Unit) -> pa.RecordBatch:
        """The batch in a unit; its columns point into the opened content. Raises `DamagedData`."""
        try:
            if self.has_dictionaries:
                stream = pa.ipc.open_stream(pa.py_buffer(opener.unit(unit, self.prefix)), options=_READ_OPTIONS)
                batch = stream.read_next_batch()
            else:
                batch = pa.ipc.read_record_batch(pa.py_buffer(opener.unit(unit)), self.schema)
            batch.validate()
        except (pa.ArrowException, OSError, StopIteration) as error:
            raise opener.damaged(f"the unit at chunk {unit.first} is no record batch: {error}") from None
        if batch.num_rows != unit.rows:
            raise opener.damaged(f"expected {unit.rows} rows in the unit at chunk {unit.first}, got {batch.num_rows}")
        return batch


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """What a preamble says: the schema as it was given, and which key group has which columns."""

    schema: pa.Schema
    groups: tuple[_Group, ...]


def arrow_preamble(schema: pa.Schema, groups: Mapping[str, int] | None = None) -> bytes:
    """The preamble of a shard of record batches of `schema`.

    `groups` maps column names to key groups; columns not named are of group 0. Raises `UsageError` for unknown
    columns, for groups without a column, and for field metadata that uses raylog's own key.
    """
    by_name = dict(groups or {})
    unknown = sorted(set(by_name) - set(schema.names))
    if unknown:
        raise UsageError(f"expected columns among {schema.names} for key groups, got {unknown}")
    fields = []
    for field in schema:
        if GROUP_KEY in (field.metadata or {}):
            raise UsageError(
                f"column {field.name!r} has the field metadata {GROUP_KEY!r}, which is raylog's: remove it"
            )
        group = by_name.get(field.name, 0)
        fields.append(field.with_metadata({**(field.metadata or {}), GROUP_KEY: b"%d" % group}) if group else field)
    numbers = {by_name.get(name, 0) for name in schema.names} or {0}
    if numbers != set(range(len(numbers))):
        raise UsageError(f"expected key groups 0 to {len(numbers) - 1} to have columns each, got {sorted(numbers)}")
    return bytes(pa.schema(fields, metadata=schema.metadata).serialize().to_pybytes())


def add_batch(sealer: ShardSealer, batch: pa.RecordBatch) -> None:
    """Adds a record batch of the preamble's schema, cut by rows where it is larger than a chunk; no rows, no unit.

    Raises `SourceError` for another schema, naming both, and `UsageError` when the shard is full or a single row
    exceeds a unit (1 GiB).
    """
    layout = _layout(sealer.preamble)
    if not batch.schema.equals(layout.schema):
        raise SourceError(f"expected batches of one schema:\n{layout.schema}\ngot another:\n{batch.schema}")
    if len(layout.groups) != sealer.key_groups:
        raise UsageError(f"expected {len(layout.groups)} keys for as many key groups, got {sealer.key_groups}")
    if not batch.num_rows:
        return
    parts = [batch.select(group.columns) if len(layout.groups) > 1 else batch for group in layout.groups]
    pairs = list(zip(layout.groups, parts, strict=True))
    dictionaries = [group.dictionary_bytes(part) for group, part in pairs]

    def measure(first: int, rows: int) -> list[int]:
        sizes = [pa.ipc.get_record_batch_size(part.slice(first, rows)) for part in parts]
        return [size + more for size, more in zip(sizes, dictionaries, strict=True)]

    for first, rows in _cut(measure, batch.num_rows, sealer.chunk_bytes):
        for number, (group, part) in enumerate(pairs):
            sealer.add_unit([group.serialize(part.slice(first, rows))], rows, number)


def coalesce(batches: Iterable[pa.RecordBatch], chunk_bytes: int) -> Iterator[pa.RecordBatch]:
    """Joins small neighbours as far as they fit into a chunk, so that many tiny batches do not make as many chunks.

    Batches with dictionaries stay as they are, since joining would rewrite them.
    """
    waiting: list[pa.RecordBatch] = []
    waiting_bytes, room_bytes = 0, chunk_bytes - min(MESSAGE_BYTES, chunk_bytes // 16)
    for batch in batches:
        joins = not _has_dictionaries(batch.schema)
        if waiting and (not joins or waiting_bytes + batch.nbytes > room_bytes or batch.schema != waiting[0].schema):
            yield pa.concat_batches(waiting) if len(waiting) > 1 else waiting[0]
            waiting, waiting_bytes = [], 0
        if joins:
            waiting.append(batch)
            waiting_bytes += batch.nbytes
        else:
            yield batch
    if waiting:
        yield pa.concat_batches(waiting) if len(waiting) > 1 else waiting[0]


def open_schema(opener: ShardOpener) -> pa.Schema:
    """The schema that was put, with all its metadata. Raises `DamagedData`."""
    return _read_layout(opener).schema


def open_batches(
    opener: ShardOpener, columns: Sequence[str] | None = None, row_range: tuple[int, int] | None = None
) -> Iterator[pa.RecordBatch]:
    """The shard's batches in order; they point into the opened content.

    `columns` picks by name, in that order; key groups without a wanted column stay closed. None: all columns that
    the opener has keys for. `row_range` is (first row, row after the last) of this shard; only chunks that hold such
    rows are opened. Raises `UsageError` for unknown columns and impossible ranges, `NotPermitted` for columns whose
    key is missing, `DamagedData` while iterating too.
    """
    batches = BatchOpener(opener, columns)
    start, stop = row_range or (0, opener.frame.rows)
    if not 0 <= start <= stop <= opener.frame.rows:
        raise UsageError(f"expected rows between 0 and {opener.frame.rows}, got {start} to {stop}")
    return _iterate(batches, start, stop)


def _iterate(batches: "BatchOpener", start: int, stop: int) -> Iterator[pa.RecordBatch]:
    row = 0
    for number, rows in enumerate(batches.rows):
        before, row = row, row + rows
        if row <= start or before >= stop:
            continue
        batch = batches.batch(number)
        low, high = max(start, before), min(stop, row)
        yield batch if high - low == rows else batch.slice(low - before, high - low)


def batch_sizes(frame: Frame) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Rows and content bytes, with all columns, of the batches of a shard: as its frame says, which needs no key."""
    count, units = frame.header.key_groups, frame.units[1:]
    turns = [units[first : first + count] for first in range(0, len(units), count)]
    return tuple(turn[0].rows for turn in turns), tuple(sum(unit.content_bytes for unit in turn) for turn in turns)


class BatchOpener:
    """The batches of a shard, in any order; `rows` are their lengths, `content_bytes` their sizes with all columns,
    `schema` that of the chosen ones. `columns` as in `open_batches`, which says what is raised. For one thread."""

    def __init__(self, opener: ShardOpener, columns: Sequence[str] | None = None) -> None:
        self._opener, self._layout = opener, _read_layout(opener)
        self._chosen = _choose_columns(self._layout, columns, opener.groups)
        fields = [self._layout.schema.field(column) for column in self._chosen]
        self.schema = pa.schema(fields, metadata=self._layout.schema.metadata)
        self.rows, self.content_bytes = batch_sizes(opener.frame)

    def batch(self, number: int) -> pa.RecordBatch:
        """It points into the opened content. Raises `DamagedData`."""
        count = len(self._layout.groups)
        turn = self._opener.units[number * count : (number + 1) * count]
        rows = self.rows[number]
        if [unit.group for unit in turn] != list(range(count)) or any(unit.rows != rows for unit in turn):
            raise self._opener.damaged(f"the key groups do not take turns at chunk {turn[0].first}")
        return _open_turn(self._opener, self._layout, turn, self._chosen, self.schema)


def _open_turn(
    opener: ShardOpener, layout: _Layout, turn: Sequence[Unit], chosen: list[int], schema: pa.Schema
) -> pa.RecordBatch:
    """One batch, put together from the groups that have chosen columns."""
    opened: dict[int, pa.Array] = {}
    for group, unit in zip(layout.groups, turn, strict=True):
        if not chosen or not set(group.columns).isdisjoint(chosen):
            part = group.deserialize(opener, unit)
            if part.schema.equals(schema):
                return part.replace_schema_metadata(schema.metadata)
            opened.update(zip(group.columns, part.columns, strict=True))
    if not chosen:
        return part.select([]).replace_schema_metadata(schema.metadata)
    return pa.RecordBatch.from_arrays([opened[column] for column in chosen], schema=schema)


def _choose_columns(layout: _Layout, columns: Sequence[str] | None, groups: frozenset[int]) -> list[int]:
    if columns is None:
        return sorted(column for number in groups for column in layout.groups[number].columns)
    missing = [name for name in columns if len(layout.schema.get_all_field_indices(name)) != 1]
    if missing:
        raise UsageError(f"expected columns that stand once in {layout.schema.names}, got {missing}")
    return [layout.schema.get_field_index(name) for name in columns]


def _cut(measure: _Measure, rows: int, chunk_bytes: int) -> Iterator[_Rows]:
    """Pieces whose units fit into a chunk or are a single row; larger ones where smaller ones would repeat too much."""
    limit_bytes = chunk_bytes
    while not _pays(measure, (0, rows), _pieces(measure, (0, rows), limit_bytes)):
        limit_bytes *= 2
    todo = [(0, rows)]
    while todo:
        piece = todo.pop()
        smaller = _pieces(measure, piece, limit_bytes)
        if len(smaller) == 1 or not _pays(measure, piece, smaller):
            yield piece
        else:
            todo.extend(reversed(smaller))


def _pieces(measure: _Measure, piece: _Rows, limit_bytes: int) -> list[_Rows]:
    """The piece in equal parts, as many as bring its longest unit below the limit; itself if it is below."""
    first, rows = piece
    unit_bytes = max(measure(first, rows))
    if unit_bytes <= limit_bytes or rows == 1:
        return [piece]
    fixed_bytes = min(limit_bytes // 4, max(measure(first, 1)))  # metadata and dictionaries, which every part has
    parts = math.ceil((unit_bytes - fixed_bytes) / ((limit_bytes - fixed_bytes) * _FILL))
    step = -(-rows // max(2, min(rows, parts)))
    return [(at, min(step, first + rows - at)) for at in range(first, first + rows, step)]


def _pays(measure: _Measure, whole: _Rows, pieces: Sequence[_Rows]) -> bool:
    if len(pieces) == 1:
        return True
    return sum(sum(measure(*piece)) for piece in pieces) <= _GROWTH_MAX * sum(measure(*whole))


def _read_layout(opener: ShardOpener) -> _Layout:
    try:
        layout = _layout(opener.preamble())
    except (pa.ArrowException, OSError, ValueError, UsageError) as error:
        raise opener.damaged(f"its schema cannot be read: {error}") from None
    if len(layout.groups) != opener.frame.header.key_groups:
        message = f"its schema has {len(layout.groups)} key groups, its header {opener.frame.header.key_groups}"
        raise opener.damaged(message)
    return layout


@lru_cache(maxsize=16)
def _layout(preamble: bytes) -> _Layout:
    stored = pa.ipc.read_schema(pa.py_buffer(preamble))
    numbers = [int((field.metadata or {}).get(GROUP_KEY, b"0")) for field in stored]
    schema = pa.schema([_without_group(field) for field in stored], metadata=stored.metadata)
    if set(numbers) != set(range(len(set(numbers)))) and numbers:
        raise UsageError(f"expected key groups from 0 on without a gap, got {sorted(set(numbers))}")
    groups = []
    for number in sorted(set(numbers)) or [0]:
        columns = tuple(column for column, one in enumerate(numbers) if one == number)
        part = pa.schema([schema.field(column) for column in columns])
        prefix = part.serialize().to_pybytes()
        groups.append(_Group(columns=columns, schema=part, prefix=prefix, has_dictionaries=_has_dictionaries(part)))
    return _Layout(schema=schema, groups=tuple(groups))


def _without_group(field: pa.Field) -> pa.Field:
    metadata = {key: value for key, value in (field.metadata or {}).items() if key != GROUP_KEY}
    return field.with_metadata(metadata) if metadata else field.remove_metadata()


def _has_dictionaries(schema: pa.Schema) -> bool:
    return any(_is_dictionary(field.type) for field in schema)


def _is_dictionary(type_: pa.DataType) -> bool:
    if isinstance(type_, pa.BaseExtensionType):
        return _is_dictionary(type_.storage_type)
    if pa.types.is_dictionary(type_):
        return True
    return any(_is_dictionary(type_.field(position).type) for position in range(type_.num_fields))
