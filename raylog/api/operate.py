"""`raylog up`, `down` and `status`: what an operator does to a cluster as a whole."""

import os
from contextlib import suppress

import msgspec
import ray

from raylog.actors import bootstrap, calls, rebuild, standby
from raylog.actors.monitor import ClusterStatus
from raylog.actors.node_info import NodeInfo
from raylog.actors.rebuild import RebuildReport, RestoreReport
from raylog.api import ray_access
from raylog.api.events import ask_events
from raylog.api.paths import NodePaths, ask_paths
from raylog.api.ray_connection import connect_ray
from raylog.errors import RaylogError, Unavailable
from raylog.monitor.events import Event
from raylog.settings import Settings
from raylog.spec import parse_backup

NODES_TIMEOUT_S = 60.0


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """A cluster as `raylog status` shows it. `problems` maps Ray node ids to why no node actor answers there,
    `standbys` to whether the standby there has all that the head has."""

    nodes: list[NodeInfo]
    problems: dict[str, str]
    standbys: dict[str, bool]
    monitor: ClusterStatus
    settings: dict[str, object]


def up(address: str | None, settings: Settings, *, allow_open_ray: bool) -> list[NodeInfo]:
    """Starts raylog on the running Ray cluster whose head is this machine, and waits for every node.

    Raises `Unavailable` without a cluster, `NotPermitted` when Ray serves anybody who reaches its port, since whoever
    can submit code to Ray is this user on every machine, unless `allow_open_ray`.
    """
    found = ray_access.cluster_address(address, os.environ)
    if found is None or not ray_access.answers(found):
        raise Unavailable(
            "no Ray cluster answers here: start one with 'RAY_AUTH_MODE=token ray start --head', then 'raylog up' "
            "(for this machine alone nothing has to be started: use raylog.connect())"
        )
    if not allow_open_ray:
        ray_access.refuse_open(str(found))
    connect_ray(str(found))
    try:
        bootstrap.start(settings)
        bootstrap.wait_for_nodes(NODES_TIMEOUT_S)
        nodes: list[NodeInfo] = calls.call("launch", "nodes")
        return nodes
    finally:
        ray.shutdown()


def stand_by(address: str | None) -> None:
    """Makes this machine a standby of the raylog that runs; raises as `actors.standby.start_standby`."""
    _connect_running(address)
    try:
        settings = bootstrap.running_settings()
        if settings is None:
            raise Unavailable("raylog is not up on this Ray cluster: run 'raylog up' on its head first")
        standby.start_standby(settings)
    finally:
        ray.shutdown()


def down(address: str | None) -> None:
    """Ends raylog's actors; what is stored stays. Raises `Unavailable` when raylog is not up."""
    _connect_running(address)
    try:
        bootstrap.stop()
    finally:
        ray.shutdown()


def rebuild_catalog(address: str | None, settings: Settings) -> RebuildReport:
    """Makes a catalog whose journal is gone anew from the nodes' copies; raises as `actors.rebuild.rebuild_catalog`. On
    a Ray cluster raylog is up afterwards; without one, this machine's own nodes are asked and everything ends again."""
    connection = connect_ray(address)
    try:
        return rebuild.rebuild_catalog(settings)
    finally:
        if connection.is_started:
            with suppress(RaylogError):  # it was never up
                bootstrap.stop()
        ray.shutdown()


def restore_catalog(address: str | None, settings: Settings, url: str, *, is_drill: bool = False) -> RestoreReport:
    """Makes a catalog anew from a backup; raises as `actors.rebuild.restore_catalog`. raylog is up afterwards, and gets
    the shards back; without a Ray cluster everything ends again, and the next `connect` goes on."""
    connection = connect_ray(address)
    try:
        return rebuild.restore_catalog(settings, parse_backup(url), is_drill=is_drill)
    finally:
        if connection.is_started:
            with suppress(RaylogError):  # it was never up
                bootstrap.stop()
        ray.shutdown()


def status(address: str | None) -> Status:
    """The cluster now. Raises `Unavailable` when raylog is not up."""
    _connect_running(address)
    try:
        return Status(
            nodes=calls.call("launch", "nodes"),
            problems=calls.call("launch", "problems"),
            standbys=standby.standbys(calls.call("launch", "cluster_id")),
            monitor=calls.call("monitor", "status"),
            settings=calls.call("launch", "settings").as_mapping(),
        )
    finally:
        ray.shutdown()


def paths(address: str | None) -> list[NodePaths]:
    """The ways between nodes. Raises `Unavailable` when raylog is not up."""
    _connect_running(address)
    try:
        return ask_paths(calls.call("launch", "nodes"))
    finally:
        ray.shutdown()


def events(address: str | None, since_s: float) -> list[Event]:
    """What happened after `since_s` of the wall clock. Raises `Unavailable` when raylog is not up."""
    _connect_running(address)
    try:
        return ask_events(calls.call("launch", "nodes"), since_s)
    finally:
        ray.shutdown()


def _connect_running(address: str | None) -> None:
    found = ray_access.cluster_address(address, os.environ)
    if found is None or not ray_access.answers(found):
        raise Unavailable("raylog is not up: no Ray cluster answers here; see 'raylog up --help'")
    connect_ray(str(found))
