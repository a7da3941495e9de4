"""The machine's own figures against what the operating system says elsewhere."""

import os
import time
from pathlib import Path

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
    first = sampler.sample()
    assert first.cpu_share is None
    assert "first" in first.missing["cpu_share"]
    before_s = os.times()
    until_s = time.monotonic() + 0.3
    while time.monotonic() < until_s:
        pass
    used_s = sum(os.times()[:2]) - sum(before_s[:2])
    second = sampler.sample()
    assert "cpu_share" not in second.missing
    assert second.cpu_share is not None
    # This process alone used that much of all CPUs; the kernel counts in ticks of 10 ms per CPU.
    assert used_s / (0.3 * second.cpus) - 0.15 <= second.cpu_share <= 1.0


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
    assert NodeSampler("b" * 32, meter, []).sample().incarnation != first.incarnation
