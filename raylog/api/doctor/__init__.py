"""What `raylog doctor` finds out about this machine, and how to fix it. Nothing here changes anything or hangs.

Each check is one small function from facts to a verdict (software.py, machine.py, files.py); the facts are read here.
"""

import os
import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from raylog.api import ray_access
from raylog.api.doctor import files, machine, software
from raylog.api.doctor.check import Check
from raylog.errors import UsageError
from raylog.monitor.cgroup import memory_limit
from raylog.monitor.machine import clock_discipline, congestion, cpu_flags
from raylog.monitor.nvml import GpuReport, NvmlSampler
from raylog.settings import Settings
from raylog.units import GIB

__all__ = ["Check", "Surroundings", "checks"]

ARENA_DEFAULT_BYTES_MAX = 4 * GIB  # of settings.arena_bytes = 0


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is looked at besides the settings."""

    environment: Mapping[str, str]
    home: Path
    shm: Path = Path("/dev/shm")  # noqa: S108 - where Linux has it


def checks(
    settings: Settings,
    *,
    ray_address: str | None = None,
    head_clock: Callable[[], float] | None = None,
    surroundings: Surroundings | None = None,
) -> list[Check]:
    """Every finding about this machine, in the order in which they are best fixed; takes about 5 s at most.

    `ray_address` is where to look for Ray before `$RAY_ADDRESS` and Ray's own file; `head_clock` asks the cluster's
    head for its time (Unix seconds), where somebody has a way to, and ends by a deadline of its own; `surroundings`
    are this process's by default.
    """
    around = surroundings or Surroundings(os.environ, Path.home())
    return [
        software.python_version(),
        software.python_build(),
        software.ray_version(),
        *_ray_checks(ray_address, around),
        machine.ports(settings),
        *_memory_checks(settings, around),
        files.keyring(settings.keyring_path.expanduser()),
        files.state_directory(settings),
        machine.open_files(*resource.getrlimit(resource.RLIMIT_NOFILE)),
        machine.clock(*clock_discipline()),
        *([] if head_clock is None else [machine.clock_against_head(head_clock)]),
        machine.gpus(_gpu_report(), has_driver=Path("/proc/driver/nvidia/version").exists()),
        machine.congestion_control(congestion()),
        machine.aes(cpu_flags()),
    ]


def _ray_checks(ray_address: str | None, around: Surroundings) -> Iterator[Check]:
    try:
        address = ray_access.cluster_address(ray_address, around.environment)
    except UsageError as error:
        yield Check("ray cluster", "fail", str(error), "export RAY_ADDRESS=HEAD_ADDRESS:6379")
        return
    is_up = address is not None and ray_access.answers(address)
    yield software.ray_cluster(address, is_up)
    yield software.ray_token(address if is_up else None, around.environment, around.home)


def _memory_checks(settings: Settings, around: Surroundings) -> Iterator[Check]:
    container = memory_limit()
    memory_bytes = min(psutil.virtual_memory().total, container.limit_bytes if container else sys.maxsize)
    try:
        shm = os.statvfs(around.shm)
    except OSError as error:
        fix = f"sudo mkdir -p {around.shm} && sudo mount -t tmpfs -o mode=1777 tmpfs {around.shm}"
        yield Check("shared memory", "fail", f"{around.shm}: {error.strerror}", fix)
        return
    shm_bytes = shm.f_blocks * shm.f_frsize
    store_bytes = machine.ray_store_bytes(memory_bytes, shm_bytes, around.environment)
    arena_bytes = settings.arena_bytes or min(ARENA_DEFAULT_BYTES_MAX, max(shm_bytes - store_bytes, 0) // 4)
    yield machine.shared_memory(shm_bytes, arena_bytes, store_bytes)
    yield machine.container_memory(container, arena_bytes + store_bytes, settings)


def _gpu_report() -> GpuReport:
    sampler = NvmlSampler()
    try:
        return sampler.sample()
    finally:
        sampler.close()
