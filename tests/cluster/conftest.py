"""A real Ray cluster on this machine for the tests of this folder: three raylets, token authentication, a dashboard."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from three_nodes import SMALL_DISK_BYTES, Machine, next_slot, wait_until

import raylog
from raylog.actors import bootstrap
from raylog.actors.node_info import NodeInfo
from raylog.actors.slot import Slot
from raylog.settings import Settings
from raylog.units import MIB

NODES = 3


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Started once for the session; what a test breaks it mends, or another node is added."""
    folder = tmp_path_factory.mktemp("cluster")
    patch = pytest.MonkeyPatch()
    patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")  # jobs run this Python
    cluster = Cluster()
    try:
        for number in range(NODES):
            head = {"include_dashboard": True, "dashboard_port": 0} if number == 0 else {}
            cluster.add_node(num_cpus=2, object_store_memory=80 * MIB, **head)
        settings = Settings(
            state=folder / "state",
            arena_bytes=64 * MIB,
            disk_reserve_bytes=0,
            shard_bytes=4 * MIB,
            chunk_bytes=MIB // 4,
            reconcile_period_s=0.5,
            lost_after_s=2.0,
            orphan_grace_s=6.0,
            scrub_bytes_per_s=0,  # tests count what they damage
            shared_memory=False,  # three machines are played here
        )
        yield Machine(cluster, settings, f"http://{cluster.head_node.webui_url}")
    finally:
        ray.shutdown()
        cluster.shutdown()
        patch.undo()
        for slot in (Slot(path, -1) for path in (folder / "state").glob("nodes/slot-*")):  # of nodes that were killed
            for left in (slot.arena_path, slot.socket_path):
                left.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def client(machine: Machine) -> Iterator[raylog.Client]:
    with raylog.connect(machine.cluster.address, settings=machine.settings) as connected:
        bootstrap.wait_for_nodes(60)
        yield connected
        bootstrap.stop()


def newcomers(client: raylog.Client, before: set[str]) -> list[NodeInfo]:
    """Nodes that were not there before, and that the monitor knows."""
    measured = {sample.node_id for sample in client.telemetry()}
    return [info for info in client.nodes() if info.node_id in measured - before]


@pytest.fixture(scope="module")
def small(machine: Machine, client: raylog.Client) -> Iterator[NodeInfo]:
    """One more node, whose directory is a file system of 24 MiB."""
    before = {info.node_id for info in client.nodes()}
    directory = next_slot(machine.settings.nodes_path)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_BYTES},mode=700", "tmpfs", str(directory)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small file system")
    raylet = machine.cluster.add_node(num_cpus=2, object_store_memory=80 * MIB)
    try:
        wait_until(lambda: len(newcomers(client, before)) == 1, 30, "the small node answers and is measured")
        (info,) = newcomers(client, before)
        assert Path(info.directory) == directory
        yield info
        machine.cluster.remove_node(raylet, allow_graceful=False)
        wait_until(lambda: {info.node_id for info in client.nodes()} == before, 20, "the small node left")
        for path in (info.arena_path, info.socket_path):
            Path(path).unlink(missing_ok=True)
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)
        shutil.rmtree(directory)
