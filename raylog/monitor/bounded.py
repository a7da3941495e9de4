"""Calls that may hang in a driver, with a deadline."""

import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from raylog.errors import DeadlineExceeded

T = TypeVar("T")


class BoundedCalls:
    """Runs calls in one thread of its own, one at a time, and waits at most `timeout_s` for each.

    A call that hangs (NVML's do when a GPU has fallen off its bus) keeps the thread, which nothing can end; until it
    returns, every other call is refused at once and no second thread is started. The thread is a daemon: a hung driver
    does not keep the process from exiting. For one caller.
    """

    def __init__(self, name: str, timeout_s: float) -> None:
        self._name = name
        self._timeout_s = timeout_s
        self._requests: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._is_hung = False

    def call(self, work: Callable[[], T]) -> T:
        """What `work` returns; re-raises what it raises. Raises `DeadlineExceeded` when it does not end in time or an
        earlier call still hangs. The late answer of a call that was given up is dropped: it describes the past."""
        if self._is_hung and self._answers.empty():
            raise DeadlineExceeded(f"{self._name}: an earlier call still hangs")
        if self._is_hung:
            self._answers.get()
            self._is_hung = False
        self._start()
        self._requests.put(work)
        try:
            answer, error = self._answers.get(timeout=self._timeout_s)
        except queue.Empty:
            self._is_hung = True
            raise DeadlineExceeded(f"{self._name}: no answer within {self._timeout_s:g} s") from None
        if error is not None:
            raise error
        result: T = answer
        return result

    def close(self) -> None:
        """Ends the thread: at once, or when the call that hangs in it returns. The next `call` starts a new one."""
        if self._thread is None:
            return
        self._requests.put(None)
        if not self._is_hung:
            self._thread.join(self._timeout_s)
            self._thread = None

    def _start(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while (work := self._requests.get()) is not None:
            try:
                self._answers.put((work(), None))
            except BaseException as error:  # noqa: BLE001 - carried to the caller, which re-raises it
                self._answers.put((None, error))
