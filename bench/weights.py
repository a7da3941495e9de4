"""A new version of weights to seven other hosts over links of 1 Gbit/s: all of it, or what changed, beside Ray.

256 MiB of float32 in 16 tensors, published on host 1 of eight network hosts on this machine; `client.publish` returns
when all nodes have the version. Each turn publishes one in which every value is new, then one in which 2 % of the
values of the one before are, at random places, then one in which 10 % are. Ray moves as many bytes by `put` and `get`,
all of them whatever changed. `..._hop_ratio` is the time over that in which a link carries all of the content once, and
includes what the publisher does: compare, seal, commit. `..._share` is how much of the content's length was sealed, and
so travelled. `read_s`: a subscriber on host 1 reads the version with both deltas. Medians of five.

    python bench/weights.py [--json] [--quick]              (as root, on Linux)
"""

import statistics
import time
from typing import Any

import numpy as np
from broadcast import RATE, RATE_BYTES_PER_S, ray_mover
from common import REPEATS, parser, report
from on_hosts import Network, drive, is_driver, network

from raylog.units import MIB

NAME = "bench/weights"
TENSORS = 16
HOSTS, HOSTS_QUICK = 8, 4
SIZE_BYTES, SIZE_BYTES_QUICK = 256 * MIB, 64 * MIB
SPARE_BYTES = 64 * MIB
CHANGED = {"full": 1.0, "changed_2": 0.02, "changed_10": 0.1}
State = dict[str, np.ndarray[Any, Any]]


def change(state: State, share: float, random: np.random.Generator) -> None:
    """Gives a share of the values new ones."""
    for tensor in state.values():
        if share == 1:
            random.standard_normal(out=tensor, dtype=np.float32)
        else:
            chosen = random.random(tensor.size, np.float32) < share
            tensor[chosen] = random.standard_normal(int(chosen.sum()), np.float32)


def read_s(bed: Network) -> float:
    started_s = time.perf_counter()
    with bed.client.subscribe(NAME) as subscription:
        subscription.wait(120)
        return time.perf_counter() - started_s


def run(size: int, hosts: int, repeats: int) -> dict[str, Any]:
    random = np.random.default_rng(1)
    state: State = {f"layer{number}": np.empty(size // 4 // TENSORS, np.float32) for number in range(TENSORS)}
    found: dict[str, list[float]] = {}
    with network(arena_bytes=2 * size + size // 2 + SPARE_BYTES) as bed:
        move = ray_mover(bed, random.bytes(size), list(range(2, hosts + 1)))
        for turn in range(repeats + 1):  # the first warms and is not counted
            measured: dict[str, float] = {}
            before = 0
            for name, share in CHANGED.items():
                change(state, share, random)
                bed.wait_quiet()
                started_s = time.perf_counter()
                version = bed.client.publish(NAME, state, keep=1)
                measured[f"{name}_hop_ratio"] = (time.perf_counter() - started_s) * RATE_BYTES_PER_S / size
                measured[f"{name}_share"] = (version.stored_bytes - before) / size
                before = version.stored_bytes
            measured["read_s"] = read_s(bed)
            bed.wait_quiet()
            measured["ray_hop_ratio"] = move() * RATE_BYTES_PER_S / size
            for name, value in measured.items() if turn else ():
                found.setdefault(name, []).append(value)
    medians = {name: statistics.median(values) for name, values in found.items()}
    return {"bytes": size, "hosts": hosts - 1, "repeats": repeats, "rate_bytes_per_s": RATE_BYTES_PER_S, **medians}


if __name__ == "__main__":
    arguments = parser(__doc__.splitlines()[0]).parse_args()
    size, hosts = (SIZE_BYTES_QUICK, HOSTS_QUICK) if arguments.quick else (SIZE_BYTES, HOSTS)
    if is_driver():
        report(run(size, hosts, 1 if arguments.quick else REPEATS), as_json=True)
    else:
        given = ["--quick"] if arguments.quick else []
        report(drive(hosts, given, rate=RATE, store_bytes=2 * size + SPARE_BYTES), arguments.json)
