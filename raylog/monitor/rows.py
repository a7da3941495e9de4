"""The lines and totals of `raylog status`, made of samples. Pure: nothing here knows a clock or remembers anything."""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import msgspec

from raylog.monitor.counters import rate_per_s
from raylog.monitor.samples import GpuSample, NicCounters, NodeSample, TierSample
from raylog.spec import QosClass, TierKind

STALE_AFTER_S = 4.0
RATE_WINDOW_S = 5.0


class GpuSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The GPUs of a node, or of the cluster. `utilisation` is the mean of the `reporting` ones, None where
    none does; sums leave out what is not reported. `problem` is the node's own."""

    count: int = 0
    lost: int = 0
    reporting: int = 0
    utilisation: float | None = None
    memory_used_bytes: int = 0
    memory_total_bytes: int = 0
    temperature_max_c: float | None = None
    power_w: float = 0.0
    throttled: int = 0
    xids: int = 0
    problem: str | None = None


class NodeRow(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `raylog status`. Rates are means of the last `RATE_WINDOW_S`, None until two samples have come.

    `class_bytes_per_s` is `sent_bytes_per_s` of the traffic classes that send. `clock_offset_s` is the monitor's clock
    minus the node's, plus the sample's way here.
    """

    node_id: str
    hostname: str
    state: Literal["fresh", "stale"]
    detail: str
    age_s: float
    clock_offset_s: float
    cpus: int
    cpu_share: float | None
    load: tuple[float, float, float]
    memory_total_bytes: int
    memory_available_bytes: int
    shm_free_bytes: int | None
    rss_anon_bytes: int | None
    tiers: tuple[TierSample, ...]
    gpus: GpuSummary
    sent_bytes_per_s: float | None
    received_bytes_per_s: float | None
    class_bytes_per_s: dict[QosClass, float]
    nic_sent_bytes_per_s: float | None
    nic_received_bytes_per_s: float | None
    damaged_chunks: int
    repaired_chunks: int
    pulls_failed: int


class TierTotal(msgspec.Struct, frozen=True, kw_only=True):
    """All tiers of one kind."""

    kind: TierKind
    capacity_bytes: int
    free_bytes: int
    shards: int


class ClusterTotals(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over the fresh nodes; `nodes_stale` are known but silent. Damage, repairs and failed pulls are counted since
    each node actor started, and on silent nodes too."""

    nodes: int
    nodes_stale: int
    cpus: int
    cpu_share: float | None
    memory_total_bytes: int
    memory_available_bytes: int
    gpus: GpuSummary
    tiers: tuple[TierTotal, ...]
    sent_bytes_per_s: float
    received_bytes_per_s: float
    damaged_chunks: int
    repaired_chunks: int
    pulls_failed: int


def node_row(time_s: float, arrived_s: float, samples: Sequence[NodeSample]) -> NodeRow:
    """The line of a node whose last samples are `samples` (oldest first, at least one), the last of which came in at
    `arrived_s`; both times by the monitor's clock."""
    sample = samples[-1]
    host, transfer = sample.host, sample.transfer
    age_s = max(time_s - arrived_s, 0.0)
    is_stale = age_s > STALE_AFTER_S
    recent = [] if is_stale else _recent(samples)  # a silent node's rate is unknown, not what it was
    return NodeRow(
        node_id=sample.node_id,
        hostname=sample.hostname,
        state="stale" if is_stale else "fresh",
        detail=f"no sample for {age_s:.0f} s" if is_stale else "",
        age_s=age_s,
        clock_offset_s=arrived_s - sample.time_s,
        cpus=host.cpus,
        cpu_share=host.cpu_share,
        load=host.load,
        memory_total_bytes=host.memory_total_bytes,
        memory_available_bytes=host.memory_available_bytes,
        shm_free_bytes=host.shm_free_bytes,
        rss_anon_bytes=host.process_rss_anon_bytes,
        tiers=sample.tiers,
        gpus=gpu_summary(sample.gpus, sample.gpu_problem),
        sent_bytes_per_s=rate_per_s([(s.monotonic_s, s.transfer.sent_bytes) for s in recent]),
        received_bytes_per_s=rate_per_s([(s.monotonic_s, s.transfer.received_bytes) for s in recent]),
        class_bytes_per_s=_class_rates(recent),
        nic_sent_bytes_per_s=_nic_rate(recent, lambda nic: nic.sent_bytes),
        nic_received_bytes_per_s=_nic_rate(recent, lambda nic: nic.received_bytes),
        damaged_chunks=transfer.damaged_chunks,
        repaired_chunks=transfer.repaired_chunks,
        pulls_failed=transfer.pulls_failed,
    )


def cluster_totals(rows: Sequence[NodeRow]) -> ClusterTotals:
    """The sums of all nodes' lines."""
    fresh = [row for row in rows if row.state == "fresh"]
    shares = [(row.cpu_share, row.cpus) for row in fresh if row.cpu_share is not None]
    cpus_seen = sum(cpus for _, cpus in shares)
    return ClusterTotals(
        nodes=len(fresh),
        nodes_stale=len(rows) - len(fresh),
        cpus=sum(row.cpus for row in fresh),
        cpu_share=sum(share * cpus for share, cpus in shares) / cpus_seen if cpus_seen else None,
        memory_total_bytes=sum(row.memory_total_bytes for row in fresh),
        memory_available_bytes=sum(row.memory_available_bytes for row in fresh),
        gpus=_gpu_sum([row.gpus for row in fresh]),
        tiers=_tier_totals(tier for row in fresh for tier in row.tiers),
        sent_bytes_per_s=sum(row.sent_bytes_per_s or 0.0 for row in fresh),
        received_bytes_per_s=sum(row.received_bytes_per_s or 0.0 for row in fresh),
        damaged_chunks=sum(row.damaged_chunks for row in rows),
        repaired_chunks=sum(row.repaired_chunks for row in rows),
        pulls_failed=sum(row.pulls_failed for row in rows),
    )


def gpu_summary(gpus: Sequence[GpuSample], problem: str | None = None) -> GpuSummary:
    """The GPUs of one node."""
    used = [gpu.utilisation for gpu in gpus if gpu.utilisation is not None]
    return GpuSummary(
        count=len(gpus),
        lost=sum(gpu.is_lost for gpu in gpus),
        reporting=len(used),
        utilisation=sum(used) / len(used) if used else None,
        memory_used_bytes=sum(gpu.memory_used_bytes or 0 for gpu in gpus),
        memory_total_bytes=sum(gpu.memory_total_bytes or 0 for gpu in gpus),
        temperature_max_c=max((gpu.temperature_c for gpu in gpus if gpu.temperature_c is not None), default=None),
        power_w=sum(gpu.power_w or 0.0 for gpu in gpus),
        throttled=sum(bool(gpu.throttle_reasons) for gpu in gpus),
        xids=sum(sum(gpu.xids.values()) for gpu in gpus),
        problem=problem,
    )


def _gpu_sum(nodes: Sequence[GpuSummary]) -> GpuSummary:
    reporting = sum(node.reporting for node in nodes)
    used = sum(node.utilisation * node.reporting for node in nodes if node.utilisation is not None)
    return GpuSummary(
        count=sum(node.count for node in nodes),
        lost=sum(node.lost for node in nodes),
        reporting=reporting,
        utilisation=used / reporting if reporting else None,
        memory_used_bytes=sum(node.memory_used_bytes for node in nodes),
        memory_total_bytes=sum(node.memory_total_bytes for node in nodes),
        temperature_max_c=max((n.temperature_max_c for n in nodes if n.temperature_max_c is not None), default=None),
        power_w=sum(node.power_w for node in nodes),
        throttled=sum(node.throttled for node in nodes),
        xids=sum(node.xids for node in nodes),
    )


def _tier_totals(tiers: Iterable[TierSample]) -> tuple[TierTotal, ...]:
    by_kind: dict[TierKind, list[TierSample]] = {}
    for tier in tiers:
        if tier.capacity_bytes is None:
            continue
        by_kind.setdefault(tier.kind, []).append(tier)
    return tuple(
        TierTotal(
            kind=kind,
            capacity_bytes=sum(tier.capacity_bytes or 0 for tier in by_kind[kind]),
            free_bytes=sum(tier.free_bytes or 0 for tier in by_kind[kind]),
            shards=sum(tier.shards or 0 for tier in by_kind[kind]),
        )
        for kind in TierKind
        if kind in by_kind
    )


def _recent(samples: Sequence[NodeSample]) -> list[NodeSample]:
    """The last samples of one incarnation (whose counters belong together) within the rates' window, oldest first."""
    last = samples[-1]
    recent: list[NodeSample] = []
    for sample in reversed(samples):
        if sample.incarnation != last.incarnation or last.monotonic_s - sample.monotonic_s > RATE_WINDOW_S:
            break
        recent.append(sample)
    return recent[::-1]


def _class_rates(samples: Sequence[NodeSample]) -> dict[QosClass, float]:
    rates = {
        qos: rate_per_s([(s.monotonic_s, s.transfer.by_class[qos].sent_bytes) for s in samples])
        for qos in QosClass
        if all(qos in s.transfer.by_class for s in samples)
    }
    return {qos: rate for qos, rate in rates.items() if rate}


def _nic_rate(samples: Sequence[NodeSample], count: Callable[[NicCounters], int]) -> float | None:
    """The sum over the interfaces that the last sample has."""
    rates = [
        rate_per_s([(s.monotonic_s, count(s.host.nics[name])) for s in samples if name in s.host.nics])
        for name in (samples[-1].host.nics if samples else ())
    ]
    known = [rate for rate in rates if rate is not None]
    return sum(known) if known else None
