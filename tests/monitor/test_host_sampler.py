"""The machine's own figures against what the operating system says elsewhere."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raylog.monitor.host import NICS_MAX, HostSampler
from raylog.monitor.meter import TransferMeter
from raylog.monitor.sampler import NodeSampler
from raylog.monitor.samples import TierSample
from raylog.spec import TierKind, parse_id


def test_figures_agree_with_the_operating_system(tmp_path: Path) -> None:
    sample = HostSampler([tmp_path]).sample()
    assert sample.cpus == os.cpu_count()
    assert 0 < sample.memory_available_bytes <= sample.memory_total_bytes
    assert sample.memory_total_bytes <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    disk = sample.disks[str(tmp_path)]
    found = os.statvfs(tmp_path)
    assert disk.total_bytes == found.f_blocks * found.f_frsize
    assert abs(disk.free_bytes - found.f_bavail * found.f_frsize) < 1 << 30
    assert sample.shm_total_bytes is not None
    assert sample.shm_free_bytes is not None
    assert 0 <= sample.shm_free_bytes <= sample.shm_total_bytes
    assert "lo" not in sample.nics
    assert len(sample.nics) <= NICS_MAX
    assert all(nic.sent_bytes + nic.received_bytes > 0 for nic in sample.nics.values())


def test_cpu_share_is_the_mean_since_the_sample_before() -> None:
    sampler = HostSampler([])
    before = cpu_ticks()
    first = sampler.sample()
    assert first.cpu_share is None
    assert "first" in first.missing["cpu_share"]
    until_s = time.monotonic() + 0.5
    while time.monotonic() < until_s:
        time.sleep(0.01)  # some of the CPUs are idle, so that an idle share can be seen
    second = sampler.sample()
    after = cpu_ticks()
    assert "cpu_share" not in second.missing
    # The kernel's own table of the same half second: user, nice, system, idle, iowait, irq, softirq, steal.
    spent = [now - then for then, now in zip(before, after, strict=True)]
    assert second.cpu_share == pytest.approx(1 - (spent[3] + spent[4]) / sum(spent), abs=0.1)


def cpu_ticks() -> list[int]:
    return [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]


def test_private_memory_grows_with_what_this_process_allocates_and_not_with_shared_memory(tmp_path: Path) -> None:
    sampler = HostSampler([])
    before = sampler.sample().process_rss_anon_bytes
    held = bytearray(b"x" * (32 << 20))
    after = sampler.sample().process_rss_anon_bytes
    assert before is not None
    assert after is not None
    assert after - before >= len(held) * 0.9


def test_what_is_not_there_is_missing_with_its_reason(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmRSS:\t10 kB\n")
    sample = HostSampler([tmp_path, tmp_path / "gone"], shm_path=tmp_path / "no-shm", status_path=status).sample()
    assert list(sample.disks) == [str(tmp_path)]
    assert sample.missing[str(tmp_path / "gone")] == f"{tmp_path / 'gone'}: No such file or directory"
    assert (sample.shm_free_bytes, sample.process_rss_anon_bytes) == (None, None)
    assert "no-shm" in sample.missing["shm"]
    assert "no RssAnon" in sample.missing["process_rss_anon_bytes"]


def test_a_node_sample_has_all_parts_and_counts_on(tmp_path: Path) -> None:
    meter = TransferMeter()
    sampler = NodeSampler("b" * 32, meter, [tmp_path])
    tier = TierSample(kind=TierKind.SSD, path=str(tmp_path), capacity_bytes=10, free_bytes=4, shards=2)
    try:
        first = sampler.sample([tier])
        meter.received("c" * 32, 100)
        second = sampler.sample()
    finally:
        sampler.close()
    assert (first.node_id, first.tiers, second.tiers) == ("b" * 32, (tier,), ())
    assert first.incarnation == second.incarnation == parse_id(first.incarnation)
    assert second.monotonic_s > first.monotonic_s
    assert abs(first.time_s - time.time()) < 60
    assert (first.transfer.received_bytes, second.transfer.received_bytes) == (0, 100)
    assert str(tmp_path) in first.host.disks
    again = NodeSampler("b" * 32, meter, [])
    assert again.sample().incarnation != first.incarnation
    again.close()


def test_samples_asked_for_at_once_are_all_whole(tmp_path: Path) -> None:
    sampler = NodeSampler("b" * 32, TransferMeter(), [tmp_path])
    with ThreadPoolExecutor(8) as pool:
        samples = list(pool.map(lambda _: sampler.sample(), range(64)))
    sampler.close()
    assert len({sample.monotonic_s for sample in samples}) == 64
    assert {sample.gpu_problem for sample in samples} == {samples[0].gpu_problem}
    assert not [thread for thread in threading.enumerate() if thread.name == "raylog-nvml"]
