"""Sealing and opening in GB/s of content on one core, beside plain pyarrow IPC with lz4 on the same batches.

Both sides work single-threaded from warm memory into warm memory. raylog's put compresses, encrypts and hashes, its get
proves every byte by its AES-GCM tag, decrypts and decompresses; the peer only compresses and decompresses. `get_hashed`
also checks the BLAKE3 of every chunk first, as stores do with bytes that come off a disk or a network. Medians of five
rounds that alternate between the sides.

    python bench/codec.py [--json] [--quick]
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from raylog.codec.arrow import add_batch, arrow_preamble, open_batches
from raylog.codec.assemble import open_tensors
from raylog.codec.frame import Frame
from raylog.codec.header import ShardIds
from raylog.codec.keys import GroupKey
from raylog.codec.open import ShardOpener
from raylog.codec.seal import ShardSealer
from raylog.codec.tensors import TensorSpec, add_tensors, plan_tensors, tensors_preamble
from raylog.spec import Kind, new_id
from raylog.units import MIB

ROUNDS = 5
BATCH_BYTES = 2 * MIB - 8192  # of columns; with its metadata a batch fits into one chunk
RATIO_GOAL_TEXT = 0.8
RANDOM_GOAL_GB_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Payload:
    """The same content in both forms: batches for the peer, and what raylog seals and opens."""

    batches: list[pa.RecordBatch]
    kind: Kind
    preamble: bytes
    add: Callable[[ShardSealer], None]
    open: Callable[[ShardOpener], None]

    @property
    def content_bytes(self) -> int:
        return sum(batch.nbytes for batch in self.batches)


class Raylog:
    """Seals into, and opens from, one warm buffer."""

    def __init__(self, payload: Payload) -> None:
        self._payload = payload
        self._key = GroupKey(new_id(), os.urandom(32))
        self._file = memoryview(bytearray(payload.content_bytes + payload.content_bytes // 50 + MIB))
        self.frame = self.put()

    def put(self) -> Frame:
        ids = ShardIds(tenant=new_id(), artifact=new_id(), version=new_id(), shard=new_id())
        payload = self._payload
        sealer = ShardSealer(
            ids=ids, kind=payload.kind, keys=[self._key], preamble=payload.preamble, write_at=self._write_at
        )
        payload.add(sealer)
        self.frame = sealer.finish()
        return self.frame

    def get(self) -> None:
        self._payload.open(ShardOpener(self.frame, [self._key], self._read_chunk))

    def get_hashed(self) -> None:
        self._payload.open(ShardOpener(self.frame, [self._key], self._read_verified_chunk))

    @property
    def stored_bytes(self) -> int:
        return self.frame.stored_bytes

    def _write_at(self, offset: int, sealed: memoryview) -> None:
        self._file[offset : offset + sealed.nbytes] = sealed

    def _read_chunk(self, number: int) -> memoryview:
        entry = self.frame.chunks[number]
        return self._file[entry.offset : entry.offset + entry.sealed_bytes]

    def _read_verified_chunk(self, number: int) -> memoryview:
        sealed = self._read_chunk(number)
        self.frame.verify_chunk(number, sealed)
        return sealed


class Peer:
    """`pyarrow.ipc` streams with lz4 in one warm buffer."""

    def __init__(self, payload: Payload) -> None:
        self._batches = payload.batches
        self._buffer = pa.allocate_buffer(payload.content_bytes + payload.content_bytes // 50 + MIB)
        self._options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
        self.stored_bytes = 0

    def put(self) -> None:
        sink = pa.FixedSizeBufferWriter(self._buffer)
        with pa.ipc.new_stream(sink, self._batches[0].schema, options=self._options) as writer:
            for batch in self._batches:
                writer.write_batch(batch)
        self.stored_bytes = sink.tell()

    def get(self) -> None:
        options = pa.ipc.IpcReadOptions(use_threads=False)
        with pa.ipc.open_stream(self._buffer.slice(0, self.stored_bytes), options=options) as reader:
            for _ in reader:
                pass


def text_table(size_bytes: int) -> pa.Table:
    """The source files of the running Python's standard library: path, text and size; repeated to the size asked."""
    root = Path(os.__file__).parent
    rows: list[dict[str, object]] = []
    read_bytes = 0
    for path in sorted(root.rglob("*.py")):
        if read_bytes >= size_bytes:
            break
        text = path.read_bytes().decode("utf-8", "replace")
        rows.append({"path": str(path.relative_to(root)), "text": text, "size": len(text)})
        read_bytes += len(text)
    repeats = max(1, size_bytes // read_bytes)
    return pa.concat_tables([pa.Table.from_pylist(rows)] * repeats).combine_chunks()


def arrow_payload(table: pa.Table) -> Payload:
    """The table in batches that fit into a chunk, the same for both sides."""
    batches = list(_batches_of(table))
    wanted = table.slice(0, 0)
    return Payload(
        batches=batches,
        kind=Kind.ARROW,
        preamble=arrow_preamble(wanted.schema),
        add=lambda sealer: _add_batches(sealer, batches),
        open=lambda opener: _drop(open_batches(opener)),
    )


def tensor_payload(weights: dict[str, np.ndarray]) -> Payload:
    """bf16 tensors, which the peer gets as columns of 16-bit numbers."""
    specs = [TensorSpec(name, "bfloat16", array.shape) for name, array in weights.items()]
    (entries,) = plan_tensors(specs)
    into = {name: np.zeros_like(array) for name, array in weights.items()}
    tables = [pa.table({"weight": array.reshape(-1)}) for array in weights.values()]
    return Payload(
        batches=[batch for table in tables for batch in _batches_of(table)],
        kind=Kind.TENSORS,
        preamble=tensors_preamble(entries),
        add=lambda sealer: add_tensors(sealer, entries, weights),
        open=lambda opener: _drop(open_tensors(opener, into=into)),
    )


def payloads(size_bytes: int) -> Iterator[tuple[str, Payload]]:
    """Every kind of content, about `size_bytes` of each."""
    random = np.random.default_rng(7)
    yield "text", arrow_payload(text_table(size_bytes))
    tokens = random.zipf(1.2, size=size_bytes // 8) % 50_257
    yield "tokens_int64", arrow_payload(pa.table({"token": tokens.astype(np.int64)}))
    yield "tokens_int32", arrow_payload(pa.table({"token": np.tile(tokens, 2).astype(np.int32)}))
    layers = max(1, size_bytes // (8 * MIB))
    floats = [random.standard_normal((2048, 2048), dtype=np.float32) * 0.02 for _ in range(min(layers, 4))]
    halves = [(one.view(np.uint32) >> 16).astype(np.uint16) for one in floats]
    yield "weights_bf16", tensor_payload({f"layer.{n}.weight": halves[n % len(halves)] for n in range(layers)})
    rows = [random.bytes(65_536) for _ in range(size_bytes // 65_536)]
    yield "random_bytes", arrow_payload(pa.table({"blob": pa.array(rows, pa.binary())}))


def measure(payload: Payload) -> dict[str, object]:
    """Rates, ratios and sizes for one payload."""
    raylog, peer = Raylog(payload), Peer(payload)
    steps: dict[str, Callable[[], object]] = {
        "raylog_put": raylog.put,
        "pyarrow_put": peer.put,
        "raylog_get": raylog.get,
        "pyarrow_get": peer.get,
        "raylog_get_hashed": raylog.get_hashed,
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in range(ROUNDS + 1):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            if round_number:  # the first warms caches and page tables
                seconds[name].append(time.perf_counter() - begin)
    rates = {name: payload.content_bytes / statistics.median(times) / 1e9 for name, times in seconds.items()}
    return {
        "content_bytes": payload.content_bytes,
        **{f"{name}_gb_s": round(rate, 3) for name, rate in rates.items()},
        "ratio_put": round(rates["raylog_put"] / rates["pyarrow_put"], 3),
        "ratio_get": round(rates["raylog_get"] / rates["pyarrow_get"], 3),
        "raylog_times_smaller": round(payload.content_bytes / raylog.stored_bytes, 3),
        "pyarrow_times_smaller": round(payload.content_bytes / peer.stored_bytes, 3),
        "chunks": dict(Counter(entry.codec.name.lower() for entry in raylog.frame.chunks)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--quick", action="store_true", help="8 MiB of each payload instead of 128 MiB")
    arguments = parser.parse_args()
    pa.set_cpu_count(1)
    result: dict[str, object] = {"python": sys.version.split()[0], "machine": platform.machine(), "rounds": ROUNDS}
    for name, payload in payloads((8 if arguments.quick else 128) * MIB):
        figures = measure(payload)
        result[name] = figures
        if not arguments.json:
            print(f"{name:14}" + "  ".join(f"{key} {value}" for key, value in figures.items()))
    text, blobs = result["text"], result["random_bytes"]
    assert isinstance(text, dict) and isinstance(blobs, dict)
    result["goals"] = {
        "text_ratio": min(text["ratio_put"], text["ratio_get"]) >= RATIO_GOAL_TEXT,
        "random_gb_s": min(blobs["raylog_put_gb_s"], blobs["raylog_get_gb_s"]) >= RANDOM_GOAL_GB_S,
    }
    print(json.dumps(result) if arguments.json else f"goals reached: {result['goals']}")


def _batches_of(table: pa.Table) -> Iterator[pa.RecordBatch]:
    """Rows in a row until a batch is full, as a reader of files would cut them."""
    (whole,) = table.combine_chunks().to_batches()
    first = 0
    while first < whole.num_rows:
        rows = max(1, whole.num_rows * BATCH_BYTES // whole.nbytes)
        while rows > 1 and whole.slice(first, rows).nbytes > BATCH_BYTES:
            rows = rows * 7 // 8
        yield whole.slice(first, rows)
        first += rows


def _add_batches(sealer: ShardSealer, batches: list[pa.RecordBatch]) -> None:
    for batch in batches:
        add_batch(sealer, batch)


def _drop(results: object) -> None:
    """Uses up an iterator, keeping nothing."""
    for _ in results:  # type: ignore[attr-defined]
        pass


if __name__ == "__main__":
    main()
