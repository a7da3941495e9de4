"""`raylog.read`: a table as a dataset of Ray Data, where its shards lie, and what the audit log says of it."""

import json
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray.data
from ray.data.expressions import col
from three_nodes import Machine, lying, wait_until

import raylog
from raylog.errors import NotFound, NotPermitted, UsageError

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),  # Ray Data about its own settings
]

ROWS = 20_000


@pytest.fixture(scope="module")
def table() -> pa.Table:
    numbers = np.random.default_rng(1).integers(0, 1 << 60, (ROWS, 64))
    column = pa.FixedSizeListArray.from_arrays(pa.array(numbers.reshape(-1)), 64)
    return pa.table({"n": np.arange(ROWS), "tokens": column, "word": [f"w{n}" for n in range(ROWS)]})


@pytest.fixture(scope="module")
def stored(client: raylog.Client, table: pa.Table) -> Iterator[str]:
    version = client.put("raydata/table", table)
    assert version.shards >= 3
    yield "raydata/table"
    client.delete("raydata/table")


@pytest.fixture(autouse=True)
def quiet() -> None:
    ray.data.DataContext.get_current().enable_progress_bars = False


def audited(machine: Machine) -> list[dict[str, Any]]:
    """Details of the reads that were granted, from the key actor's own log."""
    with closing(sqlite3.connect(f"file:{machine.settings.envelopes_path}?mode=ro", uri=True)) as database:
        rows = database.execute("SELECT detail FROM audit WHERE event = 'read granted' ORDER BY sequence").fetchall()
    return [json.loads(row[0]) for row in rows]


@pytest.mark.parametrize("blocks", [None, 1, 7])
def test_it_is_the_table(stored: str, table: pa.Table, blocks: int | None) -> None:
    dataset = raylog.read(stored, plaintext_blocks=True, override_num_blocks=blocks)
    assert dataset.count() == ROWS
    found = pa.concat_tables(dataset.iter_batches(batch_size=None, batch_format="pyarrow"))
    assert found.sort_by("n").equals(table)


def test_columns_and_versions(client: raylog.Client, stored: str) -> None:
    client.put(stored, pa.table({"n": [1], "other": ["x"]}))
    assert raylog.read(stored, plaintext_blocks=True).take_all() == [{"n": 1, "other": "x"}]
    dataset = raylog.read(f"{stored}@1", columns=["word", "n"], plaintext_blocks=True)
    assert dataset.schema().names == ["word", "n"] and dataset.take(1)[0].keys() == {"word", "n"}
    assert dataset.filter(expr=col("n") < 10).count() == 10
    client.delete(f"{stored}@2")


def test_it_goes_back_into_raylog(client: raylog.Client, stored: str) -> None:
    doubled = raylog.read(stored, columns=["n"], plaintext_blocks=True).map_batches(lambda b: {"n": b["n"] * 2})
    client.put("raydata/doubled", doubled)
    assert Counter(client.get("raydata/doubled")["n"].to_pylist()) == Counter(range(0, 2 * ROWS, 2))
    client.delete("raydata/doubled")


def test_the_audit_log_says_that_blocks_are_plaintext(client: raylog.Client, stored: str, machine: Machine) -> None:
    before = len(audited(machine))
    client.reader(stored, columns=["n"]).close()
    assert not any("plaintext_blocks" in one for one in audited(machine)[before:])
    before = len(audited(machine))
    raylog.read(stored, columns=["n"], plaintext_blocks=True, override_num_blocks=3).materialize()
    granted = audited(machine)[before:]
    assert len(granted) >= 4 and all(one["plaintext_blocks"] is True for one in granted), "this call and each task"


def test_without_being_asked_for_it_gives_nothing(stored: str, machine: Machine) -> None:
    before = len(audited(machine))
    with pytest.raises(NotPermitted, match=r"plaintext_blocks=True .*StreamingDataset"):
        raylog.read(stored)
    assert len(audited(machine)) == before


def test_mistakes(client: raylog.Client, stored: str) -> None:
    with pytest.raises(NotFound):
        raylog.read("raydata/nothing", plaintext_blocks=True)
    with pytest.raises(UsageError, match="nothing"):
        raylog.read(stored, columns=["nothing"], plaintext_blocks=True)
    with pytest.raises(UsageError, match="override_num_blocks from 1, got 0"):
        raylog.read(stored, plaintext_blocks=True, override_num_blocks=0)
    client.put("raydata/bytes", b"x")
    with pytest.raises(UsageError, match="expected a table, got raydata/bytes@1 with files"):
        raylog.read("raydata/bytes", plaintext_blocks=True)
    client.delete("raydata/bytes")


def test_an_empty_table(client: raylog.Client) -> None:
    client.put("raydata/empty", pa.table({"n": pa.array([], pa.int64())}))
    dataset = raylog.read("raydata/empty", plaintext_blocks=True)
    assert dataset.count() == 0 and dataset.schema().names == ["n"]
    client.delete("raydata/empty")


def test_shards_are_read_where_they_lie(client: raylog.Client, table: pa.Table) -> None:
    """Nothing is brought to another node, as nobody else wants the CPUs."""
    client.put("raydata/placed", table)
    wait_until(lambda: ray.available_resources()["CPU"] == ray.cluster_resources()["CPU"], 20, "all CPUs are free")
    time.sleep(1)  # until each node has heard so of the others
    before = lying(client)
    raylog.read("raydata/placed", plaintext_blocks=True, override_num_blocks=1).materialize()
    assert lying(client) <= before
    client.delete("raydata/placed")


def test_a_dataset_is_written_by_its_tasks_as_one_version(client: raylog.Client, stored: str, table: pa.Table) -> None:
    dataset = raylog.read(stored, plaintext_blocks=True, override_num_blocks=6)
    sink = raylog.RaylogDatasink("raydata/written", replicas=2, labels={"from": "ray"})
    dataset.write_datasink(sink)
    assert sink.version == client.stat("raydata/written") and sink.version.rows == ROWS
    assert client.get("raydata/written").sort_by("n").equals(table)
    assert {len(nodes) for nodes in client.replicas("raydata/written").values()} == {2}
    with pytest.raises(UsageError, match="has been used"):
        dataset.write_datasink(sink)
    again = raylog.RaylogDatasink("raydata/written")
    dataset.filter(expr=col("n") < 10).write_datasink(again)
    assert again.version is not None and (again.version.number, again.version.rows) == (2, 10)
    client.delete("raydata/written")


def test_what_a_dataset_could_not_write_is_not_there(client: raylog.Client) -> None:
    def spoilt(rows: pa.Table) -> pa.Table:
        if rows["id"][0].as_py() >= 500:
            raise ValueError("a task fails")
        return rows

    before = lying(client)
    failing = ray.data.range(1000, override_num_blocks=4).map_batches(spoilt, batch_format="pyarrow")
    with pytest.raises(Exception, match="a task fails"):
        failing.write_datasink(raylog.RaylogDatasink("raydata/none"))
    empty = ray.data.range(10).filter(expr=col("id") > 10)
    with pytest.raises(Exception, match="has no rows"):
        empty.write_datasink(raylog.RaylogDatasink("raydata/none"))
    with pytest.raises(NotFound):
        client.stat("raydata/none")
    wait_until(lambda: lying(client) <= before, 30, "nothing of it lies on the nodes")
