"""The machine's own figures, through psutil and /proc. A figure that cannot be read is missing, with its reason."""

import os
import socket
from collections.abc import Sequence
from pathlib import Path

import psutil

from raylog.monitor.cgroup import memory_limit
from raylog.monitor.samples import DiskSample, HostSample, NicCounters

NICS_MAX = 16  # a machine full of containers has thousands; those with the most traffic are reported
SHM_PATH = Path("/dev/shm")  # noqa: S108 - where Linux has it
STATUS_PATH = Path("/proc/self/status")


class HostSampler:
    """Samples this machine; `disk_paths` are the tiers' directories. Reads only memory files, in about a millisecond;
    a directory on a dead network mount would block it, so tiers are local."""

    def __init__(self, disk_paths: Sequence[Path], shm_path: Path = SHM_PATH, status_path: Path = STATUS_PATH) -> None:
        self._disk_paths = tuple(disk_paths)
        self._shm_path = shm_path
        self._status_path = status_path
        self._cpu_before: tuple[float, float] | None = None  # busy and total seconds of all cpus, since boot

    def sample(self) -> HostSample:
        """The machine now. Raises nothing for a path that is gone or a figure that this kernel does not have."""
        missing: dict[str, str] = {}
        disks = {str(path): disk for path in self._disk_paths if (disk := _disk(path, str(path), missing))}
        shm = _disk(self._shm_path, "shm", missing)
        memory_total_bytes, memory_available_bytes = _memory()
        return HostSample(
            cpus=psutil.cpu_count() or 1,
            cpu_share=self._cpu_share(missing),
            load=psutil.getloadavg(),
            memory_total_bytes=memory_total_bytes,
            memory_available_bytes=memory_available_bytes,
            shm_free_bytes=shm.free_bytes if shm else None,
            shm_total_bytes=shm.total_bytes if shm else None,
            process_rss_anon_bytes=_rss_anon_bytes(self._status_path, missing),
            disks=disks,
            nics=_nics(missing),
            missing=missing,
        )

    def _cpu_share(self, missing: dict[str, str]) -> float | None:
        times = psutil.cpu_times()
        # Guest time is inside user time already, and iowait is idle time with a name.
        total_s = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        busy_s = total_s - times.idle - getattr(times, "iowait", 0.0)
        before, self._cpu_before = self._cpu_before, (busy_s, total_s)
        if before is None:
            missing["cpu_share"] = "it is a mean since the sample before, and this is the first"
            return None
        if total_s <= before[1]:
            missing["cpu_share"] = "no CPU time has passed since the sample before"
            return None
        return min(max((busy_s - before[0]) / (total_s - before[1]), 0.0), 1.0)


def hostname() -> str:
    """The name that this machine gives itself."""
    return socket.gethostname()


def _memory() -> tuple[int, int]:
    machine = psutil.virtual_memory()
    container = memory_limit()
    if container is None:
        return machine.total, machine.available
    return min(machine.total, container.limit_bytes), min(machine.available, container.available_bytes)


def _disk(path: Path, name: str, missing: dict[str, str]) -> DiskSample | None:
    try:
        found = os.statvfs(path)
    except OSError as error:
        missing[name] = f"{path}: {error.strerror}"
        return None
    return DiskSample(free_bytes=found.f_bavail * found.f_frsize, total_bytes=found.f_blocks * found.f_frsize)


def _rss_anon_bytes(status_path: Path, missing: dict[str, str]) -> int | None:
    try:
        for line in status_path.read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
        missing["process_rss_anon_bytes"] = f"{status_path} has no RssAnon (Linux 4.5 and later do)"
    except OSError as error:
        missing["process_rss_anon_bytes"] = f"{status_path}: {error.strerror}"
    return None


def _nics(missing: dict[str, str]) -> dict[str, NicCounters]:
    """Counters by interface, without loopback and those that never carried a byte."""
    try:
        # nowrap=False: psutil's own repair of wrapped counters keeps state for the whole process; rates handle resets.
        found = psutil.net_io_counters(pernic=True, nowrap=False)
    except OSError as error:
        missing["nics"] = str(error)
        return {}
    traffic = {name: nic.bytes_sent + nic.bytes_recv for name, nic in found.items() if name != "lo"}
    busiest = sorted((name for name in traffic if traffic[name]), key=lambda name: -traffic[name])[:NICS_MAX]
    return {
        name: NicCounters(sent_bytes=found[name].bytes_sent, received_bytes=found[name].bytes_recv) for name in busiest
    }
