"""Arrow record batches in a shard: the schema once, then one unit per batch and key group (FORMAT.md, "Arrow").

A batch is cut by rows until each of its IPC messages fits into a chunk, so that a reader opens few chunks for few
rows. What a cut does not make smaller (dictionaries, data behind string views) goes into every piece; pieces are
made so much larger then that this stays a quarter of them.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import pyarrow as pa

from raylog.codec.frame import Unit
from raylog.codec.open import ShardOpener
from raylog.codec.seal import ShardSealer
from raylog.errors import SourceError, UsageError

GROUP_KEY = b"raylog:group"
"""Field metadata in the preamble: the key group of a column, in decimal digits; absent for group 0."""
_FILL = 0.97  # rows differ in size; a piece that comes out too large is cut again
_REPEATED_SHARE_MAX = 0.25  # of a piece: what every piece repeats

_WRITE_OPTIONS = pa.ipc.IpcWriteOptions(use_threads=False)
_READ_OPTIONS = pa.ipc.IpcReadOptions(use_threads=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """The columns of one key group, by position in the whole schema."""

    columns: tuple[int, ...]
    schema: pa.Schema
    prefix: bytes  # the schema message that a stream of this group begins with
    has_dictionaries: bool

    def message_bytes(self, batch: pa.RecordBatch) -> int:
        """Length of the record-batch message alone, without building it."""
        return int(pa.ipc.get_record_batch_size(batch))

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
    for first, rows in _cut(layout.groups, parts, sealer.chunk_bytes):
        for number, (group, part) in enumerate(zip(layout.groups, parts, strict=True)):
            sealer.add_unit([group.serialize(part.slice(first, rows))], rows, number)


def coalesce(batches: Iterable[pa.RecordBatch], chunk_bytes: int) -> Iterator[pa.RecordBatch]:
    """Joins small neighbours up to about a chunk, so that many tiny batches do not make as many chunks.

    Batches with dictionaries stay as they are, since joining would rewrite them.
    """
    waiting: list[pa.RecordBatch] = []
    waiting_bytes = 0
    for batch in batches:
        joins = not _has_dictionaries(batch.schema)
        if waiting and (not joins or waiting_bytes + batch.nbytes > chunk_bytes or batch.schema != waiting[0].schema):
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
    layout = _read_layout(opener)
    chosen = _choose_columns(layout, columns, opener.groups)
    start, stop = row_range or (0, opener.frame.rows)
    if not 0 <= start <= stop <= opener.frame.rows:
        raise UsageError(f"expected rows between 0 and {opener.frame.rows}, got {start} to {stop}")
    return _iterate(opener, layout, chosen, start, stop)


def _iterate(
    opener: ShardOpener, layout: _Layout, chosen: list[int], start: int, stop: int
) -> Iterator[pa.RecordBatch]:
    schema = pa.schema([layout.schema.field(column) for column in chosen], metadata=layout.schema.metadata)
    turn_length, row = len(layout.groups), 0
    for first in range(0, len(opener.units), turn_length):
        turn = opener.units[first : first + turn_length]
        rows = turn[0].rows
        if [unit.group for unit in turn] != list(range(turn_length)) or any(unit.rows != rows for unit in turn):
            raise opener.damaged(f"the key groups do not take turns at chunk {turn[0].first}")
        before, row = row, row + rows
        if row <= start or before >= stop:
            continue
        batch = _open_turn(opener, layout, turn, chosen, schema)
        low, high = max(start, before), min(stop, row)
        yield batch if high - low == rows else batch.slice(low - before, high - low)


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


def _cut(groups: Sequence[_Group], parts: Sequence[pa.RecordBatch], chunk_bytes: int) -> Iterator[tuple[int, int]]:
    """(first row, rows) of each piece, such that every group's message fits, or is a single row."""
    budgets = [_budget(group, part, chunk_bytes) for group, part in zip(groups, parts, strict=True)]
    todo = [(0, parts[0].num_rows)]
    while todo:
        first, rows = todo.pop()
        pieces = max(
            budget.pieces(group.message_bytes(part.slice(first, rows)))
            for group, part, budget in zip(groups, parts, budgets, strict=True)
        )
        if pieces == 1 or rows == 1:
            yield first, rows
            continue
        step = -(-rows // min(rows, max(2, pieces)))
        todo.extend((at, min(step, first + rows - at)) for at in reversed(range(first, first + rows, step)))


class _Budget(NamedTuple):
    """How long one group's units may get."""

    dictionary_bytes: int  # goes before every piece
    repeated_bytes: int  # is in every piece, dictionaries included
    unit_bytes: int

    def pieces(self, message_bytes: int) -> int:
        """Into how many pieces rows with a record-batch message of this length are to be cut."""
        excess_bytes = message_bytes + self.dictionary_bytes - self.repeated_bytes
        room_bytes = self.unit_bytes - self.repeated_bytes
        return 1 if excess_bytes <= room_bytes else math.ceil(excess_bytes / (room_bytes * _FILL))


def _budget(group: _Group, part: pa.RecordBatch, chunk_bytes: int) -> _Budget:
    dictionary_bytes = _dictionary_bytes(group, part)
    if group.message_bytes(part) + dictionary_bytes <= chunk_bytes:
        return _Budget(dictionary_bytes, 0, chunk_bytes)
    repeated_bytes = dictionary_bytes + _repeated_bytes(group, part)
    return _Budget(dictionary_bytes, repeated_bytes, max(chunk_bytes, round(repeated_bytes / _REPEATED_SHARE_MAX)))


def _dictionary_bytes(group: _Group, part: pa.RecordBatch) -> int:
    """Length of the dictionary messages that go before every piece of `part`."""
    if not group.has_dictionaries:
        return 0
    row = part.slice(0, 1)
    return group.serialize(row).nbytes - group.message_bytes(row)


def _repeated_bytes(group: _Group, part: pa.RecordBatch) -> int:
    """By how much two halves of `part` are longer than the whole: metadata, and data that a slice does not shed."""
    half = part.num_rows // 2
    halves = group.message_bytes(part.slice(0, half)) + group.message_bytes(part.slice(half))
    return max(0, halves - group.message_bytes(part))


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
