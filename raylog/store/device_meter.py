"""How a storage device does: totals of what it was asked for, its rates lately, and whether it is as fast as it was.

Thread-safe, and without a clock of its own: whoever asked the device says how long it took.
"""

import math
import threading
from dataclasses import dataclass, field, replace

RATE_BYTES = 32 << 20  # over which a rate is averaged: what is older counts for less
SLOW_TIMES = 3.0  # as long as what was measured lets expect: then a device is taken for a slow one
CALL_S = 0.0005  # of one read, at least, before the first byte
SEEN_BYTES_MIN = 8 << 20  # before a rate says anything
SYNC_WEIGHT = 0.2  # of the newest fsync in the mean
ERRORS_FAILING = 3  # in a row: then nothing new is given to the device


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRates:
    """Bytes per second to and from a device, and how long a small fsync takes."""

    read_bytes_per_s: float
    write_bytes_per_s: float
    sync_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceCounters:
    """Totals since the start; seconds are those that callers waited."""

    read_bytes: int = 0
    read_s: float = 0.0
    reads: int = 0
    written_bytes: int = 0
    write_s: float = 0.0
    writes: int = 0
    sync_s: float = 0.0
    syncs: int = 0
    errors: int = 0


@dataclass(slots=True)
class _Rate:
    value: float | None = None
    seen_bytes: int = 0

    def add(self, count: int, seconds: float) -> None:
        if not count:  # a commit of what an earlier writer left: nothing is known of a rate
            return
        newest = count / max(seconds, 1e-9)
        weight = 1 - math.exp(-count / RATE_BYTES)
        # Means of seconds per byte: a device that stalls once is slow, however fast it was before.
        self.value = newest if self.value is None else 1 / ((1 - weight) / self.value + weight / newest)
        self.seen_bytes += count

    @property
    def known(self) -> float | None:
        return self.value if self.seen_bytes >= SEEN_BYTES_MIN else None


@dataclass(slots=True)
class _Slowness:
    """How many times as long as expected the device takes, lately."""

    value: float = 1.0

    def add(self, count: int, seconds: float, expected_s: float) -> None:
        weight = 1 - math.exp(-count / RATE_BYTES)
        self.value += weight * (seconds / expected_s - self.value)


@dataclass
class DeviceMeter:
    """What is known of one device. `measured`: by `measure.py`, when nothing else was asked of it; `assumed`: what it
    passes for while nothing is known of it."""

    measured: DeviceRates | None = None
    assumed: DeviceRates = DeviceRates(read_bytes_per_s=500e6, write_bytes_per_s=200e6, sync_s=0.01)
    _counters: DeviceCounters = field(default_factory=DeviceCounters)
    _read: _Rate = field(default_factory=_Rate)
    _written: _Rate = field(default_factory=_Rate)
    _reading: _Slowness = field(default_factory=_Slowness)
    _writing: _Slowness = field(default_factory=_Slowness)
    _sync_s: float | None = None
    _errors_in_a_row: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def remeasured(self, rates: DeviceRates) -> None:
        """What the device can do now. If that is not much less than what it could before, it only seemed slow, since
        much was asked of it at once."""
        with self._lock:
            before = self.measured or rates
            if (
                rates.read_bytes_per_s * SLOW_TIMES >= before.read_bytes_per_s
                and rates.write_bytes_per_s * SLOW_TIMES >= before.write_bytes_per_s
            ):
                self._reading, self._writing = _Slowness(), _Slowness()
                self.measured = rates

    def read(self, count: int, seconds: float) -> None:
        """So many bytes were read."""
        with self._lock:
            now = self._counters
            self._counters = replace(
                now, reads=now.reads + 1, read_bytes=now.read_bytes + count, read_s=now.read_s + seconds
            )
            self._read.add(count, seconds)
            if self.measured is not None:
                self._reading.add(count, seconds, CALL_S + count / self.measured.read_bytes_per_s)
            self._errors_in_a_row = 0

    def wrote(self, count: int, seconds: float, sync_s: float) -> None:
        """So many bytes were written and synced; `sync_s` of the seconds went into that."""
        with self._lock:
            now = self._counters
            self._counters = replace(
                now,
                writes=now.writes + 1,
                written_bytes=now.written_bytes + count,
                write_s=now.write_s + seconds,
                syncs=now.syncs + 1,
                sync_s=now.sync_s + sync_s,
            )
            self._written.add(count, seconds)
            if self.measured is not None:
                expected_s = CALL_S + self.measured.sync_s + count / self.measured.write_bytes_per_s
                self._writing.add(count, seconds, expected_s)
            self._sync_s = sync_s if self._sync_s is None else (1 - SYNC_WEIGHT) * self._sync_s + SYNC_WEIGHT * sync_s
            self._errors_in_a_row = 0

    def failed(self) -> None:
        """The device refused something that it should have done."""
        with self._lock:
            self._counters = replace(self._counters, errors=self._counters.errors + 1)
            self._errors_in_a_row += 1

    @property
    def counters(self) -> DeviceCounters:
        with self._lock:
            return self._counters

    @property
    def is_failing(self) -> bool:
        """Whether it has refused what it was asked for a few times, with nothing done in between."""
        with self._lock:
            return self._errors_in_a_row >= ERRORS_FAILING

    @property
    def rates(self) -> DeviceRates:
        """As they are now, as far as is known."""
        with self._lock:
            measured = self.measured or self.assumed
            return DeviceRates(
                read_bytes_per_s=self._read.known or measured.read_bytes_per_s,
                write_bytes_per_s=self._written.known or measured.write_bytes_per_s,
                sync_s=measured.sync_s if self._sync_s is None else self._sync_s,
            )

    @property
    def slow(self) -> str:
        """What makes it a slow device now, in words; "" while it is as fast as it was measured."""
        with self._lock:
            times = {"reads": self._reading.value, "writes": self._writing.value}
        return ", ".join(
            f"{what} take {value:.0f} times as long as measured" for what, value in times.items() if value > SLOW_TIMES
        )
