"""put, get, ship, verify, delete on three real Ray nodes, for every kind of source."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset
import pyarrow.feather
import pyarrow.parquet
import pytest
import ray.data

import raylog
from raylog.actors import calls
from raylog.errors import Conflict, NotFound, SourceError, UsageError

ROWS = 50_000


@pytest.fixture(scope="module")
def table() -> pa.Table:
    """About 6 MiB: two shards of 4 MiB, many chunks of 256 KiB, one column that no codec makes smaller."""
    random = np.random.default_rng(7)
    noise = pa.FixedSizeBinaryArray.from_buffers(pa.binary(128), ROWS, [None, pa.py_buffer(random.bytes(ROWS * 128))])
    words = pa.array(["weights", "shard", "chunk", "ray"]).take(pa.array(random.integers(0, 4, ROWS)))
    return pa.table({"id": pa.array(range(ROWS)), "word": words, "noise": noise})


@pytest.fixture(scope="module")
def small() -> pa.Table:
    return pa.table({"id": [1, 2, 3], "text": ["a", "b", "c"]})


def test_a_table_comes_back_bit_for_bit_from_two_replicas(client: raylog.Client, table: pa.Table) -> None:
    version = client.put("tests/table", table, replicas=2)
    assert version.rows == ROWS
    assert version.shards >= 2
    assert client.get("tests/table") == table
    assert client.get(f"tests/table@{version.number}", columns=["word"]) == table.select(["word"])
    assert [len(set(nodes)) for nodes in client.replicas("tests/table").values()] == [2] * version.shards
    with client.reader("tests/table") as reader:
        assert sum(batch.num_rows for batch in reader) == ROWS


def write_parquet(folder: Path, table: pa.Table) -> Path:
    pyarrow.parquet.write_table(table, folder / "t.parquet")
    return folder / "t.parquet"


def write_csv(folder: Path, table: pa.Table) -> Path:
    pyarrow.csv.write_csv(table, folder / "t.csv")
    return folder / "t.csv"


def write_jsonl(folder: Path, table: pa.Table) -> Path:
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    return folder / "t.jsonl"


def write_arrow(folder: Path, table: pa.Table) -> Path:
    pyarrow.feather.write_feather(table, folder / "t.arrow", compression="uncompressed")
    return folder / "t.arrow"


def write_folder(folder: Path, table: pa.Table) -> str:
    for part in range(2):
        pyarrow.parquet.write_table(table.slice(part * 2, 2), folder / f"part-{part}.parquet")
    return str(folder)


SOURCES: dict[str, Callable[[Path, pa.Table], Any]] = {
    "table": lambda folder, table: table,
    "reader": lambda folder, table: table.to_reader(),
    "dataset": lambda folder, table: pyarrow.dataset.dataset(table),
    "parquet": write_parquet,
    "csv": write_csv,
    "jsonl": write_jsonl,
    "arrow": write_arrow,
    "folder": write_folder,
    "url": lambda folder, table: write_parquet(folder, table).as_uri(),
    "ray-data": lambda folder, table: ray.data.from_arrow(table),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_of_a_table(client: raylog.Client, small: pa.Table, tmp_path: Path, kind: str) -> None:
    client.put(f"tests/sources/{kind}", SOURCES[kind](tmp_path, small))
    assert client.get(f"tests/sources/{kind}").to_pylist() == small.to_pylist()


def test_bytes_files_and_folders(client: raylog.Client, tmp_path: Path) -> None:
    payload = np.random.default_rng(1).bytes(6_000_000)
    client.put("tests/bytes", payload)
    assert client.get("tests/bytes") == payload
    source = tmp_path / "source"
    for relative, content in {"a/same.bin": payload, "b/same.bin": b"other", "empty": b""}.items():
        (source / relative).parent.mkdir(parents=True, exist_ok=True)
        (source / relative).write_bytes(content)
    client.put("tests/folder", source)
    client.download("tests/folder", tmp_path / "back")
    found = {
        str(path.relative_to(tmp_path / "back")): path.read_bytes()
        for path in (tmp_path / "back").rglob("*")
        if path.is_file()
    }
    assert found == {"a/same.bin": payload, "b/same.bin": b"other", "empty": b""}
    with pytest.raises(Conflict, match="exists already"):
        client.download("tests/folder", tmp_path / "back")


def test_arrays_and_tensors(client: raylog.Client) -> None:
    torch = pytest.importorskip("torch")
    arrays = {
        "w": np.arange(1_500_000, dtype=np.float32).reshape(1500, 1000),
        "empty": np.empty((0, 3)),
        "n": np.array(5),
    }
    client.put("tests/arrays", arrays)
    back = client.get("tests/arrays")
    assert back.keys() == arrays.keys()
    assert all(np.array_equal(back[name], arrays[name]) and back[name].dtype == arrays[name].dtype for name in arrays)
    weights = torch.randn(64, 64, dtype=torch.bfloat16)
    client.put("tests/tensors", {"weights": weights})
    raw = client.get("tests/tensors")["weights"]
    assert torch.equal(torch.from_numpy(raw).view(torch.bfloat16), weights)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".csv", ".jsonl"])
def test_a_table_is_downloaded_as_a_file(client: raylog.Client, small: pa.Table, tmp_path: Path, suffix: str) -> None:
    client.put("tests/download", small)
    (path,) = client.download("tests/download", tmp_path / f"out{suffix}")
    client.put("tests/download-again", path)
    assert client.get("tests/download-again").to_pylist() == small.to_pylist()


def test_versions_are_listed_replaced_and_deleted(client: raylog.Client, small: pa.Table) -> None:
    first = client.put("tests/versions", small)
    second = client.put("tests/versions", small.slice(1))
    assert second.number == first.number + 1
    assert client.stat("tests/versions") == second
    assert client.versions("tests/versions") == [first, second]
    assert second in client.ls("tests/ver")
    assert client.get(str(first)) == small
    assert client.delete(str(second)) == [second]
    assert client.get("tests/versions") == small
    client.delete("tests/versions")
    with pytest.raises(NotFound, match="tests/versions"):
        client.get("tests/versions")
    assert client.put("tests/versions", small).number == second.number + 1


def test_shipped_to_all_then_read_from_the_local_copy(client: raylog.Client, table: pa.Table) -> None:
    version = client.put("tests/ship", table)
    report = client.ship("tests/ship", to="all", pin=True).result(60)  # cached copies may give way meanwhile
    assert len(report.nodes) == 3
    assert report.moved_bytes > version.stored_bytes  # two nodes lacked it
    again = client.ship("tests/ship", to="all").result(60)
    assert again.moved_bytes == 0
    scrubbed = client.verify("tests/ship")
    assert (scrubbed.damaged, scrubbed.repaired) == (0, 0)
    assert scrubbed.replicas >= 3 * version.shards
    client.unpin("tests/ship")


def test_bad_names_sources_and_options_are_told_apart(client: raylog.Client, small: pa.Table, tmp_path: Path) -> None:
    for name in ("../up", "a\0b", "x" * 300, "\uff57ide", "", "/abs"):
        with pytest.raises(UsageError, match="expected"):
            client.put(name, small)
    with pytest.raises(SourceError, match="nowhere"):
        client.put("tests/bad", tmp_path / "nowhere.parquet")
    with pytest.raises(UsageError, match="replicas"):
        client.put("tests/bad", small, replicas=0)
    with pytest.raises(NotFound, match="tests/never"):
        client.get("tests/never@7")
    with pytest.raises(NotFound, match="living node"):
        client.ship("tests/table", to=["00000000"])
    assert not client.ls("tests/bad")


def stored(client: raylog.Client) -> set[str]:
    """Every shard on every node."""
    inventories = [calls.node(info.ray_node_id).inventory.remote() for info in client.nodes()]
    return {ref.shard_id for found in calls.wait_all(inventories, 30, "inventory") for ref in found}


def test_a_put_that_fails_half_way_leaves_nothing(client: raylog.Client, table: pa.Table) -> None:
    def broken() -> Any:
        yield from table.to_batches(max_chunksize=4096)
        raise OSError("the source went away")

    before = stored(client)
    with pytest.raises(SourceError, match="went away"):
        client.put("tests/broken", pa.RecordBatchReader.from_batches(table.schema, broken()), replicas=2)
    assert not client.ls("tests/broken")
    assert stored(client) <= before
