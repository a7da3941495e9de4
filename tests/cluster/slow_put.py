"""A process of its own that puts 24 MiB slowly: `slow_put.py ADDRESS NAME PAUSE_S`. Before the last
of six shards it says "sealed" and pauses `PAUSE_S`; last it says "committed", or the error."""

import sys
import time
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

import raylog
from raylog.errors import RaylogError
from raylog.units import MIB

SHARDS = 6
ROWS = 4 * MIB // 8


def batches(pause_s: float) -> Iterator[pa.RecordBatch]:
    random = np.random.default_rng()
    for number in range(SHARDS):
        if number == SHARDS - 1:
            print("sealed", flush=True)
            time.sleep(pause_s)
        yield pa.record_batch({"n": random.integers(0, 1 << 62, ROWS)})


def main(address: str, name: str, pause_s: str) -> None:
    with raylog.connect(address) as client:
        source = pa.RecordBatchReader.from_batches(pa.schema({"n": pa.int64()}), batches(float(pause_s)))
        try:
            client.put(name, source)
            print("committed", flush=True)
        except RaylogError as error:
            print(type(error).__name__, error, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
