"""Starting and stopping raylog's actors on a Ray cluster that this process is connected to."""

import time

import ray

from raylog.actors import calls
from raylog.actors.catalog import CatalogActor
from raylog.actors.keys import KeysActor
from raylog.actors.launch import LaunchActor, detached
from raylog.actors.monitor import MonitorActor
from raylog.actors.node import NodeInfo
from raylog.actors.placement import PlacementActor
from raylog.errors import RaylogError, Unavailable
from raylog.security.certs import Authority
from raylog.security.providers.file import FileKeyring
from raylog.settings import Settings
from raylog.spec import new_id

HEAD_ACTORS = {
    "keys": KeysActor,
    "catalog": CatalogActor,
    "monitor": MonitorActor,
    "placement": PlacementActor,
    "launch": LaunchActor,
}


def prepare(settings: Settings) -> None:
    """Makes keyring, authority and join token where there are none; starts nothing, changes nothing that exists."""
    if settings.keyring_path.exists():
        FileKeyring.load(settings.keyring_path)
        return
    if (settings.catalog_path / "journal.sqlite").exists():
        raise Unavailable(
            f"{settings.catalog_path} holds a catalog, but its keyring {settings.keyring_path} is missing: restore the "
            "keyring from its backup (a new one could open nothing that is stored)"
        )
    keyring = FileKeyring.create(settings.keyring_path, new_id())
    authority = Authority.create(settings.authority_path, keyring)
    authority.make_join_token().save(settings.join_token_path)


def start(settings: Settings, timeout_s: float = 60.0) -> Settings:
    """Starts what is missing and waits until every Ray node has a node actor. Returns the cluster's settings, which are
    those of the first start while it runs."""
    try:
        running: Settings = calls.call("launch", "settings")
    except Unavailable:
        prepare(settings)
        head = ray.get_runtime_context().get_node_id()
        for name, actor in HEAD_ACTORS.items():
            ray.remote(actor).options(**detached(name, head)).remote(settings)
        running = settings
    _wait_for_nodes(timeout_s)
    return running


def _wait_for_nodes(timeout_s: float) -> None:
    """Until each living Ray node has a node actor that answers and whose samples the monitor has."""
    deadline = time.monotonic() + timeout_s
    while True:
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        problem = ""
        try:
            nodes: list[NodeInfo] = calls.call("launch", "nodes", timeout_s=10)
            sampled = {sample.node_id for sample in calls.call("monitor", "samples", timeout_s=10)}
            if alive <= {info.ray_node_id for info in nodes if info.node_id in sampled}:
                return
            problems = calls.call("launch", "problems", timeout_s=10)
            problem = "; ".join(f"{key[:12]}: {text}" for key, text in problems.items() if key in alive)
        except RaylogError as error:
            problem = str(error)
        if time.monotonic() > deadline:
            raise Unavailable(f"not every Ray node has a node actor that answers after {timeout_s:.0f} s ({problem})")
        time.sleep(0.1)


def stop(timeout_s: float = 30.0) -> None:
    """Ends every actor of raylog in this cluster; what is stored stays."""
    calls.call("launch", "stop", timeout_s=timeout_s)
    for name in ("launch", "monitor", "placement", "catalog", "keys"):
        try:
            ray.kill(calls.find(name))
        except Unavailable:
            continue
