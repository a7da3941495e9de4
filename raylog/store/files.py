"""Whole reads, whole writes and durable names: what every disk file of the store goes through."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from raylog.errors import DamagedData, NoSpace, Unavailable
from raylog.store.device_meter import DeviceMeter
from raylog.units import format_bytes

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Descriptor:
    """An open file that is closed when the last user lets go of it.

    A thread that reads or writes holds the object, so another thread's `close` can never turn its number into that of
    some other file.
    """

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


def read_exactly(descriptor: int, into: memoryview, offset: int, where: str, **details: object) -> None:
    """Fills `into` from `offset` by `pread`. Raises `DamagedData` (with `details`) when the file ends before that."""
    done = 0
    while done < len(into):
        count = os.preadv(descriptor, [into[done:]], offset + done)
        if count == 0:
            raise DamagedData(
                f"{where}: expected {len(into)} bytes at offset {offset}, the file ends after {done}: "
                "it was cut short; repair it from another replica",
                **details,
            )
        done += count


def read_bytes(descriptor: int, offset: int, length: int, where: str) -> bytes:
    """`length` bytes from `offset`, for metadata. The caller has checked `length` against the file's size."""
    buffer = bytearray(length)
    read_exactly(descriptor, memoryview(buffer), offset, where)
    return bytes(buffer)


def write_exactly(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Writes all of `data` at `offset`; raises `OSError`."""
    view = memoryview(data)
    done = 0
    while done < len(view):
        done += os.pwrite(descriptor, view[done:], offset + done)


def fsync_directory(path: Path) -> None:
    """Makes names made, removed or renamed in `path` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Makes `path` and what is missing above it durably, mode 0700; nothing to do when it is there."""
    if not path.is_dir():
        make_directory(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
        fsync_directory(path.parent)


def publish(source: Path, target: Path) -> None:
    """Renames a file that the caller has fsynced, and fsyncs the directory: `target` then names all of its bytes,
    whatever happens. Both paths lie on one file system. Raises `OSError`; then there is no `target`."""
    make_directory(target.parent)
    source.rename(target)
    try:
        fsync_directory(target.parent)
    except OSError:
        target.unlink()
        raise


@contextlib.contextmanager
def storage_errors(
    tier: str,
    action: str,
    needed_bytes: int = 0,
    free_bytes: int = 0,
    meter: DeviceMeter | None = None,
    **details: object,
) -> Iterator[None]:
    """Turns an `OSError` of the body into the store's words: a full device to `NoSpace`, a failed read of a bad sector
    to `DamagedData` (with `details`), anything else (read-only device, permissions) to `Unavailable`. `meter` counts
    all but full devices."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise no_space(tier, action, needed_bytes, free_bytes) from error
        if meter is not None and not isinstance(error, FileNotFoundError):
            meter.failed()
        if error.errno == errno.EIO and action.startswith("read"):
            raise DamagedData(
                f"{tier}: cannot {action}: {error.strerror}; repair it from another replica", **details
            ) from error
        raise Unavailable(f"{tier}: cannot {action}: {error.strerror or error}; check the device") from error


def no_space(tier: str, action: str, needed_bytes: int, free_bytes: int) -> NoSpace:
    """The one form in which a full tier is reported."""
    return NoSpace(
        f"{tier}: cannot {action}: needs {format_bytes(needed_bytes)} ({needed_bytes} bytes), "
        f"{format_bytes(free_bytes)} ({free_bytes} bytes) are free; delete something or enlarge the tier",
        tier=tier,
        needed_bytes=needed_bytes,
        free_bytes=free_bytes,
    )
