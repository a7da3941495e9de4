"""`raylog demo`: three Ray nodes on this machine, real data, a node killed, everything read back and made whole again.

It uses nothing but the public client and Ray; whatever it starts or writes is gone when it ends, however it ends.
"""

import contextlib
import os
import shutil
import signal
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import ray
from ray.cluster_utils import Cluster

import raylog
from raylog import screen
from raylog.actors.node import NodeInfo
from raylog.errors import DamagedData, DeadlineExceeded
from raylog.settings import Settings
from raylog.units import MIB, format_bytes, format_rate, format_seconds

NAME = "demo/stdlib"
NODES = 3
OBJECT_STORE_BYTES = 80 * MIB
HEAL_TIMEOUT_S = 40.0
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
    return pa.table([pa.array(column, kind) for column, (_, kind) in zip(columns, fields, strict=True)], pa.schema(fields))


@contextlib.contextmanager
def three_nodes(folder: Path) -> Iterator[Cluster]:
    """A Ray cluster of three raylets on this machine; every process and file of it is gone afterwards."""
    before = {key: os.environ.get(key) for key in QUICK_HEALTH_CHECKS}
    os.environ.update(QUICK_HEALTH_CHECKS)
    cluster = Cluster()
    try:
        for number in range(NODES):
            options: dict[str, Any] = {"num_cpus": 1, "object_store_memory": OBJECT_STORE_BYTES}
            if number == 0:
                options |= {"include_dashboard": False, "temp_dir": str(folder / "ray")}
            cluster.add_node(**options)
        yield cluster
    finally:
        with contextlib.suppress(Exception):
            ray.shutdown()
        cluster.shutdown()
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.__setitem__(key, value)


@dataclass(slots=True)
class Report:
    """What the demo saw; the last thing it prints, as text or as one JSON line."""

    version: str = ""
    rows: int = 0
    content_bytes: int = 0
    stored_bytes: int = 0
    codecs: dict[str, int] | None = None
    put_seconds: float = 0.0
    ship_seconds: float = 0.0
    shipped_bytes: int = 0
    read_seconds: float = 0.0
    heal_seconds: float = 0.0
    killed_node: str = ""
    verified_chunks: int = 0
    replicas: dict[str, list[str]] | None = None
    seconds: float = 0.0


def run_demo(source: str | None, *, as_json: bool = False) -> Report:
    """Runs the whole demo and prints its report. Raises `DamagedData` if a single byte comes back different."""
    started_s = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="raylog-demo-"))
    previous = signal.signal(signal.SIGTERM, _interrupt)  # a stopped demo cleans up as one ended by Ctrl-C does
    say = _quiet if as_json else _say
    try:
        say(f"starting {NODES} Ray nodes on this machine …")
        settings = Settings(state=folder / "state", arena_bytes=64 * MIB, shard_bytes=4 * MIB, chunk_bytes=MIB,
                            reconcile_period_s=0.5, lost_after_s=2.0)  # fmt: skip
        with three_nodes(folder) as cluster, raylog.connect(cluster.address, settings=settings) as client:
            try:
                report = _story(client, cluster, source, say)
            finally:
                client.stop_cluster()
        report.seconds = time.monotonic() - started_s
    finally:
        signal.signal(signal.SIGTERM, previous)
        shutil.rmtree(folder, ignore_errors=True)
    _show(report, as_json)
    return report


def _story(client: "raylog.Client", cluster: Cluster, source: str | None, say: Any) -> Report:
    report = Report()
    data: Any = source if source else standard_library()
    say("putting " + (source or "the standard library's sources") + " with two replicas …")
    at_s = time.monotonic()
    version = client.put(NAME, data, replicas=2)
    report.put_seconds = time.monotonic() - at_s
    report.version, report.rows = str(version), version.rows
    report.content_bytes, report.stored_bytes = version.content_bytes, version.stored_bytes
    report.codecs = client.codecs(NAME)
    expected = client.content_digest(NAME)

    third = _node_without(client, NAME)
    say(f"shipping it to the third node, {third.node_id[:12]} …")
    shipped = client.ship(NAME, to=[third.node_id]).result(60)
    report.ship_seconds, report.shipped_bytes = shipped.seconds, shipped.moved_bytes

    victim = _victim(client, NAME)
    say(f"killing node {victim.node_id[:12]}: its raylet, its node actor, its disk and its memory …")
    _destroy(cluster, victim)
    report.killed_node = victim.node_id
    at_s = time.monotonic()
    if client.content_digest(NAME) != expected or (source is None and client.get(NAME) != data):
        raise DamagedData(f"{NAME}: what came back after the loss of {victim.node_id} is not what was put")
    report.read_seconds = time.monotonic() - at_s
    say("everything read back, bit for bit; waiting until two replicas stand again …")
    report.heal_seconds = _wait_until_healed(client, NAME, 2)
    report.verified_chunks = client.verify(NAME).chunks_read
    report.replicas = client.replicas(NAME)
    return report
