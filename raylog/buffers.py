"""Buffers that are reused as soon as nobody looks at them: fresh pages cost more than reading into them."""

import mmap
import threading
import weakref

import numpy as np


class BufferPool:
    """Hands out writable buffers and takes each back when its last view (or slice of it) is gone.

    Guarantee: no two living views ever share bytes. Keeps at most `idle_max` buffers that nobody uses; how many are in
    use is bounded by the callers' own windows. Thread-safe.
    """

    def __init__(self, idle_max: int = 4) -> None:
        self._idle_max = idle_max
        self._idle: list[mmap.mmap] = []
        self._lock = threading.Lock()

    def take(self, length: int) -> memoryview:
        """A page-aligned view of `length` bytes, at least one, whose content is undefined."""
        raw = self._reuse(length) or mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        owner = np.frombuffer(raw, dtype=np.uint8)
        weakref.finalize(owner, self._give_back, raw).atexit = False
        return owner.data[:length]

    def _reuse(self, length: int) -> mmap.mmap | None:
        with self._lock:
            for index, raw in enumerate(self._idle):
                if len(raw) >= length:
                    return self._idle.pop(index)
        return None

    def _give_back(self, raw: mmap.mmap) -> None:
        # Runs wherever the last view died, perhaps while this very thread holds the lock: then the buffer is let go.
        if self._lock.acquire(blocking=False):
            try:
                self._idle.append(raw)
                self._idle.sort(key=len)
                del self._idle[: -self._idle_max]
            finally:
                self._lock.release()
