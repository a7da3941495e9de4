"""What is exported: names, labels, readings of whole and of incomplete samples."""

import re
from collections.abc import Callable

from raylog.monitor.metrics import METRICS, Reading, readings
from raylog.monitor.samples import (
    THROTTLE_REASONS,
    DeviceSample,
    DiskSample,
    GpuSample,
    NicCounters,
    NodeSample,
    ScrubSample,
    TierSample,
    TransferCounters,
)
from raylog.spec import QosClass, TierKind
from raylog.wire.classes import ClassCounters

Make = Callable[..., NodeSample]

DEVICE = DeviceSample(
    measured_read_bytes_per_s=2e8, measured_write_bytes_per_s=1e8, measured_sync_s=0.01, read_bytes_per_s=1e8,
    write_bytes_per_s=5e7, sync_s=0.02, reads=3, read_bytes=300, read_s=0.1, writes=2, written_bytes=200, write_s=0.2,
    syncs=2, synced_s=0.05, errors=1, problem="writes 5 MB/s",
)  # fmt: skip
UNIT_ENDINGS = {
    "bytes": "bytes",
    "ratio": "ratio",
    "celsius": "celsius",
    "watts": "watts",
    "joules": "joules",
    "hertz": "hertz",
    "bytes/s": "bytes_per_second",
}


def values(found: list[Reading], name: str) -> dict[tuple[str, ...], float]:
    """The values of one metric by their labels behind node_id and hostname."""
    return {tuple(r.labels.values())[2:]: r.value for r in found if r.metric.name == name}


def test_names_are_unique_legal_and_end_in_their_unit() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert re.fullmatch(r"raylog_[a-z0-9_]+", metric.name)
        assert metric.help
        if ending := UNIT_ENDINGS.get(metric.unit):
            assert metric.name.removesuffix("_total").endswith("_" + ending)
        assert metric.labels[:2] == ("node_id", "hostname")
        assert metric.kind == ("counter" if metric.name.endswith("_total") else "gauge")


def test_every_metric_has_a_reading_of_a_complete_sample(make_sample: Make) -> None:
    gpu = GpuSample(
        uuid="GPU-1", name="H200", index=0, utilisation=0.5, memory_used_bytes=1, memory_total_bytes=2,
        temperature_c=40.0, power_w=100.0, power_limit_w=700.0, energy_j=9.0, clock_sm_hz=3, clock_memory_hz=4,
        throttle_reasons=("hw_slowdown",), ecc_corrected=0, ecc_uncorrected=0, pcie_sent_bytes_per_s=5,
        pcie_received_bytes_per_s=6, xids={79: 2},
    )  # fmt: skip
    sample = make_sample(
        host={
            "disks": {"/tier": DiskSample(free_bytes=3, total_bytes=8)},
            "nics": {"eth0": NicCounters(sent_bytes=11, received_bytes=12)},
        },
        gpus=(gpu,),
        tiers=(
            TierSample(kind=TierKind.MEMORY, path="/arena", capacity_bytes=100, free_bytes=60, shards=3),
            TierSample(
                kind=TierKind.HDD,
                path="/hdd",
                capacity_bytes=100,
                free_bytes=6,
                shards=3,
                days_to_full=2.5,
                device=DEVICE,
            ),
        ),
        transfer=TransferCounters(
            sent_bytes=70,
            damaged_chunks=1,
            by_class={QosClass.SHIP: ClassCounters(sent_bytes=60, sent_chunks=3, waited_s=0.5)},
        ),
        scrub=ScrubSample(rounds_done=1, shards_checked=2, shards_total=3, checked_bytes=400, damaged_shards=1),
    )
    found = readings(sample)
    assert {reading.metric.name for reading in found} == {metric.name for metric in METRICS}
    for reading in found:
        assert tuple(reading.labels) == reading.metric.labels
        assert reading.labels["node_id"] == "a"
    assert values(found, "raylog_node_cpu_ratio") == {(): 0.5}
    assert values(found, "raylog_node_load_1m") == {(): 1.0}
    assert values(found, "raylog_transfer_sent_bytes_total") == {(): 70.0}
    assert values(found, "raylog_scrub_damaged_shards") == {(): 1.0}
    assert values(found, "raylog_class_sent_bytes_total") == {("ship",): 60.0}
    assert values(found, "raylog_class_waited_seconds_total") == {("ship",): 0.5}
    assert values(found, "raylog_nic_received_bytes_total") == {("eth0",): 12.0}
    assert values(found, "raylog_disk_free_bytes") == {("/tier",): 3.0}
    assert values(found, "raylog_tier_shards") == {("memory", "/arena"): 3.0, ("hdd", "/hdd"): 3.0}
    assert values(found, "raylog_tier_days_to_full") == {("hdd", "/hdd"): 2.5}
    assert values(found, "raylog_device_errors_total") == values(found, "raylog_device_has_problem")
    assert values(found, "raylog_device_has_problem") == {("hdd", "/hdd"): 1.0}
    assert values(found, "raylog_gpu_power_watts") == {("GPU-1", "0", "H200"): 100.0}
    assert values(found, "raylog_gpu_lost") == {("GPU-1", "0", "H200"): 0.0}
    assert values(found, "raylog_gpu_xid_errors_total") == {("GPU-1", "0", "H200", "79"): 2.0}
    throttled = values(found, "raylog_gpu_throttled")
    assert len(throttled) == len(THROTTLE_REASONS)
    assert [labels[3] for labels, value in throttled.items() if value] == ["hw_slowdown"]


def test_missing_figures_give_no_reading(make_sample: Make) -> None:
    lost = GpuSample(uuid="GPU-1", name="H200", index=0, is_lost=True, problem="GPU is lost")
    found = readings(make_sample(host={"cpu_share": None, "shm_free_bytes": None}, gpus=(lost,)))
    assert values(found, "raylog_node_cpu_ratio") == {}
    assert values(found, "raylog_node_shm_free_bytes") == {}
    assert values(found, "raylog_node_gpus") == {(): 0.0}
    assert {r.metric.name for r in found if "gpu_uuid" in r.labels} == {"raylog_gpu_lost"}
    assert list(values(found, "raylog_gpu_lost").values()) == [1.0]
