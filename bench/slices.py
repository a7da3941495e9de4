"""A reader beside a shipment that fills the sender's link: does the reader get its share, and how long does it wait?

Three network hosts on this machine. Host 1 ships 256 MiB to host 2 over 1 Gbit/s (class ship, weight 1) while host 3
reads 128 MiB from host 1 (class read, weight 4). `reader_share_of_due` is the reader's part of what both received from
its first byte to its last, over the 4/5 that are due to it; 1 is exact. `reader_share_of_due_whole_get` is that of the
whole call, in which it asks for its key before and opens what it has after, while the shipment has the link alone. Then
host 3 reads small artifacts of one chunk, one after the other: `small_get_p99_s` alone, `small_get_p99_beside_ship_s`
while shipments go on. Medians of five; the 99th percentile of all reads.

    python bench/slices.py [--json] [--quick]               (as root, on Linux)
"""

import contextlib
import json
import secrets
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import REPEATS, parser, report
from on_hosts import Network, drive, is_driver, network, settings

import raylog
from raylog.testing.ray_hosts import joined
from raylog.units import KIB, MIB

RATE = "1gbit"
SENDER, TARGET, READER = 1, 2, 3
DUE = 4 / 5
SPARE_BYTES = 128 * MIB
SHIP_BYTES, SHIP_BYTES_QUICK = 256 * MIB, 128 * MIB
SMALL_BYTES, SMALL_COUNT, SMALL_COUNT_QUICK = 256 * KIB, 40, 10
COUNT_EVERY_S = 0.02
EDGE_SHARE = 0.001  # of the reader's bytes: less is its asking, not its reading
SHIP_SHARE_S = 0.3  # the shipment has filled the link by then


def read_on_request(arena_bytes: int) -> None:
    """The process on host 3: reads the artifacts that standard input names, answers with the seconds of each."""
    with joined() as address, raylog.connect(address, settings=settings(arena_bytes=arena_bytes)) as client:
        print("ready", flush=True)
        for line in sys.stdin:
            seconds = []
            for name in json.loads(line):
                started_s = time.perf_counter()
                assert client.get(name)
                seconds.append(time.perf_counter() - started_s)
            print(json.dumps(seconds), flush=True)


class RemoteReader:
    """That process, as the driver sees it."""

    def __init__(self, bed: Network, process: subprocess.Popen[str]) -> None:
        self._bed, self._process = bed, process

    def read(self, names: list[str]) -> list[float]:
        """Reads artifacts of which host 3 holds nothing, one after the other; seconds of each."""
        for name in names:
            self._bed.forget(name, [READER])
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(names) + "\n")
        self._process.stdin.flush()
        seconds: list[float] = json.loads(self._process.stdout.readline())
        return seconds


@contextlib.contextmanager
def remote_reader(bed: Network, arena_bytes: int) -> Iterator[RemoteReader]:
    command = [sys.executable, str(Path(__file__).resolve()), "--reader", str(arena_bytes)]
    with bed.hosts.popen(READER, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield RemoteReader(bed, process)
        finally:
            process.kill()


Counts = tuple[int, int]  # bytes that target and reader have received


def reader_shares(bed: Network, reader: RemoteReader) -> tuple[float, float]:
    """The reader's part of what both targets received: while bytes came to it, and in all of its call."""
    bed.forget("bench/read", [READER])
    shipment = bed.start_ship("bench/ship", [TARGET])
    time.sleep(SHIP_SHARE_S)
    with counting(bed) as counts:
        reader.read(["bench/read"])
    progress = shipment.progress()
    assert progress.done_bytes < progress.total_bytes, "the shipment ended before the reader"
    shipment.result(300)
    whole_bytes = counts[-1][1] - counts[0][1]
    first = max(at for at, (_, came) in enumerate(counts) if came - counts[0][1] < EDGE_SHARE * whole_bytes)
    last = min(at for at, (_, came) in enumerate(counts) if counts[-1][1] - came < EDGE_SHARE * whole_bytes)
    return part_of(counts[first], counts[last]), part_of(counts[0], counts[-1])


def part_of(before: Counts, after: Counts) -> float:
    shipped_bytes, read_bytes = (end - start for start, end in zip(before, after, strict=True))
    return read_bytes / (shipped_bytes + read_bytes)


@contextlib.contextmanager
def counting(bed: Network) -> Iterator[list[Counts]]:
    """What both have received, again and again for as long as the block runs."""
    stop, counts = threading.Event(), list[Counts]()

    def count() -> None:
        counts.append((bed.received_bytes(TARGET), bed.received_bytes(READER)))

    def run() -> None:
        while not stop.wait(COUNT_EVERY_S):
            count()

    count()
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield counts
    finally:
        stop.set()
        thread.join()
        count()


@contextlib.contextmanager
def shipping(bed: Network) -> Iterator[None]:
    """One shipment after the other, for as long as the block runs."""
    stop = threading.Event()

    def ship() -> None:
        while not stop.is_set():
            bed.ship_s("bench/ship", [TARGET])

    thread = threading.Thread(target=ship)
    thread.start()
    try:
        time.sleep(SHIP_SHARE_S)
        yield
    finally:
        stop.set()
        thread.join()


def p99(values: list[float]) -> float:
    return sorted(values)[min(len(values) * 99 // 100, len(values) - 1)]


def run(ship_bytes: int, small_count: int, repeats: int) -> dict[str, Any]:
    arena_bytes = 2 * ship_bytes + SPARE_BYTES
    small = [f"bench/small-{number}" for number in range(small_count)]
    alone: list[float] = []
    beside: list[float] = []
    with network(arena_bytes=arena_bytes) as bed, remote_reader(bed, arena_bytes) as reader:
        bed.client.put("bench/ship", secrets.token_bytes(ship_bytes))
        bed.client.put("bench/read", secrets.token_bytes(ship_bytes // 2))
        for name in small:
            bed.client.put(name, secrets.token_bytes(SMALL_BYTES))
        reader.read(["bench/read", *small])  # warm
        shares = []
        for _ in range(repeats):
            shares.append(reader_shares(bed, reader))
            alone += reader.read(small)
            with shipping(bed):
                beside += reader.read(small)
    return {
        "ship_bytes": ship_bytes,
        "repeats": repeats,
        "reader_share_of_due": statistics.median(while_it_came for while_it_came, _ in shares) / DUE,
        "reader_share_of_due_whole_get": statistics.median(whole for _, whole in shares) / DUE,
        "small_get_p50_s": statistics.median(alone),
        "small_get_p99_s": p99(alone),
        "small_get_p50_beside_ship_s": statistics.median(beside),
        "small_get_p99_beside_ship_s": p99(beside),
    }


if __name__ == "__main__":
    arguments_of = parser(__doc__.splitlines()[0])
    arguments_of.add_argument("--reader", type=int, metavar="BYTES", help="be the process on host 3")
    arguments = arguments_of.parse_args()
    if arguments.reader:
        read_on_request(arguments.reader)
    elif is_driver():
        quick = (SHIP_BYTES_QUICK, SMALL_COUNT_QUICK, 1)
        report(run(*(quick if arguments.quick else (SHIP_BYTES, SMALL_COUNT, REPEATS))), as_json=True)
    else:
        report(drive(3, ["--quick"] if arguments.quick else [], rate=RATE), arguments.json)
