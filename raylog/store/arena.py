"""The memory tier's bytes: one file in a memory file system, reserved whole before it is used.

/dev/shm promises more than it has: a page that cannot be found when it is touched kills the process with SIGBUS. So the
file is `fallocate`d first, and a machine without the memory answers `NoSpace` at the start. A thread then faults the
pages in, from the low addresses that first fit hands out first; pages it has not reached yet work too, only slower.
"""

import contextlib
import logging
import mmap
import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from raylog.errors import NotPermitted, Unavailable
from raylog.store.extents import Extent
from raylog.store.files import no_space, storage_errors
from raylog.units import MIB

log = logging.getLogger(__name__)

_MADV_POPULATE_WRITE = 23  # Linux 5.14; not named by Python's mmap
_WARM_STEP_BYTES = 2 * MIB  # madvise holds the interpreter's lock: a step is some milliseconds
_WARM_PAUSE_S = 0.0005


class Arena:
    """A mapped file of `capacity_bytes` at `path`, mode 0600, removed again by `close`.

    What lies at `path` is fenced: unlinked before the new file is made. A process that still maps the old file (an
    earlier incarnation of this node, a reader) keeps its bytes undisturbed and can no longer be taken for this arena.

    Raises `NoSpace` when the file system has less than that free, `NotPermitted` when `path` belongs to someone else.
    """

    def __init__(self, path: Path, capacity_bytes: int) -> None:
        assert capacity_bytes > 0 and capacity_bytes % mmap.PAGESIZE == 0
        self.path = path
        self.capacity_bytes = capacity_bytes
        self.warm_bytes = 0
        self._descriptor = _make_file(path, capacity_bytes)
        # For readers. Opened anew, not duplicated: a duplicate of a writable descriptor could be mapped writable.
        self.read_only_descriptor = os.open(f"/proc/self/fd/{self._descriptor}", os.O_RDONLY | os.O_CLOEXEC)
        self._map = mmap.mmap(self._descriptor, capacity_bytes)
        self._stop = threading.Event()
        self._warmer = threading.Thread(target=self._warm, name="raylog-arena-warmer", daemon=True)
        self._warmer.start()

    @property
    def descriptor(self) -> int:
        """Open for writing: for a process that puts a shard straight into its extent."""
        return self._descriptor

    def view(self, extent: Extent, length: int, when_gone: Callable[[], object]) -> memoryview:
        """A writable view of the first `length` bytes of `extent`.

        `when_gone` is called once the view, and every slice of it that anybody took, is gone: from any thread, at any
        moment, so it may only take note.
        """
        owner: npt.NDArray[np.uint8] = np.frombuffer(self._map, dtype=np.uint8, count=length, offset=extent.offset)
        weakref.finalize(owner, when_gone).atexit = False
        return owner.data

    def _warm(self) -> None:
        for start in range(0, self.capacity_bytes, _WARM_STEP_BYTES):
            length = min(_WARM_STEP_BYTES, self.capacity_bytes - start)
            try:
                self._map.madvise(_MADV_POPULATE_WRITE, start, length)
            except OSError as error:
                log.warning(
                    "arena %s: pages are not faulted in ahead (%s; needs Linux 5.14): first writes will be slower",
                    self.path,
                    error.strerror,
                )
                return
            self.warm_bytes = start + length
            if self._stop.wait(_WARM_PAUSE_S):
                return

    def close(self) -> None:
        """Removes the file and lets the mapping go. Views that are still held keep their pages until they are gone."""
        self._stop.set()
        self._warmer.join()
        if self._descriptor < 0:
            return
        with contextlib.suppress(FileNotFoundError):
            # A later incarnation may have its own file at this path by now.
            if os.path.samestat(self.path.stat(follow_symlinks=False), os.fstat(self._descriptor)):
                self.path.unlink()
        os.close(self.read_only_descriptor)
        os.close(self._descriptor)
        self._descriptor = self.read_only_descriptor = -1
        with contextlib.suppress(BufferError):  # views are held: the mapping goes with the last of them
            self._map.close()


def _make_file(path: Path, capacity_bytes: int) -> int:
    """A fresh file with all of its pages reserved; on any failure there is none."""
    tier, action = f"memory tier {path}", "make the arena"
    try:
        path.unlink(missing_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
    except PermissionError as error:
        raise NotPermitted(f"{tier}: the file belongs to another user; choose another path") from error
    except OSError as error:
        raise Unavailable(f"{tier}: cannot {action}: {error.strerror}; is there such a directory?") from error
    try:
        status = os.fstatvfs(descriptor)
        free_bytes = status.f_bavail * status.f_frsize
        with storage_errors(tier, action, capacity_bytes, free_bytes):
            if free_bytes < capacity_bytes:
                raise no_space(tier, action, capacity_bytes, free_bytes)
            os.posix_fallocate(descriptor, 0, capacity_bytes)
    except BaseException:
        os.close(descriptor)
        path.unlink(missing_ok=True)
        raise
    return descriptor
