"""Two nodes of a cluster of its own that scrub themselves all the time; one's disk forgets a few bits. `scrub_driver.py
FOLDER`. Exits with 0 once the copy is whole again, and says on one line what was seen."""

import sys
import time
from pathlib import Path

import numpy as np
import ray
from ray.cluster_utils import Cluster
from three_nodes import wait_until

import raylog
from raylog.actors import bootstrap
from raylog.actors.requests import EvictShard
from raylog.settings import Settings
from raylog.units import MIB

DEADLINE_S = 60.0


def flip_bits(path: Path, offsets: list[int]) -> None:
    with path.open("r+b") as file:
        for offset in offsets:
            file.seek(offset)
            (old,) = file.read(1)
            file.seek(offset)
            file.write(bytes([old ^ 16]))


def story(client: raylog.Client) -> None:
    here = client.local_node()
    other = next(info for info in client.nodes() if info.node_id != here.node_id)
    client.put("scrub/noise", np.random.default_rng(1).bytes(3 * MIB), replicas=2)
    (shard_id,) = client.replicas("scrub/noise")
    (path,) = (Path(other.directory) / "tier" / "shards").rglob(shard_id)
    right = path.read_bytes()
    client._session.ask_node(other, EvictShard(shard_id=shard_id))  # the disk is to be all that this node has
    flip_bits(path, [len(right) // 3, len(right) // 2, len(right) - 10])  # two chunks, and the trailer's digest
    began_s = time.monotonic()
    wait_until(lambda: path.exists() and path.read_bytes() == right, DEADLINE_S, "the shard is whole again")
    flip_bits(path, [len(right) // 3, len(right) // 2])
    wait_until(lambda: path.read_bytes() == right, DEADLINE_S, "its chunks are right again")
    told = [event.message for event in client.events(0)]
    assert any("scrub found" in one for one in told), told
    assert any("were replaced" in one for one in told), told
    samples = {sample.node_id: sample for sample in client.telemetry()}
    scrub = samples[other.node_id].scrub
    print(f"repaired after {time.monotonic() - began_s:.1f} s; {scrub}")


def main(folder: str) -> None:
    cluster = Cluster()
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=2, object_store_memory=80 * MIB, include_dashboard=False)
        settings = Settings(
            state=Path(folder) / "state",
            arena_bytes=16 * MIB,
            disk_reserve_bytes=0,
            chunk_bytes=MIB // 4,
            reconcile_period_s=0.5,
            shared_memory=False,
            scrub_period_s=2.0,
        )
        with raylog.connect(cluster.address, settings=settings) as client:
            bootstrap.wait_for_nodes(60)
            story(client)
            bootstrap.stop()
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
