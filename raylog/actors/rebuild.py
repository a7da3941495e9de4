"""A lost catalog made anew from what the nodes hold or from a backup (catalog/rebuild.py), while its actor does not
run."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import ray

from raylog.actors import bootstrap, calls
from raylog.actors.node_info import NodeInfo
from raylog.catalog.copy import open_entry
from raylog.catalog.journal import FILE_NAME, Entry
from raylog.catalog.offsite import OffsiteChain
from raylog.catalog.rebuild import best_copy, rebuild
from raylog.catalog.record import Tail
from raylog.errors import Conflict, NotFound, NotPermitted, Unavailable
from raylog.security.certs import Authority
from raylog.security.providers.file import FileKeyring
from raylog.security.trust import trust_of
from raylog.settings import Settings
from raylog.store.remote import RemoteObjects

ENTRIES_PER_CALL = 1_000
NODES_TIMEOUT_S = 60.0


class RestoreReport(msgspec.Struct, frozen=True, kw_only=True):
    """`records` of the chain came from the backup at `url`, the last of them made at `last_us` (microseconds since
    1970): what was committed after that is not in it."""

    url: str
    records: int
    last_us: int


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
    settings = _without_journal(settings)
    bootstrap.prepare(settings)
    nodes, tails = _started_nodes(settings)
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


def restore_catalog(settings: Settings, url: str, *, is_drill: bool = False) -> RestoreReport:
    """Makes the catalog's journal anew from a backup, and then starts what is missing of raylog: on the head of a
    cluster that has lost everything but its keys, or of a new one that was given them. `is_drill`: to see that it works
    while the cluster that the backup is of still runs; nothing is written to backups then, nor deleted there.

    Raises `Conflict` when there is a journal or when nodes have records (they go further than any backup), `NotFound`
    when the backup has none of this cluster, `NotPermitted` without the keys, `Unavailable` when a node does not answer
    or this is not the head, and as `rebuild`; then nothing was written.
    """
    settings = _without_journal(settings)
    if not settings.keyring_path.exists():
        raise NotPermitted(f"there are no keys at {settings.keyring_path}: run 'raylog keys restore' first")
    _, tails = _started_nodes(settings)
    best = best_copy(tails)
    if best is not None:
        raise Conflict(
            f"node {best} has the catalog's records up to {tails[best].sequence}, which may go further than a backup: "
            "run 'raylog catalog rebuild'"
        )
    with Authority.load(settings.authority_path, FileKeyring.load(settings.keyring_path)) as authority:
        trust = trust_of(authority, time.time)
        last_us = 0

        def entries() -> Iterator[Entry]:
            nonlocal last_us
            for entry in OffsiteChain(RemoteObjects(url), trust).entries():
                yield entry
                last_us = open_entry(entry, trust.cluster_id, trust.verify).record.time_us

        settings.drill_path.unlink(missing_ok=True)
        if is_drill:
            settings.catalog_path.mkdir(mode=0o700, parents=True, exist_ok=True)
            settings.drill_path.touch()  # before there is a journal that a catalog could open
        records = rebuild(settings.catalog_path, trust, entries(), {})
    bootstrap.start(settings)
    return RestoreReport(url=url, records=records, last_us=last_us)


def _without_journal(settings: Settings) -> Settings:
    """The running cluster's settings, or these, where they have no journal. Raises `Unavailable`, `Conflict`."""
    settings = bootstrap.running_settings() or settings
    if not bootstrap.is_head() and not settings.keyring_path.exists():
        raise Unavailable("the catalog's journal lies on the head: do this there, or on a machine that has the keys")
    if (settings.catalog_path / FILE_NAME).exists():
        raise Conflict(f"{settings.catalog_path / FILE_NAME} exists: nothing to rebuild; move it away if it is damaged")
    return settings


def _started_nodes(settings: Settings) -> tuple[list[NodeInfo], dict[str, Tail]]:
    """All nodes, and where their copies of the chain end."""
    bootstrap.check_newest(settings)
    bootstrap.start_actors(settings, ["keys", "launch"])
    nodes = _all_nodes()
    return nodes, {info.node_id: _on(info, "records_tail", timeout_s=settings.call_deadline_s) for info in nodes}


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
