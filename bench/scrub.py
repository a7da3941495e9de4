"""A scrub of 4 GiB on two replicas, damaged in 10,000 places such that each chunk keeps one good copy: how much of it
is found and how much repaired; and at what rate one core scrubs, beside `b3sum`.

Damages are single bits and whole sectors, on the nodes' disks, behind their backs. `found_share` is by the report of
`client.verify`, `repaired_share` by the bytes on the disks afterwards, compared with what was there before. The rate is
of sealed bytes read cold from the disk per second of CPU time, `b3sum` on one thread over the same files.

    python bench/scrub.py [--json] [--quick]
"""

import os
import random
import resource
import secrets
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))  # read when Ray is imported

from blake3 import blake3
from common import REPEATS, parser, report
from disks import forget
from peers import random_bytes
from transfer import two_nodes

import raylog
from raylog.codec.frame import Frame
from raylog.store.disk import DiskTier
from raylog.store.scrub import check_shard
from raylog.store.tiered import TieredStore
from raylog.units import GIB, MIB

SIZE = 4 * GIB
DAMAGES = 10_000
SECTOR_BYTES = 512
SHARD_BYTES = 256 * MIB
NAME = "bench/scrub"


@dataclass(frozen=True)
class Place:
    """A chunk in one copy of a shard."""

    path: Path
    offset: int
    length: int

    def digest(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return blake3(file.read(self.length)).digest()


def copies(client: raylog.Client) -> list[list[Path]]:
    """The files of each shard, one per replica."""
    folders = [Path(info.directory) / "tier" / "shards" for info in client.nodes()]
    return [[folder / shard_id[:2] / shard_id for folder in folders] for shard_id in client.replicas(NAME)]


def places(files: list[Path]) -> Iterator[list[Place]]:
    """Chunk by chunk, where it lies in each copy."""
    with files[0].open("rb") as file:
        frame = Frame.read(lambda offset, length: os.pread(file.fileno(), length, offset), files[0].stat().st_size)
    for entry in frame.chunks:
        yield [Place(path, entry.offset, entry.sealed_bytes) for path in files]


def damage(place: Place, source: random.Random) -> None:
    """One bit, or one sector as far as it lies within the chunk."""
    at = source.randrange(place.length)
    with place.path.open("r+b") as file:
        file.seek(place.offset + at)
        if source.random() < 0.5:
            (old,) = file.read(1)
            file.seek(place.offset + at)
            file.write(bytes([old ^ 1 << source.randrange(8)]))
        else:
            file.write(source.randbytes(min(SECTOR_BYTES, place.length - at)))


def damaged_and_repaired(client: raylog.Client, damages: int) -> dict[str, Any]:
    source = random.Random(1)
    chunks = [chunk for files in copies(client) for chunk in places(files)]
    victims = [chunk[source.randrange(len(chunk))] for chunk in chunks]  # of each chunk the copy that may be damaged
    right = {victim: victim.digest() for victim in victims}
    for _ in range(damages):
        damage(source.choice(victims), source)
    hit = [victim for victim in victims if victim.digest() != right[victim]]
    forget(sorted({place.path for chunk in chunks for place in chunk}))
    started_s = time.perf_counter()
    found = client.verify(NAME)
    seconds = time.perf_counter() - started_s
    return {
        "damages": damages,
        "damaged_chunks": len(hit),
        "found_share": found.damaged / len(hit),
        "repaired_share": sum(victim.digest() == right[victim] for victim in hit) / len(hit),
        "untouched_share": sum(victim.digest() == right[victim] for victim in victims) / len(victims),
        "problems": found.problems,
        "seconds": seconds,
        "chunks_read": found.chunks_read,
    }


def cpu_s(who: int) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def rates(directory: Path, cluster_id: str, repeats: int) -> dict[str, float | None]:
    """GB per CPU second and per second of the clock, raylog's and b3sum's in turn, medians."""
    files = [path for path in (directory / "shards").rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    b3sum = shutil.which("b3sum")
    times: dict[str, list[float]] = {}
    store = TieredStore(None, DiskTier(directory, cluster_id=cluster_id))
    for _ in range(repeats):
        forget(files)
        began_s, used_s = time.perf_counter(), cpu_s(resource.RUSAGE_SELF)
        for ref in store.shards():
            check_shard(store, ref.shard_id)
        times.setdefault("scrub_gb_s_per_core", []).append(cpu_s(resource.RUSAGE_SELF) - used_s)
        times.setdefault("scrub_gb_s", []).append(time.perf_counter() - began_s)
        if b3sum is None:
            continue
        forget(files)
        began_s, used_s = time.perf_counter(), cpu_s(resource.RUSAGE_CHILDREN)
        subprocess.run([b3sum, "--num-threads", "1", "--no-mmap", *files], check=True, stdout=subprocess.DEVNULL)
        times.setdefault("b3sum_gb_s_per_core", []).append(cpu_s(resource.RUSAGE_CHILDREN) - used_s)
        times.setdefault("b3sum_gb_s", []).append(time.perf_counter() - began_s)
    store.close()
    found: dict[str, float | None] = {name: size / statistics.median(values) / 1e9 for name, values in times.items()}
    ours, theirs = found["scrub_gb_s_per_core"], found.get("b3sum_gb_s_per_core")
    return found | {"ratio_b3sum": ours / theirs if ours and theirs else None}


def run(size: int, damages: int, repeats: int) -> dict[str, Any]:
    shard_bytes = min(SHARD_BYTES, size // 4)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with two_nodes(folder, 64 * MIB, arena_bytes=shard_bytes // 4, shard_bytes=shard_bytes) as (_, client, _other):
            path = folder / "noise"
            path.write_bytes(random_bytes(size))
            client.put(NAME, path, replicas=2)
            path.unlink()
            result = {"bytes": size, **damaged_and_repaired(client, damages)}
            here = Path(client.local_node().directory) / "tier"
            cluster_id = client._session.credentials().identity.cluster_id
        return result | rates(here, cluster_id, repeats)


if __name__ == "__main__":
    arguments = parser(__doc__.splitlines()[0]).parse_args()
    report(run(64 * MIB, 300, 1) if arguments.quick else run(SIZE, DAMAGES, REPEATS), arguments.json)
