"""`StreamingDataset`: tables as batches in an order that seed and epoch decide, read ahead, resumed exactly."""

import operator
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, Self, TypeVar

import msgspec
import numpy as np
import pyarrow as pa

from raylog.api.client import Client, connect
from raylog.api.ranks import find_rank
from raylog.api.streaming.ahead import ReadAhead
from raylog.api.streaming.chunks import TableChunks
from raylog.api.streaming.columns import Output, Rows, as_batch
from raylog.api.streaming.mixture import check_alike, check_filled, mixture_digest, parse_weights
from raylog.api.streaming.order import (
    Parts,
    Segment,
    Stage,
    Table,
    batches_in,
    cut,
    epoch_order,
    lengths_of,
    part_seed,
    places_of,
    remaining,
    row_order,
    samples_in,
    share,
)
from raylog.api.streaming.waiting import WAITING
from raylog.errors import UsageError
from raylog.units import GIB, MIB

READ_AHEAD_BYTES = 16 * MIB  # little enough to be in the cores' caches still when it is asked for
HELD_BYTES = GIB
THREADS = max(1, min(2, len(os.sched_getaffinity(0)) - 1))  # that open chunks beside the loop, on cores of their own
STATE_VERSION = 1
T = TypeVar("T")


if TYPE_CHECKING:
    _Base = object
else:
    try:
        from torch.utils.data import IterableDataset as _Base
    except ImportError:
        _Base = object  # plain Python iterates as well


class _State(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `state_dict` gives, as plain values."""

    raylog_stream_state: int = STATE_VERSION
    digest: str
    seed: int | None
    epoch: Annotated[int, msgspec.Meta(ge=0)]
    stages: tuple[Stage, ...] = ()
    shuffle_shards: int | None = None


class StreamingDataset(_Base):
    """The rows of the table `name` or `name@3`, as batches: `for batch in dataset`; or of several tables with their
    weights, `{"corpora/wiki": 0.7, "corpora/code": 0.3}`. `client`: a connection that is there already; else this
    dataset makes its own.

    The order follows from `seed` and epoch alone: the version's chunks shuffled, and the rows of each (`shuffle=False`:
    as they were put). Every rank gets an equal share, to a sample, of which `batch_size` rows make a batch: a dict of
    column name to tensor, array (`output="numpy"`) or a `pa.RecordBatch` (`"arrow"`); lists of one length are further
    axes. `dtypes` casts columns by name. The next chunks are opened by threads, `read_ahead_bytes` ahead at most.
    `drop_last`: every rank gives as many batches, all full; else the last may be short, and ranks may differ by one.

    Of several tables every batch has its share of each, to a sample or two. An epoch is as long as all of them
    together; a table whose weight asks for more begins again, shuffled anew, and one that gives fewer goes on there in
    the next epoch, so that of each table every sample comes before any comes again.

    Nothing is brought to this node before it is needed: shards that it does not keep are pulled in the order of the
    epoch, for all processes here once, into its cache, which never grows beyond its tiers. This dataset holds at most
    `held_bytes` of them there, of which half ahead of their need. Where the cache is smaller than the tables, say of
    how many shards the chunks are to be shuffled among each other (`shuffle_shards`; None: of all), so that each is
    pulled once and not for every chunk.

    `state_dict()` says how far it is; `load_state_dict` goes on there with exactly the samples that are left, on any
    number of ranks, provided that all ranks had taken as many batches (as they do in step). After the last batch the
    next epoch begins with the next `for`; `set_epoch` says which it is.

    It goes into workers of a `StreamingDataLoader`, which are forked: the keys leave no process in another way. All
    shards are brought here and held before that.

    Raises `UsageError` for what is no table, unknown columns, columns that differ among tables, a rank out of range;
    `NotFound`; while iterating `DamagedData` when a chunk can be had whole nowhere, `NotFound` when its version was
    deleted, `NoSpace` when this node has no room for a shard.
    """

    def __init__(
        self,
        name: str | Mapping[str, float],
        *,
        batch_size: int,
        client: Client | None = None,
        columns: Sequence[str] | None = None,
        shuffle: bool = True,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        output: str = "torch",
        dtypes: Mapping[str, Any] | None = None,
        drop_last: bool = False,
        read_ahead_bytes: int = READ_AHEAD_BYTES,
        held_bytes: int = HELD_BYTES,
        shuffle_shards: int | None = None,
    ) -> None:
        if output not in list(Output):
            raise UsageError(f"expected an output of {', '.join(Output)}, got {output!r}")
        if output == Output.TORCH and "torch" not in sys.modules:  # else this module has imported it
            raise UsageError("output='torch' needs torch, which is not installed here: ask for 'numpy' or 'arrow'")
        least = {"batch_size": 1, "seed": 0, "read_ahead_bytes": 0, "held_bytes": 0, "shuffle_shards": 1}
        given = (batch_size, seed, read_ahead_bytes, held_bytes, 1 if shuffle_shards is None else shuffle_shards)
        for (what, limit), value in zip(least.items(), given, strict=True):
            if not isinstance(value, int) or value < limit:
                raise UsageError(f"expected {what} from {limit}, a whole number, got {value!r}")
        self.rank, self.world_size = find_rank(rank, world_size)
        self._output, self._batch_size, self._drop_last = Output(output), batch_size, drop_last
        self._dtypes = {column: _dtype(column, one) for column, one in (dtypes or {}).items()}
        self._seed, self._shuffle_shards = seed if shuffle else None, shuffle_shards
        self._read_ahead_bytes, self._held_bytes = read_ahead_bytes, held_bytes
        weights = parse_weights(name)
        self._names, self._weights = list(weights), list(weights.values())
        self.name = " + ".join(weights)
        with ExitStack() as kept:
            connected = client or kept.enter_context(connect())
            readings = [connected.open(one) for one in weights]
            self.digest = mixture_digest([reading.digest for reading in readings], self._weights)
            self._chunks = [
                kept.enter_context(closing(TableChunks(reading, columns, held_bytes // len(readings))))
                for reading in readings
            ]
            self._tables = [Table(one.rows, one.chunks) for one in self._chunks]
            check_filled({one: sum(table.rows) for one, table in zip(self._names, self._tables, strict=True)})
            self._schema = self._common_schema()
            unknown = sorted(self._dtypes.keys() - set(self._schema.names))
            if unknown:
                raise UsageError(f"expected dtypes of columns among {self._schema.names}, got {unknown}")
            self._kept = kept.pop_all()
        self._process = os.getpid()
        self.workers = 0  # DataLoader workers of the present stage; 0: this process itself
        self._is_forking = False  # for a StreamingDataLoader: True in its workers
        self._reading_ahead = 0  # iterations under way in this process
        self._epoch = 0
        self._behind: tuple[Stage, ...] = ()  # stages of this epoch before the present one
        self._batches = 0  # of the present stage
        self._is_resumed = False

    def __iter__(self) -> Iterator[Any]:
        """From where `load_state_dict` said, else from the epoch's beginning."""
        worker = self._worker()
        if worker is not None:  # the loader counts, over all workers
            mine = share(self._left(), self.rank, self.world_size)
            yield from self._given(share(mine, worker, self.workers), samples_in(mine))
            return
        self.workers = 0
        self._begin()
        left = self._left()
        self._is_resumed = False
        limit = batches_in(left, self.rank, self._stage())
        for batch in WAITING.over(self._given(share(left, self.rank, self.world_size), limit)):
            self.count_batch()
            yield batch
        self.end_epoch()

    def begin_in_workers(self, workers: int, fork: Callable[[], T]) -> tuple[int, T]:
        """For a StreamingDataLoader: how many batches this rank has in so many workers, and what `fork` gives, which
        starts them; from then on they have what is to be given. Raises `UsageError` while this process iterates."""
        if self._reading_ahead:  # its threads do not go along, and what they hold would never be given back
            raise UsageError("expected no iteration over this dataset under way here when workers start: end it first")
        for table in self._chunks:
            table.hold_all()
        self.workers = workers
        self._begin()
        self._is_forking = True
        try:
            return self.length(workers), fork()
        finally:
            self._is_forking = self._is_resumed = False

    def count_batch(self) -> None:
        """One more was given."""
        self._batches += 1

    def end_epoch(self) -> None:
        """All were given: the next `for` gives the next epoch."""
        self.set_epoch(self._epoch + 1)

    def _begin(self) -> None:
        if not self._is_resumed:
            self._behind = ()
        self._batches, self._is_resumed = 0, True

    def _common_schema(self) -> pa.Schema:
        """Read from the shards that this rank needs first."""
        needed = share(self._order(0), self.rank, self.world_size)
        shards = [
            table.shard_of(segments[0].chunk) if segments else 0
            for table, segments in zip(self._chunks, needed, strict=True)
        ]
        schemas = [table.schema_by(shard) for table, shard in zip(self._chunks, shards, strict=True)]
        check_alike(dict(zip(self._names, schemas, strict=True)))
        return schemas[0]

    def _order(self, epoch: int) -> list[list[Segment]]:
        return epoch_order(self._tables, self._weights, self._seed, epoch, self._shuffle_shards)

    def _left(self) -> list[list[Segment]]:
        """Of the epoch, when the present stage begins."""
        return remaining(self._order(self._epoch), self._behind if self._is_resumed else ())

    def _given(self, parts: Parts, batches_max: int) -> Iterator[Any]:
        lengths = lengths_of(parts)
        total = sum(lengths)
        full = total // self._batch_size if self._drop_last else -(-total // self._batch_size)
        self._reading_ahead += 1
        try:
            with self._ahead(parts) as ahead:
                for start in range(0, total, self._batch_size)[: min(batches_max, full)]:
                    yield self._batch(ahead, lengths, start, min(start + self._batch_size, total))
        finally:
            self._reading_ahead -= 1

    def _batch(self, ahead: ReadAhead, lengths: Sequence[int], start: int, stop: int) -> Any:
        """Samples `start` to `stop` of tables woven of these lengths; `ahead` comes to them next."""
        if len(lengths) == 1:
            return as_batch(ahead.take(0, stop - start), self._output, self._dtypes)
        tables = places_of(lengths, start, stop)
        counts = np.bincount(tables, minlength=len(lengths)).tolist()
        rows = [one for part, count in enumerate(counts) for one in ahead.take(part, count)]
        return as_batch(rows, self._output, self._dtypes, np.argsort(tables, kind="stable"))

    def __getitem__(self, number: int) -> Any:
        """Batch `number` of the `len` that the next `for` gives in this process, below 0 from their end: to see again
        what a step was given. Opens its chunks for itself and moves nothing. Raises `IndexError`, and as a `for`."""
        count = len(self)
        at = operator.index(number) + (count if number < 0 else 0)
        if not 0 <= at < count:
            raise IndexError(f"expected a batch from {-count} to {count - 1}, got {number}")
        self._worker()  # refuses another process
        mine = share(self._left(), self.rank, self.world_size)
        lengths, start = lengths_of(mine), at * self._batch_size
        stop = min(start + self._batch_size, sum(lengths))
        with self._ahead(cut(mine, start, stop)) as ahead:
            return self._batch(ahead, lengths, start, stop)

    def _stage(self) -> Stage:
        """The present one."""
        return Stage(
            world_size=self.world_size,
            workers=max(self.workers, 1),
            batch_size=self._batch_size,
            batches=self._batches,
            drop_last=self._drop_last,
        )

    def length(self, workers: int) -> int:
        """Batches that this rank has in so many workers, 0 for none, from where the next `for` begins to the end of
        the epoch."""
        return batches_in(self._left(), self.rank, msgspec.structs.replace(self._stage(), workers=max(workers, 1)))

    def __len__(self) -> int:
        """As `length` in this process."""
        return self.length(0)

    @property
    def samples(self) -> int:
        """Of one epoch, all ranks together."""
        return sum(sum(table.rows) for table in self._tables)

    def set_epoch(self, epoch: int) -> None:
        """The next `for` gives this epoch, from its beginning. Raises `UsageError` for one below 0."""
        if epoch < 0:
            raise UsageError(f"expected an epoch from 0, got {epoch}")
        self._epoch, self._behind, self._batches, self._is_resumed = epoch, (), 0, False

    def state_dict(self) -> dict[str, Any]:
        """How far it is, as JSON-able values. The batch that was given last counts as used."""
        stages = (*self._behind, self._stage()) if self._batches else self._behind
        state = _State(
            digest=self.digest,
            seed=self._seed,
            epoch=self._epoch,
            stages=stages,
            shuffle_shards=self._shuffle_shards,
        )
        found: dict[str, Any] = msgspec.to_builtins(state)
        return found

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next `for` goes on there. Raises `UsageError` for the state of another version or another seed."""
        if not isinstance(state, Mapping):
            raise UsageError(f"expected what StreamingDataset.state_dict gave, got {type(state).__name__}")
        try:
            found = msgspec.convert(dict(state), _State)
        except (msgspec.ValidationError, UsageError) as error:
            raise UsageError(f"expected what StreamingDataset.state_dict gave: {error}") from None
        if found.raylog_stream_state != STATE_VERSION:
            raise UsageError(f"expected a state of version {STATE_VERSION}, got {found.raylog_stream_state}")
        theirs = found.digest, found.seed, found.shuffle_shards
        if theirs != (self.digest, self._seed, self._shuffle_shards):
            raise UsageError(
                f"the state is of seed {found.seed}, shuffle_shards {found.shuffle_shards} and the version with digest "
                f"{found.digest[:16]}, this dataset of seed {self._seed}, shuffle_shards {self._shuffle_shards} and "
                f"{self.name} with digest {self.digest[:16]}: name that version, or those versions and weights, and "
                "give that seed, shuffle and shuffle_shards"
            )
        self._epoch, self._behind, self._batches, self._is_resumed = found.epoch, found.stages, 0, True

    def close(self) -> None:
        """Lets go of the version's shards in this node's store."""
        self._kept.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise UsageError(
            "a StreamingDataset holds keys and does not leave its process: fork DataLoader workers "
            "(multiprocessing_context='fork'), or open one in each process"
        )

    def _worker(self) -> int | None:
        """Which DataLoader worker this process is; None for none."""
        if os.getpid() != self._process and not self._is_forking:
            raise UsageError(
                f"this dataset is process {self._process}'s: open another in each process, started with 'spawn', or "
                "use a raylog.StreamingDataLoader"
            )
        torch = sys.modules.get("torch")
        info = torch.utils.data.get_worker_info() if torch is not None else None
        if info is not None and not self._is_forking:
            raise UsageError(
                "a plain DataLoader with workers cannot say how far a StreamingDataset is: use "
                "raylog.StreamingDataLoader, or num_workers=0 and batch_size=None"
            )
        return None if info is None else int(info.id)

    def _ahead(self, parts: Parts) -> ReadAhead:
        """What opens the chunks of these, and brings their shards, before they are needed."""
        # A forked process finds each shard held once, for one thread, and can bring none.
        is_alone = self._is_forking
        return ReadAhead(
            self._chunks,
            parts,
            self._rows_of,
            self._read_ahead_bytes,
            pull_ahead_bytes=0 if is_alone else self._held_bytes // 2,
            threads=1 if is_alone else THREADS,
            may_help=not is_alone,
        )

    def _rows_of(self, part: int, segment: Segment, batch: pa.RecordBatch) -> Rows:
        if len(self._chunks) > 1 and batch.schema != self._schema:  # the columns of another table may stand otherwise
            columns = [batch.column(name) for name in self._schema.names]
            batch = pa.RecordBatch.from_arrays(columns, schema=self._schema)
        order = row_order(segment.chunk, batch.num_rows, part_seed(self._seed, part), segment.turn)
        return Rows.of_chunk(batch, order[segment.start : segment.stop], self._output)


def _dtype(column: str, name: str) -> np.dtype[Any]:
    try:
        return np.dtype(name)
    except TypeError:
        raise UsageError(f"expected a type that numpy has for column {column!r}, such as int64, got {name!r}") from None
