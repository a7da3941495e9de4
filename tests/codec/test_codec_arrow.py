"""Record batches through sealed shards: bit for bit, by rows, by columns, by key group."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from codec_shards import Sealed, new_key, open_shard, seal_shard
from hypothesis import given, settings
from hypothesis import strategies as st

from raylog.codec.arrow import add_batch, arrow_preamble, coalesce, open_batches, open_schema
from raylog.errors import DamagedData, NotPermitted, SourceError, UsageError
from raylog.spec import Kind

ROWS = 3000


def seal_table(table: pa.Table, groups: dict[str, int] | None = None, **options: Any) -> Sealed:
    def add(sealer: Any) -> None:
        for batch in table.to_batches():
            add_batch(sealer, batch)

    keys = [new_key() for _ in range(1 + max((groups or {}).values(), default=0))]
    return seal_shard(Kind.ARROW, arrow_preamble(table.schema, groups), add, keys=keys, **options)


def open_table(shard: Sealed, **choice: Any) -> pa.Table:
    opener = shard.opener()
    batches = list(open_batches(opener, **choice))
    return pa.Table.from_batches(batches, batches[0].schema if batches else open_schema(opener))


def columns() -> dict[str, pa.Array]:
    words = [f"word {n % 97}" * (n % 5) for n in range(ROWS)]
    maybe = [None if n % 3 == 0 else n for n in range(ROWS)]
    pairs = [{"x": n, "y": [str(n)] * (n % 4)} for n in range(ROWS)]
    return {
        "int": pa.array(maybe, pa.int64()),
        "bool": pa.array([n % 7 == 0 for n in range(ROWS)]),
        "text": pa.array(words),
        "large": pa.array(words, pa.large_string()),
        "view": pa.array(words, pa.string_view()),
        "binary": pa.array([bytes([n % 256]) * (n % 9) for n in range(ROWS)]),
        "list": pa.array([list(range(n % 6)) for n in range(ROWS)]),
        "list_view": pa.array([list(range(n % 6)) for n in range(ROWS)], pa.list_view(pa.int32())),
        "fixed": pa.FixedSizeListArray.from_arrays(pa.array(np.arange(ROWS * 4, dtype=np.float32)), 4),
        "struct": pa.array(pairs),
        "map": pa.array([[(str(n), n)] for n in range(ROWS)], pa.map_(pa.string(), pa.int64())),
        "null": pa.nulls(ROWS),
        "decimal": pa.array(range(ROWS), pa.decimal128(20, 3)),
        "time": pa.array(range(ROWS), pa.timestamp("us", "UTC")),
        "runs": pa.RunEndEncodedArray.from_arrays(pa.array([1000, ROWS], pa.int32()), pa.array(["a", "b"])),
        "dictionary": pa.array(words).dictionary_encode(),
        "ordered": pa.DictionaryArray.from_arrays(
            pa.array([n % 2 for n in range(ROWS)], pa.int8()), ["low", "high", "unused"], ordered=True
        ),
        "nested_dictionary": pa.StructArray.from_arrays([pa.array(words).dictionary_encode()], ["inner"]),
        "extension": pa.ExtensionArray.from_storage(
            pa.uuid(), pa.array([bytes([n % 256] * 16) for n in range(ROWS)], pa.binary(16))
        ),
        "opaque": pa.ExtensionArray.from_storage(pa.json_(), pa.array([f'{{"n": {n}}}' for n in range(ROWS)])),
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(columns()))
def test_every_type_round_trips_and_is_cut_to_chunks(name: str) -> None:
    array = columns()[name]
    field = pa.field("column", array.type, metadata={"unit": "none"})
    table = pa.Table.from_arrays([array.slice(7)], schema=pa.schema([field], metadata={"origin": "a test"}))
    shard = seal_table(table, chunk_bytes=4096)
    opened = open_table(shard)
    opened.validate(full=True)
    assert opened.equals(table, check_metadata=True) and opened.schema.equals(table.schema, check_metadata=True)
    part = open_table(shard, row_range=(1000, 1100))
    assert part.equals(table.slice(1000, 100), check_metadata=True)
    if name not in ("view", "list_view", "null", "runs", "dictionary", "nested_dictionary"):
        assert all(unit.chunks == 1 for unit in shard.frame.units[1:])
    assert shard.frame.content_bytes < 2 * table.nbytes + 12_000  # what pieces repeat does not get out of hand


def test_dictionaries_come_back_as_they_were() -> None:
    array = columns()["ordered"]
    opened = open_table(seal_table(pa.table({"column": array}), chunk_bytes=2048)).column(0).chunk(0)
    assert opened.dictionary.to_pylist() == ["low", "high", "unused"] and opened.type.ordered
    changing = [pa.record_batch([pa.array(values).dictionary_encode()], ["d"]) for values in (["a", "b"], ["c"], ["a"])]
    table = pa.Table.from_batches(changing)
    assert [chunk.dictionary.to_pylist() for chunk in open_table(seal_table(table)).column(0).chunks] == [
        ["a", "b"], ["c"], ["a"]
    ]  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(st.one_of(st.none(), st.text(max_size=60)), max_size=120),
    chunk_bytes=st.integers(64, 3000),
    data=st.data(),
)
def test_rows_and_columns_by_choice(texts: list[str | None], chunk_bytes: int, data: st.DataObject) -> None:
    table = pa.table({"n": pa.array(range(len(texts)), pa.int32()), "text": pa.array(texts, pa.string())})
    shard = seal_table(table, chunk_bytes=chunk_bytes)
    assert open_table(shard).equals(table) and shard.frame.rows == len(texts)
    start = data.draw(st.integers(0, len(texts)))
    stop = data.draw(st.integers(start, len(texts)))
    part = open_table(shard, columns=["text"], row_range=(start, stop))
    assert part.column("text").to_pylist() == texts[start:stop]


def test_a_range_opens_only_its_chunks() -> None:
    table = pa.table({"n": range(20_000)})
    shard, read = seal_table(table, chunk_bytes=4096), []
    opener = open_shard(shard.data, shard.keys, read.append)
    assert len(shard.frame.units) > 30
    batches = list(open_batches(opener, row_range=(10_000, 10_010)))
    assert [batch.column(0).to_pylist() for batch in batches] == [list(range(10_000, 10_010))]
    assert len(set(read)) == 2  # the preamble and one batch


def test_a_large_row_continues_over_chunks() -> None:
    table = pa.table({"blob": pa.array([b"x" * 10_000, b"y", b"z" * 5000], pa.binary())})
    shard = seal_table(table, chunk_bytes=1024)
    assert open_table(shard).equals(table)
    assert [unit.rows for unit in shard.frame.units[1:]] == [1, 1, 1]
    assert [entry.rows for entry in shard.frame.chunks if entry.continues] == [0] * sum(
        unit.chunks - 1 for unit in shard.frame.units
    )


@pytest.mark.parametrize(
    "table", [pa.table({"a": pa.array([], pa.int8()), "b": pa.array([], pa.string())}), pa.table({})]
)
def test_empty_tables(table: pa.Table) -> None:
    shard = seal_table(table)
    opener = shard.opener()
    assert list(open_batches(opener)) == [] and open_schema(opener) == table.schema and shard.frame.rows == 0


def test_key_groups_hide_columns() -> None:
    table = pa.table({name: columns()[name] for name in ("int", "text", "dictionary", "list")}, metadata={"k": "v"})
    shard = seal_table(table, {"text": 1, "dictionary": 2}, chunk_bytes=8192)
    assert open_table(shard).equals(table, check_metadata=True)
    public = open_shard(shard.data, shard.keys[:1])
    visible = pa.Table.from_batches(open_batches(public, row_range=(100, 2000)))
    assert visible.equals(table.select(["int", "list"]).slice(100, 1900), check_metadata=True)
    assert open_schema(public).equals(table.schema, check_metadata=True)
    with pytest.raises(NotPermitted):
        next(open_batches(public, columns=["int", "text"]))
    assert open_table(shard, columns=["dictionary", "int"]).equals(table.select(["dictionary", "int"]))


def test_bad_requests_are_named() -> None:
    table = pa.table({"a": [1, 2], "b": ["x", "y"]})
    shard = seal_table(table)
    for choice in ({"columns": ["c"]}, {"row_range": (1, 3)}, {"row_range": (2, 1)}, {"row_range": (-1, 1)}):
        with pytest.raises(UsageError):
            list(open_batches(shard.opener(), **choice))
    for groups in ({"c": 1}, {"a": 2}, {"a": 1, "b": 1}):
        with pytest.raises(UsageError):
            arrow_preamble(table.schema, groups)
    with pytest.raises(UsageError, match="raylog's"):
        arrow_preamble(pa.schema([pa.field("a", pa.int8(), metadata={b"raylog:group": b"1"})]))


def test_mixed_schemas_name_both() -> None:
    batch = pa.record_batch({"a": ["text"]})
    with pytest.raises(SourceError, match="a: int64") as caught:
        seal_shard(Kind.ARROW, arrow_preamble(pa.schema([("a", pa.int64())])), lambda sealer: add_batch(sealer, batch))
    assert "a: string" in str(caught.value)


def test_content_that_is_no_batch_is_damage() -> None:
    schema = pa.schema([("a", pa.int64())])
    batch = memoryview(pa.record_batch({"a": [1, 2, 3]}).serialize())
    for unit, rows in ((b"garbage that is no message", 3), (bytes(batch[:-8]), 3), (bytes(batch), 4)):
        shard = seal_shard(Kind.ARROW, arrow_preamble(schema), lambda s, unit=unit, rows=rows: s.add_unit([unit], rows))
        with pytest.raises(DamagedData) as caught:
            list(open_batches(shard.opener()))
        assert caught.value.check == "content"
    shard = seal_shard(Kind.ARROW, b"no schema", lambda s: None)
    with pytest.raises(DamagedData, match="schema"):
        open_schema(shard.opener())


def test_small_batches_are_joined() -> None:
    table = pa.table({"n": range(1000), "t": [str(n) for n in range(1000)]})
    joined = list(coalesce(table.to_batches(max_chunksize=3), 4096))
    assert pa.Table.from_batches(joined).equals(table)
    assert 2 < len(joined) < 12 and all(batch.nbytes <= 4096 for batch in joined)
    encoded = pa.table({"d": pa.array(["a", "b"]).dictionary_encode()}).to_batches() * 3
    assert list(coalesce(encoded, 4096)) == encoded
