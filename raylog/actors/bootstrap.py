"""Starting and stopping raylog's actors on a Ray cluster that this process is connected to."""

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.util import list_named_actors

from raylog.actors import calls
from raylog.actors.catalog import CatalogActor
from raylog.actors.gcs import GcsRegister
from raylog.actors.keys import KeysActor
from raylog.actors.launch import LaunchActor, detached
from raylog.actors.monitor import MonitorActor
from raylog.actors.node_info import NodeInfo
from raylog.actors.placement import PlacementActor
from raylog.actors.requests import LAUNCH, StopRaylog, ask
from raylog.actors.slot import kept_id
from raylog.errors import NotPermitted, RaylogError, Unavailable
from raylog.security import key_backup
from raylog.security.certs import Authority
from raylog.security.key_backup import KeyPaths
from raylog.security.providers.file import FileKeyring
from raylog.security.requests import Signer
from raylog.security.trust import trust_of
from raylog.settings import Settings
from raylog.spec import new_id

HEAD_RESOURCE = "node:__internal_head__"
START_TIMEOUT_S = 60.0
STATEFUL = ("keys", "catalog")  # the other actors of the head begin with nothing
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
        with Authority.load(settings.authority_path, FileKeyring.load(settings.keyring_path)):
            return  # what they refuse is raised here, before an actor starts
    if (settings.catalog_path / "journal.sqlite").exists() or settings.join_token_path.exists():
        raise NotPermitted(
            f"{settings.state} belongs to a cluster, but the keyring {settings.keyring_path} is missing: on the head "
            "restore it from its backup (a new one could open nothing that is stored); no other machine is the head"
        )
    keyring = FileKeyring.create(settings.keyring_path, new_id())
    with Authority.create(settings.authority_path, keyring) as authority:
        authority.make_join_token().save(settings.join_token_path)


def key_paths(settings: Settings) -> KeyPaths:
    """Where the cluster's keys lie on its head."""
    return KeyPaths(keyring=settings.keyring_path, authority=settings.authority_path, envelopes=settings.envelopes_path)


def restore_keys(settings: Settings, data: bytes, recovery_key: Path) -> str:
    """Puts the keys of a backup where there are none, and makes a join token if there is none; the cluster's id. Raises
    as `key_backup.restore_keys`."""
    cluster_id = key_backup.restore_keys(data, recovery_key, key_paths(settings))
    if not settings.join_token_path.exists():  # it is there on a machine that is to stand by
        with Authority.load(settings.authority_path, FileKeyring.load(settings.keyring_path)) as authority:
            authority.make_join_token().save(settings.join_token_path)
    return cluster_id


def running_settings() -> Settings | None:
    """The settings of the raylog that runs on this Ray cluster; None where none does."""
    try:
        running: Settings = calls.call("launch", "settings")
    except Unavailable:
        return None
    return running


def wait_for_head(timeout_s: float) -> Settings | None:
    """As `running_settings`; while nodes of raylog live and its head does not, waits for it to come back, here or on a
    standby. Raises `Unavailable` when it does not."""
    deadline = time.monotonic() + timeout_s
    while (found := running_settings()) is None and _named("node-"):
        if time.monotonic() > deadline:
            raise Unavailable(
                f"raylog's nodes live, its head does not, and no standby took its place within {timeout_s:.0f} s: run "
                "'raylog up' on the head, or see RECOVERY.md"
            )
        time.sleep(0.3)
    return found


def _named(prefix: str) -> list[str]:
    """The actors of raylog whose names begin so."""
    named: list[dict[str, str]] = list_named_actors(all_namespaces=True)
    return [one["name"] for one in named if one["namespace"] == calls.NAMESPACE and one["name"].startswith(prefix)]


def _kill(names: Sequence[str]) -> None:
    for name in names:
        with suppress(Unavailable):
            ray.kill(calls.find(name))


def is_head(ray_node_id: str | None = None) -> bool:
    """Whether a Ray node, by default this process's, is the cluster's head, where raylog's state lies."""
    node_id = ray_node_id or ray.get_runtime_context().get_node_id()
    return any(node["NodeID"] == node_id and HEAD_RESOURCE in node["Resources"] for node in ray.nodes())


def start(settings: Settings) -> Settings:
    """Starts what is missing on the head and returns the cluster's settings, which are those of the first start while
    it runs. What keeps an actor from starting is raised, each actor's in turn.

    Raises `Unavailable` on any other machine than the head, or one that has taken its place, and on one whose state is
    older than another's.
    """
    if not is_head() and not settings.state_id_path.exists():
        raise Unavailable("raylog is not up on this Ray cluster: run 'raylog up' on its head, where the state is kept")
    settings = running_settings() or settings
    prepare(settings)
    check_newest(settings)
    start_actors(settings, list(HEAD_ACTORS))
    return settings


def check_newest(settings: Settings) -> None:
    """Raises `Unavailable` when an actor that does not run now has run on another machine's state since."""
    register, here = GcsRegister(FileKeyring.load(settings.keyring_path).cluster_id), kept_id(settings.state_id_path)
    for what in STATEFUL:
        if register.holder(what) not in ("", here) and not calls.exists(what):
            raise Unavailable(
                f"a standby has taken the head's place, and has what was acknowledged since: run 'raylog up' there "
                f"({what} ran on state {register.holder(what)[:12]}, here is {here[:12]}); if that machine is lost, "
                "restart Ray to begin with what is here"
            )


def start_actors(settings: Settings, names: Sequence[str]) -> None:
    """Starts those of `HEAD_ACTORS` that do not run, on this machine, which is the head, or takes its place. What keeps
    one from starting is raised."""
    here = ray.get_runtime_context().get_node_id()
    for name in names:
        handle: Any = ray.remote(HEAD_ACTORS[name]).options(**detached(name, here)).remote(settings)
        calls.wait(handle.ready.remote(), START_TIMEOUT_S, f"starting {name}")


def silent_nodes() -> dict[str, str]:
    """The living Ray nodes that raylog cannot use yet: whose node actor does not answer, or of which the monitor has no
    sample. Ray node id -> why."""
    nodes: list[NodeInfo] = calls.call("launch", "nodes", timeout_s=10)
    problems: dict[str, str] = calls.call("launch", "problems", timeout_s=10)
    sampled = {sample.node_id for sample in calls.call("monitor", "samples", timeout_s=10)}
    fit = {info.ray_node_id for info in nodes if info.node_id in sampled}
    living = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    return {one: problems.get(one, "not started, or not sampled yet") for one in living - fit}


def wait_for_nodes(timeout_s: float, only: str | None = None) -> None:
    """Until each living Ray node (or the one named `only`) is of use (`silent_nodes`). Raises `Unavailable` that says
    which are missing and why."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            silent = silent_nodes()
            missing = [one for one in silent if only in (None, one)]
            if not missing:
                return
            problem = "; ".join(f"{one[:12]}: {silent[one]}" for one in missing)
        except RaylogError as error:
            problem = str(error)
        if time.monotonic() > deadline:
            raise Unavailable(f"not every Ray node has a node actor that answers after {timeout_s:.0f} s ({problem})")
        time.sleep(0.1)


def stop(timeout_s: float = 30.0) -> None:
    """Ends every actor of raylog in this cluster; what is stored stays.

    Where the cluster's keys are only, since it is asked for in the cluster's name: on any other machine nothing is
    ended. Raises `Unavailable`, also when raylog is not up, and `NotPermitted`.
    """
    settings = running_settings()
    signer = cluster_signer(settings) if settings else None
    try:
        if signer is None:
            raise Unavailable("raylog is not up on this Ray cluster: start it with 'raylog up'")
        _kill(_named("standby-"))  # first: they would take over what ends now
        calls.wait(ask(calls.find(LAUNCH), LAUNCH, StopRaylog(), signer), timeout_s, "launch.stop")
    finally:
        _kill([*_named("standby-"), "launch", "monitor", "placement", "catalog", "keys"])


def cluster_signer(settings: Settings) -> Signer:
    """To ask in the cluster's name. Raises `Unavailable` on a machine that has not its keys."""
    if not is_head() and not settings.keyring_path.exists():
        raise Unavailable("only the head has the cluster's key, and so can end raylog: run 'raylog down' there")
    with Authority.load(settings.authority_path, FileKeyring.load(settings.keyring_path)) as authority:
        return Signer.of_cluster(trust_of(authority, time.time))
