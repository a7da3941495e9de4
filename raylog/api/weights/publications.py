"""What one client publishes: a publisher for each name, and what brings its versions to the nodes."""

import logging
import threading
from concurrent.futures import Future, ThreadPoolExecutor

from raylog.api.progress import OnProgress
from raylog.api.put_options import PutOptions
from raylog.api.session import Session
from raylog.api.weights.deliver import Delivery
from raylog.api.weights.publish import Publisher
from raylog.errors import NotFound, RaylogError, UsageError
from raylog.spec import Reference, Version

log = logging.getLogger("raylog.weights")
PUBLISH_TIMEOUT_S = 600.0


class Publications:
    """What one client publishes, name by name. Threads may share it; of one name they wait for each other."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lock = threading.Lock()
        self._by_name: dict[str, _Publication] = {}

    def publish(
        self,
        name: str,
        state: object,
        *,
        replicas: int,
        durability: str,
        keep: int,
        wait: bool,
        timeout_s: float,
        on_progress: OnProgress | None,
    ) -> Version:
        """See `Client.publish`."""
        if keep < 1:
            raise UsageError(f"expected at least one version to keep, got {keep}")
        options = PutOptions.parse(replicas=replicas, durability=durability, codec="auto", labels=None)
        with self._lock:
            one = before = self._by_name.get(name)
            if one is None or one.options != options:
                one = self._by_name[name] = _Publication(self._session, name, options)
        if before is not None and before is not one:
            before.close()
        version = one.publish(state, keep)
        if wait:
            one.deliver(version, timeout_s, on_progress)
        else:
            one.deliver_later(version, timeout_s, on_progress)
        return version

    def close(self) -> None:
        """Ends deliveries under way."""
        for one in list(self._by_name.values()):
            one.close()


class _Publication:
    """One name's: what publishes it and what delivers it."""

    def __init__(self, session: Session, name: str, options: PutOptions) -> None:
        self.options = options
        self._session = session
        self._lock = threading.Lock()
        self._publisher = Publisher(session, name, options)
        self._delivery = Delivery(session)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="deliver")
        self._next: Future[None] | None = None  # the last delivery that was left to the executor
        self._keep = 0  # what was asked of the catalog

    def publish(self, state: object, keep: int) -> Version:
        with self._lock:
            version = self._publisher.publish(state)
            if keep != self._keep:
                self._session.govern("keep", Reference(version.name), {"versions": str(keep)})
                self._keep = keep
            return version

    def deliver(self, version: Version, timeout_s: float, on_progress: OnProgress | None) -> None:
        try:
            self._delivery.deliver(Reference(version.name, version.number), timeout_s, on_progress)
        except NotFound:
            log.info("%s was deleted before it was everywhere", version)

    def deliver_later(self, version: Version, timeout_s: float, on_progress: OnProgress | None) -> None:
        """By a thread. A delivery that has not begun is left out: this one brings what it would have brought. After
        `close`, which another thread may have called while this version was published, nothing is delivered."""

        def deliver() -> None:
            try:
                self.deliver(version, timeout_s, on_progress)
            except RaylogError as error:
                log.warning("%s is committed, but not everywhere: %s", version, error)

        with self._lock:
            if self._next:
                self._next.cancel()
            try:
                self._next = self._executor.submit(deliver)
            except RuntimeError:  # it was shut down
                log.warning("%s is committed, but brought to no node: its publication was closed", version)

    def close(self) -> None:
        self._delivery.close()
        self._executor.shutdown(cancel_futures=True)
