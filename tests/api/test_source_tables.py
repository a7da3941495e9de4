"""Tabular files: what comes out is what pyarrow reads whole, and what is malformed is named with its place."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raylog.api.source import open_source
from raylog.api.sources import text
from raylog.api.sources.content import FilesContent, TableContent
from raylog.errors import SourceError
from raylog.spec import Kind

TABLE = pa.table({"number": pa.array([1, None, 3], pa.int32()), "word": ["a", "", None], "list": [[1.5], [], None]})


def read(source: object) -> pa.Table:
    content = open_source(source)
    assert isinstance(content, TableContent)
    table = pa.Table.from_batches(content.batches(), content.schema)
    content.check_unchanged()
    return table


def write_ipc(path: Path, table: pa.Table, stream: bool) -> None:
    writer = pa.ipc.new_stream if stream else pa.ipc.new_file
    with path.open("wb") as sink, writer(sink, table.schema) as out:
        out.write_table(table, max_chunksize=2)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("t.parquet", lambda path: pq.write_table(TABLE, path)),
        ("without-suffix", lambda path: pq.write_table(TABLE, path)),
        ("t.arrow", lambda path: write_ipc(path, TABLE, stream=False)),
        ("t.ipc", lambda path: write_ipc(path, TABLE, stream=True)),
        ("t.arrows", lambda path: write_ipc(path, TABLE, stream=True)),
        ("t.feather", lambda path: feather.write_feather(TABLE, path, compression="lz4")),
    ],
)
def test_typed_formats_come_back_equal(tmp_path, name, write):
    write(tmp_path / name)
    assert read(tmp_path / name).equals(TABLE)


def test_hints_of_a_parquet_file(tmp_path):
    pq.write_table(TABLE, tmp_path / "t.parquet")
    content = open_source(str(tmp_path / "t.parquet"))
    assert (content.kind, content.rows, content.bytes) == (Kind.ARROW, 3, (tmp_path / "t.parquet").stat().st_size)


def test_a_folder_of_one_format_is_one_table_in_path_order(tmp_path):
    (tmp_path / "b").mkdir()
    for name, first in (("b/part.parquet", 20), ("a.parquet", 10), ("c.parquet", 30)):
        pq.write_table(pa.table({"n": [first, first + 1]}), tmp_path / name)
    (tmp_path / "_SUCCESS").touch()
    assert read(tmp_path)["n"].to_pylist() == [10, 11, 20, 21, 30, 31]


def test_a_folder_of_several_formats_is_opaque(tmp_path):
    pq.write_table(TABLE, tmp_path / "t.parquet")
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
    content = open_source(tmp_path)
    assert isinstance(content, FilesContent)
    assert [file.path for file in content.files] == ["notes.csv", "t.parquet"]


def test_as_files_keeps_a_table_opaque(tmp_path):
    pq.write_table(TABLE, tmp_path / "t.parquet")
    assert isinstance(open_source(tmp_path / "t.parquet", as_files=True), FilesContent)


def test_a_gzip_file_is_kept_as_it_is_whatever_its_suffix(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"\x1f\x8b\x08rest")
    (tmp_path / "t.parquet").write_bytes(b"\x1f\x8b\x08rest")
    assert isinstance(open_source(tmp_path / "t.csv"), FilesContent)
    assert isinstance(open_source(tmp_path / "t.parquet"), FilesContent)


# Bad input


@pytest.mark.parametrize("keep", [4, 100, 0.5, 0.99])
def test_a_parquet_file_cut_short_is_named(tmp_path, keep):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"n": list(range(10_000))}), path)
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(SourceError, match=r"t\.parquet cannot be read as Parquet .*cut short"):
        read(path)


def test_damage_inside_a_parquet_file_is_named_with_its_row(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(
        pa.table({"n": [random.random() for _ in range(200_000)]}),
        path,
        row_group_size=100_000,
        compression="none",
        use_dictionary=False,
        write_page_checksum=True,
    )
    data = bytearray(path.read_bytes())
    data[len(data) * 3 // 4] ^= 1
    path.write_bytes(data)
    with pytest.raises(SourceError, match=r"t\.parquet cannot be read as Parquet \(after row 1\d{5}\)"):
        read(path)


@pytest.mark.parametrize("name", ["t.arrow", "t.arrows"])
def test_an_arrow_file_cut_short_is_named(tmp_path, name):
    path = tmp_path / name
    write_ipc(path, TABLE, stream=name.endswith("s"))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(SourceError, match=rf"{name} .*cut short"):
        read(path)


@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.jsonl", "t.arrow", "t.bin"])
def test_an_empty_file_is_refused(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(SourceError, match=rf"{name} is empty"):
        open_source(tmp_path / name)


def test_mixed_schemas_name_both_files_and_the_columns(tmp_path):
    pq.write_table(pa.table({"n": [1], "x": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"n": ["1"], "y": [1]}), tmp_path / "b.parquet")
    with pytest.raises(SourceError) as caught:
        open_source(tmp_path)
    for part in ("mixed schemas", "a.parquet", "b.parquet", "'n' is int64 and string", "'x' is missing", "'y' is"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("suffix", "one", "other"),
    [("csv", "n,x\n1,2\n", "n,y\n1,2\n"), ("csv", "n\n1\n", "n\ntext\n"), ("jsonl", '{"n":1}', '{"n":"text"}')],
)
def test_mixed_schemas_of_text_files(tmp_path, suffix, one, other):
    (tmp_path / f"a.{suffix}").write_text(one)
    (tmp_path / f"b.{suffix}").write_text(other)
    with pytest.raises(SourceError, match=rf"mixed schemas: .*a\.{suffix} and .*b\.{suffix}"):
        open_source(tmp_path)


def test_whole_numbers_fractions_and_empty_columns_are_one_schema(tmp_path):
    (tmp_path / "a.csv").write_text("n,e\n1,\n")
    (tmp_path / "b.csv").write_text("n,e\n1.5,x\n")
    assert read(tmp_path).to_pydict() == {"n": [1.0, 1.5], "e": ["", "x"]}


def test_partition_folders_are_refused_with_the_way_to_read_them(tmp_path):
    (tmp_path / "year=2024").mkdir()
    pq.write_table(TABLE, tmp_path / "year=2024" / "t.parquet")
    with pytest.raises(SourceError, match=r"partition folder 'year=2024'.*partitioning='hive'"):
        open_source(tmp_path)


# CSV


def test_a_csv_row_with_too_few_fields_is_named_by_number(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n1,2\n3\n4,5\n")
    with pytest.raises(SourceError, match=r"t\.csv cannot be read as CSV: Row #3: Expected 2 columns, got 1"):
        open_source(tmp_path / "t.csv")


def test_an_uneven_row_far_into_a_csv_is_named_by_number(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b\n" + "1,2\n" * 2_000_000 + "1,2,3\n" + "1,2\n" * 10)
    assert path.stat().st_size > text.BLOCK_BYTES
    with pytest.raises(SourceError, match=r"Row #2000002: Expected 2 columns, got 3"):
        open_source(path)


def test_csv_types_hold_for_the_whole_file(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "BLOCK_BYTES", 4096)
    rows = 2000
    late = {"fraction": "1.5", "word": "x", "late": "7", "raw": "ok"}
    with (tmp_path / "t.csv").open("w") as out:
        out.write("fraction,word,late,raw\n" + "1,1,,r\n" * rows + ",".join(late.values()) + "\n")
    table = read(tmp_path / "t.csv")
    assert table.schema.types == [pa.float64(), pa.string(), pa.int64(), pa.string()]
    assert table["word"].to_pylist() == ["1"] * rows + ["x"]
    assert table["late"].to_pylist() == [None] * rows + [7]


def test_csv_bytes_that_are_no_text_are_kept_as_bytes(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"a\nok\n\xff\xfe\n")
    assert read(tmp_path / "t.csv")["a"].to_pylist() == [b"ok", b"\xff\xfe"]


def test_csv_values_may_hold_line_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "BLOCK_BYTES", 4096)
    words = [f"line {number}\nand, more" for number in range(1000)]
    pa_csv.write_csv(pa.table({"w": words}), tmp_path / "t.csv")
    assert read(tmp_path / "t.csv")["w"].to_pylist() == words


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"a,a\n1,2\n", "several columns named 'a'"),
        ("a\n1\n".encode("utf-16"), "UTF-16"),
        (b"\xff\xc3\n1\n", "cannot be read as CSV"),
        (b"\n\n", "cannot be read as CSV"),
        (b"a\n" + b"x" * (text.BLOCK_BYTES * 2), "a row is longer than 4.0 MiB"),
    ],
)
def test_bad_csv(tmp_path, data, words):
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(SourceError, match=words) as caught:
        open_source(tmp_path / "t.csv")
    assert "t.csv" in str(caught.value)


def test_a_csv_of_a_header_only_has_no_rows(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n")
    assert read(tmp_path / "t.csv").num_rows == 0


# JSON lines


def test_json_columns_that_begin_late_and_dates_as_text(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "BLOCK_BYTES", 4096)
    rows = [{"n": n, "day": "2024-01-01", "deep": {"a": []}} for n in range(500)]
    rows.append({"n": 1.5, "late": True, "day": "soon", "deep": {"a": [1], "b": "x"}})
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    table = read(tmp_path / "t.jsonl")
    assert table["day"].to_pylist() == ["2024-01-01"] * 500 + ["soon"]
    assert table["late"].to_pylist() == [None] * 500 + [True]
    assert table["n"].to_pylist() == [*map(float, range(500)), 1.5]
    assert table["deep"].to_pylist()[-1] == {"a": [1], "b": "x"}


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("{'a': 1}", r"line 3: expected one JSON object per line: Expecting property name"),
        ('{"a": 1', r"line 3: expected one JSON object per line: Expecting"),
        ('{"a": 1} {"a": 2}', r"line 3: expected one JSON object per line: Extra data"),
        ("[1]", r"line 3: expected one JSON object per line, got list"),
        ('{"a": "x"}', r"line 3: .*changed from number to string"),
        ('{"a": 1, "a": 2}', r"line 3: .*twice"),
        ('{"a": 1e999}', r"line 3: Number too big"),
        (b'{"a": 1, "b": "\xff"}', r"line 3: .*codec can't decode"),
    ],
)
@pytest.mark.parametrize("early", ['{"a": 1}\n\n', '{"a": 1}\r\n\r\n'])
def test_a_bad_json_line_is_named_by_number(tmp_path, bad, words, early):
    data = bad if isinstance(bad, bytes) else bad.encode()
    (tmp_path / "t.jsonl").write_bytes(early.encode() + data + b'\n{"a": 1}\n')
    with pytest.raises(SourceError, match=words) as caught:
        open_source(tmp_path / "t.jsonl")
    assert "t.jsonl" in str(caught.value)


def test_a_bad_json_line_far_into_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "BLOCK_BYTES", 4096)
    (tmp_path / "t.jsonl").write_text('{"a": 1}\n' * 9999 + "oops\n")
    with pytest.raises(SourceError, match="line 10000: expected one JSON object per line"):
        open_source(tmp_path / "t.jsonl")


def test_a_type_that_changes_in_a_later_block_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "BLOCK_BYTES", 4096)
    (tmp_path / "t.jsonl").write_text('{"a": 1}\n' * 2000 + '{"a": "x"}\n' * 2000)
    with pytest.raises(SourceError, match=r"line \d+.*(string)"):
        open_source(tmp_path / "t.jsonl")


@pytest.mark.parametrize("data", [b"\n \n", b"{}\n{}\n", b"\xef\xbb\xbf\n"])
def test_json_without_columns(tmp_path, data):
    (tmp_path / "t.jsonl").write_bytes(data)
    with pytest.raises(SourceError, match=r"t\.jsonl has no columns"):
        open_source(tmp_path / "t.jsonl")


json_row = st.dictionaries(
    st.sampled_from(["a", "b", "c"]),
    st.none() | st.text(st.characters(codec="utf-8"), max_size=8),
    min_size=1,
)


@given(st.lists(json_row, min_size=1, max_size=40), st.integers(16, 200), st.sampled_from(["\n", "\r\n", "\n \n"]))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_json_rows_come_back_whatever_the_blocks(tmp_path, monkeypatch, rows, block, ends):
    monkeypatch.setattr(text, "BLOCK_BYTES", block)
    (tmp_path / "t.jsonl").write_text(
        "\ufeff" + ends.join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8", newline=""
    )
    names = {name for row in rows for name in row}
    expected = [{name: row.get(name) for name in names} for row in rows]
    assert read(tmp_path / "t.jsonl").to_pylist() == expected


# Memory

MEASURE = """
import sys
from pathlib import Path
from raylog.api.source import open_source
from raylog.api.sources import text
text.BLOCK_BYTES = 1 << 20  # Arrow's reader holds about thirty blocks
def peak():
    fields = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(fields["VmHWM"].split()[0]) * 1024
small = open_source(Path(sys.argv[1]))
for batch in small.batches():
    pass
before = peak()
big = open_source(Path(sys.argv[2]))
rows = sum(batch.num_rows for batch in big.batches())
print(rows, peak() - before)
"""


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_memory_does_not_grow_with_the_file(tmp_path, suffix):
    small, big, rows = tmp_path / f"small.{suffix}", tmp_path / f"big.{suffix}", 40_000
    table = pa.table({"w": [f"{number:0>4000}" for number in range(rows)]})
    if suffix == "parquet":
        pq.write_table(table.slice(0, 10_000), small, use_dictionary=False, compression="none")
        pq.write_table(table, big, use_dictionary=False, compression="none")
    elif suffix == "csv":
        pa_csv.write_csv(table.slice(0, 10_000), small)
        pa_csv.write_csv(table, big)
    else:
        lines = [f'{{"w": "{word}"}}\n' for word in table["w"].to_pylist()]
        small.write_text("".join(lines[:10_000]))
        big.write_text("".join(lines))
    assert big.stat().st_size > 150e6
    out = subprocess.run(
        [sys.executable, "-c", MEASURE, str(small), str(big)], capture_output=True, text=True, timeout=120, check=True
    )
    found, grown = map(int, out.stdout.split())
    assert found == rows
    assert grown < 80e6
