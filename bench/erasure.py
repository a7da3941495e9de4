"""Erasure coding of a sealed shard at 4+2 and 10+4, as `put`, repair and `get` do it, beside plain replicas and zfec.

One core, in memory, GB of the shard's file per second: `encode` cuts it into pieces and hashes each (BLAKE3), `rebuild`
makes one lost piece anew from k others, verified (per GB of the file, so of k GB read), `degraded read` reads the file
with one data piece lost, `read` with none. `copy` is what two and three replicas cost: the bytes copied and their
chunks verified. `arithmetic` and `zfec` are Reed-Solomon alone. `stored` is bytes of all pieces over bytes of the
shard.

    python bench/erasure.py [--json] [--quick]
"""

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import zfec
from blake3 import blake3
from common import REPEATS, parser, report

from raylog.codec.pieces import Erasure, ShardOfPieces, digests_of, encode_stripe
from raylog.testing.shards import SampleShard, sample_shard
from raylog.units import MIB

CODES = ((4, 2), (10, 4))
SIZE = 256 * MIB
CHUNK_BYTES = 2 * MIB


class Bench:
    """One shard, one code."""

    def __init__(self, shard: SampleShard, data: int, parity: int) -> None:
        self.shard, self.data, self.parity = shard, data, parity
        self.file = memoryview(shard.file)
        self.pieces: list[list[bytes]] = []
        self.erasure = Erasure.plan(shard.frame.ref(), shard.frame.header, data, parity, self._cut)

    def _cut(self, blank: Erasure) -> bytes:
        digests = bytearray()
        for stripe in range(blank.stripes):
            pieces = self._stripe(blank, stripe, *self._buffers(blank))
            self.pieces.append([bytes(piece) for piece in pieces])
            digests += digests_of(pieces)
        return bytes(digests)

    def _buffers(self, blank: Erasure) -> tuple[memoryview, memoryview]:
        size = blank.piece_bytes(0)
        return memoryview(bytearray(size * self.data)), memoryview(bytearray(size * self.parity))

    def _stripe(self, blank: Erasure, stripe: int, data: memoryview, parity: memoryview) -> list[memoryview]:
        part = self.file[stripe * blank.parity.stripe_bytes : (stripe + 1) * blank.parity.stripe_bytes]
        data[: len(part)] = part
        data[len(part) :] = bytes(len(data) - len(part))
        return encode_stripe(blank, stripe, data, parity)

    def encode(self) -> None:
        buffers = self._buffers(self.erasure)
        for stripe in range(self.erasure.stripes):
            digests_of(self._stripe(self.erasure, stripe, *buffers))

    def arithmetic(self) -> None:
        data, parity = self._buffers(self.erasure)
        for stripe in range(self.erasure.stripes):
            encode_stripe(self.erasure, stripe, data, parity)

    def zfec(self) -> None:
        encoder, parts = zfec.Encoder(self.data, self.data + self.parity), self.pieces
        for pieces in parts:
            encoder.encode(pieces[: self.data], list(range(self.data, self.data + self.parity)))

    def without(self, lost: int | None) -> ShardOfPieces:
        present = [number for number in range(self.data + self.parity) if number != lost][: self.data]
        frames = self.erasure.frames()

        def pieces(stripe: int) -> dict[int, memoryview]:
            found = {number: memoryview(self.pieces[stripe][number]) for number in present}
            for number, piece in found.items():  # as they are verified where they are read, or when they arrive
                frames[number].verify_chunk(stripe, piece)
            return found

        return ShardOfPieces(self.erasure, pieces)

    def rebuild(self) -> None:
        whole, frame = self.without(0), self.erasure.frames()[0]
        for stripe in range(self.erasure.stripes):
            frame.verify_chunk(stripe, whole.piece(0, stripe))

    def read(self, lost: int | None) -> None:
        whole, buffer = self.without(lost), memoryview(bytearray(CHUNK_BYTES))
        for chunk in self.shard.frame.chunks:
            whole.read_into(buffer[: chunk.sealed_bytes], chunk.offset)


def copies(shard: SampleShard, count: int) -> Callable[[], None]:
    """So many more copies, each chunk verified on arrival."""
    place = memoryview(bytearray(CHUNK_BYTES))

    def run() -> None:
        for _ in range(count):
            for sealed in shard.chunks:
                place[: len(sealed)] = sealed
                blake3(place[: len(sealed)]).digest()

    return run


def gb_s(action: Callable[[], None], size: int, repeats: int) -> float:
    action()
    seconds = []
    for _ in range(repeats):
        began_s = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - began_s)
    return size / statistics.median(seconds) / 1e9


def run(size: int, repeats: int) -> dict[str, Any]:
    shard = sample_shard(1, (CHUNK_BYTES,) * (size // CHUNK_BYTES))
    length = len(shard.file)
    found: dict[str, Any] = {
        "replicas": {
            f"{count}": {"copy_gb_s": gb_s(copies(shard, count - 1), length, repeats), "stored": float(count)}
            for count in (2, 3)
        }
    }
    for data, parity in CODES:
        bench = Bench(shard, data, parity)
        found[f"{data}+{parity}"] = {
            "encode_gb_s": gb_s(bench.encode, length, repeats),
            "rebuild_gb_s": gb_s(bench.rebuild, length, repeats),
            "degraded_read_gb_s": gb_s(lambda bench=bench: bench.read(0), length, repeats),
            "read_gb_s": gb_s(lambda bench=bench: bench.read(None), length, repeats),
            "arithmetic_gb_s": gb_s(bench.arithmetic, length, repeats),
            "zfec_gb_s": gb_s(bench.zfec, length, min(repeats, 3)),
            "stored": sum(ref.stored_bytes for ref in bench.erasure.refs()) / length,
        }
    return found


if __name__ == "__main__":
    arguments = parser(__doc__.splitlines()[0]).parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    report(run(SIZE // 16 if arguments.quick else SIZE, 1 if arguments.quick else REPEATS), arguments.json)
