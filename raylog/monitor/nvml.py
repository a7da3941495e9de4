"""GPUs through NVML (NVIDIA Management Library), by pynvml. Hardware trouble is a reported state here, not an error.

Calls into NVML can hang in the driver, so all of them run in one thread of the sampler with a deadline (bounded.py).
"""

import contextlib
import ctypes
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pynvml

from raylog.errors import DeadlineExceeded
from raylog.monitor.bounded import BoundedCalls
from raylog.monitor.samples import THROTTLE_REASONS, GpuSample

RETRY_FIRST_S = 1.0  # between attempts to open NVML again; doubles up to RETRY_MAX_S
RETRY_MAX_S = 60.0
PCIE_GPUS_PER_SAMPLE = 2  # NVML counts PCIe bytes for 20 ms per direction, so one sample asks few GPUs, in turn
EVENTS_PER_SAMPLE_MAX = 64

# NVMLLibraryMismatchError is no NVMLError. UnicodeDecodeError: names out of a corrupt info ROM.
_FAILURES = (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError, UnicodeDecodeError)
_LOST = {pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED, pynvml.NVML_ERROR_GPU_NOT_FOUND}
# Bits in the order of THROTTLE_REASONS. Idle, application and display clocks are settings, not throttling.
_THROTTLE_BITS = (
    pynvml.nvmlClocksEventReasonSwPowerCap,
    pynvml.nvmlClocksEventReasonHwSlowdown,
    pynvml.nvmlClocksEventReasonSyncBoost,
    pynvml.nvmlClocksEventReasonSwThermalSlowdown,
    pynvml.nvmlClocksEventReasonHwThermalSlowdown,
    pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown,
)


class GpuReport(msgspec.Struct, frozen=True, kw_only=True):
    """The GPUs of this machine at one moment, and in words why there are none or some could not be read."""

    gpus: tuple[GpuSample, ...] = ()
    problem: str | None = None


class NvmlSampler:
    """Samples every GPU of the machine. Opens NVML at the first sample, and again after a driver restart or the loss
    of a GPU, with a back-off from 1 to 60 s (by `monotonic`). For one caller."""

    def __init__(self, timeout_s: float = 2.0, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._library = _Library(monotonic)
        self._calls = BoundedCalls("raylog-nvml", timeout_s)
        self._last: tuple[GpuSample, ...] = ()

    def sample(self) -> GpuReport:
        """The GPUs now. Ends within `timeout_s`, and raises nothing for what hardware or driver do: a GPU that was
        there before stays in the report, with its `problem` and without figures."""
        try:
            report = self._calls.call(self._library.read)
        except DeadlineExceeded as error:
            problem = f"NVML hangs ({error}): see 'dmesg | grep NVRM', reset the GPU or reboot"
            return GpuReport(gpus=tuple(_blank(gpu, problem) for gpu in self._last), problem=problem)
        self._last = report.gpus
        return report

    def close(self) -> None:
        """Gives NVML back, unless the driver hangs, and ends the sampler's thread."""
        with contextlib.suppress(DeadlineExceeded):
            self._calls.call(self._library.close)
        self._calls.close()


class _Device:
    """One GPU that answered when NVML was opened."""

    def __init__(self, index: int) -> None:
        self.handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        self.identity = GpuSample(
            uuid=pynvml.nvmlDeviceGetUUID(self.handle), name=pynvml.nvmlDeviceGetName(self.handle), index=index
        )
        self.pcie: dict[str, Any] = {}
        self.events_missing: str | None = None

    @property
    def address(self) -> int | None:
        """What tells handles apart; two handles of one GPU are equal in it."""
        return _address(self.handle)


class _Library:
    """NVML, closed or open, with the devices found while opening. Each method may block in the driver."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._is_open = False
        self._devices: list[_Device] = []
        self._events: Any = None
        self._known: dict[str, GpuSample] = {}  # identities by uuid: who was here since sampling began
        self._unreadable: dict[int, str] = {}  # index -> why it did not answer while opening
        self._xids: dict[str, dict[int, int]] = {}
        self._pcie_turn = 0
        self._problem = ""
        self._open_at_s = -float("inf")  # the next attempt to open, or to open anew
        self._retry_delay_s = RETRY_FIRST_S
        self._is_reopening = False  # open, but a GPU is missing: open anew at _open_at_s

    def read(self) -> GpuReport:
        now_s = self._monotonic()
        if self._is_reopening and now_s >= self._open_at_s:
            self.close()
        if not self._is_open and now_s < self._open_at_s:
            return self._absent()
        try:
            if not self._is_open:
                self._open()
            count = pynvml.nvmlDeviceGetCount()
        except _FAILURES as failure:
            return self._failed(failure)
        self._take_events()
        samples = [self._sample(device) for device in self._devices] + self._lost()
        self._pcie_turn += PCIE_GPUS_PER_SAMPLE
        lost = [gpu for gpu in samples if gpu.is_lost]
        self._decide_reopening(is_complete=not lost and count == len(self._devices))
        words = "; ".join(f"GPU {gpu.index} ({gpu.uuid}): {gpu.problem}" for gpu in lost)
        return GpuReport(gpus=tuple(sorted(samples, key=lambda gpu: gpu.index)), problem=words or None)

    def close(self) -> None:
        if not self._is_open:
            return
        self._is_open = self._is_reopening = False
        with contextlib.suppress(*_FAILURES):  # the driver may be gone; nothing of it is left to give back then
            if self._events is not None:
                pynvml.nvmlEventSetFree(self._events)
        with contextlib.suppress(*_FAILURES):
            pynvml.nvmlShutdown()
        self._events = None

    def _open(self) -> None:
        pynvml.nvmlInit()
        self._is_open = True
        self._devices, self._unreadable = [], {}
        for index in range(pynvml.nvmlDeviceGetCount()):
            try:
                device = _Device(index)
            except _FAILURES as failure:
                self._unreadable[index] = str(failure)
                continue
            self._devices.append(device)
            self._known[device.identity.uuid] = device.identity
        self._register_events()

    def _register_events(self) -> None:
        try:
            self._events = pynvml.nvmlEventSetCreate()
        except _FAILURES as failure:
            for device in self._devices:
                device.events_missing = str(failure)
            return
        for device in self._devices:
            try:
                pynvml.nvmlDeviceRegisterEvents(device.handle, pynvml.nvmlEventTypeXidCriticalError, self._events)
            except _FAILURES as failure:
                device.events_missing = str(failure)

    def _take_events(self) -> None:
        """Counts the XID errors that have come since the last sample; never waits for one."""
        if self._events is None:
            return
        uuids = {device.address: device.identity.uuid for device in self._devices}
        for _ in range(EVENTS_PER_SAMPLE_MAX):
            try:
                event = pynvml.nvmlEventSetWait_v2(self._events, 0)
            except _FAILURES:  # none is left (a timeout), or a GPU of the set is lost, which its own figures say
                return
            uuid = uuids.get(_address(event.device))
            counts = self._xids.setdefault(uuid, {}) if uuid else {}
            code = int(event.eventData)
            counts[code] = counts.get(code, 0) + 1

    def _sample(self, device: _Device) -> GpuSample:
        figures: dict[str, Any] = {}
        missing = {} if device.events_missing is None else {"xids": device.events_missing}
        for fields, read in _READERS.items():
            try:
                figures.update(zip(fields, read(device.handle), strict=True))
            except _FAILURES as failure:
                if getattr(failure, "value", None) in _LOST:
                    return self._with_xids(_blank(device.identity, str(failure), is_lost=True))
                missing.update(dict.fromkeys(fields, str(failure)))
        self._read_pcie(device)
        for field, figure in device.pcie.items():
            (missing if isinstance(figure, str) else figures)[field] = figure
        return self._with_xids(msgspec.structs.replace(device.identity, missing=missing, **figures))

    def _read_pcie(self, device: _Device) -> None:
        place = (self._devices.index(device) - self._pcie_turn) % len(self._devices)
        if device.pcie and place >= PCIE_GPUS_PER_SAMPLE:
            return
        for field, counter in _PCIE.items():
            try:
                device.pcie[field] = pynvml.nvmlDeviceGetPcieThroughput(device.handle, counter) * 1000
            except _FAILURES as failure:
                device.pcie[field] = str(failure)

    def _with_xids(self, gpu: GpuSample) -> GpuSample:
        return msgspec.structs.replace(gpu, xids=dict(self._xids.get(gpu.uuid, {})))

    def _lost(self) -> list[GpuSample]:
        """GPUs that did not answer while opening: by the identity they once had, else by index."""
        present = {device.identity.uuid for device in self._devices}
        unreadable = dict(self._unreadable)
        lost = []
        for gpu in self._known.values():
            if gpu.uuid not in present:
                reason = unreadable.pop(gpu.index, "the driver no longer lists it")
                lost.append(self._with_xids(_blank(gpu, reason, is_lost=True)))
        strangers = (GpuSample(uuid=f"index-{index}", name="unknown", index=index) for index in unreadable)
        return lost + [_blank(gpu, unreadable[gpu.index], is_lost=True) for gpu in strangers]

    def _decide_reopening(self, is_complete: bool) -> None:
        """A GPU that was reset, or one plugged in, shows up only in a library opened anew."""
        if is_complete:
            self._is_reopening, self._retry_delay_s = False, RETRY_FIRST_S
        elif not self._is_reopening:
            self._is_reopening = True
            self._back_off()

    def _back_off(self) -> None:
        self._open_at_s = self._monotonic() + self._retry_delay_s
        self._retry_delay_s = min(2 * self._retry_delay_s, RETRY_MAX_S)

    def _failed(self, failure: Exception) -> GpuReport:
        self.close()
        self._back_off()
        self._problem = _explained(failure)
        return self._absent()

    def _absent(self) -> GpuReport:
        gpus = (self._with_xids(_blank(gpu, self._problem)) for gpu in self._known.values())
        return GpuReport(gpus=tuple(gpus), problem=self._problem)


def _address(handle: Any) -> int | None:
    return ctypes.cast(handle, ctypes.c_void_p).value


def _blank(gpu: GpuSample, problem: str, is_lost: bool = False) -> GpuSample:
    """`gpu` by its name alone: no figure, and the problem that hides them."""
    return GpuSample(uuid=gpu.uuid, name=gpu.name, index=gpu.index, xids=gpu.xids, is_lost=is_lost, problem=problem)


def _explained(failure: Exception) -> str:
    code = getattr(failure, "value", None)
    if code == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
        return f"no NVIDIA driver on this machine ({failure})"
    if code == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
        return f"the driver was updated under this process, restart it ({failure})"
    return f"NVML does not work: {failure}"


def _memory(handle: Any) -> tuple[int, int]:
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    return int(memory.used), int(memory.total)


def _throttle_reasons(handle: Any) -> tuple[tuple[str, ...]]:
    bits = pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
    return (tuple(name for bit, name in zip(_THROTTLE_BITS, THROTTLE_REASONS, strict=True) if bits & bit),)


def _ecc(kind: int) -> Callable[[Any], tuple[int]]:
    return lambda handle: (pynvml.nvmlDeviceGetTotalEccErrors(handle, kind, pynvml.NVML_VOLATILE_ECC),)


def _clock_hz(kind: int) -> Callable[[Any], tuple[int]]:
    return lambda handle: (pynvml.nvmlDeviceGetClockInfo(handle, kind) * 1_000_000,)


# The fields of GpuSample that one query answers, and the query; NVML's own units (%, mW, mJ, MHz, kB/s) end here.
_READERS: dict[tuple[str, ...], Callable[[Any], tuple[Any, ...]]] = {
    ("utilisation",): lambda handle: (pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,),
    ("memory_used_bytes", "memory_total_bytes"): _memory,
    ("temperature_c",): lambda handle: (float(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)),),
    ("power_w",): lambda handle: (pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,),
    ("power_limit_w",): lambda handle: (pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,),
    ("energy_j",): lambda handle: (pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000,),
    ("clock_sm_hz",): _clock_hz(pynvml.NVML_CLOCK_SM),
    ("clock_memory_hz",): _clock_hz(pynvml.NVML_CLOCK_MEM),
    ("throttle_reasons",): _throttle_reasons,
    ("ecc_corrected",): _ecc(pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED),
    ("ecc_uncorrected",): _ecc(pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED),
}
_PCIE = {
    "pcie_sent_bytes_per_s": pynvml.NVML_PCIE_UTIL_TX_BYTES,
    "pcie_received_bytes_per_s": pynvml.NVML_PCIE_UTIL_RX_BYTES,
}
