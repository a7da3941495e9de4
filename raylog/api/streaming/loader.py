"""`StreamingDataLoader`: a `StreamingDataset` in DataLoader workers, with one state for all of them."""

from collections.abc import Iterator, Mapping
from contextlib import closing
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader

from raylog.api.streaming.dataset import StreamingDataset
from raylog.api.streaming.waiting import WAITING
from raylog.api.streaming.workers import WorkerBatches
from raylog.errors import UsageError

_DATASETS = ("batch_size", "shuffle", "sampler", "batch_sampler", "drop_last")


class StreamingDataLoader(DataLoader):  # type: ignore[type-arg]
    """PyTorch's DataLoader over `dataset`, whose batches come from `num_workers` forked processes in turn; 0: from this
    one. `state_dict` and `load_state_dict` are the dataset's, exact over any number of workers; `options` are
    DataLoader's, such as `pin_memory` and `prefetch_factor`.

    The dataset says batch size and order. Raises `UsageError` for options that would decide those, for persistent
    workers (they would not hear of the next epoch), and for another way to start workers than "fork"; `Unavailable` for
    the next batch after a worker was killed, never in the middle of a step.
    """

    def __init__(self, dataset: StreamingDataset, num_workers: int = 0, **options: Any) -> None:
        wrong = sorted(options.keys() & {*_DATASETS, "persistent_workers"})
        if wrong:
            raise UsageError(f"expected batches and their order to be said to the StreamingDataset, got {wrong} here")
        context: Any = options.setdefault("multiprocessing_context", "fork" if num_workers else None)
        if num_workers and (context if isinstance(context, str) else context.get_start_method()) != "fork":
            raise UsageError(f"expected forked workers, which have the dataset's keys, got {context!r}")
        self._stream = dataset
        super().__init__(dataset, batch_size=None, num_workers=num_workers, **options)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """From where `load_state_dict` said, else from the epoch's beginning."""
        if not self.num_workers:
            yield from self._stream
            return
        limit, batches = self._stream.begin_in_workers(self.num_workers, super().__iter__)
        with closing(WorkerBatches(batches)) as given:
            for batch in WAITING.over(islice(given, limit)):  # with drop_last a rank may have more
                self._stream.count_batch()
                yield batch
        self._stream.end_epoch()

    def __len__(self) -> int:
        """As the dataset's, for these workers."""
        return self._stream.length(self.num_workers)

    def state_dict(self) -> dict[str, Any]:
        """How far it is, by what was given here and not by what workers have made ahead."""
        return self._stream.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next `for` goes on there. Raises `UsageError` as the dataset's."""
        self._stream.load_state_dict(state)
