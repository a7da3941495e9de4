"""What the tests of this folder share."""

import fcntl
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import raylog
from raylog.actors import calls
from raylog.actors.node_info import NodeInfo
from raylog.actors.requests import ask
from raylog.security.requests import Request, Signer
from raylog.settings import Settings
from raylog.units import MIB

SMALL_DISK_BYTES = 24 * MIB


@dataclass(frozen=True, slots=True)
class Machine:
    """The Ray cluster, raylog's settings in it, and where its dashboard answers."""

    cluster: Cluster
    settings: Settings
    dashboard: str


def signer_of(client: raylog.Client) -> Signer:
    """To ask nodes as that client does."""
    return Signer.of(client._session.credentials())


def ask_node(info: NodeInfo, about: Request, signer: Signer, timeout_s: float = 30) -> Any:
    """What a node answers to a signed request."""
    return calls.wait(ask(calls.node(info.ray_node_id), info.node_id, about, signer), timeout_s, about.action)


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str, pause_s: float = 0.1) -> None:
    """Polls until `condition` holds; fails the test, naming `what`, after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(pause_s)


def lying(client: raylog.Client) -> set[str]:
    """All that lies on the living nodes: shards by inventory, and every file of their disk tiers."""
    nodes = client.nodes()
    inventories = calls.wait_all([calls.node(info.ray_node_id).inventory.remote() for info in nodes], 30, "inventory")
    shards = {
        f"{info.node_id[:12]}: {ref.shard_id}" for info, refs in zip(nodes, inventories, strict=True) for ref in refs
    }
    return shards | {
        str(path) for info in nodes for path in (Path(info.directory) / "tier").rglob("*") if path.is_file()
    }


def wait_until_settled(client: raylog.Client, timeout_s: float) -> None:
    """Until every shard on every node is one that a version names: no leftovers go by themselves from here on."""

    def is_settled() -> bool:
        versions = [version for latest in client.ls() for version in client.versions(latest.name)]
        named = {shard_id for version in versions for shard_id in client.replicas(str(version))}
        inventories = [calls.node(info.ray_node_id).inventory.remote() for info in client.nodes()]
        return {ref.shard_id for refs in calls.wait_all(inventories, 30, "inventory") for ref in refs} <= named

    wait_until(is_settled, timeout_s, "only named shards are left")


def begin_beside(node: NodeInfo, action: Callable[[raylog.Client], Any]) -> Any:
    """Ray's reference of what `action` gives in a process of that node, as a Ray task would."""

    def task() -> Any:
        with raylog.connect() as client:
            return action(client)

    for module in (action.__module__, __name__):  # workers cannot import tests
        ray.cloudpickle.register_pickle_by_value(sys.modules[module])
    strategy = NodeAffinitySchedulingStrategy(node.ray_node_id, soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=strategy)(task).remote()


def beside(node: NodeInfo, method: str, *words: Any, **options: Any) -> Any:
    """Calls a client's method in a process of that node."""
    return calls.wait(begin_beside(node, lambda client: getattr(client, method)(*words, **options)), 60, "a task")


def next_slot(nodes_path: Path) -> Path:
    """The directory that the next node actor of this machine will claim."""
    number = 0
    while is_held(nodes_path / f"slot-{number}"):
        number += 1
    directory = nodes_path / f"slot-{number}"
    directory.mkdir(mode=0o700, exist_ok=True)
    return directory


def is_held(directory: Path) -> bool:
    if not directory.exists():
        return False
    with (directory / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
