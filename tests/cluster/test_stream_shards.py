"""A table streamed on a node that does not keep it: shards come when they are needed, once for all processes there, and
give way to others."""

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from three_nodes import begin_beside, beside, wait_until, wait_until_settled

import raylog
from raylog.actors import calls
from raylog.actors.node_info import NodeInfo
from raylog.errors import NoSpace, NotFound
from raylog.units import MIB

ROWS, ROW_BYTES = 3072, 20_480  # 60 MiB, in 15 shards or so: more than a small node's disk
NAME = "stream/far"


@pytest.fixture(scope="module")
def stored(client: raylog.Client) -> Iterator[raylog.Version]:
    """Noise, on this process's node alone."""
    values = np.random.default_rng(3).integers(0, 256, (ROWS, ROW_BYTES), dtype=np.uint8)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), ROW_BYTES)
    yield client.put(NAME, pa.table({"noise": column, "n": np.arange(ROWS)}))
    client.delete(NAME)
    wait_until_settled(client, 30)


@pytest.fixture(scope="module")
def other(client: raylog.Client, stored: raylog.Version) -> NodeInfo:
    """A node that does not keep it."""
    return next(info for info in client.nodes() if info.node_id != client.local_node().node_id)


def brought(client: raylog.Client, node: NodeInfo) -> int:
    """How many of its shards are on a node."""
    return len(lying(node) & set(client.replicas(NAME)))


def lying(node: NodeInfo) -> set[str]:
    """The shards on a node."""
    inventory = calls.wait(calls.node(node.ray_node_id).inventory.remote(), 10, "inventory")
    return {ref.shard_id for ref in inventory}


def received_bytes(client: raylog.Client, node: NodeInfo) -> int:
    sample = calls.wait(calls.node(node.ray_node_id).sample.remote(), 10, "sample")
    return int(sample.transfer.received_bytes)


def streaming(**options: Any) -> Callable[[raylog.Client], list[int]]:
    """To be done in a process on some node: the rows of an epoch, in the order in which they came."""

    def rows(client: raylog.Client) -> list[int]:
        with raylog.StreamingDataset(NAME, batch_size=64, client=client, output="numpy", **options) as dataset:
            return [int(n) for batch in dataset for n in batch["n"]]

    return rows


def test_shards_come_when_they_are_needed(client: raylog.Client, stored: raylog.Version, other: NodeInfo) -> None:
    """Two processes ask for the same ones at the same time, and get the same order; each shard crosses the network
    once."""
    before = received_bytes(client, other)

    def first_batch(there: raylog.Client) -> tuple[int, int]:
        options: dict[str, Any] = {"held_bytes": 0, "shuffle_shards": 1, "read_ahead_bytes": 0, "columns": ["n"]}
        with raylog.StreamingDataset(NAME, batch_size=8, client=there, output="numpy", **options) as dataset:
            at_first = brought(there, other)
            for _ in dataset:
                break
            return at_first, brought(there, other)

    assert calls.wait(begin_beside(other, first_batch), 60, "a task") == (1, 1)
    tasks = [begin_beside(other, streaming(seed=4)) for _ in range(2)]
    epochs = calls.wait_all(tasks, 60, "two tasks")
    assert epochs[0] == epochs[1] and Counter(epochs[0]) == Counter(range(ROWS))
    assert brought(client, other) == stored.shards
    moved = received_bytes(client, other) - before
    assert 0.95 * stored.stored_bytes < moved < 1.05 * stored.stored_bytes


def test_workers_where_it_is_only_cached(client: raylog.Client, stored: raylog.Version, other: NodeInfo) -> None:
    """They can bring nothing: all is there before they start, and is held whatever `held_bytes` says."""

    def rows(there: raylog.Client) -> list[int]:
        with raylog.StreamingDataset(NAME, batch_size=64, client=there, held_bytes=0, columns=["n"]) as dataset:
            loader = raylog.StreamingDataLoader(dataset, 2)
            return [int(n) for _ in range(2) for batch in loader for n in batch["n"]]

    assert Counter(calls.wait(begin_beside(other, rows), 60, "a task")) == Counter([*range(ROWS)] * 2)


def test_a_version_larger_than_the_node(client: raylog.Client, stored: raylog.Version, small: NodeInfo) -> None:
    """Its arena is full of what stays there, its disk has room for a third of the version."""
    kept = np.random.default_rng(4).bytes(60 * MIB)
    beside(small, "put", "stream/kept", kept, durability="memory")
    for options in ({"shuffle_shards": 2}, {"shuffle": False}):
        rows = calls.wait(begin_beside(small, streaming(held_bytes=8 * MIB, **options)), 120, "a task")
        assert Counter(rows) == Counter(range(ROWS))
        assert (rows == sorted(rows)) == ("shuffle" in options)
        assert 0 < brought(client, small) < stored.shards

    def in_workers(there: raylog.Client) -> str:
        with raylog.StreamingDataset(NAME, batch_size=64, client=there) as dataset:
            with pytest.raises(NoSpace) as told:
                next(iter(raylog.StreamingDataLoader(dataset, 1)))
            assert sum(len(batch["n"]) for batch in dataset) == ROWS, "it is of use still, if slowly"
            return str(told.value)

    assert "take num_workers=0" in calls.wait(begin_beside(small, in_workers), 120, "a task")
    assert beside(small, "get", "stream/kept") == kept, "what is no cache did not give way"
    client.delete("stream/kept")


def test_a_node_that_restarts_meanwhile(client: raylog.Client, stored: raylog.Version, other: NodeInfo) -> None:
    """The only one that keeps the shards: they are had once it is back."""

    def rows(there: raylog.Client) -> list[int]:
        options: dict[str, Any] = {"batch_size": 64, "client": there, "output": "numpy", "held_bytes": 0}
        with raylog.StreamingDataset(NAME, **options) as dataset:
            batches = iter(dataset)
            first = next(batches)
            (keeper,) = set().union(*there.replicas(NAME).values())
            assert keeper != there.local_node().node_id
            os.kill(next(info for info in there.nodes() if info.node_id == keeper).pid, signal.SIGKILL)
            return [int(n) for batch in (first, *batches) for n in batch["n"]]

    assert Counter(calls.wait(begin_beside(other, rows), 120, "a task")) == Counter(range(ROWS))
    here = client.local_node()  # of which a sample is needed before a put stays there again
    wait_until(lambda: any(one.node_id == here.node_id for one in client.telemetry()), 30, "its sample")


def test_a_version_deleted_while_it_is_streamed(client: raylog.Client, other: NodeInfo) -> None:
    """Where it is kept the loop goes on to its end; where shards are yet to come it says what happened."""
    noise = pa.FixedSizeListArray.from_arrays(pa.array(np.random.default_rng(5).random(ROWS * 512)), 512)
    client.put("stream/short-lived", pa.table({"n": np.arange(ROWS), "noise": noise}))
    here = raylog.StreamingDataset("stream/short-lived", batch_size=64, client=client, output="numpy")

    def deletes(there: raylog.Client) -> str:
        options: dict[str, Any] = {
            "batch_size": 64,
            "client": there,
            "output": "numpy",
            "held_bytes": 0,
            "read_ahead_bytes": 0,
        }
        with raylog.StreamingDataset("stream/short-lived", **options) as dataset:
            batches = iter(dataset)
            next(batches)
            replicas = there.replicas("stream/short-lived")
            keepers = [info for info in there.nodes() if info.node_id in set().union(*replicas.values())]
            there.delete("stream/short-lived")
            wait_until(lambda: not any(lying(info) & replicas.keys() for info in keepers), 30, "it is gone")
            with pytest.raises(NotFound) as told:
                list(batches)
            with pytest.raises(NotFound):
                next(iter(raylog.StreamingDataLoader(dataset, 1)))
            assert not any(table._is_whole for table in dataset._chunks), "what came for the workers may give way"
            return str(told.value)

    with here:
        batches = iter(here)
        first = next(batches)
        assert "the version that is streamed was deleted" in calls.wait(begin_beside(other, deletes), 60, "a task")
        rows = [int(n) for batch in (first, *batches) for n in batch["n"]]
        assert Counter(rows) == Counter(range(ROWS))
