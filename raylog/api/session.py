"""What a connected process holds: Ray, its certificate, its node's store. Everything the client does goes through here."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from raylog.actors import bootstrap, calls
from raylog.actors.node import NodeInfo
from raylog.api import ray_access
from raylog.errors import NotFound, Unavailable
from raylog.security import grants, join
from raylog.security.certs import Credentials
from raylog.settings import Settings
from raylog.spec import new_id
from raylog.units import MIB
from raylog.wire.local_client import LocalClient

EMBEDDED_STORE_BYTES = 80 * MIB  # Ray's own least; raylog does not use it


def connect_ray(address: str | None) -> bool:
    """Connects this process to Ray: the one it is connected to already, else `address`, else `$RAY_ADDRESS`, else the
    cluster that runs on this machine, else a new one in this process. Returns whether that last one was started.

    A dead address is found out by a TCP probe first: Ray itself would wait for minutes. Raises `Unavailable`.
    """
    if ray.is_initialized():
        return False
    found = ray_access.cluster_address(address, os.environ)
    if found is not None and ray_access.answers(found):
        _init(address=str(found))
        return False
    if found is not None and found.origin in ("argument", "RAY_ADDRESS"):
        raise Unavailable(f"no Ray cluster answers at {found} ({found.origin}): check it, or 'ray start --head' there")
    _init(address="local", include_dashboard=False, object_store_memory=EMBEDDED_STORE_BYTES)
    return True


def _init(**options: Any) -> None:
    ray.init(namespace=calls.NAMESPACE, log_to_driver=False, logging_level="ERROR", **options)


class Session:
    """One process's membership of a cluster: actors by name, a client certificate, the local node's store."""

    def __init__(self, settings: Settings, *, owns_ray: bool) -> None:
        self.settings = settings
        self._owns_ray = owns_ray
        self.credentials = self._join()
        self.local = self._local_node()
        self.store = LocalClient(Path(self.local.socket_path))

    @classmethod
    def open(cls, address: str | None, settings: Settings) -> "Session":
        """Connects, starting what is missing. What was started is taken down again when this fails."""
        owns_ray = connect_ray(address)
        try:
            return cls(bootstrap.start(settings), owns_ray=owns_ray)
        except BaseException:
            if owns_ray:
                ray.shutdown()
            raise

    def close(self) -> None:
        """Lets go of the node; ends raylog and Ray if this process started them."""
        self.store.close()
        if self._owns_ray:
            bootstrap.stop()
            ray.shutdown()

    def call(self, actor: str, method: str, *arguments: Any, timeout_s: float | None = None) -> Any:
        return calls.call(actor, method, *arguments, timeout_s=timeout_s or self.settings.call_deadline_s)

    def retried(self, actor: str, method: str, *arguments: Any, timeout_s: float | None = None) -> Any:
        """An idempotent call, asked again while the actor restarts."""
        limit_s = timeout_s or self.settings.call_deadline_s
        return calls.retried(lambda: self.call(actor, method, *arguments, timeout_s=limit_s), limit_s)

    def nodes(self) -> list[NodeInfo]:
        nodes: list[NodeInfo] = self.retried("launch", "nodes")
        return nodes

    def node(self, node_id: str) -> NodeInfo:
        """The living node of that id, or of an id that begins so; raises `NotFound` listing the ones there are."""
        nodes = self.nodes()
        found = [info for info in nodes if info.node_id.startswith(node_id)]
        if len(found) != 1:
            present = ", ".join(f"{info.node_id[:12]} ({info.hostname})" for info in nodes)
            raise NotFound(f"expected the id of one living node, got {node_id!r}; there are: {present}")
        return found[0]

    def read_keys(self, dek_ids: Sequence[str]) -> dict[str, bytes]:
        """Data keys by id, granted to this process alone."""
        return self._granted(grants.ReadScope(dek_ids=tuple(dek_ids)))

    def write_key(self, artifact_id: str, tenant: str) -> tuple[str, bytes]:
        """A fresh data key of an artifact and its id."""
        ((dek_id, key),) = self._granted(grants.WriteScope(artifact_id=artifact_id, tenant=tenant)).items()
        return dek_id, key
