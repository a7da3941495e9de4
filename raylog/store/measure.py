"""What a device under a folder can do, by trying: reads past the page cache, writes and fsyncs as a commit does
them."""

import mmap
import os
import secrets
import statistics
import time
from pathlib import Path

from raylog.store.device_meter import DeviceRates
from raylog.store.files import storage_errors, write_exactly
from raylog.units import MIB

PROBE_BYTES = 32 * MIB
BLOCK_BYTES = 4 * MIB
SYNCS = 5


def measure(folder: Path, probe_bytes: int = PROBE_BYTES) -> DeviceRates:
    """Writes a file of `probe_bytes`, reads it back and deletes it: a tenth of a second on an SSD, about a second on a
    hard disk. Raises `NoSpace`, `Unavailable`."""
    path = folder / f".probe-{secrets.token_hex(8)}"
    block = memoryview(bytearray(secrets.token_bytes(BLOCK_BYTES)))  # random: some devices compress
    with storage_errors(f"device under {folder}", "measure it", probe_bytes):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            began_s = time.perf_counter()
            for offset in range(0, probe_bytes, BLOCK_BYTES):
                write_exactly(descriptor, block, offset)
            os.fsync(descriptor)
            written_s = time.perf_counter() - began_s
            sync_s = statistics.median(_synced_s(descriptor, number) for number in range(SYNCS))
            return DeviceRates(
                read_bytes_per_s=probe_bytes / _read_s(path, descriptor, probe_bytes),
                write_bytes_per_s=probe_bytes / max(written_s, 1e-9),
                sync_s=sync_s,
            )
        finally:
            os.close(descriptor)
            path.unlink()


def _synced_s(descriptor: int, number: int) -> float:
    """A page written and synced."""
    os.pwrite(descriptor, secrets.token_bytes(4096), number * MIB)
    began_s = time.perf_counter()
    os.fsync(descriptor)
    return time.perf_counter() - began_s


def _read_s(path: Path, descriptor: int, probe_bytes: int) -> float:
    """Past the page cache where the file system can (O_DIRECT), else after it was asked to forget the file."""
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    buffer = mmap.mmap(-1, BLOCK_BYTES)  # aligned, as O_DIRECT wants it
    try:
        reading = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        reading = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        began_s = time.perf_counter()
        for offset in range(0, probe_bytes, BLOCK_BYTES):
            os.preadv(reading, [buffer], offset)
        return max(time.perf_counter() - began_s, 1e-9)
    finally:
        os.close(reading)
        buffer.close()
