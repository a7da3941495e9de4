"""Every sample once, or as often as the mixture says: over any chain of stages on any number of ranks and workers."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylog.api.streaming.order import (
    Parts,
    Segment,
    Stage,
    Table,
    batches_in,
    batches_of,
    by_weight,
    cut,
    epoch_order,
    lengths_of,
    places_of,
    remaining,
    row_order,
    samples_in,
    share,
    taken,
)
from raylog.errors import UsageError

chunks = st.lists(st.integers(0, 40), min_size=0, max_size=12)
mixtures = st.lists(
    st.tuples(st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any), st.floats(0.01, 100.0)),
    min_size=1, max_size=4,
)  # fmt: skip
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


Sample = tuple[int, int, int, int]  # table, turn, chunk, place


def table(rows: list[int]) -> Table:
    """Of shards of three chunks."""
    return Table(rows, [len(rows[at : at + 3]) for at in range(0, len(rows), 3)])


def plain(rows: list[int], seed: int | None, epoch: int) -> list[list[Segment]]:
    return epoch_order([table(rows)], [1.0], seed, epoch)


def samples(parts: Parts) -> list[Sample]:
    """One after another, as they are woven."""
    lists = [
        iter([(part, turn, chunk, place) for chunk, start, stop, turn in segments for place in range(start, stop)])
        for part, segments in enumerate(parts)
    ]
    found = [next(lists[part]) for part in places_of(lengths_of(parts), 0, samples_in(parts)).tolist()]
    assert all(next(left, None) is None for left in lists)
    return found


def cut_up(part: Parts, stage: Stage) -> list[list[Sample]]:
    all_of_it, size = samples(part), stage.batch_size
    found = [all_of_it[at : at + size] for at in range(0, len(all_of_it), size)]
    return found[:-1] if stage.drop_last and found and len(found[-1]) < size else found


def delivered(parts: Parts, stage: Stage) -> list[Sample]:
    """What all ranks together get, by the DataLoader's own rule, one batch after another."""
    found = []
    for rank in range(stage.world_size):
        mine = share(parts, rank, stage.world_size)
        queues = [cut_up(share(mine, w, stage.workers), stage) for w in range(stage.workers)]
        left = stage.batches
        while left and any(queues):
            for queue in queues:
                if queue and left:
                    found += queue.pop(0)
                    left -= 1
    return found


@given(mixture=mixtures, seed=seeds, epoch=st.integers(0, 9), done=stages)
def test_the_union_of_all_stages_is_the_epoch(
    mixture: list[tuple[list[int], float]], seed: int | None, epoch: int, done: list[Stage]
) -> None:
    tables, weights = [table(rows) for rows, _ in mixture], [weight for _, weight in mixture]
    everything = epoch_order(tables, weights, seed, epoch)
    seen = []
    for number, stage in enumerate(done):
        seen += delivered(remaining(everything, done[:number]), stage)
    left = samples(remaining(everything, done))
    assert Counter(seen) + Counter(left) == Counter(samples(everything))
    assert remaining(everything, done) == remaining(everything, done), "twice in a row the same"


@given(rows=chunks, seed=seeds, epoch=st.integers(0, 9))
def test_an_epoch_of_one_table_is_each_of_its_samples_once(rows: list[int], seed: int | None, epoch: int) -> None:
    expected = Counter((0, epoch, n, place) for n, count in enumerate(rows) for place in range(count))
    assert Counter(samples(plain(rows, seed, epoch))) == expected


@given(mixture=mixtures, seed=seeds, epochs=st.integers(1, 5))
def test_a_mixture_takes_its_tables_by_weight_and_each_turn_by_turn(
    mixture: list[tuple[list[int], float]], seed: int | None, epochs: int
) -> None:
    """An epoch is as long as all tables; of each no sample comes again before all of its samples have come."""
    tables, weights = [table(rows) for rows, _ in mixture], [weight for _, weight in mixture]
    total = sum(sum(rows) for rows, _ in mixture)
    seen: Counter[tuple[int, int, int]] = Counter()
    for epoch in range(epochs):
        parts = epoch_order(tables, weights, seed, epoch)
        assert samples_in(parts) == total and lengths_of(parts) == by_weight(total, weights)
        for length, weight in zip(lengths_of(parts), weights, strict=True):
            assert abs(length - total * weight / sum(weights)) <= len(tables) / 2 + 1e-6
        seen.update((part, chunk, place) for part, _, chunk, place in samples(parts))
    for part, (rows, _) in enumerate(mixture):
        counts = [seen[part, chunk, place] for chunk, count in enumerate(rows) for place in range(count)]
        assert max(counts) - min(counts) <= 1


@given(lengths=st.lists(st.integers(0, 60), min_size=1, max_size=5), first=st.integers(0, 300), more=st.integers(0, 40))
def test_tables_are_woven_evenly(lengths: list[int], first: int, more: int) -> None:
    total = sum(lengths)
    everything = places_of(lengths, 0, total)
    first = min(first, total)
    stop = min(first + more, total)
    assert places_of(lengths, first, stop).tolist() == everything[first:stop].tolist()
    parts = [[Segment(0, 0, length, 0)] for length in lengths]
    for part, length in enumerate(lengths):
        counts = np.cumsum(everything == part)
        assert counts[-1:].tolist() in ([], [length])
        assert all(abs(count - (n + 1) * length / total) <= len(lengths) / 2 for n, count in enumerate(counts))
        assert lengths_of(cut(parts, first, stop))[part] == np.sum(everything[first:stop] == part)


def test_many_samples_are_counted_exactly() -> None:
    lengths = [3 * 10**12, 7 * 10**12]
    assert np.bincount(places_of(lengths, 10**13 - 10, 10**13)).tolist() == [3, 7]


@given(mixture=mixtures, count=st.integers(1, 7))
def test_shares_are_equal_to_a_sample_and_leave_nothing(mixture: list[tuple[list[int], float]], count: int) -> None:
    everything = epoch_order([table(rows) for rows, _ in mixture], [weight for _, weight in mixture], 1, 2)
    shares = [share(everything, index, count) for index in range(count)]
    assert Counter(one for part in shares for one in samples(part)) == Counter(samples(everything))
    lengths = [samples_in(part) for part in shares]
    assert max(lengths) - min(lengths) <= 1


def test_the_order_is_the_seeds_and_the_epochs() -> None:
    rows = [100] * 50
    assert plain(rows, 7, 0) == plain(rows, 7, 0) != plain(rows, 7, 1)
    assert plain(rows, 7, 0) != plain(rows, 8, 0)
    assert plain(rows, None, 3) == [[Segment(n, 0, 100, 3) for n in range(50)]]
    first, second = epoch_order([table(rows)] * 2, [1.0, 1.0], 7, 0)
    assert first != second, "tables of one form are shuffled apart"
    assert row_order(3, 100, 7, 0).tolist() != row_order(4, 100, 7, 0).tolist()
    assert sorted(row_order(3, 100, 7, 0).tolist()) == list(range(100)) == row_order(3, 100, None, 0).tolist()


def test_the_order_stays_what_it_is() -> None:
    """Whoever resumes with a later raylog or numpy goes on where they were."""
    assert [one.chunk for one in plain([1] * 8, 42, 3)[0]] == [5, 3, 4, 2, 1, 6, 7, 0]
    assert row_order(5, 8, 42, 3).tolist() == [4, 1, 7, 3, 6, 5, 2, 0]


@given(rows=chunks, shuffle_shards=st.integers(1, 6), seed=st.integers(0, 99), epoch=st.integers(0, 3))
def test_few_shards_are_needed_at_a_time(rows: list[int], shuffle_shards: int, seed: int, epoch: int) -> None:
    """Their chunks come together, those of one group of shards after those of another."""
    (segments,) = epoch_order([table(rows)], [1.0], seed, epoch, shuffle_shards)
    expected = Counter((0, epoch, n, place) for n, count in enumerate(rows) for place in range(count))
    assert Counter(samples([segments])) == expected
    shards = [segment.chunk // 3 for segment in segments]
    first = {shard: shards.index(shard) for shard in shards}
    last = {shard: len(shards) - 1 - shards[::-1].index(shard) for shard in shards}
    for at in range(len(shards)):
        assert sum(first[shard] <= at <= last[shard] for shard in first) <= shuffle_shards
    if seed == 0 and len(rows) > 6:
        assert shards != sorted(shards) or epoch_order([table(rows)], [1.0], 1, epoch, shuffle_shards) != [segments]


def test_neighbours_are_far_apart() -> None:
    """Of a long epoch, the samples that lie side by side in the dataset: in batches of 32 hardly any two meet."""
    rows = [512] * 400
    position = np.empty(sum(rows), dtype=np.int64)
    at = 0
    for chunk, start, stop, turn in plain(rows, 3, 0)[0]:
        order = row_order(chunk, rows[chunk], 3, turn)[start:stop]
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
    everything = plain(rows, 1, 1)
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
