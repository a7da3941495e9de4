"""`raylog demo`: three Ray nodes on this machine, real data, a node killed, everything read back and made whole again.

Whatever it starts or writes is gone when it ends, however it ends.
"""

import contextlib
import os
import shutil
import signal
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import ray
from ray.cluster_utils import Cluster

import raylog
from raylog.actors import bootstrap
from raylog.actors.node_info import NodeInfo
from raylog.errors import DamagedData, DeadlineExceeded
from raylog.monitor.samples import NodeSample
from raylog.placement.memory import reasons_by_nodes
from raylog.settings import Settings
from raylog.spec import TierKind
from raylog.units import MIB

NAME = "demo/data"
AGAIN = "demo/again"
NODES = 3
OBJECT_STORE_BYTES = 80 * MIB
START_TIMEOUT_S = 60.0
SHIP_TIMEOUT_S = 60.0
HEAL_TIMEOUT_S = 40.0
SAMPLE_TIMEOUT_S = 3.0
T = TypeVar("T")
# Ray notices a dead node after 13 s by default; a demo need not wait for that.
QUICK_HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}


def standard_library() -> pa.Table:
    """The source files of the running Python's standard library: path, module, text, size in bytes."""
    root = Path(sysconfig.get_path("stdlib"))
    rows = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if "site-packages" in relative.parts:
            continue
        text = path.read_bytes().decode("utf-8", errors="replace")
        module = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
        rows.append((str(relative), module, text, path.stat().st_size))
    columns = list(zip(*rows, strict=True))
    fields = [("path", pa.string()), ("module", pa.string()), ("text", pa.large_string()), ("size", pa.int64())]
    return pa.table(
        [pa.array(column, kind) for column, (_, kind) in zip(columns, fields, strict=True)], pa.schema(fields)
    )


@contextlib.contextmanager
def three_nodes(folder: Path) -> Iterator[Cluster]:
    """A Ray cluster of three raylets on this machine; every process and file of it is gone afterwards."""
    settings = QUICK_HEALTH_CHECKS | {"RAY_TMPDIR": str(folder)}
    before = {key: os.environ.get(key) for key in settings}
    os.environ.update(settings)
    cluster = Cluster()
    try:
        for number in range(NODES):
            options: dict[str, Any] = {"num_cpus": 1, "object_store_memory": OBJECT_STORE_BYTES}
            if number == 0:
                options["include_dashboard"] = False
            cluster.add_node(**options)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.__setitem__(key, value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """Shards that the placement actor put on the same nodes, and its reasons for the first of them."""

    nodes: tuple[str, ...]
    shards: int
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFigures:
    """What the monitor saw of a node; None where nothing was measured. Bytes moved are sealed cargo since its actor
    started; `gpu_problem` says why there is no GPU."""

    node_id: str
    received_bytes: int
    sent_bytes: int
    cpu_share: float | None
    cpus: int
    memory_available_bytes: int
    disk_free_bytes: int
    gpus: int
    gpu_problem: str | None
    is_killed: bool


@dataclass(slots=True, kw_only=True)
class Report:
    """What the demo saw; the last thing it prints, as text or as one JSON line."""

    version: str
    rows: int
    content_bytes: int
    stored_bytes: int
    codecs: dict[str, int]  # codec -> chunks
    put_seconds: float
    shipped_bytes: int
    ship_seconds: float
    killed_node: str
    read_seconds: float
    healed_seconds: float
    verified_chunks: int
    replicas: dict[str, list[str]]  # shard id -> node ids
    placed: list[Placed]
    monitored: list[NodeFigures]
    seconds: float = 0.0


def run_demo(source: str | None, say: Callable[[str], None]) -> Report:
    """The whole demo; `say` is told each step. Raises `DamagedData` if a single byte comes back different."""
    started_s = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="raylog-"))
    settings = Settings(
        state=folder / "state",
        arena_bytes=64 * MIB,
        shard_bytes=4 * MIB,
        chunk_bytes=MIB // 2,
        disk_reserve_bytes=64 * MIB,
        reconcile_period_s=0.5,
        sample_period_s=0.5,
        lost_after_s=2.0,
        shared_memory=False,  # three machines are played here
    )
    try:
        say(f"starting {NODES} Ray nodes on this machine")
        with three_nodes(folder) as cluster, raylog.connect(cluster.address, settings=settings) as client:
            try:
                bootstrap.wait_for_nodes(START_TIMEOUT_S)
                report = _story(client, cluster, source, say)
            finally:
                bootstrap.stop()
        report.seconds = time.monotonic() - started_s
        return report
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _story(client: raylog.Client, cluster: Cluster, source: str | None, say: Callable[[str], None]) -> Report:
    data: Any = source or standard_library()
    say(f"putting {source or 'the sources of the standard library'}, two replicas")
    version, put_seconds = _timed(lambda: client.put(NAME, data, replicas=2))
    inspected = client.inspect(NAME)

    holding = {node_id for nodes in client.replicas(NAME).values() for node_id in nodes}
    third = next((info for info in client.nodes() if info.node_id not in holding), client.nodes()[-1])
    say(f"shipping it to a third node, {third.node_id[:12]}")
    shipped = client.ship(NAME, to=[third.node_id]).result(SHIP_TIMEOUT_S)

    placed = _placed(client)
    victim = _victim(client, holding)
    before = _figures(client)[victim.node_id]
    say(f"killing node {victim.node_id[:12]}: its raylet, its node actor, its disk and its memory")
    _destroy(cluster, victim)
    back, read_seconds = _timed(lambda: client.inspect(NAME))
    if back != inspected or not _equals_source(client, data, back.content_digest):
        raise DamagedData(f"{NAME}: what came back after the loss of node {victim.node_id} is not what was put")
    say("everything was read back, bit for bit; waiting until two replicas stand again")
    _, healed_seconds = _timed(lambda: _wait_until_healed(client, victim.node_id))
    scrubbed = client.verify(NAME)
    if scrubbed.damaged or scrubbed.problems:
        raise DamagedData(f"{NAME}: {scrubbed.damaged} chunks were found damaged: {'; '.join(scrubbed.problems)}")
    return Report(
        version=str(version),
        rows=version.rows,
        content_bytes=version.content_bytes,
        stored_bytes=version.stored_bytes,
        codecs=inspected.codecs,
        put_seconds=put_seconds,
        shipped_bytes=shipped.moved_bytes,
        ship_seconds=shipped.seconds,
        killed_node=victim.node_id,
        read_seconds=read_seconds,
        healed_seconds=healed_seconds,
        verified_chunks=scrubbed.chunks_read,
        replicas=client.replicas(NAME),
        placed=placed,
        monitored=[*_figures(client).values(), replace(before, is_killed=True)],
    )


def _placed(client: raylog.Client) -> list[Placed]:
    """Why the replicas lie where they do, as the placement actor said when they were put."""
    found = reasons_by_nodes(client.replica_plans(NAME).values())
    return [Placed(nodes=nodes, shards=shards, reasons=reasons) for nodes, (shards, reasons) in found.items()]


def _figures(client: raylog.Client) -> dict[str, NodeFigures]:
    """The monitor's view of the living nodes, by node id. A moment ago is not now: its next samples are waited for."""
    living, since_s = {info.node_id for info in client.nodes()}, time.time()
    deadline = time.monotonic() + SAMPLE_TIMEOUT_S
    while True:
        samples = {sample.node_id: sample for sample in client.telemetry() if sample.node_id in living}
        is_fresh = len(samples) == len(living) and all(sample.time_s > since_s for sample in samples.values())
        if is_fresh or time.monotonic() > deadline:
            return {node_id: _node_figures(sample) for node_id, sample in sorted(samples.items())}
        time.sleep(0.1)


def _node_figures(sample: NodeSample) -> NodeFigures:
    return NodeFigures(
        node_id=sample.node_id,
        received_bytes=sample.transfer.received_bytes,
        sent_bytes=sample.transfer.sent_bytes,
        cpu_share=sample.host.cpu_share,
        cpus=sample.host.cpus,
        memory_available_bytes=sample.host.memory_available_bytes,
        disk_free_bytes=sum(tier.free_bytes or 0 for tier in sample.tiers if tier.kind is not TierKind.MEMORY),
        gpus=len(sample.gpus),
        gpu_problem=sample.gpu_problem,
        is_killed=False,
    )


def _equals_source(client: raylog.Client, data: Any, content_digest: str) -> bool:
    """Whether what came back is what the source holds: the table itself, or the source read and sealed once more."""
    if isinstance(data, pa.Table):
        return bool(client.get(NAME) == data)
    again = client.put(AGAIN, data)
    return client.inspect(str(again)).content_digest == content_digest


def _timed(action: Callable[[], T]) -> tuple[T, float]:
    started_s = time.monotonic()
    result = action()
    return result, time.monotonic() - started_s


def _victim(client: raylog.Client, holding: set[str]) -> NodeInfo:
    """A node that holds replicas and is not the head, where the catalog and this process are."""
    head = client.local_node()
    return next(info for info in client.nodes() if info.node_id in holding and info.node_id != head.node_id)


def _destroy(cluster: Cluster, victim: NodeInfo) -> None:
    """What a machine's death does: processes gone without a word, disk and memory lost."""
    raylet = next(node for node in cluster.list_all_nodes() if node.node_id == victim.ray_node_id)
    os.kill(victim.pid, signal.SIGKILL)
    cluster.remove_node(raylet, allow_graceful=False)
    shutil.rmtree(victim.directory)
    for path in (victim.arena_path, victim.socket_path):
        Path(path).unlink(missing_ok=True)


def _wait_until_healed(client: raylog.Client, lost: str) -> None:
    """Until every shard has two replicas on nodes that live."""
    deadline = time.monotonic() + HEAL_TIMEOUT_S
    while True:
        standing = [set(nodes) - {lost} for nodes in client.replicas(NAME).values()]
        if all(len(nodes) >= 2 for nodes in standing):
            return
        if time.monotonic() > deadline:
            raise DeadlineExceeded(f"{NAME}: not every shard has two replicas again after {HEAL_TIMEOUT_S:.0f} s")
        time.sleep(0.1)
