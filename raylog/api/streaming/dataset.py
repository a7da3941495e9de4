"""`StreamingDataset`: a table as batches in an order that seed and epoch decide, read ahead, resumed exactly."""

import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from itertools import islice
from queue import SimpleQueue
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, Self, TypeVar

import msgspec
import numpy as np

from raylog.api.client import Client, connect
from raylog.api.ranks import find_rank
from raylog.api.streaming.chunks import TableChunks
from raylog.api.streaming.columns import Output, Rows, as_batch
from raylog.api.streaming.order import (
    Segment,
    Stage,
    batches_in,
    epoch_order,
    remaining,
    row_order,
    samples_in,
    share,
)
from raylog.api.streaming.waiting import WAITING
from raylog.errors import UsageError
from raylog.units import MIB

READ_AHEAD_BYTES = 16 * MIB  # little enough to be in the cores' caches still when it is asked for
THREADS = 2  # that open chunks beside the loop
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


class StreamingDataset(_Base):
    """The rows of the table `name` or `name@3`, as batches: `for batch in dataset`. `client`: a connection that is
    there already; else this dataset makes its own.

    The order follows from `seed` and epoch alone: the version's chunks shuffled, and the rows of each (`shuffle=False`:
    as they were put). Every rank gets an equal share, to a sample, of which `batch_size` rows make a batch: a dict of
    column name to tensor, array (`output="numpy"`) or a `pa.RecordBatch` (`"arrow"`); lists of one length are further
    axes. `dtypes` casts columns by name. The next chunks are opened by threads, `read_ahead_bytes` ahead at most.
    `drop_last`: every rank gives as many batches, all full; else the last may be short, and ranks may differ by one.

    `state_dict()` says how far it is; `load_state_dict` goes on there with exactly the samples that are left, on any
    number of ranks, provided that all ranks had taken as many batches (as they do in step). After the last batch the
    next epoch begins with the next `for`; `set_epoch` says which it is.

    It goes into workers of a `StreamingDataLoader`, which are forked: the keys leave no process in another way.

    Raises `UsageError` for what is no table, unknown columns, a rank out of range; `NotFound`; while iterating
    `DamagedData` when a chunk can be had whole nowhere.
    """

    def __init__(
        self,
        name: str,
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
    ) -> None:
        if output not in list(Output):
            raise UsageError(f"expected an output of {', '.join(Output)}, got {output!r}")
        if seed < 0 or batch_size < 1 or read_ahead_bytes < 0:
            raise UsageError(
                f"expected seed and read_ahead_bytes from 0 and batch_size from 1, got {seed}, {read_ahead_bytes} and "
                f"{batch_size}"
            )
        self.rank, self.world_size = find_rank(rank, world_size)
        self._output, self._batch_size, self._drop_last = Output(output), batch_size, drop_last
        self._dtypes = {name: np.dtype(one) for name, one in (dtypes or {}).items()}
        self._seed = seed if shuffle else None
        self._read_ahead_bytes = read_ahead_bytes
        self.name = name
        with ExitStack() as kept:
            reading = (client or kept.enter_context(connect())).open(name)
            self.digest = reading.digest
            self._chunks = kept.enter_context(closing(TableChunks(reading, columns)))
            self._idle = SimpleQueue[TableChunks]()
            for one in (self._chunks, *(TableChunks(reading, columns) for _ in range(THREADS - 1))):
                self._idle.put(one)
                kept.callback(one.close)
            unknown = sorted(self._dtypes.keys() - set(self._chunks.schema.names))
            if unknown:
                raise UsageError(f"expected dtypes of columns among {self._chunks.schema.names}, got {unknown}")
            self._kept = kept.pop_all()
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

    def _left(self) -> list[Segment]:
        """Of the epoch, when the present stage begins."""
        behind = self._behind if self._is_resumed else ()
        return remaining(epoch_order(self._chunks.rows, self._seed, self._epoch), behind)

    def _given(self, segments: Sequence[Segment], batches_max: int) -> Iterator[Any]:
        for parts in islice(self._batched(segments), batches_max):
            if not self._drop_last or sum(part.count for part in parts) == self._batch_size:
                yield as_batch(parts, self._output, self._dtypes)

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
        return sum(self._chunks.rows)

    def set_epoch(self, epoch: int) -> None:
        """The next `for` gives this epoch, from its beginning. Raises `UsageError` for one below 0."""
        if epoch < 0:
            raise UsageError(f"expected an epoch from 0, got {epoch}")
        self._epoch, self._behind, self._batches, self._is_resumed = epoch, (), 0, False

    def state_dict(self) -> dict[str, Any]:
        """How far it is, as JSON-able values. The batch that was given last counts as used."""
        stages = (*self._behind, self._stage()) if self._batches else self._behind
        state = _State(digest=self.digest, seed=self._seed, epoch=self._epoch, stages=stages)
        found: dict[str, Any] = msgspec.to_builtins(state)
        return found

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next `for` goes on there. Raises `UsageError` for the state of another version or another seed."""
        try:
            found = msgspec.convert(dict(state), _State)
        except (msgspec.ValidationError, UsageError) as error:
            raise UsageError(f"expected what StreamingDataset.state_dict gave: {error}") from None
        if found.raylog_stream_state != STATE_VERSION:
            raise UsageError(f"expected a state of version {STATE_VERSION}, got {found.raylog_stream_state}")
        if (found.digest, found.seed) != (self.digest, self._seed):
            raise UsageError(
                f"the state is of seed {found.seed} and the version with digest {found.digest[:16]}, this dataset of "
                f"seed {self._seed} and {self.name} with digest {self.digest[:16]}: name that version, and give that "
                "seed and shuffle"
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
        torch = sys.modules.get("torch")
        info = torch.utils.data.get_worker_info() if torch is not None else None
        if info is not None and not self._is_forking:
            raise UsageError(
                "a plain DataLoader with workers cannot say how far a StreamingDataset is: use "
                "raylog.StreamingDataLoader, or num_workers=0 and batch_size=None"
            )
        return None if info is None else int(info.id)

    def _batched(self, segments: Sequence[Segment]) -> Iterator[list[Rows]]:
        parts: list[Rows] = []
        lacking = self._batch_size
        for rows in self._read_ahead(segments):
            at = 0
            while at < rows.count:
                part = rows.slice(at, min(lacking, rows.count - at))
                parts.append(part)
                at += part.count
                lacking -= part.count
                if not lacking:
                    yield parts
                    parts, lacking = [], self._batch_size
        if parts:
            yield parts

    def _read_ahead(self, segments: Sequence[Segment]) -> Iterator[Rows]:
        """The rows of each segment; threads open the next ones, one at least."""
        coming: deque[tuple[Future[Rows], int]] = deque()
        ahead_bytes, following = 0, iter(segments)
        threads = 1 if self._is_forking else THREADS
        self._reading_ahead += 1
        with ThreadPoolExecutor(threads, thread_name_prefix="stream") as executor:
            try:
                while True:
                    while not coming or ahead_bytes < self._read_ahead_bytes:
                        segment = next(following, None)
                        if segment is None:
                            break
                        size = self._chunks.content_bytes[segment.chunk]
                        coming.append((executor.submit(self._open, segment), size))
                        ahead_bytes += size
                    if not coming:
                        return
                    future, size = coming.popleft()
                    ahead_bytes -= size
                    yield future.result()
            finally:
                executor.shutdown(cancel_futures=True)
                self._reading_ahead -= 1

    def _open(self, segment: Segment) -> Rows:
        rows = self._chunks.rows[segment.chunk]
        order = row_order(segment.chunk, rows, self._seed, self._epoch)[segment.start : segment.stop]
        chunks = self._idle.get()
        try:
            return Rows.of_chunk(chunks.batch(segment.chunk), order, self._output)
        finally:
            self._idle.put(chunks)
