"""What a listener hears of a put, a get, a download, a shipment, a scrub: chunk by chunk, forwards, to the end."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import raylog
from raylog.units import MIB

Heard = list[tuple[int, int]]
SIZE_BYTES = 10 * MIB  # three shards of 4 MiB, chunks of 256 KiB


def check(heard: Heard, total: int, calls_min: int) -> None:
    done = [one for one, _ in heard]
    assert done == sorted(done)
    assert heard[-1] == (total, total)
    assert all(one <= whole for one, whole in heard if whole)
    assert len(heard) >= calls_min


def noise(kind: str) -> Any:
    data = np.random.default_rng(3).bytes(SIZE_BYTES)
    if kind == "table":
        rows = pa.FixedSizeBinaryArray.from_buffers(pa.binary(128), SIZE_BYTES // 128, [None, pa.py_buffer(data)])
        return pa.table({"noise": rows, "id": range(SIZE_BYTES // 128)})
    return data if kind == "bytes" else {"a": np.frombuffer(data, np.uint8), "b": np.frombuffer(data, np.float16)}


@pytest.mark.parametrize("kind", ["table", "bytes", "tensors"])
def test_put_and_get_move_chunk_by_chunk(client: raylog.Client, tmp_path: Path, kind: str) -> None:
    heard: Heard = []
    version = client.put(f"progress/{kind}", noise(kind), on_progress=lambda *said: heard.append(said))
    check(heard, version.content_bytes, SIZE_BYTES // (MIB // 2))
    heard.clear()
    client.get(str(version), on_progress=lambda *said: heard.append(said))
    check(heard, version.content_bytes, SIZE_BYTES // (MIB // 2))
    heard.clear()
    suffix = {"table": ".arrow", "tensors": ".npz", "bytes": ""}[kind]
    client.download(str(version), tmp_path / f"back{suffix}", on_progress=lambda *said: heard.append(said))
    check(heard, version.content_bytes, SIZE_BYTES // (MIB // 2))


def test_some_columns_end_at_the_total_too(client: raylog.Client) -> None:
    heard: Heard = []
    version = client.put("progress/columns", noise("table"))
    client.get(str(version), columns=["id"], on_progress=lambda *said: heard.append(said))
    check(heard, version.content_bytes, 3)


def test_ship_and_verify_end_at_the_total(client: raylog.Client) -> None:
    heard: Heard = []
    version = client.put("progress/ship", noise("bytes"))
    shipment = client.ship(str(version), on_progress=lambda *said: heard.append(said))
    asked = []
    while not asked or asked[-1].done_bytes < asked[-1].total_bytes:
        asked.append(shipment.progress())
    shipment.result(60)
    assert [one.done_bytes for one in asked] == sorted(one.done_bytes for one in asked)
    check(heard, 3 * version.stored_bytes, 3)
    heard.clear()
    report = client.verify(str(version), on_progress=lambda *said: heard.append(said))
    check(heard, version.shards * len(client.nodes()), version.shards * len(client.nodes()))
    assert report.damaged == 0
