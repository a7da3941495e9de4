"""Placement over what the cluster has now: a node that is full gives less, a node that Ray drains gives nothing, and
the answers say so."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from three_nodes import Machine, wait_until

import raylog
from raylog.actors.node_info import NodeInfo
from raylog.errors import Unsatisfiable
from raylog.units import MIB

JOBS = "jobs: [{id: train, workers: 2, each: {memory_bytes: 1MiB}}]"


def command(name: str, *words: str) -> str:
    """Standard output of a command that comes with this Python."""
    program = str(Path(sys.executable).with_name(name))
    done = subprocess.run(
        [program, *words], env=os.environ | {"COLUMNS": "300"}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def leaving(machine: Machine, client: raylog.Client) -> Iterator[NodeInfo]:
    """A fourth node, which Ray has been asked to drain."""
    here = {info.ray_node_id for info in client.nodes()}
    raylet = machine.cluster.add_node(num_cpus=2, object_store_memory=80 * MIB)
    try:
        wait_until(lambda: len(client.telemetry()) == len(here) + 1, 30, "the new node has a node actor and a sample")
        command(
            "ray", "drain-node", "--address", machine.cluster.address, "--node-id", raylet.node_id,
            "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "test",
        )  # fmt: skip
        yield next(info for info in client.nodes() if info.ray_node_id not in here)
    finally:
        machine.cluster.remove_node(raylet, allow_graceful=False)
        wait_until(lambda: len(client.nodes()) == len(here), 30, "the drained node is gone")


def test_a_node_that_ray_drains_takes_nothing_new(client: raylog.Client, leaving: NodeInfo) -> None:
    said = f"node {leaving.node_id} left out: it is being drained"
    plan = client.place({"jobs": [{"id": "train", "workers": 30, "each": {"memory_bytes": MIB}}]})
    assert said in plan.notes
    assert len(plan.placements) == 30
    assert leaving.node_id not in plan.by_node()
    client.put("live/drained", np.random.default_rng(1).bytes(6 * MIB), replicas=3)
    for holders in client.replicas("live/drained").values():
        assert len(holders) == 3
        assert leaving.node_id not in holders
    with pytest.raises(Unsatisfiable, match=f"3 nodes are fit .*{said}"):
        client.put("live/too-many", b"four", replicas=4)


def test_the_command_places_on_live_capacity(machine: Machine, client: raylog.Client, tmp_path: Path) -> None:
    file, full = tmp_path / "jobs.yaml", client.local_node()
    file.write_text(JOBS)

    (memory_bytes,) = (node["Resources"]["memory"] for node in ray.nodes() if node["NodeID"] == full.ray_node_id)

    @ray.remote(num_cpus=0, memory=memory_bytes)
    class Occupant:
        def ready(self) -> None:
            """Answers once it has its memory."""

    pinned = NodeAffinitySchedulingStrategy(full.ray_node_id, soft=False)
    occupant = Occupant.options(scheduling_strategy=pinned).remote()
    ray.get(occupant.ready.remote(), timeout=30)
    options = ["--address", machine.cluster.address, "--state", str(machine.settings.state)]
    try:

        def plan() -> dict[str, object]:
            found: dict[str, object] = json.loads(command("raylog", *options, "place", str(file), "--json"))
            return found

        wait_until(lambda: f"node {full.node_id} gives 0 B of" in " ".join(plan()["notes"]), 30, "Ray says so")
        assert {placement["node"] for placement in plan()["placements"]} < {info.node_id for info in client.nodes()}
        assert full.node_id not in {placement["node"] for placement in plan()["placements"]}
        text = command("raylog", *options, "place", str(file))
        assert "all 2 workers placed" in text
        assert f"node {full.node_id} gives 0 B of" in text
    finally:
        ray.kill(occupant)
