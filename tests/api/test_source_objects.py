"""Objects of this process: tables of every maker, readers that can be read once, arrays and tensors."""

import math
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pa_dataset
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from raylog.api.source import open_source
from raylog.api.sources.content import TensorsContent
from raylog.errors import SourceError, UsageError
from raylog.spec import Kind

TABLE = pa.table({"n": pa.chunked_array([[1, 2], [3]]), "w": ["a", None, "c"]}, metadata={"k": "v"})


def read(source: object) -> pa.Table:
    content = open_source(source)
    return pa.Table.from_batches(content.batches(), content.schema)


class Streaming:
    """Speaks Arrow's C stream and nothing else, as other data frames do."""

    def __arrow_c_stream__(self, requested_schema=None):
        return TABLE.__arrow_c_stream__(requested_schema)


@pytest.mark.parametrize(
    "make",
    [
        lambda: TABLE,
        lambda: TABLE.combine_chunks().to_batches()[0],
        TABLE.to_reader,
        lambda: pa_dataset.dataset(TABLE),
        Streaming,
    ],
    ids=["table", "batch", "reader", "dataset", "stream"],
)
def test_arrow_objects_come_back_equal(make):
    table = read(make())
    assert table.equals(TABLE)
    assert table.schema.metadata == {b"k": b"v"}


def test_a_large_table_comes_in_small_batches():
    table = pa.table({"n": np.zeros(2_000_000)})
    sizes = [batch.nbytes for batch in open_source(table).batches()]
    assert sum(sizes) == table.nbytes
    assert max(sizes) <= 2 << 20


def test_a_reader_is_read_once():
    content = open_source(TABLE.to_reader())
    assert not content.is_repeatable
    assert sum(batch.num_rows for batch in content.batches()) == 3
    with pytest.raises(UsageError, match="once only"):
        list(content.batches())


def test_a_reader_that_fails_half_way_is_named_with_its_row():
    def batches():
        yield from TABLE.to_batches()
        raise OSError("the line went dead")

    content = open_source(pa.RecordBatchReader.from_batches(TABLE.schema, batches()))
    with pytest.raises(SourceError, match=r"record batch reader failed after row 3: .*line went dead"):
        list(content.batches())


def test_a_dataset_of_files_notices_a_change(tmp_path):
    pq.write_table(TABLE, tmp_path / "t.parquet")
    content = open_source(pa_dataset.dataset(tmp_path))
    list(content.batches())
    content.check_unchanged()
    pq.write_table(TABLE.slice(1), tmp_path / "t.parquet")
    with pytest.raises(SourceError, match=r"t\.parquet changed while it was read"):
        content.check_unchanged()


@pytest.mark.parametrize("table", [pa.table({}), pa.table([[1], [2]], names=["a", "a"])])
def test_tables_without_columns_or_with_doubled_ones_are_refused(table):
    with pytest.raises(SourceError, match=r"the table has (no|several) columns"):
        open_source(table)


def test_an_empty_table_with_columns_is_a_table():
    assert read(TABLE.slice(0, 0)).equals(TABLE.slice(0, 0))


def test_an_array_is_no_table():
    with pytest.raises(UsageError, match="ChunkedArray is no table of columns"):
        open_source(TABLE["n"])


def test_pandas_frames():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"n": [1, 2], "w": ["a", "b"]}, index=pandas.Index([7, 8], name="i"))
    assert read(frame).to_pandas().equals(frame)
    with pytest.raises(SourceError, match="does not fit Arrow's types"):
        open_source(pandas.DataFrame({"n": [1, "text"]}, dtype=object))
    with pytest.raises(SourceError, match=r"several columns named 'a'|Duplicate column"):
        open_source(pandas.DataFrame([[1, 2]], columns=["a", "a"]))


# Arrays


def loaded(source: object) -> dict[str, np.ndarray]:
    content = open_source(source)
    assert isinstance(content, TensorsContent)
    assert content.kind is Kind.TENSORS
    arrays = {tensor.name: tensor.load(0, math.prod(tensor.shape)).reshape(tensor.shape) for tensor in content.tensors}
    for tensor in content.tensors:
        assert arrays[tensor.name].flags.c_contiguous
        assert arrays[tensor.name].shape == tensor.shape
        assert arrays[tensor.name].nbytes == tensor.size_bytes
    return arrays


dtypes = (
    st_numpy.integer_dtypes(endianness="?")
    | st_numpy.unsigned_integer_dtypes(endianness="?")
    | st_numpy.floating_dtypes(endianness="?", sizes=(16, 32, 64))
    | st_numpy.complex_number_dtypes(endianness="?", sizes=(64, 128))
    | st_numpy.boolean_dtypes()
)


@given(st_numpy.arrays(dtypes, st_numpy.array_shapes(min_dims=0, min_side=0, max_side=5)), st.booleans())
@settings(max_examples=150, deadline=None)
def test_arrays_are_read_as_little_endian_rows(array, turned):
    source = array.T if turned else array
    found = loaded({"x": source})["x"]
    assert found.dtype.newbyteorder("<") == found.dtype
    np.testing.assert_array_equal(found, source)
    (tensor,) = open_source({"x": source}).tensors
    assert tensor.dtype == source.dtype.name
    for first, stop in ((0, source.size // 2), (source.size // 2, source.size), (source.size // 3, source.size // 2)):
        np.testing.assert_array_equal(tensor.load(first, stop), source.reshape(-1)[first:stop])


def test_a_plain_array_is_not_copied():
    array = np.arange(10.0)
    assert np.shares_memory(loaded({"x": array})["x"], array)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({}, "mapping is empty"),
        ({"x": [1, 2]}, "under 'x', got list"),
        ({"x": {"y": np.ones(1)}}, "under 'x', got dict: flatten"),
        ({"x": np.array([object()])}, "'x': expected numbers"),
        ({"x": np.array(["text"])}, "'x': expected numbers"),
        ({"x": np.array([1], "datetime64[s]")}, "'x': expected numbers"),
        ({"x": np.zeros(1, [("a", "i4")])}, "'x': expected numbers"),
        ({"x": np.zeros(1, np.longdouble)}, "'x': expected numbers"),
        ({1: np.ones(1)}, "name of an array, got 1"),
        ({"": np.ones(1)}, "name of an array"),
        ({"\ud800": np.ones(1)}, "name of an array"),
    ],
)
def test_what_is_no_array_is_named(source, words):
    with pytest.raises(UsageError, match=words):
        open_source(source)


def test_torch_tensors():
    torch = pytest.importorskip("torch")
    tensor = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    arrays = loaded(
        {"w": tensor, "turned": tensor.T, "grad": torch.ones(2, requires_grad=True), "one": torch.tensor(7)}
    )
    assert np.shares_memory(arrays["w"], tensor.numpy())
    np.testing.assert_array_equal(arrays["turned"], tensor.T.numpy())
    assert arrays["one"].shape == () and arrays["one"] == 7
    np.testing.assert_array_equal(arrays["grad"], [1, 1])


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_torch_types_without_a_numpy_name_keep_their_bits(name):
    torch = pytest.importorskip("torch")
    tensor = torch.linspace(-2, 2, 9).to(getattr(torch, name))
    content = open_source({"w": tensor, "none": tensor[:0], "one": tensor[3]})
    assert [item.dtype for item in content.tensors] == [name] * 3
    bits = content.tensors[0].load(0, 9)
    again = torch.from_numpy(bits).view(getattr(torch, name))
    assert torch.equal(again.float(), tensor.float())
    assert content.tensors[2].load(0, 1).shape == (1,)


@pytest.mark.parametrize("make", [lambda t: t.ones(2).to_sparse(), lambda t: t.ones(2, device="meta")])
def test_torch_tensors_without_plain_data_are_refused(make):
    torch = pytest.importorskip("torch")
    with pytest.raises(UsageError, match="tensor 'w': expected a dense tensor with data"):
        open_source({"w": make(torch)})


def test_nothing_heavy_is_imported():
    code = "import sys, raylog.api.source as s; s.open_source({'x': __import__('numpy').ones(1)}); print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert {"torch", "ray", "pandas", "aiohttp", "s3fs"} & set(out.stdout.split()) == set()
