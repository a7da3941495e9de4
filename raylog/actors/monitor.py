"""The monitor actor: asks every node for a sample each second, aggregates, and exports all of it through Ray's metrics,
where Ray's own Prometheus discovery finds them."""

import logging
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import msgspec
from ray.util.metrics import Counter, Gauge

from raylog.actors import calls
from raylog.actors.eventful import Eventful
from raylog.errors import RaylogError, Unavailable
from raylog.monitor.aggregate import Aggregate
from raylog.monitor.counters import CounterIncrements
from raylog.monitor.metrics import (
    CLUSTER_METRICS,
    METRICS,
    RUN_METRICS,
    Reading,
    cluster_readings,
    readings,
    run_readings,
)
from raylog.monitor.rows import ClusterTotals, NodeRow
from raylog.monitor.samples import NodeSample
from raylog.monitor.training import RankReport, RunRow, Training
from raylog.settings import Settings
from raylog.spec import StorageStanding

log = logging.getLogger("raylog.monitor")
SAMPLE_TIMEOUT_S = 3.0


class ClusterStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What `raylog status` shows of the monitor."""

    totals: ClusterTotals
    storage: StorageStanding | None = None  # None: the catalog did not say
    rows: list[NodeRow]
    training: list[RunRow]


class MonitorActor(Eventful):
    """Runs on the head. Its state is what nodes and training loops said last: a restart has it again within seconds."""

    def __init__(self, settings: Settings) -> None:
        super().__init__("monitor")
        self._settings = settings
        self._aggregate = Aggregate()
        self._training = Training()
        self._lock = threading.Lock()
        self._exporter = Exporter()
        self._storage: StorageStanding | None = None
        threading.Thread(target=self._run, name="sampler", daemon=True).start()

    def ready(self) -> None:
        """Answers once the actor is up; what kept it from starting is raised to whoever asks."""

    def status(self) -> ClusterStatus:
        with self._lock:
            now_s = time.time()
            return ClusterStatus(
                totals=self._aggregate.totals(now_s),
                rows=self._aggregate.rows(now_s),
                storage=self._storage,
                training=self._training.rows(now_s),
            )

    def samples(self) -> list[NodeSample]:
        """The last sample of every node that is not silent."""
        with self._lock:
            return self._aggregate.fresh(time.time())

    def report(self, report: RankReport) -> None:
        """What a rank of a training run says of itself."""
        with self._lock:
            self._training.add(time.time(), report)

    def _run(self) -> None:
        while True:
            started_s = time.monotonic()
            try:
                self._collect()
            except RaylogError as error:
                log.warning("no samples this time: %s", error)
            except Exception:
                log.exception("sampling failed, trying again")
            time.sleep(max(0.05, self._settings.sample_period_s - (time.monotonic() - started_s)))

    def _collect(self) -> None:
        nodes = calls.call("launch", "nodes", timeout_s=SAMPLE_TIMEOUT_S)
        references = []
        for info in nodes:
            with suppress(Unavailable):  # it left just now
                references.append(calls.node(info.ray_node_id).sample.remote())
        for answer in calls.wait_all(references, SAMPLE_TIMEOUT_S, "node.sample"):
            if isinstance(answer, NodeSample):
                with self._lock:
                    fresh = self._aggregate.add(time.time(), answer)
                if fresh:
                    self._exporter.export(readings(answer))
        self._storage = self._ask_catalog()
        if self._storage is not None:
            self._exporter.export(cluster_readings(self._storage))
        with self._lock:
            gone = self._aggregate.prune(time.time())
            self._training.prune(time.time())
            runs = self._training.rows(time.time())
        for run in runs:
            self._exporter.export(run_readings(run))
        for node_id in gone:
            self._exporter.forget(node_id)

    @staticmethod
    def _ask_catalog() -> StorageStanding | None:
        try:
            standing: StorageStanding = calls.call("catalog", "storage_standing", timeout_s=SAMPLE_TIMEOUT_S)
        except RaylogError:
            return None
        return standing


class Exporter:
    """Readings into Ray's gauges and counters. Ray drops a gauge that is not set for 20 s, so every sample sets all."""

    def __init__(self) -> None:
        kinds: dict[str, Any] = {"gauge": Gauge, "counter": Counter}
        self._metrics = {
            metric.name: kinds[metric.kind](metric.name, description=metric.help, tag_keys=metric.labels)
            for metric in (*METRICS, *CLUSTER_METRICS, *RUN_METRICS)
        }
        self._increments = CounterIncrements()

    def export(self, found: Sequence[Reading]) -> None:
        for reading in found:
            if reading.metric.kind == "gauge":
                self._metrics[reading.metric.name].set(reading.value, tags=reading.labels)
        for growth in self._increments.take(found):
            self._metrics[growth.metric.name].inc(growth.value, tags=growth.labels)

    def forget(self, node_id: str) -> None:
        self._increments.forget(node_id)
