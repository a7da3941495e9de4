"""Tokenised text as shuffled batches: samples of 2,048 tokens per second, warm, beside the peers of stream_peers.py.

Every side gives batches of 32 samples as int64 torch tensors, in an order shuffled by its own means; raylog's are
encrypted, verified and compressed. The tokens are the words of the Python sources on this machine, over and over, each
time begun elsewhere; the first two of a sample are its number, which tells the order. Peers that are not installed are
left out and named. Rates are medians of rounds that alternate between the sides, each of `ROUND_S` from the first batch
on, with 0 and with 2 workers; `first_batch_s` from opening the dataset that lies on this machine.

Shuffling, of one whole epoch: `distance` is how far samples are from where they are stored, 1 for a perfect shuffle, 0
for none; `together` how often two samples that are stored side by side come in one batch, as a multiple of what a
perfect shuffle makes of it.

    python bench/stream.py [--json] [--quick]
"""

import importlib.util
import logging
import re
import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import parser, report, text_bytes
from stream_peers import BATCH, ENCRYPTED, LENGTH, PEERS, Batches, Side, Tokens, as_column, memmap

import raylog
from raylog.settings import Settings
from raylog.units import MIB

ROUNDS, ROUND_S, WORKERS = 5, 2.0, 2
LAST = {"mosaicml"}  # its threads go on when an epoch is left, and take three quarters of what others could do
EPOCHS_MAX = 10_000  # of one round
SAMPLES = 120_000  # 492 MB
VOCABULARY = 50_000
NUMBER_BASE = 1 << 15  # of the two tokens that are a sample's number


def make_tokens(samples: int) -> Tokens:
    ids: dict[bytes, int] = {}
    words = re.findall(rb"\w+|[^\w]", text_bytes(min(64 * MIB, samples * LENGTH * 4)))
    found = np.array([ids.setdefault(word, len(ids)) % VOCABULARY for word in words], dtype=np.uint16)
    needed, turns = samples * LENGTH, -(-samples * LENGTH // len(found))
    tokens = np.concatenate([np.roll(found, -turn * 100_003) for turn in range(turns)])[:needed]
    tokens = tokens.reshape(samples, LENGTH)
    tokens[:, 0], tokens[:, 1] = np.divmod(np.arange(samples), NUMBER_BASE)
    return tokens


def of_raylog(client: raylog.Client, tokens: Tokens) -> Side:
    version = client.put("bench/stream", as_column(tokens))

    def start(workers: int) -> Batches:
        dataset = raylog.StreamingDataset(
            "bench/stream", client=client, batch_size=BATCH, dtypes={"tokens": "int64"}, seed=1
        )
        loader = raylog.StreamingDataLoader(dataset, workers)

        def epoch(seed: int) -> Iterator[torch.Tensor]:
            dataset.set_epoch(seed)
            for batch in loader:
                yield batch["tokens"]

        return epoch

    return Side(start, version.stored_bytes)


def order_of(batches: Batches, samples: int) -> np.ndarray[Any, Any]:
    """The numbers of all samples of an epoch, in the order in which they come."""
    heads = np.concatenate([batch[:, :2].numpy() for batch in batches(0)])
    order = heads[:, 0] * NUMBER_BASE + heads[:, 1]
    assert np.array_equal(np.sort(order), np.arange(samples)), "expected each sample once"
    return order


def shuffling(order: np.ndarray[Any, Any]) -> dict[str, float]:
    samples = len(order)
    places = np.argsort(order)
    together = np.mean(places[1:] // BATCH == places[:-1] // BATCH)
    return {
        "distance": float(3 * np.mean(np.abs(places - np.arange(samples))) / samples),
        "together": float(together * (samples - 1) / (BATCH - 1)),
    }


def rate(batches: Batches, seed: int) -> float:
    """Epoch after epoch, from the first batch on: what comes before it is `first_batch_s`."""
    coming = (batch for epoch in count(seed * EPOCHS_MAX) for batch in batches(epoch))
    next(coming)
    began_s, samples = time.perf_counter(), 0
    for batch in coming:
        samples += batch.shape[0]
        if time.perf_counter() - began_s > ROUND_S:
            break
    return samples / (time.perf_counter() - began_s)


def first_batch_s(side: Side) -> float:
    began_s = time.perf_counter()
    next(iter(side.open(0)(0)))
    return time.perf_counter() - began_s


def rates_of(sides: dict[str, Batches], rounds: int) -> dict[str, float]:
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(1, rounds + 1):
        for name, batches in sides.items():
            found[name].append(rate(batches, number))
    return {name: statistics.median(values) for name, values in found.items()}


def run(samples: int, rounds: int) -> dict[str, Any]:
    tokens = make_tokens(samples)
    missing = [name for name, (_, needs) in PEERS.items() if needs and importlib.util.find_spec(needs) is None]
    with tempfile.TemporaryDirectory(dir="/dev/shm") as top:
        folder = Path(top)
        settings = Settings(state=folder / "state", arena_bytes=max(256 * MIB, tokens.nbytes), disk_reserve_bytes=0)
        with raylog.connect("local", settings=settings) as client:
            sides = {"raylog": of_raylog(client, tokens), "memmap": memmap(tokens, folder)}
            sides |= {name: make(tokens, folder) for name, (make, _) in PEERS.items() if name not in missing}
            orders: dict[str, dict[str, float]] = {}
            rates: dict[str, float] = {}
            firsts: dict[str, float] = {}
            for group in (sides.keys() - LAST, sides.keys() & LAST):
                opened = {name: side.open(0) for name, side in sides.items() if name in group}
                orders |= {name: shuffling(order_of(batches, samples)) for name, batches in opened.items()}  # warm now
                rates |= rates_of(opened, rounds)
                opened.clear()
                firsts |= {
                    name: statistics.median(first_batch_s(sides[name]) for _ in range(rounds)) for name in sorted(group)
                }
            several = {name: side.open(WORKERS) for name, side in sides.items() if side.has_workers}
            rates_in_workers = rates_of(several, rounds)
            several.clear()
    peers = {name: value for name, value in rates.items() if name not in ("raylog", "memmap")}
    plain = [value for name, value in peers.items() if name not in ENCRYPTED]
    sealed = [value for name, value in peers.items() if name in ENCRYPTED]
    return {
        "samples": samples,
        "content_bytes": tokens.nbytes,
        "samples_per_s": rates,
        "samples_per_s_2_workers": rates_in_workers,
        "first_batch_s": firsts.pop("raylog"),
        "first_batch_s_of_peers": firsts,
        "stored_bytes": {name: side.stored_bytes for name, side in sides.items()},
        "shuffling": orders,
        "ratio_best_peer": rates["raylog"] / max(plain),
        "ratio_best_encrypted_peer": rates["raylog"] / max(sealed) if sealed else None,
        "ratio_memmap": rates["raylog"] / rates["memmap"],
        "ratio_memmap_2_workers": rates_in_workers["raylog"] / rates_in_workers["memmap"],
        "not_installed": missing,
    }


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    arguments = parser(__doc__.splitlines()[0]).parse_args()
    report(run(4_000, 1) if arguments.quick else run(SAMPLES, ROUNDS), arguments.json)
