"""Several tables as one stream: each by its weight in every batch, resumed exactly on other ranks."""

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from three_nodes import Machine

import raylog
from raylog import StreamingDataLoader, StreamingDataset
from raylog.errors import NotFound, UsageError

WIKI, CODE = 3000, 1000
MIXTURE = {"mix/wiki": 0.5, "mix/code": 0.5}


@pytest.fixture(scope="module")
def mixture(machine: Machine, client: raylog.Client) -> Iterator[dict[str, float]]:
    """Rows of the one are numbered from 0, of the other from 10,000; their columns stand in another order."""
    wiki, code = np.arange(WIKI), np.arange(10_000, 10_000 + CODE)
    client.put("mix/wiki", pa.table({"n": wiki, "word": [f"w{n}" for n in wiki]}).replace_schema_metadata({"a": "b"}))
    client.put("mix/code", pa.table({"word": [f"w{n}" for n in code], "n": code}))
    yield MIXTURE
    client.delete("mix/wiki")
    client.delete("mix/code")


def opened(client: raylog.Client, name: Any = MIXTURE, **options: Any) -> StreamingDataset:
    return StreamingDataset(name, client=client, **({"batch_size": 100, "output": "numpy"} | options))


def test_every_batch_has_its_share(client: raylog.Client, mixture: dict[str, float]) -> None:
    with opened(client, dtypes={"n": "int32"}) as dataset:
        assert dataset.samples == WIKI + CODE and len(dataset) == 40
        epochs = [list(dataset) for _ in range(3)]
        for epoch in epochs:
            for batch in epoch:
                is_code = batch["n"] >= 10_000
                assert is_code.sum() == 50 and batch["n"].dtype == np.int32
                assert abs(np.diff(is_code.astype(int))).sum() > 90, "they take turns"
                assert batch["word"].tolist() == [f"w{n}" for n in batch["n"]]
        counts = Counter(int(n) for epoch in epochs for batch in epoch for n in batch["n"])
        assert {counts[n] for n in range(WIKI)} == {2} and {counts[n + 10_000] for n in range(CODE)} == {6}
        dataset.set_epoch(1)
        assert [dataset[number]["n"].tolist() for number in (0, 17, -1)] == [
            epochs[1][number]["n"].tolist() for number in (0, 17, -1)
        ]
        assert [batch["n"].tolist() for batch in dataset] == [batch["n"].tolist() for batch in epochs[1]]


def test_arrow_and_tensors(client: raylog.Client, mixture: dict[str, float]) -> None:
    with opened(client, shuffle=False, batch_size=4, output="arrow") as dataset:
        first = next(iter(dataset))
        assert sorted(first["n"].to_pylist()) == [0, 1, 10_000, 10_001] and first.schema.names == ["n", "word"]
    with opened(client, output="torch") as dataset:
        batch = next(iter(dataset))
        assert batch["word"] == [f"w{n}" for n in batch["n"].tolist()]


@pytest.mark.parametrize("weights", [(0.7, 0.3), (1, 20)])
def test_other_ranks_and_workers_go_on_exactly(
    client: raylog.Client, mixture: dict[str, float], weights: tuple[float, float]
) -> None:
    """All that the stages give together is the epoch of one rank, twice in a row."""
    weighted = dict(zip(mixture, weights, strict=True))
    with opened(client, weighted, columns=["n"], seed=3) as dataset:
        expected = Counter(int(n) for batch in dataset for n in batch["n"])
    for _ in range(2):
        seen: Counter[int] = Counter()
        state: dict[str, Any] | None = None
        for workers, world_size, stop in ((0, 2, 5), (2, 1, 7), (0, 1, 3), (1, 3, None)):
            for rank in range(world_size):
                options = {"rank": rank, "world_size": world_size, "columns": ["n"], "seed": 3}
                with opened(client, weighted, **options) as dataset:
                    loader = StreamingDataLoader(dataset, workers)
                    if state is not None:
                        loader.load_state_dict(state)
                    seen.update(int(n) for batch in islice(loader, stop) for n in batch["n"])
                    following = loader.state_dict()
            state = following
        assert seen == expected


def test_mistakes(client: raylog.Client, mixture: dict[str, float]) -> None:
    client.put("mix/other", pa.table({"n": np.arange(5.0), "word": ["a"] * 5}))
    client.put("mix/less", pa.table({"n": np.arange(5)}))
    client.put("mix/empty", pa.table({"n": pa.array([], pa.int64()), "word": pa.array([], pa.string())}))
    wrong = [
        ({"mix/wiki": 1, "mix/other": 1}, "column 'n' is double in mix/other and int64 in mix/wiki"),
        ({"mix/wiki": 1, "mix/less": 1}, "column 'word' is missing in mix/less and string in mix/wiki"),
        ({"mix/wiki": 1, "mix/empty": 1}, "mix/empty has none: leave it out"),
        ({"mix/wiki": 1, "mix/code": 0}, "a weight above 0 for mix/code, got 0"),
        ({"mix/wiki": float("nan")}, "a weight above 0"),
        ({}, "got none"),
    ]
    for name, message in wrong:
        with pytest.raises(UsageError, match=message):
            opened(client, name)
    with pytest.raises(NotFound):
        opened(client, {"mix/wiki": 1, "mix/nothing": 1})
    with opened(client, {"mix/wiki": 1, "mix/less": 1}, columns=["n"]) as dataset:
        assert len(list(dataset)) == len(dataset)
    others = {"mix/wiki": 0.4, "mix/code": 0.6}
    with opened(client) as dataset, opened(client, others) as other, pytest.raises(UsageError, match="and weights"):
        dataset.load_state_dict(other.state_dict())
    for name in ("mix/other", "mix/less", "mix/empty"):
        client.delete(name)


def test_a_schema_that_changed_between_versions(client: raylog.Client) -> None:
    """Each version is streamed as it was put; the state of one is no state of the other, and they do not mix."""
    client.put("mix/changed", pa.table({"n": np.arange(400)}))
    client.put("mix/changed", pa.table({"n": [str(n) for n in range(400)], "more": np.arange(400)}))
    with opened(client, "mix/changed@1") as first, opened(client, "mix/changed") as second:
        assert {name for batch in first for name in batch} == {"n"}
        batches = iter(second)
        assert sorted(next(batches)) == ["more", "n"]
        with pytest.raises(UsageError, match="name that version"):
            first.load_state_dict(second.state_dict())
        client.put("mix/changed", pa.table({"n": [1.0]}))
        assert sum(len(batch["n"]) for batch in batches) == 300, "what is being streamed does not change"
    with pytest.raises(UsageError, match="column 'more' is int64 in mix/changed@2 and missing in mix/changed@1"):
        opened(client, {"mix/changed@1": 1, "mix/changed@2": 1})
    client.delete("mix/changed")
