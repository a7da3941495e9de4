"""Workers of PyTorch's DataLoader that die: told where the loop takes its next batch, and nowhere else.

PyTorch raises from its handler of SIGCHLD wherever the main thread is then: in the middle of a training step, or of a
call that holds a lock. And it ends the other workers when its iterator is collected, over locks that a killed one may
have held.
"""

import os
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import Any, Self

import torch

from raylog.errors import Unavailable

JOIN_TIMEOUT_S = 5.0
LOST_TIMEOUT_S = 1.0  # from a socket's end to that of its process


class WorkerBatches:
    """The batches of DataLoader's iterator over several workers, until `close`. Raises `Unavailable` for the next batch
    after a worker was killed."""

    def __init__(self, batches: Any) -> None:
        self._batches, self._process = batches, os.getpid()
        self._is_in_main_thread = threading.current_thread() is threading.main_thread()
        if self._is_in_main_thread:
            _DEATHS.begin()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        try:
            return _DEATHS.told_within(self._batches.__next__) if self._is_in_main_thread else next(self._batches)
        except (RuntimeError, OSError, EOFError) as error:
            if "Caught" in str(error) or not ("DataLoader worker" in str(error) or self._has_lost_one()):
                raise  # a worker's own error keeps its words
            how = (str(error) or repr(error)).splitlines()[0]
            raise Unavailable(
                f"a worker has ended, killed perhaps for want of memory ({how}): give load_state_dict what state_dict "
                "says now, and iterate again; it goes on with the next batch"
            ) from error

    def _has_lost_one(self) -> bool:
        """What a batch lies in comes from its worker by a socket, which one that is killed then leaves half-way."""
        by_sentinel = {worker.sentinel: worker for worker in self._batches._workers}
        for ended in wait(list(by_sentinel), LOST_TIMEOUT_S):
            by_sentinel[ended].join(JOIN_TIMEOUT_S)  # its files are closed before it has ended
        return any(worker.exitcode for worker in self._batches._workers)

    def close(self) -> None:
        """Ends the workers; for once. In a forked process, which has no part in them, nothing."""
        if os.getpid() != self._process:
            return
        if any(worker.exitcode for worker in self._batches._workers):
            self._kill()
        self._batches._shutdown_workers()
        if self._is_in_main_thread:
            _DEATHS.end()

    def _kill(self) -> None:
        """What PyTorch does first to end the others may wait for a lock of the dead one."""
        torch._C._remove_worker_pids(id(self._batches))  # these deaths are nobody's news
        self._batches._worker_pids_set = False
        for worker in self._batches._workers:
            worker.kill()
        for worker in self._batches._workers:
            worker.join(JOIN_TIMEOUT_S)
        self._batches._workers_done_event = threading.Event()  # nobody is there to see the shared one


class _Deaths:
    """PyTorch's handler of SIGCHLD, for loops of the main thread, where Python calls it: while it waits for a batch,
    and outside of loops over workers; in between it is put off."""

    def __init__(self) -> None:
        self._handle: Callable[[int, Any], Any] | None = None  # PyTorch's
        self._loops = 0  # of the main thread
        self._is_waiting = self._is_due = False

    def begin(self) -> None:
        """A loop begins, whose workers have started: PyTorch's handler is there."""
        self._loops += 1
        present = signal.getsignal(signal.SIGCHLD)
        if self._handle is None and callable(present):
            self._handle = present
            signal.signal(signal.SIGCHLD, self._on_child)

    def end(self) -> None:
        self._loops -= 1

    def told_within(self, take: Callable[[], Any]) -> Any:
        """What `take` gives, or the error of a worker that died before or meanwhile."""
        try:
            self._is_waiting = True
            if self._is_due and self._handle is not None:
                self._is_due = False
                self._handle(signal.SIGCHLD, None)
            return take()
        finally:
            self._is_waiting = False

    def _on_child(self, number: int, frame: Any) -> None:
        if self._loops and not self._is_waiting:
            self._is_due = True
        elif self._handle is not None:
            self._handle(number, frame)


_DEATHS = _Deaths()
