"""The cluster as the catalog's upkeep sees it: which nodes there are, and asking them. Here through Ray; the simulator
has another."""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol

import ray
from ray._private.state import state as ray_state

from raylog.actors import calls
from raylog.actors.node_info import NodeInfo
from raylog.actors.requests import ask
from raylog.errors import RaylogError
from raylog.monitor.samples import NodeSample
from raylog.security.requests import Request, Signer
from raylog.spec import TierKind

log = logging.getLogger("raylog.upkeep")
AT_ONCE = 2


class Nodes(Protocol):
    """Every call ends within its limit; all raise `RaylogError`s."""

    def here(self) -> str:
        """Ray's id of the node that the catalog runs on."""
        ...

    def living(self) -> list[NodeInfo]:
        """The nodes whose actor answers."""
        ...

    def draining(self) -> set[str]:
        """Ids of the nodes that Ray drains."""
        ...

    def free_bytes(self) -> dict[str, int]:
        """Node id -> free bytes of its disks, of those of which it is known."""
        ...

    def call(self, info: NodeInfo, method: str, *arguments: Any, timeout_s: float) -> Any:
        """What a node answers to whoever asks."""
        ...

    def ask(self, info: NodeInfo, about: Request, timeout_s: float) -> Any:
        """What a node answers to the cluster alone."""
        ...

    def call_standby(self, standby: str, method: str, *arguments: Any, timeout_s: float) -> Any:
        """As `call`, of the standby on a machine of that Ray node id."""
        ...

    def ask_standby(self, standby: str, about: Request, timeout_s: float) -> Any:
        """As `ask`."""
        ...

    def together(self, actions: Sequence[Callable[[], None]]) -> None:
        """Does them all, a few at a time; they raise nothing."""
        ...


class RayNodes:
    """Through Ray's calls. `signer` asks in the cluster's name."""

    def __init__(self, signer: Signer, timeout_s: float) -> None:
        self._signer, self._timeout_s = signer, timeout_s

    def here(self) -> str:
        return str(ray.get_runtime_context().get_node_id())

    def living(self) -> list[NodeInfo]:
        nodes: list[NodeInfo] = calls.call("launch", "nodes", timeout_s=self._timeout_s)
        return nodes

    def draining(self) -> set[str]:
        leaving = ray_state.get_draining_nodes()
        return {info.node_id for info in self.living() if info.ray_node_id in leaving} if leaving else set()

    def free_bytes(self) -> dict[str, int]:
        samples: list[NodeSample] = calls.call("monitor", "samples", timeout_s=self._timeout_s)
        return {
            sample.node_id: sum(tier.free_bytes or 0 for tier in sample.tiers if tier.kind is not TierKind.MEMORY)
            for sample in samples
        }

    def call(self, info: NodeInfo, method: str, *arguments: Any, timeout_s: float) -> Any:
        reference = getattr(calls.node(info.ray_node_id), method).remote(*arguments)
        return calls.wait(reference, timeout_s, f"node {info.node_id[:12]}.{method}")

    def ask(self, info: NodeInfo, about: Request, timeout_s: float) -> Any:
        reference = ask(calls.node(info.ray_node_id), info.node_id, about, self._signer)
        return calls.wait(reference, timeout_s, f"{about.action} {info.node_id[:12]}")

    def call_standby(self, standby: str, method: str, *arguments: Any, timeout_s: float) -> Any:
        reference = getattr(calls.find(calls.standby_name(standby)), method).remote(*arguments)
        return calls.wait(reference, timeout_s, f"standby {standby[:12]}.{method}")

    def ask_standby(self, standby: str, about: Request, timeout_s: float) -> Any:
        name = calls.standby_name(standby)
        return calls.wait(ask(calls.find(name), name, about, self._signer), timeout_s, f"{about.action} {standby[:12]}")

    def together(self, actions: Sequence[Callable[[], None]]) -> None:
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="repair") as executor:
            list(executor.map(lambda action: action(), actions))


@contextmanager
def tolerated(what: str) -> Iterator[None]:
    """One node's trouble does not stop what is done for the others."""
    try:
        yield
    except RaylogError as error:
        log.warning("%s: %s", what, error)
