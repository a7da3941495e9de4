"""Every sample once: over any chain of stages on any number of ranks and workers."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylog.api.streaming.order import (
    Segment,
    Stage,
    batches_in,
    batches_of,
    epoch_order,
    remaining,
    row_order,
    samples_in,
    share,
    taken,
)
from raylog.errors import UsageError

chunks = st.lists(st.integers(0, 40), min_size=0, max_size=12)
seeds = st.none() | st.integers(0, 2**63 - 1)
stages = st.lists(
    st.builds(
        Stage,
        world_size=st.integers(1, 5),
        workers=st.integers(1, 3),
        batch_size=st.integers(1, 9),
        batches=st.integers(0, 6),
        drop_last=st.booleans(),
    ),
    max_size=4,
)


def samples(segments: list[Segment]) -> list[tuple[int, int]]:
    return [(chunk, place) for chunk, start, stop in segments for place in range(start, stop)]


def cut_up(part: list[Segment], stage: Stage) -> list[list[tuple[int, int]]]:
    all_of_it, size = samples(part), stage.batch_size
    found = [all_of_it[at : at + size] for at in range(0, len(all_of_it), size)]
    return found[:-1] if stage.drop_last and found and len(found[-1]) < size else found


def delivered(segments: list[Segment], stage: Stage) -> list[tuple[int, int]]:
    """What all ranks together get, by the DataLoader's own rule, one batch after another."""
    found = []
    for rank in range(stage.world_size):
        mine = share(segments, rank, stage.world_size)
        queues = [cut_up(share(mine, w, stage.workers), stage) for w in range(stage.workers)]
        left = stage.batches
        while left and any(queues):
            for queue in queues:
                if queue and left:
                    found += queue.pop(0)
                    left -= 1
    return found


@given(rows=chunks, seed=seeds, epoch=st.integers(0, 9), done=stages)
def test_the_union_of_all_stages_is_each_sample_once(
    rows: list[int], seed: int | None, epoch: int, done: list[Stage]
) -> None:
    everything = epoch_order(rows, seed, epoch)
    assert Counter(samples(everything)) == Counter((n, place) for n, count in enumerate(rows) for place in range(count))
    seen = []
    for number, stage in enumerate(done):
        seen += delivered(remaining(everything, done[:number]), stage)
    left = samples(remaining(everything, done))
    assert Counter(seen) + Counter(left) == Counter(samples(everything))
    assert remaining(everything, done) == remaining(everything, done), "twice in a row the same"


@given(rows=chunks, count=st.integers(1, 7))
def test_shares_are_equal_to_a_sample_and_leave_nothing(rows: list[int], count: int) -> None:
    everything = epoch_order(rows, 1, 2)
    parts = [share(everything, index, count) for index in range(count)]
    assert [one for part in parts for one in samples(part)] == samples(everything)
    lengths = [samples_in(part) for part in parts]
    assert max(lengths) - min(lengths) <= 1


def test_the_order_is_the_seeds_and_the_epochs() -> None:
    rows = [100] * 50
    assert epoch_order(rows, 7, 0) == epoch_order(rows, 7, 0) != epoch_order(rows, 7, 1)
    assert epoch_order(rows, 7, 0) != epoch_order(rows, 8, 0)
    assert epoch_order(rows, None, 3) == [Segment(n, 0, 100) for n in range(50)]
    assert row_order(3, 100, 7, 0).tolist() != row_order(4, 100, 7, 0).tolist()
    assert sorted(row_order(3, 100, 7, 0).tolist()) == list(range(100)) == row_order(3, 100, None, 0).tolist()


def test_the_order_stays_what_it_is() -> None:
    """Whoever resumes with a later raylog or numpy goes on where they were."""
    assert [one.chunk for one in epoch_order([1] * 8, 42, 3)] == [5, 3, 4, 2, 1, 6, 7, 0]
    assert row_order(5, 8, 42, 3).tolist() == [4, 1, 7, 3, 6, 5, 2, 0]


def test_neighbours_are_far_apart() -> None:
    """Of a long epoch, the samples that lie side by side in the dataset: in batches of 32 hardly any two meet."""
    rows = [512] * 400
    position = np.empty(sum(rows), dtype=np.int64)
    at = 0
    for chunk, start, stop in epoch_order(rows, 3, 0):
        order = row_order(chunk, rows[chunk], 3, 0)[start:stop]
        position[chunk * 512 + order] = np.arange(at, at + stop - start)
        at += stop - start
    together = np.mean(position[1:] // 32 == position[:-1] // 32)
    assert together < 0.1


@pytest.mark.parametrize(
    ("lengths", "batches", "expected"),
    [([10, 10], 3, [2, 1]), ([10, 9], 100, [5, 5]), ([11, 10], 11, [6, 5]), ([0, 4], 2, [0, 2]), ([], 3, [])],
)
def test_batches_come_from_workers_in_turn(lengths: list[int], batches: int, expected: list[int]) -> None:
    assert taken(batches_of(lengths, 2, drop_last=False), batches) == expected


@given(rows=chunks, stage=st.builds(
    Stage, world_size=st.integers(1, 5), workers=st.integers(1, 3), batch_size=st.integers(1, 9), batches=st.just(0),
    drop_last=st.booleans(),
))  # fmt: skip
def test_how_many_batches_a_rank_has(rows: list[int], stage: Stage) -> None:
    everything = epoch_order(rows, 1, 1)
    counts = []
    for rank in range(stage.world_size):
        mine = share(everything, rank, stage.world_size)
        counts.append(sum(len(cut_up(share(mine, w, stage.workers), stage)) for w in range(stage.workers)))
    expected = [min(counts)] * stage.world_size if stage.drop_last else counts
    assert [batches_in(everything, rank, stage) for rank in range(stage.world_size)] == expected


def test_a_stage_that_cannot_be() -> None:
    for wrong in ({"world_size": 0}, {"workers": 0}, {"batch_size": 0}, {"batches": -1}):
        with pytest.raises(UsageError, match=next(iter(wrong)).replace("batches", "number of batches")):
            Stage(**{"world_size": 1, "workers": 1, "batch_size": 1, "batches": 0} | wrong)
