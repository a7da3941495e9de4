"""Which metrics raylog exports, as data, and their readings off a sample. `actors/monitor.py` hands them to Ray.

Names follow Prometheus: base units (bytes, ratio, joules, hertz) last, `_total` behind counters. Cardinality is
bounded: labels are nodes, their GPUs, NICs, disks, tiers and traffic classes, and training runs; peers stay in the
sample, as pairs of nodes grow as n², and the ranks of a run in its sums.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal

import msgspec

from raylog.monitor.samples import THROTTLE_REASONS, GpuSample, NodeSample
from raylog.monitor.training import RunRow
from raylog.spec import StorageStanding

NODE_LABELS = ("node_id", "hostname")
GPU_LABELS = (*NODE_LABELS, "gpu_uuid", "gpu_index", "gpu_name")
NIC_LABELS = (*NODE_LABELS, "nic")
DISK_LABELS = (*NODE_LABELS, "path")
TIER_LABELS = (*NODE_LABELS, "tier", "path")
CLASS_LABELS = (*NODE_LABELS, "class")
RUN_LABELS = ("run", "job_id")

SeriesKey = tuple[str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True, slots=True)
class Metric:
    """One exported metric. `source` is the attribute its value is: of the node's sample, or of the part (GPU, NIC,
    disk, tier, class) that `labels` name; it is empty where `readings` computes the value."""

    name: str
    unit: str
    source: str
    help: str
    labels: tuple[str, ...]

    @property
    def kind(self) -> Literal["gauge", "counter"]:
        """A gauge is set to its reading; a counter's reading is its total so far."""
        return "counter" if self.name.endswith("_total") else "gauge"


class Reading(msgspec.Struct, frozen=True):
    """One series' value now; `labels` has exactly the metric's labels, in their order."""

    metric: Metric
    value: float
    labels: dict[str, str]

    @property
    def series(self) -> SeriesKey:
        return self.metric.name, tuple(self.labels.items())


def _table(labels: tuple[str, ...], *rows: tuple[str, str, str, str]) -> tuple[Metric, ...]:
    return tuple(Metric(*row, labels=labels) for row in rows)


NODE_METRICS = _table(
    NODE_LABELS,
    ("raylog_node_cpu_ratio", "ratio", "host.cpu_share", "Share of all CPUs in use"),
    ("raylog_node_memory_total_bytes", "bytes", "host.memory_total_bytes", "Memory of the machine or its container"),
    ("raylog_node_memory_available_bytes", "bytes", "host.memory_available_bytes", "Memory to be had without swapping"),
    ("raylog_node_shm_total_bytes", "bytes", "host.shm_total_bytes", "Size of /dev/shm"),
    ("raylog_node_shm_free_bytes", "bytes", "host.shm_free_bytes", "Free bytes of /dev/shm"),
    ("raylog_node_rss_anon_bytes", "bytes", "host.process_rss_anon_bytes", "Private memory of the node actor"),
    ("raylog_transfer_sent_bytes_total", "bytes", "transfer.sent_bytes", "Sealed bytes sent to peers"),
    ("raylog_transfer_received_bytes_total", "bytes", "transfer.received_bytes", "Sealed bytes pulled from peers"),
    ("raylog_transfer_sent_chunks_total", "chunks", "transfer.sent_chunks", "Chunks sent to peers"),
    ("raylog_transfer_received_chunks_total", "chunks", "transfer.received_chunks", "Chunks pulled from peers"),
    ("raylog_damaged_chunks_total", "chunks", "transfer.damaged_chunks", "Chunks found damaged"),
    ("raylog_repaired_chunks_total", "chunks", "transfer.repaired_chunks", "Damaged chunks replaced by a good copy"),
    ("raylog_pulls_done_total", "pulls", "transfer.pulls_done", "Shards pulled whole"),
    ("raylog_pulls_failed_total", "pulls", "transfer.pulls_failed", "Pulls given up"),
)
NODE_LOAD = Metric("raylog_node_load_1m", "processes", "", "Run queue, mean of 1 minute", NODE_LABELS)
NODE_GPUS = Metric("raylog_node_gpus", "gpus", "", "GPUs of the node that answer", NODE_LABELS)
CLASS_METRICS = _table(
    CLASS_LABELS,
    ("raylog_class_sent_bytes_total", "bytes", "sent_bytes", "Sealed bytes of a traffic class sent to peers"),
    ("raylog_class_sent_chunks_total", "chunks", "sent_chunks", "Chunks of a traffic class sent to peers"),
    ("raylog_class_waited_seconds_total", "seconds", "waited_s", "Time that chunks waited for weights and caps"),
)
SCRUB_METRICS = _table(
    NODE_LABELS,
    ("raylog_scrub_rounds_total", "rounds", "rounds_done", "Rounds in which all that is stored was checked"),
    ("raylog_scrub_checked_shards", "shards", "shards_checked", "Shards checked in this round"),
    ("raylog_scrub_shards", "shards", "shards_total", "Shards to be checked in this round"),
    ("raylog_scrub_checked_bytes_total", "bytes", "checked_bytes", "Sealed bytes read back and checked"),
    ("raylog_scrub_damaged_shards", "shards", "damaged_shards", "Shards found damaged and not repaired yet"),
)
NIC_METRICS = _table(
    NIC_LABELS,
    ("raylog_nic_sent_bytes_total", "bytes", "sent_bytes", "Bytes sent through the interface"),
    ("raylog_nic_received_bytes_total", "bytes", "received_bytes", "Bytes received through the interface"),
)
DISK_METRICS = _table(
    DISK_LABELS,
    ("raylog_disk_total_bytes", "bytes", "total_bytes", "Size of the file system under a tier"),
    ("raylog_disk_free_bytes", "bytes", "free_bytes", "Free bytes of the file system under a tier"),
)
TIER_METRICS = _table(
    TIER_LABELS,
    ("raylog_tier_capacity_bytes", "bytes", "capacity_bytes", "Bytes that the tier may hold"),
    ("raylog_tier_free_bytes", "bytes", "free_bytes", "Bytes that the tier can still take"),
    ("raylog_tier_shards", "shards", "shards", "Shards on the tier"),
    ("raylog_tier_days_to_full", "days", "days_to_full", "Days until the tier is full at the last day's rate"),
)
DEVICE_METRICS = _table(
    TIER_LABELS,
    ("raylog_device_read_bytes_per_second", "bytes/s", "read_bytes_per_s", "Rate of reading lately"),
    ("raylog_device_write_bytes_per_second", "bytes/s", "write_bytes_per_s", "Rate of writing and syncing lately"),
    ("raylog_device_sync_seconds", "seconds", "sync_s", "Time of one fsync lately"),
    ("raylog_device_reads_total", "reads", "reads", "Chunks read"),
    ("raylog_device_read_bytes_total", "bytes", "read_bytes", "Bytes read"),
    ("raylog_device_read_seconds_total", "seconds", "read_s", "Time waited for reads"),
    ("raylog_device_writes_total", "writes", "writes", "Shards written"),
    ("raylog_device_written_bytes_total", "bytes", "written_bytes", "Bytes written"),
    ("raylog_device_write_seconds_total", "seconds", "write_s", "Time waited for writes, fsync included"),
    ("raylog_device_syncs_total", "syncs", "syncs", "Commits synced"),
    ("raylog_device_sync_seconds_total", "seconds", "synced_s", "Time waited for fsync"),
    ("raylog_device_errors_total", "errors", "errors", "Reads and writes that the device refused"),
    ("raylog_device_has_problem", "bool", "has_problem", "1 while the device is slower than it was, or fails"),
)
GPU_METRICS = _table(
    GPU_LABELS,
    ("raylog_gpu_utilisation_ratio", "ratio", "utilisation", "Share of time in which a kernel ran"),
    ("raylog_gpu_memory_used_bytes", "bytes", "memory_used_bytes", "GPU memory in use"),
    ("raylog_gpu_memory_total_bytes", "bytes", "memory_total_bytes", "GPU memory"),
    ("raylog_gpu_temperature_celsius", "celsius", "temperature_c", "Temperature of the GPU"),
    ("raylog_gpu_power_watts", "watts", "power_w", "Power drawn"),
    ("raylog_gpu_power_limit_watts", "watts", "power_limit_w", "Power limit in force"),
    ("raylog_gpu_energy_joules_total", "joules", "energy_j", "Energy since the driver was loaded"),
    ("raylog_gpu_sm_clock_hertz", "hertz", "clock_sm_hz", "Clock of the multiprocessors"),
    ("raylog_gpu_memory_clock_hertz", "hertz", "clock_memory_hz", "Clock of the GPU memory"),
    ("raylog_gpu_pcie_sent_bytes_per_second", "bytes/s", "pcie_sent_bytes_per_s", "PCIe rate out of the GPU"),
    ("raylog_gpu_pcie_received_bytes_per_second", "bytes/s", "pcie_received_bytes_per_s", "PCIe rate into the GPU"),
    ("raylog_gpu_ecc_corrected_errors_total", "errors", "ecc_corrected", "Memory errors corrected"),
    ("raylog_gpu_ecc_uncorrected_errors_total", "errors", "ecc_uncorrected", "Memory errors not corrected"),
    ("raylog_gpu_lost", "bool", "is_lost", "1 while the GPU has fallen off the bus or needs a reset"),
)
GPU_THROTTLED = Metric("raylog_gpu_throttled", "bool", "", "1 while clocks are held down", (*GPU_LABELS, "reason"))
GPU_XIDS = Metric("raylog_gpu_xid_errors_total", "errors", "", "XID errors of the driver", (*GPU_LABELS, "xid"))

CLUSTER_METRICS = _table(
    (),
    ("raylog_short_shards", "shards", "short_shards", "Shards with fewer replicas than were promised"),
    ("raylog_lost_shards", "shards", "lost_shards", "Shards without a copy on a living node and without a backup"),
    ("raylog_backup_pending_copies", "copies", "copies_to_back_up", "Copies still to be written to backups"),
)

TRAINING_METRICS = _table(
    RUN_LABELS,
    ("raylog_training_ranks", "ranks", "ranks", "Ranks that have reported lately"),
    ("raylog_training_step", "steps", "step", "Step of the rank furthest behind"),
    ("raylog_training_loss", "loss", "loss", "Mean of the ranks' last losses"),
    ("raylog_training_losses_not_finite", "ranks", "losses_not_finite", "Ranks whose last loss is NaN or infinite"),
    ("raylog_training_samples_per_second", "samples/s", "samples_per_s", "Samples of all ranks"),
    ("raylog_training_tokens_per_second", "tokens/s", "tokens_per_s", "Tokens of all ranks"),
    ("raylog_training_step_seconds", "seconds", "step_s", "Time of a step, mean of the ranks"),
    ("raylog_training_data_wait_ratio", "ratio", "data_wait_share", "Share of time waited for data, mean of the ranks"),
)
SLOWEST_METRICS = _table(
    RUN_LABELS, ("raylog_training_slowest_step_seconds", "seconds", "step_s", "Time of a step on the slowest rank")
)
WAITING_METRICS = _table(
    RUN_LABELS,
    ("raylog_training_worst_data_wait_ratio", "ratio", "data_wait_share", "That share of the rank that waits most"),
)
RUN_METRICS: tuple[Metric, ...] = (*TRAINING_METRICS, *SLOWEST_METRICS, *WAITING_METRICS)

METRICS: tuple[Metric, ...] = (
    *(*NODE_METRICS, NODE_LOAD, NODE_GPUS, *CLASS_METRICS, *SCRUB_METRICS),
    *(*NIC_METRICS, *DISK_METRICS, *TIER_METRICS, *DEVICE_METRICS),
    *(*GPU_METRICS, GPU_THROTTLED, GPU_XIDS),
)


def cluster_readings(standing: StorageStanding) -> list[Reading]:
    """What the catalog says of the cluster as a whole."""
    return list(_read(CLUSTER_METRICS, standing, {}))


def run_readings(row: RunRow) -> list[Reading]:
    """A training run; nothing of a silent one."""
    if row.state == "silent":
        return []
    labels = {"run": row.run, "job_id": row.job_id}
    found = [*_read(TRAINING_METRICS, row, labels)]
    for metrics, rank in ((SLOWEST_METRICS, row.slowest), (WAITING_METRICS, row.waiting)):
        if rank is not None:
            found += _read(metrics, rank, labels)
    return found


def readings(sample: NodeSample) -> list[Reading]:
    """Every series of one node's sample. A figure that is missing gives no reading (and never a zero)."""
    node = {"node_id": sample.node_id, "hostname": sample.hostname}
    found = [*_read(NODE_METRICS, sample, node), Reading(NODE_LOAD, sample.host.load[0], node)]
    found.append(Reading(NODE_GPUS, float(sum(gpu.problem is None for gpu in sample.gpus)), node))
    for qos, counters in sample.transfer.by_class.items():
        found += _read(CLASS_METRICS, counters, {**node, "class": qos.value})
    if sample.scrub is not None:
        found += _read(SCRUB_METRICS, sample.scrub, node)
    for name, nic in sample.host.nics.items():
        found += _read(NIC_METRICS, nic, {**node, "nic": name})
    for path, disk in sample.host.disks.items():
        found += _read(DISK_METRICS, disk, {**node, "path": path})
    for tier in sample.tiers:
        labels = {**node, "tier": tier.kind.value, "path": tier.path}
        found += _read(TIER_METRICS, tier, labels)
        if tier.device is not None:
            found += _read(DEVICE_METRICS, tier.device, labels)
    for gpu in sample.gpus:
        found += _gpu_readings(gpu, node)
    return found


def _read(metrics: Iterable[Metric], part: Any, labels: dict[str, str]) -> Iterator[Reading]:
    for metric in metrics:
        value = attrgetter(metric.source)(part)
        if value is not None:
            yield Reading(metric, float(value), labels)


def _gpu_readings(gpu: GpuSample, node: dict[str, str]) -> Iterator[Reading]:
    labels = {**node, "gpu_uuid": gpu.uuid, "gpu_index": str(gpu.index), "gpu_name": gpu.name}
    yield from _read(GPU_METRICS, gpu, labels)
    if gpu.throttle_reasons is not None:
        for reason in THROTTLE_REASONS:
            yield Reading(GPU_THROTTLED, float(reason in gpu.throttle_reasons), {**labels, "reason": reason})
    for code, count in gpu.xids.items():
        yield Reading(GPU_XIDS, float(count), {**labels, "xid": str(code)})
