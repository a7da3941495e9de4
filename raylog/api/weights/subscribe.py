"""A subscription: a thread sees new versions, has them on this node, and reads them ahead; the caller switches."""

import logging
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from raylog.api.get import Reading
from raylog.api.session import Session
from raylog.api.weights.arrival import Arrival
from raylog.api.weights.target import Target
from raylog.errors import Cancelled, DeadlineExceeded, NotFound, RaylogError, Unavailable
from raylog.spec import Reference, Version

log = logging.getLogger("raylog.weights")
LOOK_PERIOD_S = 0.5
ARRIVAL_PERIOD_S = 0.1
RETRY_S = 2.0  # after an error that may pass
CLOSE_TIMEOUT_S = 10.0
NEXT_TIMEOUT_S = 3600.0


class Subscription:
    """See `Client.subscribe`. At most two versions are in memory: the caller's, and the one that waits for it or is
    being read. `version` is the one that the caller was given last. For one thread, but `close` is for any."""

    def __init__(self, session: Session, name: str, key: str, into: Any) -> None:
        self.version: Version | None = None
        self._session, self._name, self._key = session, name, key
        self._target = Target(into)
        self._arrival = Arrival(session)
        self._lock = threading.Condition()
        self._waiting: tuple[Version, Any] | None = None
        self._error: RaylogError | None = None
        self._end: RaylogError | None = None  # why no version comes any more
        self._seen = 0  # number of the version that was read last, or could not be
        self._coming: tuple[Version, Reading] | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="subscribe", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether versions still come; False once it was closed, or ended as `poll` says."""
        return self._end is None and not self._closed.is_set()

    def poll(self) -> Any:
        """The newest version, if it is here and was not given yet; else None, at once.

        Raises, once for a version that cannot be read, what is wrong with it: `UsageError` for one that does not fit,
        `DamagedData`, `NotPermitted`. What was given before stays as it is, and later versions come. Raises
        `Unavailable` for what should not happen: it is tried again, but for what ends the thread, raised every time.
        """
        with self._lock:
            return self._take()

    def wait(self, timeout_s: float) -> Any:
        """The same, once there is one. Raises `DeadlineExceeded` after `timeout_s`, `Cancelled` when it is closed."""
        with self._lock:
            if not self._lock.wait_for(
                lambda: self._waiting or self._error or self._end or self._closed.is_set(), timeout_s
            ):
                newest = self.version or f"no version of {self._name}"
                raise DeadlineExceeded(f"nothing newer than {newest} came within {timeout_s:.1f} s: is it published?")
            if self._closed.is_set():
                raise Cancelled(f"the subscription to {self._name} was closed")
            return self._take()

    def __iter__(self) -> Iterator[Any]:
        """Versions as they come, until it is closed; those that are overtaken before they are asked for are left out.
        Raises as `wait` after an hour without one."""
        while not self._closed.is_set():
            try:
                found = self.wait(NEXT_TIMEOUT_S)
            except Cancelled:
                return
            yield found

    def _take(self) -> Any:
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        if self._waiting is None and self._end is not None:
            raise self._end
        if self._waiting is None:
            return None
        version, state = self._waiting
        switched = self._target.switch(state)  # under the lock: its memory is read into next
        self._waiting, self.version = None, version
        return switched

    def _run(self) -> None:
        pause_s = 0.0
        while not self._closed.wait(pause_s):
            try:
                pause_s = self._look()
            except NotFound as error:  # not there yet, or deleted while it was read: there is a later one
                if self._coming is not None:
                    log.warning("%s: the newest version is looked for again: %s", self._name, error)
                self._coming, pause_s = None, LOOK_PERIOD_S
            except RaylogError as error:
                log.warning("%s: the newest version is tried again: %s", self._name, error)
                self._coming, pause_s = None, RETRY_S
            except Exception as error:  # the thread's edge: the caller raises it, whatever it is
                log.warning("%s: the newest version is tried again", self._name, exc_info=True)
                self._fail(Unavailable(f"the newest version of {self._name} is tried again: {error!r}"))
                self._coming, pause_s = None, RETRY_S
            except BaseException as error:  # noqa: BLE001 - the same, and nothing can be tried again
                with self._lock:
                    self._end = Unavailable(f"the subscription to {self._name} ended, subscribe again: {error!r}")
                    self._lock.notify_all()
                return

    def _look(self) -> float:
        """Reads what is new, if it is here; how long to wait before the next look. A version that is on its way is
        waited for even if it is overtaken: of those that follow faster than they travel, the newest is never here."""
        version = self._coming[0] if self._coming else self._session.retried("catalog", "stat", Reference(self._name))
        if version.number == self._seen:
            return LOOK_PERIOD_S
        try:
            if self._coming is None:
                self._coming = version, Reading(self._session, Reference(self._name, version.number))
            reading = self._coming[1]
            if not self._arrival.is_over(reading.manifest):
                if reading.is_deleted():
                    self._coming = None
                return ARRIVAL_PERIOD_S
            with self._lock:
                self._waiting = None  # overtaken
            state = self._target.read(reading, self._key)
        except NotFound:
            raise
        except RaylogError as error:
            if error.is_retryable:
                raise
            error.add_note(f"this is about {version}; what was given before stays as it is")
            self._fail(error)
        else:
            with self._lock:
                self._waiting, self._error = (version, state), None
                self._lock.notify_all()
        self._coming, self._seen = None, version.number
        self._arrival.taken()
        return 0.0

    def _fail(self, error: RaylogError) -> None:
        with self._lock:
            self._error = error
            self._lock.notify_all()

    def close(self) -> None:
        """Ends the thread; what was given stays. What it is reading now is waited for, for a while."""
        self._closed.set()
        with self._lock:
            self._lock.notify_all()
        self._thread.join(CLOSE_TIMEOUT_S)
        with self._lock:
            self._waiting = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
