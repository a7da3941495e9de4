"""What one node reports of itself at one moment. A figure that cannot be read is None, and `missing` says why.

Counters count from the start of the node actor or of the machine and are never reset here: `aggregate.py` turns them
into rates and knows a restart by `NodeSample.incarnation`.
"""

import msgspec

from raylog.spec import QosClass, TierKind
from raylog.wire.classes import ClassCounters

Reasons = dict[str, str]  # field or path -> why its figure is missing

THROTTLE_REASONS = (
    "sw_power_cap",
    "hw_slowdown",
    "sync_boost",
    "sw_thermal_slowdown",
    "hw_thermal_slowdown",
    "hw_power_brake_slowdown",
)


class GpuSample(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU at one moment.

    `utilisation` is the share 0..1 of NVML's last sampling period in which a kernel ran. `memory_used_bytes` leaves out
    what the driver reserves. `energy_j` counts since the driver was loaded, ECC errors likewise. `pcie_*_bytes_per_s`
    are rates over 20 ms, as much as some samples old (nvml.py says when). `throttle_reasons` are some of
    THROTTLE_REASONS; empty means none. `xids` counts the XID errors seen since sampling began, by code.
    `problem` says why there is no figure at all; with `is_lost` it is this GPU's own (fallen off the bus, to be reset,
    gone), else the driver's.
    """

    uuid: str
    name: str
    index: int
    utilisation: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    energy_j: float | None = None
    clock_sm_hz: int | None = None
    clock_memory_hz: int | None = None
    throttle_reasons: tuple[str, ...] | None = None
    ecc_corrected: int | None = None
    ecc_uncorrected: int | None = None
    pcie_sent_bytes_per_s: int | None = None
    pcie_received_bytes_per_s: int | None = None
    xids: dict[int, int] = {}
    is_lost: bool = False
    problem: str | None = None
    missing: Reasons = {}


class NicCounters(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes through one network interface since it came up."""

    sent_bytes: int
    received_bytes: int


class DiskSample(msgspec.Struct, frozen=True, kw_only=True):
    """The file system that holds a tier's path. `free_bytes` is what an ordinary user may still write."""

    free_bytes: int
    total_bytes: int


class HostSample(msgspec.Struct, frozen=True, kw_only=True):
    """One machine, or the part of it that its container may use, at one moment.

    `cpu_share` is 0..1 of all `cpus` since the sample before (None in the first). `load` is the run queue's mean over
    1, 5 and 15 minutes. Memory is the machine's or the container's, whichever is less. `process_rss_anon_bytes` is
    what the sampling process holds for itself: no shared memory, no mapped file.
    """

    cpus: int
    cpu_share: float | None
    load: tuple[float, float, float]
    memory_total_bytes: int
    memory_available_bytes: int
    shm_free_bytes: int | None
    shm_total_bytes: int | None
    process_rss_anon_bytes: int | None
    disks: dict[str, DiskSample] = {}
    nics: dict[str, NicCounters] = {}
    missing: Reasons = {}


class PeerCounters(msgspec.Struct, frozen=True, kw_only=True):
    """Cargo exchanged with one peer."""

    sent_bytes: int = 0
    received_bytes: int = 0


class TransferCounters(msgspec.Struct, frozen=True, kw_only=True):
    """What a node actor moved since it started. Bytes are sealed cargo, without headers and control messages.

    `by_peer` maps node ids to their part, at most `meter.PEERS_MAX` of them; the rest is summed under "other".
    `pull_bytes_per_s` is the rate of its last larger pulls, smoothed; None before the first.
    `by_class` has what each traffic class sent and how long its chunks waited for their turn.
    """

    sent_bytes: int = 0
    received_bytes: int = 0
    sent_chunks: int = 0
    received_chunks: int = 0
    damaged_chunks: int = 0
    repaired_chunks: int = 0
    pulls_done: int = 0
    pulls_failed: int = 0
    pull_bytes_per_s: float | None = None
    by_peer: dict[str, PeerCounters] = {}
    by_class: dict[QosClass, ClassCounters] = {}


class DeviceSample(msgspec.Struct, frozen=True, kw_only=True):
    """The device under a disk tier: as it was measured when nothing else was asked of it (None: not yet), as it is now,
    and totals since the node actor started; seconds are those that were waited. `problem`: "" while it is as fast as it
    was and refuses nothing."""

    measured_read_bytes_per_s: float | None
    measured_write_bytes_per_s: float | None
    measured_sync_s: float | None
    read_bytes_per_s: float
    write_bytes_per_s: float
    sync_s: float
    reads: int
    read_bytes: int
    read_s: float
    writes: int
    written_bytes: int
    write_s: float
    syncs: int
    synced_s: float
    errors: int
    problem: str

    @property
    def has_problem(self) -> bool:
        return bool(self.problem)


class TierSample(msgspec.Struct, frozen=True, kw_only=True):
    """One tier of one node. `path` is the arena's file, the tier's directory or a backup's URL, of which nobody knows
    how much it holds and may hold (None); `days_to_full` at the last day's rate, None while it does not fill."""

    kind: TierKind
    path: str
    capacity_bytes: int | None = None
    free_bytes: int | None = None
    shards: int | None = None
    days_to_full: float | None = None
    device: DeviceSample | None = None


class ScrubSample(msgspec.Struct, frozen=True, kw_only=True):
    """How far a node is with reading back and checking what it stores. `shards_checked` of `shards_total` in the round
    that runs or ran last; the other figures count since the node actor started. `damaged_shards`: found damaged and not
    repaired yet."""

    rounds_done: int
    shards_checked: int
    shards_total: int
    checked_bytes: int
    damaged_shards: int


class NodeSample(msgspec.Struct, frozen=True, kw_only=True):
    """All that a node says about itself at one moment.

    `time_s` is the node's own clock (Unix), `monotonic_s` its monotonic one, which rates are taken by. `incarnation`
    is a fresh id at every start of the node actor: all counters of one incarnation belong together. `gpu_problem`
    says why GPUs are absent or some could not be read.
    """

    node_id: str
    hostname: str
    incarnation: str
    time_s: float
    monotonic_s: float
    host: HostSample
    transfer: TransferCounters
    gpus: tuple[GpuSample, ...] = ()
    gpu_problem: str | None = None
    tiers: tuple[TierSample, ...] = ()
    scrub: ScrubSample | None = None
