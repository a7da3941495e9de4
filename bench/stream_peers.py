"""What people stream tokenised text with: each writes the samples its own way and gives them in shuffled batches.

`open(workers)` gives an epoch's batches by its number: int64 tensors of shape (BATCH, LENGTH), read in this process or
in so many workers of PyTorch's DataLoader or the peer's own.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

LENGTH, BATCH = 2048, 32
Tokens = np.ndarray[Any, np.dtype[np.uint16]]
Batches = Callable[[int], Iterator[torch.Tensor]]  # of an epoch


@dataclass(frozen=True)
class Side:
    """A way to stream: how to open it for so many workers, and the bytes that it keeps on the disk."""

    open: Callable[[int], Batches]
    stored_bytes: int
    has_workers: bool = True


def as_column(tokens: Tokens) -> pa.Table:
    return pa.table({"tokens": pa.FixedSizeListArray.from_arrays(pa.array(tokens.reshape(-1)), LENGTH)})


def stored(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def to_batch(rows: Sequence[Any]) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.asarray(row) for row in rows]).astype(np.int64))


class InWorkers(IterableDataset):  # type: ignore[type-arg]
    """An epoch made by a function of (seed, worker, workers), each worker of a DataLoader making its share."""

    def __init__(self, make: Callable[[int, int, int], Iterator[torch.Tensor]], seed: int) -> None:
        self._make, self._seed = make, seed

    def __iter__(self) -> Iterator[torch.Tensor]:
        info = get_worker_info()
        return self._make(self._seed, info.id if info else 0, info.num_workers if info else 1)


def in_workers(make: Callable[[int, int, int], Iterator[torch.Tensor]], workers: int) -> Batches:
    def epoch(seed: int) -> Iterator[torch.Tensor]:
        if not workers:
            return make(seed, 0, 1)
        return iter(DataLoader(InWorkers(make, seed), batch_size=None, num_workers=workers))

    return epoch


def memmap(tokens: Tokens, folder: Path) -> Side:
    """The raw tokens, in an order of single samples."""
    path = folder / "tokens.npy"
    np.save(path, tokens)

    def start(workers: int) -> Batches:
        mapped = np.load(path, mmap_mode="r")

        def make(seed: int, worker: int, count: int) -> Iterator[torch.Tensor]:
            order = np.random.default_rng(seed).permutation(len(mapped))[worker::count]
            for at in range(0, len(order), BATCH):
                yield torch.from_numpy(mapped[order[at : at + BATCH]].astype(np.int64))

        return in_workers(make, workers)

    return Side(start, path.stat().st_size)


def parquet(tokens: Tokens, folder: Path) -> Side:
    """Row groups in a shuffled order, rows shuffled within each: what a script does by hand."""
    path = folder / "tokens.parquet"
    pq.write_table(as_column(tokens), path, row_group_size=512, compression="lz4")

    def start(workers: int) -> Batches:
        file = pq.ParquetFile(path)

        def make(seed: int, worker: int, count: int) -> Iterator[torch.Tensor]:
            source = np.random.default_rng(seed)
            for group in source.permutation(file.num_row_groups)[worker::count]:
                values = file.read_row_group(int(group))["tokens"].combine_chunks().flatten().to_numpy()
                rows = values.reshape(-1, LENGTH)
                order = source.permutation(len(rows))
                for at in range(0, len(order), BATCH):
                    yield torch.from_numpy(rows[order[at : at + BATCH]].astype(np.int64))

        return in_workers(make, workers)

    return Side(start, path.stat().st_size)


def hugging_face(tokens: Tokens, folder: Path) -> Side:
    import datasets

    datasets.Dataset(as_column(tokens)).save_to_disk(folder / "hf")

    def start(workers: int) -> Batches:
        loaded = datasets.load_from_disk(folder / "hf").with_format("numpy").to_iterable_dataset(num_shards=64)

        def epoch(seed: int) -> Iterator[torch.Tensor]:
            found = loaded.shuffle(seed, buffer_size=1024)
            batches = found.batch(BATCH) if workers else found.iter(BATCH)
            given = DataLoader(batches, batch_size=None, num_workers=workers) if workers else batches
            for batch in given:
                yield torch.from_numpy(np.asarray(batch["tokens"]).astype(np.int64))

        return epoch

    return Side(start, stored(folder / "hf"))


def webdataset(tokens: Tokens, folder: Path) -> Side:
    import webdataset as wds

    (folder / "wds").mkdir()
    with wds.ShardWriter(f"{folder}/wds/%04d.tar", maxcount=4096, verbose=0) as writer:
        for number, row in enumerate(tokens):
            writer.write({"__key__": f"{number:09d}", "tokens": row.tobytes()})
    names = sorted(str(path) for path in (folder / "wds").iterdir())

    def start(workers: int) -> Batches:
        def to_rows(samples: list[dict[str, bytes]]) -> torch.Tensor:
            return to_batch([np.frombuffer(sample["tokens"], dtype=np.uint16) for sample in samples])

        def epoch(seed: int) -> Iterator[torch.Tensor]:
            found = wds.WebDataset(names, shardshuffle=len(names), seed=seed, empty_check=False).shuffle(1024)
            return iter(DataLoader(found, batch_size=BATCH, num_workers=workers, collate_fn=to_rows))

        return epoch

    return Side(start, stored(folder / "wds"))


def litdata_plain(tokens: Tokens, folder: Path) -> Side:
    """As its guide says for tokens: one long row, cut up while it is read."""
    from litdata import StreamingDataset
    from litdata.streaming.item_loader import TokensLoader
    from litdata.streaming.writer import BinaryWriter

    path = folder / "litdata"
    writer = BinaryWriter(str(path), chunk_size=8192 * LENGTH, item_loader=TokensLoader(block_size=LENGTH))
    for number, row in enumerate(tokens):
        writer[number] = torch.from_numpy(row.copy())
    writer.done()
    writer.merge()

    def start(workers: int) -> Batches:
        loader = TokensLoader(block_size=LENGTH)
        return _of_litdata(StreamingDataset(str(path), shuffle=True, item_loader=loader), workers)

    return Side(start, stored(path))


def litdata_encrypted(tokens: Tokens, folder: Path) -> Side:
    """With its Fernet encryption, chunk by chunk, which is the faster one of the two that it has."""
    from litdata import StreamingDataset
    from litdata.streaming.writer import BinaryWriter
    from litdata.utilities.encryption import FernetEncryption

    path, encryption = folder / "litdata-fernet", FernetEncryption(password="bench", level="chunk")
    writer = BinaryWriter(str(path), chunk_bytes="8MB", encryption=encryption)
    for number, row in enumerate(tokens):
        writer[number] = row
    writer.done()
    writer.merge()

    def start(workers: int) -> Batches:
        return _of_litdata(StreamingDataset(str(path), shuffle=True, encryption=encryption), workers)

    return Side(start, stored(path))


def _of_litdata(dataset: Any, workers: int) -> Batches:
    from litdata import StreamingDataLoader

    loader = StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, collate_fn=to_batch)
    return lambda _: iter(loader)  # it counts its epochs by itself


def mosaicml(tokens: Tokens, folder: Path) -> Side:
    _stub("torchvision", "transformers")
    from streaming import MDSWriter, StreamingDataset

    path = folder / "mds"
    with MDSWriter(out=str(path), columns={"tokens": f"ndarray:uint16:{LENGTH}"}, size_limit="16mb") as writer:
        for row in tokens:
            writer.write({"tokens": row})

    def start(workers: int) -> Batches:
        dataset = StreamingDataset(local=str(path), shuffle=True, batch_size=BATCH, num_canonical_nodes=1)

        def to_rows(samples: list[dict[str, Tokens]]) -> torch.Tensor:
            return to_batch([sample["tokens"] for sample in samples])

        loader = DataLoader(dataset, batch_size=BATCH, num_workers=workers, collate_fn=to_rows)
        return lambda _: iter(loader)

    return Side(start, stored(path))


def ray_data(tokens: Tokens, folder: Path) -> Side:
    path = folder / "ray.parquet"
    pq.write_table(as_column(tokens), path, row_group_size=4096, compression="lz4")

    def start(workers: int) -> Batches:
        loaded = ray.data.read_parquet(str(path), override_num_blocks=32)

        def epoch(seed: int) -> Iterator[torch.Tensor]:
            found = loaded.randomize_block_order(seed=seed).iter_batches(
                batch_size=BATCH, batch_format="numpy", local_shuffle_buffer_size=1024, local_shuffle_seed=seed
            )
            for batch in found:
                yield to_batch(batch["tokens"])

        return epoch

    return Side(start, stored(folder / "ray.parquet") or path.stat().st_size, has_workers=False)


class _Anything(types.ModuleType):
    """A module in which every name is a class: enough to be imported from."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _Stubs(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        is_one = name.split(".")[0] in self._names
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if is_one else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Anything(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """There is nothing in it."""


def _stub(*names: str) -> None:
    """MosaicML's package imports these for what is not used here, and they would bring a CUDA build of torch."""
    sys.meta_path.append(_Stubs([name for name in names if importlib.util.find_spec(name) is None]))


PEERS = {
    "parquet": (parquet, None),
    "datasets": (hugging_face, "datasets"),
    "webdataset": (webdataset, "webdataset"),
    "litdata": (litdata_plain, "litdata"),
    "litdata_fernet": (litdata_encrypted, "litdata"),
    "mosaicml": (mosaicml, "streaming"),
    "ray_data": (ray_data, None),
}
"""Name -> how to make it, and the package that it needs beyond raylog's own."""
ENCRYPTED = ("litdata_fernet",)
