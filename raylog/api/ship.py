"""`ship`: every target node pulls the shards it lacks, straight from nodes that hold them."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

import msgspec

from raylog.actors.node import NodeInfo
from raylog.api.session import Session
from raylog.catalog.manifest import Manifest
from raylog.errors import DeadlineExceeded, RaylogError, Unavailable, UsageError
from raylog.spec import QosClass, Reference, ShardRef

PULLS_AT_ONCE = 8  # shards on their way, over all targets


class ShipReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a finished shipment did. `moved_bytes` are sealed bytes that crossed between nodes; shards that a target
    held already are not counted."""

    name: str
    nodes: list[str]
    shards: int
    moved_bytes: int
    seconds: float


class ShipProgress(msgspec.Struct, frozen=True, kw_only=True):
    """Sealed bytes at their target, and to be there in all."""

    done_bytes: int
    total_bytes: int


class Shipment:
    """A running `ship`. It ends by itself at its deadline; threads may share it."""

    def __init__(
        self,
        session: Session,
        manifest: Manifest,
        targets: Sequence[NodeInfo],
        qos: QosClass,
        deadline_s: float,
        on_progress: Callable[[int, int], None] | None,
    ) -> None:
        self._session = session
        self._manifest = manifest
        self._targets = targets
        self._qos = qos
        self._deadline = time.monotonic() + deadline_s
        self._on_progress = on_progress
        self._lock = threading.Lock()
        self._done_bytes = 0
        self._moved_bytes = 0
        self._cancelled = threading.Event()
        self._error: RaylogError | None = None
        self._started_s = time.monotonic()
        self._seconds = 0.0
        self._finished = threading.Event()
        threading.Thread(target=self._run, name="ship", daemon=True).start()

    def progress(self) -> ShipProgress:
        with self._lock:
            return ShipProgress(done_bytes=self._done_bytes, total_bytes=self._total_bytes)

    def cancel(self) -> None:
        """Starts no further pull; shards that are whole on their target stay there. `result` raises `Unavailable`."""
        self._cancelled.set()

    def result(self, timeout_s: float | None = None) -> ShipReport:
        """Waits for the end. Raises `DeadlineExceeded` after `timeout_s` (the shipment goes on) or at the shipment's
        own deadline, and whatever made it fail."""
        limit_s = timeout_s if timeout_s is not None else max(self._deadline - time.monotonic(), 0) + 5
        if not self._finished.wait(limit_s):
            state = self.progress()
            raise DeadlineExceeded(
                f"{self._manifest.name}: {state.done_bytes} of {state.total_bytes} bytes shipped within {limit_s:.1f} s"
            )
        if self._error:
            raise self._error
        return ShipReport(
            name=self._manifest.name,
            nodes=[info.node_id for info in self._targets],
            shards=len(self._manifest.shards),
            moved_bytes=self._moved_bytes,
            seconds=self._seconds,
        )

    @property
    def _total_bytes(self) -> int:
        return len(self._targets) * sum(entry.shard.stored_bytes for entry in self._manifest.shards)

    def _run(self) -> None:
        work = [(target, entry.shard) for entry in self._manifest.shards for target in self._targets]
        try:
            with ThreadPoolExecutor(PULLS_AT_ONCE, thread_name_prefix="ship") as executor:
                futures = [executor.submit(self._pull, target, shard) for target, shard in work]
                for future in as_completed(futures):
                    future.result()
        except BaseException as error:  # noqa: BLE001 - the thread's edge: `result` raises it, whatever it is
            self._cancelled.set()
            self._error = error if isinstance(error, RaylogError) else Unavailable(f"the shipment failed: {error!r}")
        finally:
            self._seconds = time.monotonic() - self._started_s
            self._finished.set()

    def _pull(self, target: NodeInfo, shard: ShardRef) -> None:
        left_s = self._deadline - time.monotonic()
        if self._cancelled.is_set():
            raise Unavailable(f"{self._manifest.name}: the shipment was cancelled")
        if left_s <= 0:
            raise DeadlineExceeded(f"{self._manifest.name}: not all shipped by the deadline; ship again to go on")
        outcome = self._session.pull(target, shard, self._qos, None, timeout_s=left_s)
        with self._lock:
            self._done_bytes += shard.stored_bytes
            self._moved_bytes += outcome.moved_bytes
        if self._on_progress:
            self._on_progress(self._done_bytes, self._total_bytes)


def start_shipment(
    session: Session,
    reference: Reference,
    to: str | Sequence[str],
    qos: QosClass,
    deadline_s: float | None,
    on_progress: Callable[[int, int], None] | None,
) -> Shipment:
    """Resolves version and targets, raising `NotFound` or `UsageError` at once, and starts the shipment."""
    manifest = session.manifest(reference)
    if isinstance(to, str) and to != "all":
        raise UsageError(f"expected 'all' or a list of node ids, got {to!r}")
    targets = session.nodes() if to == "all" else [session.node(node_id) for node_id in to]
    if not targets:
        raise UsageError("expected at least one node to ship to")
    return Shipment(session, manifest, targets, qos, deadline_s or session.settings.pull_deadline_s, on_progress)
