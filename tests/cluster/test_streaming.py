"""A table as a stream of batches: each sample once, resumed exactly on other ranks, whatever a chunk meets on the
way."""

import json
import multiprocessing
import os
import pickle
import signal
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from three_nodes import wait_until

import raylog
from raylog import StreamingDataLoader, StreamingDataset
from raylog.api.streaming import chunks
from raylog.errors import NotFound, UsageError
from raylog.units import MIB

ROWS, LENGTH = 24_000, 64


@pytest.fixture(scope="module")
def tokens() -> pa.Table:
    values = np.random.default_rng(1).integers(0, 50_000, (ROWS, LENGTH), dtype=np.int32)
    values[:, 0] = np.arange(ROWS)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), LENGTH)
    return pa.table({"tokens": column, "n": np.arange(ROWS), "word": [f"w{n}" for n in range(ROWS)]})


@pytest.fixture(scope="module")
def stored(client: raylog.Client, tokens: pa.Table) -> Iterator[str]:
    version = client.put("stream/tokens", tokens, replicas=2)
    assert version.shards >= 2
    yield "stream/tokens"
    client.delete("stream/tokens")


def opened(client: raylog.Client, name: str, **options: Any) -> StreamingDataset:
    return StreamingDataset(name, client=client, **({"batch_size": 128} | options))


def numbers(batch: dict[str, Any]) -> list[int]:
    found: list[int] = batch["n"].tolist()
    return found


def test_each_sample_comes_once_and_as_it_was_put(client: raylog.Client, stored: str, tokens: pa.Table) -> None:
    with opened(client, stored, dtypes={"tokens": "int64"}) as dataset:
        batches = list(dataset)
        assert len(batches) == -(-ROWS // 128) and dataset.samples == ROWS
        assert batches[0]["tokens"].dtype == torch.int64 and batches[0]["tokens"].shape == (128, LENGTH)
        assert Counter(n for batch in batches for n in numbers(batch)) == Counter(range(ROWS))
        expected = tokens["tokens"].combine_chunks().flatten().to_numpy().reshape(ROWS, LENGTH)
        for batch in batches:
            rows = numbers(batch)
            assert np.array_equal(batch["tokens"].numpy(), expected[rows])
            assert batch["word"] == [f"w{n}" for n in rows]
        assert numbers(batches[0]) != list(range(128))
        second = [numbers(batch) for batch in dataset]
        assert second != [numbers(batch) for batch in batches], "the next epoch has another order"
        dataset.set_epoch(0)
        assert [numbers(batch) for batch in dataset] == [numbers(batch) for batch in batches]


def test_a_batch_by_its_number(client: raylog.Client, stored: str) -> None:
    with opened(client, stored, rank=1, world_size=3) as dataset:
        dataset.set_epoch(2)
        batches = [numbers(batch) for batch in dataset]
        dataset.set_epoch(2)
        assert len(batches) == len(dataset)
        for number in (0, 7, len(batches) - 1, -1, -len(batches)):
            assert numbers(dataset[number]) == batches[number]
        for number in (len(batches), -len(batches) - 1):
            with pytest.raises(IndexError, match=f"expected a batch from -{len(batches)} to {len(batches) - 1}, got"):
                dataset[number]
        iteration = iter(dataset)
        assert [numbers(next(iteration)), numbers(dataset[40]), numbers(next(iteration))] == [
            batches[number] for number in (0, 40, 1)
        ]
        dataset.load_state_dict(dataset.state_dict())  # two were given
        assert numbers(dataset[0]) in batches[2:] and len(dataset) == len(batches) - 2


def test_outputs(client: raylog.Client, stored: str, tokens: pa.Table) -> None:
    with opened(client, stored, output="arrow", shuffle=False, batch_size=999) as dataset:
        assert pa.Table.from_batches(dataset).equals(tokens)
    with opened(client, stored, output="numpy", columns=["n"], shuffle=False, drop_last=True) as dataset:
        batches = list(dataset)
        assert len(batches) == len(dataset) == ROWS // 128
        assert {name for batch in batches for name in batch} == {"n"}
        assert np.array_equal(np.concatenate([batch["n"] for batch in batches]), np.arange(ROWS // 128 * 128))


def test_a_data_loader_takes_it(client: raylog.Client, stored: str) -> None:
    with opened(client, stored, columns=["n"]) as dataset:
        loader = torch.utils.data.DataLoader(dataset, batch_size=None)
        assert Counter(n for batch in loader for n in numbers(batch)) == Counter(range(ROWS))


@pytest.mark.parametrize("worlds", [(1, 2), (3, 2, 1), (2, 4)])
def test_other_ranks_go_on_exactly(client: raylog.Client, stored: str, worlds: tuple[int, ...]) -> None:
    """Each stage stops in the middle; the state of any rank, through JSON, is enough for all ranks of the next."""
    seen: list[int] = []
    state: dict[str, Any] | None = None
    for number, world_size in enumerate(worlds):
        states = []
        for rank in range(world_size):
            with opened(client, stored, columns=["n"], rank=rank, world_size=world_size, seed=5) as dataset:
                if state is not None:
                    dataset.load_state_dict(state)
                length = len(dataset)
                stop = length if number == len(worlds) - 1 else 17
                batches = iter(dataset)
                seen += [n for _ in range(stop) for n in numbers(next(batches))]
                states.append(json.dumps(dataset.state_dict()))
                if stop == length:
                    assert next(batches, None) is None
        state = json.loads(states[0])
        assert set(states) == {states[0]}
    assert Counter(seen) == Counter(range(ROWS))


@pytest.mark.parametrize("drop_last", [False, True])
def test_other_workers_go_on_exactly(client: raylog.Client, stored: str, drop_last: bool) -> None:
    """Stops in the middle with two workers, goes on with none, then with one on each of two ranks."""
    seen: list[int] = []
    state: dict[str, Any] | None = None
    for workers, world_size, stop in ((2, 1, 33), (0, 1, 20), (1, 2, None)):
        states = []
        for rank in range(world_size):
            options = {"rank": rank, "world_size": world_size, "columns": ["n"], "drop_last": drop_last}
            with opened(client, stored, **options) as dataset:
                loader = StreamingDataLoader(dataset, workers)
                if state is not None:
                    loader.load_state_dict(state)
                length = len(loader)
                given = [numbers(batch) for batch in islice(loader, stop or length + 1)]
                assert len(given) == (stop or length)
                seen += [n for batch in given for n in batch]
                states.append(loader.state_dict())
        state = states[0]
    if drop_last:
        assert len(seen) == len(set(seen)) > ROWS - 128 * 8
    else:
        assert Counter(seen) == Counter(range(ROWS))
    assert state is not None and state["epoch"] == (1 if stop is None and not drop_last else state["epoch"])


def test_workers_give_the_next_epoch_too(client: raylog.Client, stored: str) -> None:
    with opened(client, stored, columns=["n"]) as dataset:
        loader = StreamingDataLoader(dataset, 2)
        epochs = [[numbers(batch) for batch in loader] for _ in range(2)]
        for epoch in epochs:
            assert Counter(n for batch in epoch for n in batch) == Counter(range(ROWS))
        assert epochs[0] != epochs[1]


@pytest.mark.parametrize("step_s", [0.0, 0.3])
def test_a_killed_worker_ends_the_loop_and_loses_nothing(client: raylog.Client, stored: str, step_s: float) -> None:
    """Told for the next batch, also where PyTorch heard of it before, in the middle of a step."""
    with opened(client, stored, columns=["n"]) as dataset:
        loader = StreamingDataLoader(dataset, 2, prefetch_factor=1)
        seen: list[int] = []
        with pytest.raises(raylog.Unavailable, match="load_state_dict what state_dict says now"):
            for batch in loader:
                seen += numbers(batch)
                if len(seen) == 5 * 128:
                    os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
                    time.sleep(step_s)
        assert len(seen) < ROWS and multiprocessing.active_children() == []
        loader.load_state_dict(loader.state_dict())
        seen += [n for batch in loader for n in numbers(batch)]
        assert Counter(seen) == Counter(range(ROWS))


def test_a_forked_process_is_told_what_to_do(client: raylog.Client, stored: str) -> None:
    """Ray answers it never: each of these would hang."""
    fork = multiprocessing.get_context("fork")
    said = fork.SimpleQueue()
    with opened(client, stored) as dataset:

        def tries() -> None:
            for attempt in (lambda: next(iter(dataset)), lambda: opened(client, stored), raylog.connect):
                try:
                    attempt()
                except UsageError as error:
                    said.put(str(error))
            os._exit(0)

        process = fork.Process(target=tries)
        process.start()
        process.join(20)
        assert process.exitcode == 0
        assert "open another in each process" in said.get()
        assert all("was forked from one that was connected to Ray" in said.get() for _ in range(2))
        assert sum(len(numbers(batch)) for batch in dataset) == ROWS


def test_no_worker_is_started_beside_an_iteration(client: raylog.Client, stored: str) -> None:
    with opened(client, stored) as dataset:
        loader = StreamingDataLoader(dataset, 1)
        assert len(loader) == len(dataset) and sum(1 for _ in loader) == len(dataset)
        with pytest.raises(UsageError, match="StreamingDataLoader"):  # nor taken for one of the loader before
            next(iter(torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=1)))
        here = iter(dataset)
        next(here)
        with pytest.raises(UsageError, match="no iteration over this dataset under way"):
            next(iter(loader))
        here.close()  # type: ignore[attr-defined]
        dataset.set_epoch(0)
        assert sum(1 for _ in loader) == len(dataset)


def test_it_connects_by_itself(client: raylog.Client, stored: str) -> None:
    with StreamingDataset(stored, batch_size=500) as dataset:
        assert Counter(n for batch in dataset for n in numbers(batch)) == Counter(range(ROWS))
    assert client.stat(stored).shards >= 2, "the other connection lives on"


def test_it_stops_and_goes_on_twice_alike(client: raylog.Client, stored: str) -> None:
    with opened(client, stored, columns=["n"]) as dataset:
        everything = [numbers(batch) for batch in dataset]
        dataset.set_epoch(0)
        batches = iter(dataset)
        for _ in range(40):
            next(batches)
        state = dataset.state_dict()
    for _ in range(2):
        with opened(client, stored, columns=["n"]) as dataset:
            dataset.load_state_dict(state)
            assert [numbers(batch) for batch in dataset] == everything[40:]


def test_it_goes_on_after_its_node_restarted(client: raylog.Client, stored: str) -> None:
    """What was held went with the connection to the node."""
    with opened(client, stored, columns=["n"], read_ahead_bytes=0) as dataset:
        batches = iter(dataset)
        rows, before = numbers(next(batches)), client.local_node()
        os.kill(before.pid, signal.SIGKILL)
        wait_until(lambda: client.local_node().pid != before.pid, 30, "the node came back")
        rows += [n for batch in batches for n in numbers(batch)]
        assert Counter(rows) == Counter(range(ROWS))


def test_threads_leave_no_more_copies_open_than_may_be(
    client: raylog.Client, stored: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(client, stored) as dataset:
        (table,) = dataset._chunks
        shards = len(table.chunks)
        taken = [table._take(0, table.pulls()) for _ in range(4)]
        monkeypatch.setattr(chunks, "HELD_SHARDS_MAX", shards + 1)
        for held in taken:
            table._give_back(held)
        assert len(table._idle[0]) == 2 and sum(map(len, table._idle.values())) == shards + 1


def test_it_is_read_from_another_node(client: raylog.Client, tokens: pa.Table) -> None:
    here = client.local_node().node_id
    client.put("stream/elsewhere", tokens, replicas=2)
    wait_until(lambda: bool(client.replicas("stream/elsewhere")), 10, "it is there")
    with opened(client, "stream/elsewhere", columns=["n"], read_ahead_bytes=0) as dataset:
        assert sum(len(numbers(batch)) for batch in dataset) == ROWS
    assert here
    client.delete("stream/elsewhere")


def test_mistakes(client: raylog.Client, stored: str) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"world_size": 0, "rank": 0}, "world_size - 1"),
        ({"world_size": 2, "rank": 2}, "world_size - 1"),
        ({"world_size": 2, "rank": "0"}, "rank='0'"),
        ({"rank": 1}, "together"),
        ({"batch_size": 0}, "batch_size from 1"),
        ({"batch_size": 4.0}, "a whole number, got 4.0"),
        ({"output": "jax"}, "an output of arrow, numpy, torch"),
        ({"columns": ["nothing"]}, "nothing"),
        ({"dtypes": {"nothing": "int64"}}, "dtypes of columns"),
        ({"dtypes": {"n": "int6"}}, "a type that numpy has for column 'n'"),
    ]
    for options, message in wrong:
        with pytest.raises(UsageError, match=message):
            opened(client, stored, **options)
    with pytest.raises(NotFound):
        opened(client, "stream/nothing")
    client.put("stream/bytes", b"x" * MIB)
    with pytest.raises(UsageError, match="expected a table"):
        opened(client, "stream/bytes")
    client.delete("stream/bytes")
    with opened(client, stored, seed=1) as dataset, opened(client, stored, seed=2) as other:
        with pytest.raises(UsageError, match="seed 2"):
            dataset.load_state_dict(other.state_dict())
        with pytest.raises(UsageError, match="what StreamingDataset"):
            dataset.load_state_dict({"epoch": 3})
        with pytest.raises(UsageError, match="gave, got NoneType"):
            dataset.load_state_dict(None)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="what StreamingDataset"):
            dataset.load_state_dict(dataset.state_dict() | {"epoch": -1})
        with pytest.raises(UsageError, match="epoch from 0, got -1"):
            dataset.set_epoch(-1)
        with pytest.raises(UsageError, match="StreamingDataLoader"):
            next(iter(torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=1)))
        for options in ({"batch_size": 3}, {"shuffle": True}, {"persistent_workers": True}):
            with pytest.raises(UsageError, match="said to the StreamingDataset"):
                StreamingDataLoader(dataset, 1, **options)
        with pytest.raises(UsageError, match="expected forked workers"):
            StreamingDataLoader(dataset, 1, multiprocessing_context="spawn")
        with pytest.raises(UsageError, match="does not leave its process"):
            pickle.dumps(dataset)


def test_fewer_samples_than_ranks(client: raylog.Client) -> None:
    client.put("stream/few", pa.table({"n": [0, 1, 2]}))
    seen = []
    for rank in range(5):
        with opened(client, "stream/few", rank=rank, world_size=5) as dataset:
            seen += [n for batch in dataset for n in numbers(batch)]
    assert sorted(seen) == [0, 1, 2]
    client.delete("stream/few")


def test_columns_that_no_array_holds(client: raylog.Client) -> None:
    client.put("stream/odd", pa.table({"n": [1, None], "lists": [[1], [1, 2]]}))
    for columns, message in ((["n"], "missing values"), (["lists"], "lists of 1 to 2 values")):
        with opened(client, "stream/odd", columns=columns) as dataset, pytest.raises(UsageError, match=message):
            next(iter(dataset))
    client.put("stream/times", pa.table({"at": pa.array([1, 2], pa.timestamp("us"))}))
    with opened(client, "stream/times") as dataset, pytest.raises(UsageError, match="which no tensor holds"):
        next(iter(dataset))
    with opened(client, "stream/times", dtypes={"at": "int64"}, shuffle=False) as dataset:
        assert next(iter(dataset))["at"].tolist() == [1, 2]
    client.delete("stream/times")
    with opened(client, "stream/odd", output="arrow", shuffle=False) as dataset:
        assert pa.Table.from_batches(dataset).to_pydict() == {"n": [1, None], "lists": [[1], [1, 2]]}
    client.delete("stream/odd")
