"""Which sample comes when: from seed, epoch, weights and the chunks' row counts alone; and what is left of an epoch at
any point, on any number of ranks and workers. Pure.

An epoch of one table is a sequence of samples: the chunks in a shuffled order, the rows of each chunk shuffled among
themselves. Of several tables it has as many samples as all of them together, dealt to each by its weight; each goes on
where the epoch before has ended, over and over, shuffled anew each time. Their sequences are woven into one evenly: of
its first n samples each table has its share, to a sample.

The sequence is dealt out in contiguous shares of equal length (to a row), to ranks and then to each rank's workers, so
that few chunks are opened twice. What a stage of work leaves is a sequence again, which the next one deals out anew.
"""

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from raylog.errors import UsageError


class Segment(NamedTuple):
    """Places `start` to `stop` of the rows of one chunk as they are shuffled in that turn through its table."""

    chunk: int
    start: int
    stop: int
    turn: int


class Table(NamedTuple):
    """`rows` of its chunks, and how many `chunks` each of its shards has, in the order in which they were put."""

    rows: Sequence[int]
    chunks: Sequence[int]


Parts = Sequence[Sequence[Segment]]
"""A sequence of samples: the segments of each table, woven into one."""


class Stage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A stretch of an epoch that is behind us: every rank took `batches` batches, or all that it had; `drop_last`:
    short ones were not given."""

    world_size: int
    workers: int
    batch_size: int
    batches: int
    drop_last: bool = False

    def __post_init__(self) -> None:
        for what in ("world_size", "workers", "batch_size"):
            if getattr(self, what) < 1:
                raise UsageError(f"expected {what} of at least 1, got {getattr(self, what)}")
        if self.batches < 0:
            raise UsageError(f"expected a number of batches, got {self.batches}")


def epoch_order(
    tables: Sequence[Table], weights: Sequence[float], seed: int | None, epoch: int, shuffle_shards: int | None = None
) -> list[list[Segment]]:
    """The epoch from its first sample on, of tables which all have rows, if they are several; in the order in which
    they were put without a seed. With `shuffle_shards` only chunks of so many shards are shuffled among each other, and
    the shards before that."""
    totals = [sum(table.rows) for table in tables]
    found = []
    for part, samples in enumerate(by_weight(sum(totals), weights)):
        assert totals[part] or not samples, "a table without rows has no share"
        turn, first = divmod(epoch * samples, totals[part] or 1)
        segments: list[Segment] = []
        while samples:
            last = min(first + samples, totals[part])
            segments += _cut(_turn_order(tables[part], part_seed(seed, part), turn, shuffle_shards), first, last)
            samples -= last - first
            turn, first = turn + 1, 0
        found.append(segments)
    return found


def by_weight(samples: int, weights: Sequence[float]) -> list[int]:
    """So many samples in parts as the weights say, each rounded to the nearest."""
    exact = [Fraction(weight) for weight in weights]
    found = []
    for part, weight in enumerate(exact):
        found.append(_rounded(samples * weight / sum(exact[part:])) if part < len(exact) - 1 else samples)
        samples -= found[-1]
    return found


def part_seed(seed: int | None, part: int) -> int | None:
    """What shuffles one of several tables."""
    return None if seed is None else seed + (part << 64)


def _turn_order(table: Table, seed: int | None, turn: int, shuffle_shards: int | None) -> list[Segment]:
    rows = table.rows
    order: Iterable[int] = range(len(rows))
    if seed is not None and shuffle_shards is None:
        order = _generator(seed, turn).permutation(len(rows)).tolist()
    elif seed is not None and shuffle_shards is not None:
        order = _grouped(table.chunks, shuffle_shards, _generator(seed, turn))
    return [Segment(chunk, 0, rows[chunk], turn) for chunk in order if rows[chunk]]


def _grouped(chunks: Sequence[int], shuffle_shards: int, source: np.random.Generator) -> Iterator[int]:
    """The chunks, shuffled among those of `shuffle_shards` shards that a shuffle of all has put together."""
    ends = np.cumsum(chunks)
    shards = source.permutation(len(chunks))
    for at in range(0, len(shards), shuffle_shards):
        group = [np.arange(ends[one] - chunks[one], ends[one]) for one in shards[at : at + shuffle_shards]]
        yield from source.permutation(np.concatenate(group)).tolist()


def row_order(chunk: int, rows: int, seed: int | None, turn: int) -> NDArray[np.int64]:
    """The rows of a chunk in the order in which they come in a turn: int64, shape (rows,)."""
    if seed is None:
        return np.arange(rows)
    return _generator(seed, turn, chunk).permutation(rows)


def lengths_of(parts: Parts) -> list[int]:
    """Samples of each table."""
    return [sum(one.stop - one.start for one in segments) for segments in parts]


def samples_in(parts: Parts) -> int:
    return sum(lengths_of(parts))


def places_of(lengths: Sequence[int], start: int, stop: int) -> NDArray[np.int64]:
    """Which table each of the samples `start` to `stop` of a woven sequence is of: int64, shape (stop - start,)."""
    found = np.full(stop - start, len(lengths) - 1)
    free = np.arange(stop - start)  # places in `found` that no table before has taken
    total, before = sum(lengths), start
    for part, length in enumerate(lengths[:-1]):
        counts = _woven(length, total, before, len(free))
        is_taken = np.diff(counts) > 0
        found[free[is_taken]] = part
        free = free[~is_taken]
        total, before = total - length, before - int(counts[0])
    return found


def _woven(length: int, total: int, before: int, more: int) -> NDArray[np.int64]:
    """How many of the first `before`, `before` + 1, to `before` + `more` samples of `total` come from the first table,
    which has `length`: its share, rounded. Grows by one at most from one to the next."""
    if not total:
        return np.zeros(more + 1, dtype=np.int64)
    whole, rest = divmod(2 * before * length + total, 2 * total)
    return whole + (rest + 2 * length * np.arange(more + 1)) // (2 * total)


def share(parts: Parts, index: int, count: int) -> list[list[Segment]]:
    """Share `index` of `count` contiguous ones, which differ by one sample at most."""
    total = samples_in(parts)
    return cut(parts, total * index // count, total * (index + 1) // count)


def cut(parts: Parts, first: int, last: int) -> list[list[Segment]]:
    """Samples `first` to `last` of the sequence."""
    lengths, found = lengths_of(parts), []
    total = sum(lengths)
    for segments, length in zip(parts, lengths, strict=True):
        begin, end = (int(_woven(length, total, at, 0)[0]) for at in (first, last))
        found.append(list(_cut(segments, begin, end)))
        total, first, last = total - length, first - begin, last - end
    return found


def remaining(parts: Parts, stages: Sequence[Stage]) -> list[list[Segment]]:
    """What is left after these stages, in the order in which it is dealt out next."""
    for stage in stages:
        left = [one for rank in range(stage.world_size) for one in _left_of_rank(parts, rank, stage)]
        parts = [[segment for one in left for segment in one[part]] for part in range(len(parts))]
    return [list(segments) for segments in parts]


def _left_of_rank(parts: Parts, rank: int, stage: Stage) -> Iterator[list[list[Segment]]]:
    mine = share(parts, rank, stage.world_size)
    shares = [share(mine, worker, stage.workers) for worker in range(stage.workers)]
    lengths = [samples_in(one) for one in shares]
    given = taken(batches_of(lengths, stage.batch_size, drop_last=stage.drop_last), stage.batches)
    for one, length, batches in zip(shares, lengths, given, strict=True):
        yield cut(one, min(batches * stage.batch_size, length), length)


def batches_of(lengths: Sequence[int], batch_size: int, *, drop_last: bool) -> list[int]:
    """How many batches so many samples make, part by part."""
    return [length // batch_size if drop_last else -(-length // batch_size) for length in lengths]


def batches_in(parts: Parts, rank: int, stage: Stage) -> int:
    """How many batches a rank has of this sequence, with the ranks, workers and batches of `stage`; with `drop_last` as
    many as the rank that has fewest."""
    total = samples_in(parts)
    lengths = (
        {_part(total, one, stage.world_size) for one in range(stage.world_size)}
        if stage.drop_last
        else {_part(total, rank, stage.world_size)}
    )
    return min(
        sum(batches_of([_part(length, w, stage.workers) for w in range(stage.workers)], stage.batch_size,
                       drop_last=stage.drop_last))
        for length in lengths
    )  # fmt: skip


def _part(total: int, index: int, count: int) -> int:
    """Samples in a part, as `share` cuts them."""
    return total * (index + 1) // count - total * index // count


def taken(have: Sequence[int], batches: int) -> list[int]:
    """Of how many of its batches each worker has given, after so many came from all of them in turn; one that has no
    more is passed over, as PyTorch's DataLoader does."""
    given = [0] * len(have)
    while batches and (active := [worker for worker, count in enumerate(have) if given[worker] < count]):
        turns = max(1, min(min(have[worker] - given[worker] for worker in active), batches // len(active)))
        for worker in active:
            step = min(turns, batches)
            given[worker] += step
            batches -= step
    return given


def _cut(segments: Sequence[Segment], first: int, last: int) -> Iterator[Segment]:
    """Samples `first` to `last` of one table's."""
    at = 0
    for segment in segments:
        length = segment.stop - segment.start
        low, high = max(first - at, 0), min(last - at, length)
        if low < high:
            yield segment._replace(start=segment.start + low, stop=segment.start + high)
        at += length
        if at >= last:
            return


def _rounded(number: Fraction) -> int:
    return int(number + Fraction(1, 2))


def _generator(*words: int) -> np.random.Generator:
    """Of a named algorithm, so that a later numpy draws the same."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))
