"""Tokenised text as shuffled batches: samples of 2,048 tokens per second, in one process, warm, beside what people use.

Every side gives batches of 32 samples as int64 torch tensors, in an order shuffled by its own means; raylog's are
encrypted, verified and compressed. The tokens are the words of the Python sources on this machine, over and over, each
time begun elsewhere. Peers that are not installed are left out and named. Medians of five rounds that alternate between
the sides; `first_batch_s` from opening the dataset that lies on this machine.

    python bench/stream.py [--json] [--quick]
"""

import importlib.util
import logging
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from common import parser, report, text_bytes

import raylog
from raylog.settings import Settings
from raylog.units import MIB

LENGTH, BATCH, ROUNDS = 2048, 32, 5
SAMPLES = 120_000  # 492 MB
VOCABULARY = 50_000
Tokens = np.ndarray[Any, np.dtype[np.uint16]]
Batches = Callable[[int], Iterator[torch.Tensor]]  # of an epoch


@dataclass(frozen=True)
class Side:
    """A way to stream: how to open it, and the bytes that it keeps on the disk."""

    open: Callable[[], Batches]
    stored_bytes: int


def make_tokens(samples: int) -> Tokens:
    ids: dict[bytes, int] = {}
    words = re.findall(rb"\w+|[^\w]", text_bytes(min(64 * MIB, samples * LENGTH * 4)))
    found = np.array([ids.setdefault(word, len(ids)) % VOCABULARY for word in words], dtype=np.uint16)
    needed, turns = samples * LENGTH, -(-samples * LENGTH // len(found))
    return np.concatenate([np.roll(found, -turn * 100_003) for turn in range(turns)])[:needed].reshape(samples, LENGTH)


def stored(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def memmap(tokens: Tokens, folder: Path) -> Side:
    """The raw tokens, in an order of single samples."""
    path = folder / "tokens.npy"
    np.save(path, tokens)

    def start() -> Batches:
        mapped = np.load(path, mmap_mode="r")

        def epoch(seed: int) -> Iterator[torch.Tensor]:
            order = np.random.default_rng(seed).permutation(len(mapped))
            for at in range(0, len(order), BATCH):
                yield torch.from_numpy(mapped[order[at : at + BATCH]].astype(np.int64))

        return epoch

    return Side(start, path.stat().st_size)


def of_raylog(client: raylog.Client, tokens: Tokens) -> Side:
    column = pa.FixedSizeListArray.from_arrays(pa.array(tokens.reshape(-1)), LENGTH)
    version = client.put("bench/stream", pa.table({"tokens": column}))

    def start() -> Batches:
        dataset = raylog.StreamingDataset(
            "bench/stream", client=client, batch_size=BATCH, dtypes={"tokens": "int64"}, seed=1
        )

        def epoch(seed: int) -> Iterator[torch.Tensor]:
            dataset.set_epoch(seed)
            for batch in dataset:
                yield batch["tokens"]

        return epoch

    return Side(start, version.stored_bytes)


def parquet(tokens: Tokens, folder: Path) -> Side:
    """Row groups in a shuffled order, rows shuffled within each: what a script does by hand."""
    path = folder / "tokens.parquet"
    column = pa.FixedSizeListArray.from_arrays(pa.array(tokens.reshape(-1)), LENGTH)
    pq.write_table(pa.table({"tokens": column}), path, row_group_size=512, compression="lz4")

    def start() -> Batches:
        file = pq.ParquetFile(path)

        def epoch(seed: int) -> Iterator[torch.Tensor]:
            source = np.random.default_rng(seed)
            for group in source.permutation(file.num_row_groups):
                values = file.read_row_group(int(group))["tokens"].combine_chunks().flatten().to_numpy()
                rows = values.reshape(-1, LENGTH)
                order = source.permutation(len(rows))
                for at in range(0, len(order), BATCH):
                    yield torch.from_numpy(rows[order[at : at + BATCH]].astype(np.int64))

        return epoch

    return Side(start, path.stat().st_size)


def hugging_face(tokens: Tokens, folder: Path) -> Side:
    import datasets

    column = pa.FixedSizeListArray.from_arrays(pa.array(tokens.reshape(-1)), LENGTH)
    datasets.Dataset(pa.table({"tokens": column})).save_to_disk(folder / "hf")

    def start() -> Batches:
        loaded = datasets.load_from_disk(folder / "hf").with_format("numpy")

        def epoch(seed: int) -> Iterator[torch.Tensor]:
            for batch in loaded.to_iterable_dataset(num_shards=64).shuffle(seed, buffer_size=1024).iter(BATCH):
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

    def start() -> Batches:
        def epoch(seed: int) -> Iterator[torch.Tensor]:
            found = wds.WebDataset(names, shardshuffle=len(names), seed=seed, empty_check=False).shuffle(1024)
            rows: list[Tokens] = []
            for sample in found:
                rows.append(np.frombuffer(sample["tokens"], dtype=np.uint16))
                if len(rows) == BATCH:
                    yield torch.from_numpy(np.stack(rows).astype(np.int64))
                    rows = []
            if rows:
                yield torch.from_numpy(np.stack(rows).astype(np.int64))

        return epoch

    return Side(start, stored(folder / "wds"))


PEERS = {"parquet": parquet, "datasets": hugging_face, "webdataset": webdataset}


def rate(batches: Batches, seed: int, samples: int) -> float:
    began_s, count = time.perf_counter(), 0
    for batch in batches(seed):
        count += batch.shape[0]
    assert count == samples, f"expected {samples} samples, got {count}"
    return count / (time.perf_counter() - began_s)


def first_batch_s(side: Side) -> float:
    began_s = time.perf_counter()
    next(side.open()(0))
    return time.perf_counter() - began_s


def run(samples: int, rounds: int) -> dict[str, Any]:
    tokens = make_tokens(samples)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as top:
        folder = Path(top)
        settings = Settings(state=folder / "state", arena_bytes=max(256 * MIB, tokens.nbytes), disk_reserve_bytes=0)
        with raylog.connect("local", settings=settings) as client:
            sides = {"raylog": of_raylog(client, tokens), "memmap": memmap(tokens, folder)}
            missing = [name for name in PEERS if name != "parquet" and importlib.util.find_spec(name) is None]
            sides |= {name: make(tokens, folder) for name, make in PEERS.items() if name not in missing}
            opened = {name: side.open() for name, side in sides.items()}
            for batches in opened.values():
                rate(batches, 0, samples)  # warm
            rates: dict[str, list[float]] = {name: [] for name in sides}
            for number in range(1, rounds + 1):
                for name, batches in opened.items():
                    rates[name].append(rate(batches, number, samples))
            firsts = {
                name: statistics.median(first_batch_s(side) for _ in range(rounds)) for name, side in sides.items()
            }
    medians = {name: statistics.median(found) for name, found in rates.items()}
    best_peer = max((value for name, value in medians.items() if name not in ("raylog", "memmap")), default=0.0)
    return {
        "samples": samples,
        "content_bytes": tokens.nbytes,
        "samples_per_s": medians,
        "first_batch_s": firsts["raylog"],
        "first_batch_s_of_peers": {name: value for name, value in firsts.items() if name != "raylog"},
        "stored_bytes": {name: side.stored_bytes for name, side in sides.items()},
        "ratio_best_peer": medians["raylog"] / best_peer,
        "ratio_memmap": medians["raylog"] / medians["memmap"],
        "not_installed": missing,
    }


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    arguments = parser(__doc__.splitlines()[0]).parse_args()
    report(run(4_000, 1) if arguments.quick else run(SAMPLES, ROUNDS), arguments.json)
