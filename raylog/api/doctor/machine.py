"""What the machine gives raylog: ports, shared memory, open files, a right clock, GPUs, TCP, AES."""

import errno
import resource
import shlex
import socket
import time
from collections.abc import Callable, Mapping

from raylog.addresses import machine_addresses, own_bind_address
from raylog.api.doctor.check import Check, Status
from raylog.errors import RaylogError, UsageError
from raylog.monitor.cgroup import CgroupMemory
from raylog.monitor.machine import ClockDiscipline, Congestion
from raylog.monitor.nvml import GpuReport
from raylog.settings import CONFIG_NAME, Settings
from raylog.units import GIB, MIB, format_bytes, format_seconds

OPEN_FILES_WANTED = 65536  # what Ray asks for; raylog holds a socket per stream and a file per shard being read
OPEN_FILES_LEAST = 4096
CLOCK_OFFSET_WARN_S = 1.0
CLOCK_OFFSET_FAIL_S = 30.0  # certificates and grants are refused about here
MEMORY_SHARE_MAX = 0.7  # of a container's limit, for arena and Ray's store together; the rest is the job's
PORTS_PROBED_MAX = 1024
ARENA_USEFUL_BYTES = 64 * MIB


def ports(settings: Settings) -> Check:
    """Binds each port of the range for a moment."""
    if not settings.port_first:
        return Check("ports", "ok", "any free port (port_first and port_last are not set)")
    try:
        host = own_bind_address(settings.bind, machine_addresses(), "0.0.0.0") if settings.bind else ""  # noqa: S104
    except UsageError as error:
        return Check("ports", "fail", str(error), "ip -brief address  # then set bind to one of these")
    wanted = range(settings.port_first, settings.port_last + 1)[:PORTS_PROBED_MAX]
    taken = []
    for port in wanted:
        failure = _bind_failure(host, port)
        if failure == errno.EADDRNOTAVAIL:
            found = f"bind = {settings.bind!r} is no address of this machine"
            return Check("ports", "fail", found, "ip -brief address  # then set bind to one of these")
        if failure:
            taken.append(port)
    words = f"{len(wanted) - len(taken)} of {len(wanted)} ports free, {wanted[0]} to {wanted[-1]}"
    if not taken:
        return Check("ports", "ok", words)
    fix = f"ss -ltnp 'sport >= :{wanted[0]} and sport <= :{wanted[-1]}'  # who holds them (raylog itself, if it runs)"
    return Check("ports", "fail" if len(taken) == len(wanted) else "warn", words, fix)


def _bind_failure(host: str, port: int) -> int | None:
    """The errno of binding there, or None."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(1)
        except socket.gaierror:
            return errno.EADDRNOTAVAIL
        except OSError as error:
            return error.errno
    return None


def ray_store_bytes(memory_bytes: int, shm_bytes: int, environment: Mapping[str, str]) -> int:
    """What a Ray node started without `--object-store-memory` takes of /dev/shm
    (Ray 2.60, `ray._private.utils.resolve_object_store_memory`)."""
    share = float(environment.get("RAY_DEFAULT_OBJECT_STORE_MEMORY_PROPORTION", "0.3"))
    most = int(environment.get("RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES", str(200 * 10**9)))
    return min(int(memory_bytes * share), most, max(10**10, int(shm_bytes * 0.95)))


def shared_memory(shm_bytes: int, arena_bytes: int, store_bytes: int) -> Check:
    """The whole of /dev/shm against what is promised to be in it; what is free now says nothing, for Ray's store and
    an arena that is already there take their pages at different times."""
    parts = f"arena {format_bytes(arena_bytes)} + Ray's object store {format_bytes(store_bytes)}"
    words = f"{format_bytes(shm_bytes)} in /dev/shm; {parts} = {format_bytes(arena_bytes + store_bytes)}"
    if arena_bytes + store_bytes <= shm_bytes and arena_bytes >= ARENA_USEFUL_BYTES:
        return Check("shared memory", "ok", words)
    wanted_gib = -(-(store_bytes + max(arena_bytes, GIB)) // GIB)
    fix = f"sudo mount -o remount,size={wanted_gib}g /dev/shm  # in a container: start it with --shm-size={wanted_gib}g"
    return Check("shared memory", "fail", f"too small: {words}", fix)


def container_memory(container: CgroupMemory | None, shared_bytes: int, settings: Settings) -> Check:
    """`shared_bytes`: arena and Ray's store, whose pages count against the container's limit."""
    if container is None:
        return Check("memory limit", "ok", "no container limit")
    limit = format_bytes(container.limit_bytes)
    words = f"{limit} ({container.path}); arena and Ray's object store may take {format_bytes(shared_bytes)} of it"
    if shared_bytes <= MEMORY_SHARE_MAX * container.limit_bytes:
        return Check("memory limit", "ok", words)
    config = settings.state.expanduser() / CONFIG_NAME
    arena_mib = max(int(container.limit_bytes * MEMORY_SHARE_MAX / 4) // MIB, 64)
    fix = (
        f"echo 'arena_bytes = \"{arena_mib}MiB\"' >> {shlex.quote(str(config))}  # and ray start --object-store-memory"
    )
    return Check("memory limit", "warn", words, fix)


def open_files(soft: int, hard: int) -> Check:
    infinite = resource.RLIM_INFINITY
    if soft == infinite or soft >= OPEN_FILES_WANTED:
        return Check("open files", "ok", "unlimited" if soft == infinite else f"limit {soft}")
    fix = f"ulimit -n {OPEN_FILES_WANTED}  # before 'ray start'"
    if hard != infinite and hard < OPEN_FILES_WANTED:
        fix = (
            f"echo '* - nofile {OPEN_FILES_WANTED}' | sudo tee /etc/security/limits.d/raylog.conf  # then log in again"
        )
    status: Status = "fail" if soft < OPEN_FILES_LEAST else "warn"
    return Check("open files", status, f"limit {soft} (hard limit {hard}), wanted {OPEN_FILES_WANTED}", fix)


def clock(discipline: ClockDiscipline, words: str) -> Check:
    if discipline is ClockDiscipline.SYNCHRONISED:
        return Check("clock", "ok", words)
    found = f"{words}; unknown whether it is right (a virtual machine's host may set it)"
    return Check("clock", "warn", found, "sudo timedatectl set-ntp true && timedatectl timesync-status")


def clock_against_head(head_clock: Callable[[], float]) -> Check:
    """This clock against the head's, in the middle of the question's way there and back."""
    before_s = time.time()
    try:
        head_s = head_clock()
    except RaylogError as error:
        return Check("clock and head", "warn", f"unknown: {error}", "raylog status")
    way_s = time.time() - before_s
    offset_s = before_s + way_s / 2 - head_s
    words = f"{format_seconds(abs(offset_s))} {'ahead of' if offset_s > 0 else 'behind'} the head (± {way_s / 2:.3f} s)"
    if abs(offset_s) <= CLOCK_OFFSET_WARN_S + way_s / 2:
        return Check("clock and head", "ok", words)
    status: Status = "fail" if abs(offset_s) > CLOCK_OFFSET_FAIL_S else "warn"
    return Check("clock and head", status, words, "sudo timedatectl set-ntp true  # here and on the head")


def gpus(report: GpuReport, has_driver: bool) -> Check:
    """`has_driver`: the kernel has NVIDIA's driver loaded."""
    if report.problem is None:
        names = sorted({gpu.name for gpu in report.gpus})
        return Check(
            "gpus", "ok", f"{len(report.gpus)}: {', '.join(names)}" if names else "NVML works, there is no GPU"
        )
    if not report.gpus and not has_driver:
        return Check("gpus", "ok", f"{report.problem}; raylog works without")
    return Check(
        "gpus", "fail" if report.gpus else "warn", report.problem, "nvidia-smi -q | head -30; dmesg | grep NVRM"
    )


def congestion_control(found: Congestion | None) -> Check:
    if found is None:
        return Check("tcp", "warn", "this kernel does not name its congestion controls", "sysctl net.ipv4")
    words = f"{found.default} by default; available: {', '.join(found.available)}"
    if "bbr" in found.available:
        return Check("tcp", "ok", words)
    return Check("tcp", "warn", f"{words}; without bbr lossy links are slow", "sudo modprobe tcp_bbr")


def aes(flags: frozenset[str] | None) -> Check:
    """`flags`: the CPU's instruction sets."""
    if flags is None:
        return Check("aes", "warn", "unknown: /proc/cpuinfo does not name instruction sets", "lscpu | grep -i aes")
    if "aes" not in flags:
        found = "no AES instructions: sealing and transfer run at a tenth of the speed"
        return Check("aes", "warn", found, "lscpu | grep -i aes  # in a virtual machine choose the CPU model 'host'")
    return Check("aes", "ok", "aes and vaes" if "vaes" in flags else "aes")
