"""Sealed shards from one node actor to another, beside raw TCP, TLS, Arrow Flight and Ray's own object transfer.

1 GiB of incompressible bytes and 1 GiB of text, between two Ray nodes on this machine, in content bytes per second.
raylog's figure is the whole path of a ship: the source's arena, AEAD records, TCP, BLAKE3 of every chunk, the target's
arena. The shards were sealed before; `text_end_to_end_gb_s` adds reading, sealing and opening. Peers run in the same
run, in turn with raylog, from warm memory into warm memory. Medians of five. `authenticated` has the same with
`cargo_records = "authenticated"`; `ssd_to_ssd` ships from a disk to a disk, cold and without an arena, beside `cp` and
fsync of the same files.

    python bench/transfer.py [--json] [--quick]
"""

import contextlib
import os
import secrets
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))  # read when Ray is imported

import ray
from common import REPEATS, parser, report, text_bytes
from disks import cold_mover, cp_mover
from peers import certificates, flight_peer, random_bytes, socket_peer
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import raylog
from raylog.actors import bootstrap, calls
from raylog.actors.node_info import NodeInfo
from raylog.actors.requests import DeleteShards, ask
from raylog.settings import Settings
from raylog.spec import CargoRecords
from raylog.units import GIB, MIB

SHARD_BYTES = 256 * MIB
LARGEST_SHARDS = 3.9375  # times 1 GiB: what one shard may hold


@contextlib.contextmanager
def two_nodes(
    folder: Path,
    size: int,
    *,
    arena_bytes: int,
    shard_bytes: int,
    records: CargoRecords = CargoRecords.ENCRYPTED,
) -> Iterator[tuple[Cluster, raylog.Client, NodeInfo]]:
    """Two raylets with a raylog node each; the client is on the first, the other one is returned."""
    cluster = Cluster()
    try:
        for number in range(2):
            head = {"include_dashboard": False} if number == 0 else {}
            cluster.add_node(num_cpus=2, object_store_memory=max(2 * min(size, GIB), 100 * MIB), **head)
        state = folder / f"state-{size}-{arena_bytes}-{records}"
        settings = Settings(
            state=state,
            arena_bytes=arena_bytes,
            shard_bytes=shard_bytes,
            cargo_records=records,
            shared_memory=False,
            scrub_bytes_per_s=0,  # as peers, who have none
        )
        with raylog.connect(cluster.address, settings=settings) as client:
            here = client.local_node()
            bootstrap.wait_for_nodes(60)
            yield cluster, client, next(info for info in client.nodes() if info.node_id != here.node_id)
            bootstrap.stop()
    finally:
        ray.shutdown()
        cluster.shutdown()


def raylog_mover(client: raylog.Client, name: str, target: NodeInfo) -> Callable[[], float]:
    """Ships `name` to a target that does not hold it (what the last one left is deleted first, untimed)."""
    delete = DeleteShards(shard_ids=tuple(client.replicas(name)))
    settings = bootstrap.running_settings()
    assert settings
    signer = bootstrap.cluster_signer(settings)

    def move() -> float:
        calls.wait(ask(calls.node(target.ray_node_id), target.node_id, delete, signer), 60, "delete")
        shipped = client.ship(name, to=[target.node_id], deadline_s=300).result(300)
        assert shipped.moved_bytes > 0
        return shipped.seconds

    return move


@ray.remote(num_cpus=0)
class Reader:
    """Has an object brought to its node."""

    def read(self, references: list[Any]) -> float:
        started_s = time.perf_counter()
        size = len(memoryview(ray.get(references[0])))
        assert size
        return time.perf_counter() - started_s


def ray_mover(payload: bytes, target: NodeInfo) -> Callable[[], float]:
    """Ray's object transfer of a fresh object of the same bytes from this node to the target's."""
    affinity = NodeAffinitySchedulingStrategy(target.ray_node_id, soft=False)
    reader = Reader.options(scheduling_strategy=affinity).remote()

    def move() -> float:
        reference = ray.put(memoryview(payload))
        return float(ray.get(reader.read.remote([reference]), timeout=300))

    return move


def measure(movers: dict[str, Callable[[], float]], size: int, repeats: int) -> dict[str, float]:
    """GB/s of each, in turn, medians; the first round warms and is counted for none but `ray_cold_gb_s`. Ratios are of
    the first one to the others."""
    times: dict[str, list[float]] = {name: [] for name in movers}
    cold = {name: move() for name, move in movers.items()}
    for _ in range(repeats):
        for name, move in movers.items():
            times[name].append(move())
    rates = {f"{name}_gb_s": size / statistics.median(values) / 1e9 for name, values in times.items()}
    if "ray" in cold:
        rates["ray_cold_gb_s"] = size / cold["ray"] / 1e9
    ours, *peers = movers
    return rates | {f"ratio_{name}": rates[f"{ours}_gb_s"] / rates[f"{name}_gb_s"] for name in peers}


def authenticated(folder: Path, payloads: dict[str, Path], size: int, repeats: int) -> dict[str, dict[str, float]]:
    """As the main figures, of records that authenticate sealed bytes without encrypting them a second time."""
    found: dict[str, dict[str, float]] = {}
    target_memory, shard_bytes = memoryview(bytearray(size)), min(SHARD_BYTES, size)
    kind = CargoRecords.AUTHENTICATED
    with two_nodes(folder, size, arena_bytes=2 * size, shard_bytes=shard_bytes, records=kind) as (_, client, target):
        for name, path in payloads.items():
            client.put(f"bench/{name}", path)
            with contextlib.ExitStack() as peers:
                movers: dict[str, Callable[[], float]] = {
                    "raylog_authenticated": raylog_mover(client, f"bench/{name}", target),
                    "raw_tcp": peers.enter_context(socket_peer(path, target_memory)),
                    "flight": peers.enter_context(flight_peer(path, size)),
                }
                found[name] = measure(movers, size, repeats)
    return found


def ssd_to_ssd(folder: Path, path: Path, size: int, repeats: int) -> dict[str, float]:
    """Shards too large for the arenas lie on disk alone, and are shipped to the other node's disk: read cold, written,
    fsynced, renamed. `cp` does it with the same sealed files."""
    shard_bytes = min(SHARD_BYTES, size)
    with two_nodes(folder, size, arena_bytes=shard_bytes // 4, shard_bytes=shard_bytes) as (_, client, target):
        here = client.local_node()
        client.put("bench/cold", path)
        sealed = [found for found in Path(here.directory).rglob("*") if found.is_file()]
        files = [found for found in sealed if found.stat().st_size > shard_bytes // 2]
        assert sum(found.stat().st_size for found in files) >= size, files
        movers = {
            "raylog": cold_mover(raylog_mover(client, "bench/cold", target), files),
            "cp": cp_mover(files, Path(target.directory) / "bench-copies"),
        }
        return measure(movers, size, repeats)


def end_to_end_gb_s(client: raylog.Client, path: Path, target: NodeInfo, size: int) -> float:
    """Reading a file, sealing it, shipping it, opening every chunk."""
    started_s = time.perf_counter()
    client.put("bench/whole", path)
    client.ship("bench/whole", to=[target.node_id], deadline_s=300).result(300)
    client.inspect("bench/whole")
    seconds = time.perf_counter() - started_s
    client.delete("bench/whole")
    return size / seconds / 1e9


def largest_shard_rss_bytes(folder: Path, size: int) -> int:
    """The most private memory of a node actor while one shard of `size` bytes is put, shipped and opened. The arena is
    smaller than the shard, which streams through to disk."""
    path = folder / "large"
    with path.open("wb") as file:
        piece = random_bytes(min(size, 64 * MIB))
        for _ in range(size // len(piece)):
            file.write(piece)
    with two_nodes(folder, size, arena_bytes=256 * MIB, shard_bytes=size) as (_, client, target):
        most = 0
        stop = threading.Event()

        def watch() -> None:
            nonlocal most
            while not stop.wait(0.5):
                samples = client.telemetry()
                most = max([most, *(sample.host.process_rss_anon_bytes or 0 for sample in samples)])

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            version = client.put("bench/large", path)
            assert version.shards == 1, version
            client.ship("bench/large", to=[target.node_id], deadline_s=600).result(600)
            client.inspect("bench/large")
        finally:
            stop.set()
            watcher.join()
    path.unlink()
    return most


def run(size: int, repeats: int) -> dict[str, Any]:
    result: dict[str, Any] = {"bytes": size, "repeats": repeats}
    target_memory, paths = memoryview(bytearray(size)), dict[str, Path]()
    with tempfile.TemporaryDirectory() as temporary, certificates() as tls:
        folder = Path(temporary)
        with two_nodes(folder, size, arena_bytes=2 * size, shard_bytes=min(SHARD_BYTES, size)) as (_, client, target):
            for name, payload in (("incompressible", random_bytes(size)), ("text", text_bytes(size))):
                path = paths[name] = folder / name
                path.write_bytes(payload)
                client.put(f"bench/{name}", path)
                with contextlib.ExitStack() as peers:
                    movers: dict[str, Callable[[], float]] = {
                        "raylog": raylog_mover(client, f"bench/{name}", target),
                        "raw_tcp": peers.enter_context(socket_peer(path, target_memory)),
                        "ssl": peers.enter_context(socket_peer(path, target_memory, tls)),
                        "flight": peers.enter_context(flight_peer(path, size)),
                        "flight_mtls": peers.enter_context(flight_peer(path, size, tls)),
                        "ray": ray_mover(payload, target),
                    }
                    result[name] = measure(movers, size, repeats)
            result["text_end_to_end_gb_s"] = end_to_end_gb_s(client, folder / "text", target, size)
        result["authenticated"] = authenticated(folder, paths, size, repeats)
        result["ssd_to_ssd"] = ssd_to_ssd(folder, paths["incompressible"], size, repeats)
        result["ssd_to_ssd_ratio"] = result["ssd_to_ssd"]["ratio_cp"]
        result["rss_anon_largest_shard_bytes"] = largest_shard_rss_bytes(folder, int(LARGEST_SHARDS * size))
    return result


if __name__ == "__main__":
    arguments = parser(__doc__.splitlines()[0]).parse_args()
    report(run(64 * MIB if arguments.quick else GIB, 1 if arguments.quick else REPEATS), arguments.json)
