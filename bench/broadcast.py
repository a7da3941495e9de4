"""One artifact to 1, 3 and 7 other hosts over links of 1 Gbit/s, beside Ray's own broadcast of one object.

256 MiB of incompressible bytes, and of text, put on host 1 of eight network hosts on this machine, then shipped to
hosts that hold nothing of it. `hop_ratio_N` is the time over that of one hop: content bytes over the link's rate. One
sender for all would need N; hosts that pass on what they have got need hardly more than 1. Links are limited in both
directions. Medians of five.

    python bench/broadcast.py [--json] [--quick]            (as root, on Linux)
"""

import secrets
import statistics
import time
from collections.abc import Callable
from typing import Any

import ray
from common import REPEATS, parser, report, text_bytes
from on_hosts import Network, drive, is_driver, network
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raylog.units import MIB

RATE, RATE_BYTES_PER_S = "1gbit", 1e9 / 8
SPARE_BYTES = 64 * MIB
COUNTS, COUNTS_QUICK = (1, 3, 7), (1, 3)
SIZE_BYTES, SIZE_BYTES_QUICK = 256 * MIB, 32 * MIB


@ray.remote(num_cpus=0)
class Reader:
    """Has an object brought to its node."""

    def read(self, references: list[Any]) -> int:
        return len(memoryview(ray.get(references[0])))


def ray_mover(bed: Network, payload: bytes, hosts: list[int]) -> Callable[[], float]:
    """Ray's broadcast of a fresh object from this node to a reader on each host, all at once."""
    readers = []
    for host in hosts:
        affinity = NodeAffinitySchedulingStrategy(bed.nodes[host].ray_node_id, soft=False)
        readers.append(Reader.options(scheduling_strategy=affinity).remote())
    empty = ray.put(b"")
    ray.get([reader.read.remote([empty]) for reader in readers], timeout=120)  # they are there

    def move() -> float:
        reference = ray.put(memoryview(payload))
        started_s = time.perf_counter()
        sizes = ray.get([reader.read.remote([reference]) for reader in readers], timeout=300)
        assert sizes == [len(payload)] * len(hosts)
        return time.perf_counter() - started_s

    return move


def run(size: int, counts: tuple[int, ...], repeats: int) -> dict[str, Any]:
    noise, most = secrets.token_bytes(size), max(counts)
    times: dict[str, list[float]] = {}
    with network(arena_bytes=2 * size + SPARE_BYTES) as bed:
        bed.client.put("bench/noise", noise)
        text = bed.client.put("bench/text", text_bytes(size))
        movers: dict[str, Callable[[], float]] = {}
        for count in counts:
            hosts = list(range(2, count + 2))
            movers[f"hop_ratio_{count}"] = lambda hosts=hosts: bed.ship_s("bench/noise", hosts)
            movers[f"ray_hop_ratio_{count}"] = ray_mover(bed, noise, hosts)
        everybody = list(range(2, most + 2))
        movers[f"hop_ratio_{most}_text"] = lambda: bed.ship_s("bench/text", everybody)
        for turn in range(repeats + 1):  # the first warms and is not counted
            for name, move in movers.items():
                bed.wait_quiet()
                seconds = move()
                if turn:
                    times.setdefault(name, []).append(seconds)
                for artifact in ("bench/noise", "bench/text"):
                    bed.forget(artifact, everybody)
    one_hop_s = size / RATE_BYTES_PER_S
    ratios = {name: statistics.median(values) / one_hop_s for name, values in times.items()}
    known = {"bytes": size, "repeats": repeats, "rate_bytes_per_s": RATE_BYTES_PER_S}
    return {**known, "text_stored_share": text.stored_bytes / size, **ratios}


if __name__ == "__main__":
    arguments = parser(__doc__.splitlines()[0]).parse_args()
    size = SIZE_BYTES_QUICK if arguments.quick else SIZE_BYTES
    counts = COUNTS_QUICK if arguments.quick else COUNTS
    if is_driver():
        report(run(size, counts, 1 if arguments.quick else REPEATS), as_json=True)
    else:
        given = ["--quick"] if arguments.quick else []
        found = drive(max(counts) + 1, given, rate=RATE, store_bytes=2 * size + SPARE_BYTES)
        report(found, arguments.json)
