"""Which sample comes when: from seed, epoch and the chunks' row counts alone; and what is left of an epoch at any
point, on any number of ranks and workers. Pure.

An epoch is a sequence of samples: the chunks in a shuffled order, the rows of each chunk shuffled among themselves. It
is dealt out in contiguous shares of equal length (to a row), to ranks and then to each rank's workers, so that few
chunks are opened twice. What a stage of work leaves is a sequence again, which the next one deals out anew.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from raylog.errors import UsageError


class Segment(NamedTuple):
    """Places `start` to `stop` of the shuffled rows of one chunk."""

    chunk: int
    start: int
    stop: int


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


def epoch_order(chunk_rows: Sequence[int], seed: int | None, epoch: int) -> list[Segment]:
    """The epoch from its first sample on; in the order in which it was put without a seed."""
    order: Iterable[int] = range(len(chunk_rows))
    if seed is not None:
        order = _generator(seed, epoch).permutation(len(chunk_rows)).tolist()
    return [Segment(chunk, 0, chunk_rows[chunk]) for chunk in order if chunk_rows[chunk]]


def row_order(chunk: int, rows: int, seed: int | None, epoch: int) -> NDArray[np.int64]:
    """The rows of a chunk in the order in which they come: int64, shape (rows,)."""
    if seed is None:
        return np.arange(rows)
    return _generator(seed, epoch, chunk).permutation(rows)


def samples_in(segments: Sequence[Segment]) -> int:
    return sum(one.stop - one.start for one in segments)


def share(segments: Sequence[Segment], index: int, count: int) -> list[Segment]:
    """Part `index` of `count` contiguous parts, which differ by one sample at most."""
    total = samples_in(segments)
    return list(_cut(segments, total * index // count, total * (index + 1) // count))


def remaining(segments: Sequence[Segment], stages: Sequence[Stage]) -> list[Segment]:
    """What is left after these stages, in the order in which it is dealt out next."""
    for stage in stages:
        segments = [left for rank in range(stage.world_size) for left in _left_of_rank(segments, rank, stage)]
    return list(segments)


def _left_of_rank(segments: Sequence[Segment], rank: int, stage: Stage) -> Iterator[Segment]:
    mine = share(segments, rank, stage.world_size)
    parts = [share(mine, worker, stage.workers) for worker in range(stage.workers)]
    lengths = [samples_in(part) for part in parts]
    given = taken(batches_of(lengths, stage.batch_size, drop_last=stage.drop_last), stage.batches)
    for part, length, batches in zip(parts, lengths, given, strict=True):
        yield from _cut(part, min(batches * stage.batch_size, length), length)


def batches_of(lengths: Sequence[int], batch_size: int, *, drop_last: bool) -> list[int]:
    """How many batches so many samples make, part by part."""
    return [length // batch_size if drop_last else -(-length // batch_size) for length in lengths]


def batches_in(segments: Sequence[Segment], rank: int, stage: Stage) -> int:
    """How many batches a rank has of this sequence, with the ranks, workers and batches of `stage`; with `drop_last` as
    many as the rank that has fewest."""
    total = samples_in(segments)
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
    """Samples `first` to `last` of the sequence."""
    at = 0
    for chunk, start, stop in segments:
        low, high = max(first - at, 0), min(last - at, stop - start)
        if low < high:
            yield Segment(chunk, start + low, start + high)
        at += stop - start
        if at >= last:
            return


def _generator(*words: int) -> np.random.Generator:
    """Of a named algorithm, so that a later numpy draws the same."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))
