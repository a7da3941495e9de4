"""Facts of the machine that do not change from second to second: clock discipline, TCP, CPU."""

import ctypes
import enum
from dataclasses import dataclass
from pathlib import Path

CONGESTION_PATH = Path("/proc/sys/net/ipv4")
CPUINFO_PATH = Path("/proc/cpuinfo")
_STA_UNSYNC = 0x0040
_TIME_ERROR = 5


class ClockDiscipline(enum.Enum):
    """Whether something keeps the machine's clock right."""

    SYNCHRONISED = "synchronised"
    UNSYNCHRONISED = "unsynchronised"
    UNKNOWN = "unknown"


class _Timex(ctypes.Structure):
    """`struct timex` as adjtimex(2) gives it; the tail that is not read is one block."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_long * 40),
    )


@dataclass(frozen=True, slots=True)
class Congestion:
    """TCP congestion controls of this kernel. Modules that are not loaded yet are not `available`."""

    available: tuple[str, ...]
    default: str


def clock_discipline() -> tuple[ClockDiscipline, str]:
    """What the kernel knows of its clock (adjtimex(2), reading only), and that in words.

    In a virtual machine whose host sets the clock, the kernel may call a right clock unsynchronised.
    """
    try:
        adjtimex = ctypes.CDLL(None, use_errno=True).adjtimex
    except (OSError, AttributeError):
        return ClockDiscipline.UNKNOWN, "this system has no adjtimex"
    timex = _Timex(modes=0)
    state = adjtimex(ctypes.byref(timex))
    if state < 0:
        return ClockDiscipline.UNKNOWN, f"adjtimex is refused here (errno {ctypes.get_errno()})"
    if state == _TIME_ERROR or timex.status & _STA_UNSYNC:
        return ClockDiscipline.UNSYNCHRONISED, "the kernel says that nothing synchronises its clock"
    return ClockDiscipline.SYNCHRONISED, f"synchronised, off by at most {timex.maxerror / 1000:.0f} ms"


def congestion(path: Path = CONGESTION_PATH) -> Congestion | None:
    """What TCP may use here, or None where the kernel does not say."""
    try:
        available = (path / "tcp_available_congestion_control").read_text().split()
        default = (path / "tcp_congestion_control").read_text().strip()
    except OSError:
        return None
    return Congestion(tuple(available), default)


def cpu_flags(path: Path = CPUINFO_PATH) -> frozenset[str] | None:
    """The instruction sets of the first CPU ("flags" on x86, "Features" on Arm), or None where /proc has none."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip().lower() in ("flags", "features"):
            return frozenset(value.split())
    return None
