"""A node's store under an access trace, over memory, a fast and a throttled disk: which reads memory serves, and how
long a read takes, beside least-recently-used and beside the best static placement in hindsight.

Two traces: reads of a git repository's objects that were recorded (`traces/git_log.json`, sizes times 256), and Zipf's
law (exponent 0.9) over shards of lognormal sizes. Shards lie on the two disks in turn; the arena holds an eighth of
all. The throttled disk reads at 100 MB/s. Each policy plays the same trace through a real store, each read verified.
The best static placement knows the whole trace: it keeps the shards with most reads per byte (`static bytes`), or with
most seconds saved per byte (`static seconds`), and never changes. `hit_ratio_best_static` is bytes served from memory
over those of `static seconds`, which has the same aim as raylog.

Then two equally fast disks take shards one after another, and one of them slows down twentyfold in the middle: how many
of the shards after that still go to it, and how many it had before.

    python bench/tiers.py [--json] [--quick]
"""

import itertools
import json
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import parser, report

from raylog.spec import Durability, new_id
from raylog.store import shard_file
from raylog.store.arena_policy import ArenaPolicy
from raylog.store.device_meter import DeviceRates
from raylog.store.disk import DiskTier
from raylog.store.disks import Disks
from raylog.store.files import read_exactly
from raylog.store.measure import measure
from raylog.store.memory import MemoryTier
from raylog.store.tiered import TieredStore
from raylog.testing.shards import SampleShard, sample_shard
from raylog.testing.tier_contract import fill
from raylog.units import MIB

CLUSTER = new_id()
ARENA_SHARE = 8  # of all bytes, the part that the arena holds
THROTTLED_BYTES_PER_S = 100e6
PAIR_BYTES_PER_S = 400e6  # of the two disks of which one slows down
RECORDED_SCALE = 256
ZIPF_EXPONENT = 0.9
CHUNK_BYTES = MIB


@dataclass(frozen=True)
class Trace:
    """Bytes of each shard, and which is read, in order."""

    sizes: Sequence[int]
    reads: Sequence[int]

    @property
    def bytes(self) -> int:
        return sum(self.sizes)


def recorded() -> Trace:
    document = json.loads((Path(__file__).parent / "traces" / "git_log.json").read_text())
    return Trace([size * RECORDED_SCALE for size in document["bytes"]], document["reads"])


def zipf(shards: int, reads: int) -> Trace:
    source = random.Random(1)
    sizes = [int(min(max(source.lognormvariate(12.5, 0.8), 32_000), 4e6)) for _ in range(shards)]
    weights = list(itertools.accumulate(1 / (rank + 1) ** ZIPF_EXPONENT for rank in range(shards)))
    order = source.sample(range(shards), shards)
    return Trace(sizes, [order[one] for one in source.choices(range(shards), cum_weights=weights, k=reads)])


class LeastRecentlyUsed(ArenaPolicy):
    """Takes everything in; what was not read for longest goes."""

    def rank(self, shard_id: str) -> float:
        return 0.0

    def may_admit(self, shard_id: str) -> bool:
        return True

    def admits(self, shard_id: str, stored_bytes: int, victims: Sequence[tuple[str, int]] | None) -> bool:
        return victims is not None


class Static(ArenaPolicy):
    """Keeps what it was told."""

    def __init__(self, kept: set[str]) -> None:
        super().__init__()
        self._kept = kept

    def admits(self, shard_id: str, stored_bytes: int, victims: Sequence[tuple[str, int]] | None) -> bool:
        return shard_id in self._kept and victims == []


def best_static(shards: Sequence[SampleShard], value: Mapping[str, float], capacity_bytes: int) -> set[str]:
    """The shards with most value per byte, as many as fit into pages."""
    left, kept = capacity_bytes, set[str]()
    for shard in sorted(shards, key=lambda one: -value[one.shard_id] / one.frame.stored_bytes):
        pages = -(-shard.frame.stored_bytes // 4096) * 4096
        if pages <= left and value[shard.shard_id]:
            kept.add(shard.shard_id)
            left -= pages
    return kept


@contextmanager
def throttled(rates: Mapping[Path, Callable[[], float]]) -> Iterator[None]:
    """Reads and writes of files below these folders take as long as on devices of these rates (bytes per second)."""

    def rate_of(descriptor: int) -> float | None:
        path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        return next((rate() for folder, rate in rates.items() if path.startswith(str(folder))), None)

    def slow(real: Callable[..., None], view_at: int) -> Callable[..., None]:
        def call(descriptor: int, *arguments: Any, **more: Any) -> None:
            began_s = time.perf_counter()
            real(descriptor, *arguments, **more)
            rate = rate_of(descriptor)
            if rate is not None:
                due_s = len(arguments[view_at]) / rate
                time.sleep(max(due_s - (time.perf_counter() - began_s), 0))

        return call

    write_exactly = shard_file.write_exactly
    shard_file.read_exactly, shard_file.write_exactly = slow(read_exactly, 0), slow(write_exactly, 0)
    try:
        yield
    finally:
        shard_file.read_exactly, shard_file.write_exactly = read_exactly, write_exactly


def play(
    folder: Path, shards: Sequence[SampleShard], reads: Sequence[int], arena_bytes: int, policy: ArenaPolicy
) -> dict[str, float]:
    """The trace through a store that begins with an empty arena."""
    memory = MemoryTier(Path(f"/dev/shm/raylog-bench-{new_id()}"), arena_bytes)
    disks = Disks([DiskTier(folder / "fast", cluster_id=CLUSTER), DiskTier(folder / "slow", cluster_id=CLUSTER)])
    store = TieredStore(memory, disks, policy)
    served, seconds = Counter[str](), []
    try:
        for shard in shards if isinstance(policy, Static) else []:  # placed before the first read
            if policy.admits(shard.shard_id, shard.frame.stored_bytes, []):
                with store.open(shard.shard_id) as reader:
                    for chunk in range(len(reader.frame.chunks)):
                        reader.chunk(chunk)
        for number in reads:
            shard = shards[number]
            tier = "memory" if memory.holds(shard.shard_id) else "disk"
            began_s = time.perf_counter()
            with store.open(shard.shard_id) as reader:
                for chunk in range(len(reader.frame.chunks)):
                    reader.chunk(chunk)
            seconds.append(time.perf_counter() - began_s)
            served[tier] += shard.frame.stored_bytes
    finally:
        store.close()
    return {"hit_share": served["memory"] / served.total(), "mean_read_ms": statistics.mean(seconds) * 1e3}


def policies(folder: Path, trace: Trace) -> dict[str, Any]:
    shards = [sample_shard(number, tuple(_chunks(size))) for number, size in enumerate(trace.sizes)]
    for name in ("fast", "slow"):
        tier = DiskTier(folder / name, cluster_id=CLUSTER)
        for shard in shards[name == "slow" :: 2]:
            with tier.create(shard.frame) as writer:
                fill(writer, shard)
                writer.commit()
        tier.close()
    arena_bytes = trace.bytes // ARENA_SHARE
    counts = Counter(shards[number].shard_id for number in trace.reads)
    fast_bytes_per_s = measure(folder, 8 * MIB).read_bytes_per_s
    rates = {shard.shard_id: (fast_bytes_per_s, THROTTLED_BYTES_PER_S)[n % 2] for n, shard in enumerate(shards)}
    of_bytes = {shard.shard_id: counts[shard.shard_id] * shard.frame.stored_bytes for shard in shards}
    of_seconds = {one: value / rates[one] for one, value in of_bytes.items()}
    chosen: dict[str, ArenaPolicy] = {
        "raylog": ArenaPolicy(),
        "lru": LeastRecentlyUsed(),
        "static bytes": Static(best_static(shards, of_bytes, arena_bytes)),
        "static seconds": Static(best_static(shards, of_seconds, arena_bytes)),
    }
    with throttled({folder / "slow": lambda: THROTTLED_BYTES_PER_S}):
        found: dict[str, Any] = {
            name: play(folder, shards, trace.reads, arena_bytes, policy) for name, policy in chosen.items()
        }
    ours = found["raylog"]["hit_share"]
    return found | {
        "shards": len(shards),
        "reads": len(trace.reads),
        "bytes": trace.bytes,
        "arena_bytes": arena_bytes,
        "first_reads_share": sum(trace.sizes[one] for one in set(trace.reads))
        / sum(map(trace.sizes.__getitem__, trace.reads)),
        "hit_ratio_best_static": ours / found["static seconds"]["hit_share"],
        "hit_ratio_static_bytes": ours / found["static bytes"]["hit_share"],
        "hit_ratio_lru": ours / found["lru"]["hit_share"],
        "read_ms_ratio_best_static": found["raylog"]["mean_read_ms"] / found["static seconds"]["mean_read_ms"],
        "read_ms_ratio_lru": found["raylog"]["mean_read_ms"] / found["lru"]["mean_read_ms"],
    }


def slowing(folder: Path, shards: int) -> dict[str, Any]:
    """Two disks; the first one slows down after half of the shards."""
    disks = Disks([DiskTier(folder / name, cluster_id=CLUSTER) for name in ("first", "second")])
    for tier in disks.tiers:
        tier.meter.measured = DeviceRates(
            read_bytes_per_s=PAIR_BYTES_PER_S, write_bytes_per_s=PAIR_BYTES_PER_S, sync_s=0.01
        )
    store, rate = TieredStore(None, disks), PAIR_BYTES_PER_S
    before, after, noticed = Counter[str](), Counter[str](), None
    with throttled({folder / "first": lambda: rate, folder / "second": lambda: PAIR_BYTES_PER_S}):
        for number in range(shards):
            if number == shards // 2:
                rate /= 20
            shard = sample_shard(number, (CHUNK_BYTES,) * 8)
            with store.create(shard.frame, Durability.DISK) as writer:
                fill(writer, shard)
                writer.commit()
            holder = disks.holder(shard.shard_id)
            assert holder is not None
            (before if number < shards // 2 else after)[holder.directory.name] += 1
            if noticed is None and disks.tiers[0].meter.slow:
                noticed = number - shards // 2
    store.close()
    return {
        "before_on_first": before["first"],
        "after_on_first": after["first"],
        "shards_each": shards // 2,
        "noticed_after_shards": noticed,
    }


def _chunks(size: int) -> Iterator[int]:
    while size > 0:
        yield max(min(size, CHUNK_BYTES), 16)
        size -= CHUNK_BYTES


def run(quick: bool) -> dict[str, Any]:
    traces = {"recorded": recorded(), "zipf": zipf(400, 8_000)}
    if quick:
        traces = {"zipf": zipf(60, 300)}
    found: dict[str, Any] = {}
    for name, trace in traces.items():
        with tempfile.TemporaryDirectory() as folder:
            found[name] = policies(Path(folder), trace)
    with tempfile.TemporaryDirectory() as folder:
        found["slowing"] = slowing(Path(folder), 12 if quick else 40)
    return found


if __name__ == "__main__":
    arguments = parser(__doc__.splitlines()[0]).parse_args()
    report(run(arguments.quick), arguments.json)
