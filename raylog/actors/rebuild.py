"""A lost catalog made anew from what the nodes hold (catalog/rebuild.py), while the catalog actor does not run."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import ray

from raylog.actors import bootstrap, calls
from raylog.actors.node import NodeInfo
from raylog.catalog.journal import FILE_NAME, Entry
from raylog.catalog.rebuild import best_copy, rebuild
from raylog.catalog.record import Tail
from raylog.errors import Conflict, NotFound, Unavailable
from raylog.security.certs import Authority
from raylog.security.providers.file import FileKeyring
from raylog.security.trust import trust_of
from raylog.settings import Settings

ENTRIES_PER_CALL = 1_000
NODES_TIMEOUT_S = 60.0


class RebuildReport(msgspec.Struct, frozen=True, kw_only=True):
    """`records` of the chain were taken from `node_id`'s copy; `nodes` were asked for theirs."""

    records: int
    node_id: str
    nodes: int


def rebuild_catalog(settings: Settings) -> RebuildReport:
    """Makes the catalog's journal anew, and then starts what is missing of raylog. On the head, for a cluster whose
    journal is gone; every node of the Ray cluster has to answer, since any may have the newest records.

    Raises `Conflict` when there is a journal, `NotFound` when no node has records, `Unavailable` when a node does not
    answer or this is not the head, `DamagedData` and `NotPermitted` as `catalog.rebuild`; then nothing was written.
    """
    if not bootstrap.is_head():
        raise Unavailable("the catalog's journal lies on the head: run 'raylog catalog rebuild' there")
    settings = bootstrap.running_settings() or settings
    if (settings.catalog_path / FILE_NAME).exists():
        raise Conflict(f"{settings.catalog_path / FILE_NAME} exists: nothing to rebuild; move it away if it is damaged")
    bootstrap.prepare(settings)
    bootstrap.start_actors(settings, ["keys", "launch"])
    nodes = _all_nodes()
    tails: dict[str, Tail] = {
        info.node_id: _on(info, "records_tail", timeout_s=settings.call_deadline_s) for info in nodes
    }
    best = best_copy(tails)
    if best is None:
        raise NotFound(
            f"none of the {len(nodes)} nodes has a copy of the catalog's records: nothing was ever committed"
        )
    with Authority.load(settings.authority_path, FileKeyring.load(settings.keyring_path)) as authority:
        trust = trust_of(authority, time.time)
        holder = next(info for info in nodes if info.node_id == best)
        spare = _spare(holder, [info for info in nodes if info.node_id != best], settings)
        records = rebuild(settings.catalog_path, trust, _entries(holder, settings), spare)
    bootstrap.start(settings)
    return RebuildReport(records=records, node_id=best, nodes=len(nodes))


def _all_nodes() -> list[NodeInfo]:
    deadline = time.monotonic() + NODES_TIMEOUT_S
    while True:
        wanted = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        nodes: list[NodeInfo] = calls.call("launch", "nodes")
        lacking = wanted - {info.ray_node_id for info in nodes}
        if not lacking:
            return nodes
        if time.monotonic() > deadline:
            problems: dict[str, str] = calls.call("launch", "problems")
            why = "; ".join(f"{key[:12]}: {problems.get(key, 'not started')}" for key in sorted(lacking))
            raise Unavailable(f"not every node answers, and any may have the newest records ({why}): see to them first")
        time.sleep(0.1)


def _spare(best: NodeInfo, others: Sequence[NodeInfo], settings: Settings) -> dict[int, bytes]:
    """Manifests that the best copy lacks and another one has, by sequence."""
    lacking, found = set[int](), dict[int, bytes]()
    for sequence, entry in enumerate(_entries(best, settings), 1):
        if not entry.manifest:
            lacking.add(sequence)
    for info in others:
        for sequence, entry in enumerate(_entries(info, settings), 1):
            if sequence in lacking and entry.manifest:
                found.setdefault(sequence, entry.manifest)
    return found


def _entries(info: NodeInfo, settings: Settings) -> Iterator[Entry]:
    since = 0
    while True:
        page: list[Entry] = _on(info, "records", since, ENTRIES_PER_CALL, timeout_s=settings.call_deadline_s)
        yield from page
        if len(page) < ENTRIES_PER_CALL:
            return
        since += len(page)


def _on(info: NodeInfo, method: str, *arguments: Any, timeout_s: float) -> Any:
    reference = getattr(calls.node(info.ray_node_id), method).remote(*arguments)
    return calls.wait(reference, timeout_s, f"node {info.node_id[:12]}.{method}")
