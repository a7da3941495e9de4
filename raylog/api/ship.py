"""`ship`: every target node pulls the shards it lacks, from nodes that hold them or get them at the same time."""

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress

import msgspec

from raylog.actors import calls
from raylog.actors.node_info import NodeInfo
from raylog.actors.requests import SHARDS_MAX, PinShards
from raylog.api.broadcast import Broadcast
from raylog.api.pace import Pace, ShipForecast, forecast
from raylog.api.progress import OnProgress, Reporter
from raylog.api.pulls import Pulls
from raylog.api.session import Session
from raylog.catalog.manifest import Manifest
from raylog.errors import Cancelled, DeadlineExceeded, RaylogError, Unavailable, UsageError
from raylog.spec import QosClass, Reference, ShardRef

log = logging.getLogger("raylog.ship")
SHARDS_AT_ONCE = 2  # on their way to every target
PULLS_AT_ONCE_MAX = 256
POLL_PERIOD_S = 0.5
POLL_TIMEOUT_S = 2.0
ASKED_RECENTLY_S = 5.0
CANCEL_TIMEOUT_S = 10.0


class ShipReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a finished shipment did. `moved_bytes` are sealed bytes that crossed between nodes, each counted once;
    shards that a target held already are not counted. `twice_bytes` came again, from another node that was asked since
    the first was late."""

    name: str
    nodes: list[str]
    shards: int
    moved_bytes: int
    twice_bytes: int
    seconds: float


class ShipProgress(msgspec.Struct, frozen=True, kw_only=True):
    """Sealed bytes at their target, and to be there in all."""

    done_bytes: int
    total_bytes: int


class Shipment:
    """A running `ship`. It ends by itself at its deadline; threads may share it. `forecast` says from the start whether
    that can be met, and why."""

    def __init__(
        self,
        session: Session,
        manifest: Manifest,
        targets: Sequence[NodeInfo],
        qos: QosClass,
        deadline_s: float,
        on_progress: OnProgress | None,
        *,
        is_pinned: bool = False,
    ) -> None:
        self._session = session
        self._is_pinned = is_pinned
        self._manifest = manifest
        self._targets = targets
        self._qos = qos
        self._deadline = time.monotonic() + deadline_s
        self._reporter, self._is_heard = Reporter(on_progress, self._total_bytes), on_progress is not None
        self._asked_s = -ASKED_RECENTLY_S  # when `progress` was called last
        self._lock = threading.Lock()
        self._pulling: list[tuple[NodeInfo, ShardRef]] = []
        self._partial: dict[tuple[str, str], int] = {}  # sealed bytes of shards under way, by node and shard id
        self._whole_bytes = 0
        self._done_bytes = 0  # what was told; never less than before
        self._moved_bytes = self._twice_bytes = 0
        self._pulls = Pulls(session)
        self._rates = session.pull_rates()
        self._broadcast = Broadcast.of_replicas(
            session, list(manifest.distinct_shards().values()), targets, self._rates
        )
        self._error: RaylogError | None = None
        self.forecast = self._forecast(deadline_s)
        self._pace = Pace(self._total_bytes)
        self._started_s = time.monotonic()
        self._seconds = 0.0
        self._finished = threading.Event()
        threading.Thread(target=self._run, name="ship", daemon=True).start()

    def progress(self) -> ShipProgress:
        """How far it is; never less than before. While somebody asks, the targets are asked twice a second."""
        with self._lock:
            self._asked_s = time.monotonic()
            return ShipProgress(done_bytes=self._done_bytes, total_bytes=self._total_bytes)

    @property
    def eta_s(self) -> float | None:
        """Seconds until it is done at the rate of the last seconds, at first by the forecast; None while not known."""
        self.progress()  # somebody asks
        with self._lock:
            found = self._pace.eta_s(time.monotonic())
        if found is None and self.forecast.expected_s is not None:
            return max(0.0, self.forecast.expected_s - (time.monotonic() - self._started_s))
        return found

    def _forecast(self, deadline_s: float) -> ShipForecast:
        lacking = [info for info in self._targets if not self._broadcast.holds_all(info)]
        found = forecast(
            sum(entry.shard.stored_bytes for entry in self._manifest.shards),
            {info.node_id: self._rates.get(info.node_id) for info in lacking},
            deadline_s,
            holders=self._broadcast.holders,
            streams=self._session.settings.streams,
            qos=self._qos,
        )
        if found.can_meet is False:
            log.warning("%s will not be shipped by its deadline: %s", self._manifest.name, found.reason)
        return found

    def cancel(self) -> None:
        """Ends the pulls under way and starts no other; returns once they have ended. Shards that are whole on their
        target stay there, of others nothing does. `result` raises `Cancelled`."""
        self._pulls.cancel()
        self._finished.wait(CANCEL_TIMEOUT_S)

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
            twice_bytes=self._twice_bytes,
            seconds=self._seconds,
        )

    @property
    def _total_bytes(self) -> int:
        return len(self._targets) * sum(entry.shard.stored_bytes for entry in self._manifest.shards)

    def _run(self) -> None:
        try:
            workers = min(SHARDS_AT_ONCE * len(self._targets), PULLS_AT_ONCE_MAX)
            with ThreadPoolExecutor(workers, thread_name_prefix="ship") as executor:
                try:
                    self._follow(executor)
                finally:
                    self._pulls.cancel()  # after an error: the rest is of no use to anybody
            self._reporter.finish(self._total_bytes)
        except BaseException as error:  # noqa: BLE001 - the thread's edge: `result` raises it, whatever it is
            self._error = error if isinstance(error, RaylogError) else Unavailable(f"the shipment failed: {error!r}")
        finally:
            self._seconds = time.monotonic() - self._started_s
            self._finished.set()

    def _follow(self, executor: ThreadPoolExecutor) -> None:
        """Until all pulls are done; whoever listens hears of it in this thread alone, so in order. A shard that no node
        has goes from its backup to one target, and from there to the others."""
        pending: dict[Future[None], tuple[NodeInfo, ShardRef]] = {}
        brought: set[Future[None]] = set()

        def begin(target: NodeInfo, shard: ShardRef) -> Future[None]:
            future = executor.submit(self._pull, target, shard)
            pending[future] = target, shard
            return future

        for number, shard in enumerate(entry.shard for entry in self._manifest.shards):
            if self._broadcast.is_nowhere(shard):
                brought.add(begin(self._targets[number % len(self._targets)], shard))
            else:
                for target in self._targets:
                    begin(target, shard)
        polled_s = time.monotonic()
        while pending:
            done, _ = wait(pending, timeout=POLL_PERIOD_S, return_when=FIRST_COMPLETED)
            for future in done:
                bringer, shard = pending.pop(future)
                future.result()
                if future in brought:
                    self._broadcast.came_to(bringer, shard)
                    for target in self._targets:
                        if target is not bringer:
                            begin(target, shard)
            if self._is_watched() and time.monotonic() - polled_s >= POLL_PERIOD_S:
                self._poll()
                polled_s = time.monotonic()
            with self._lock:
                self._done_bytes = max(self._done_bytes, self._whole_bytes + sum(self._partial.values()))
                self._pace.reach(self._done_bytes, time.monotonic())
            self._reporter.reach(self._done_bytes)

    def _is_watched(self) -> bool:
        return self._is_heard or time.monotonic() - self._asked_s < ASKED_RECENTLY_S

    def _poll(self) -> None:
        """Asks the nodes that pull how far they are; one that does not answer stands still for now."""
        with self._lock:
            pulling = {target.ray_node_id: target for target, _ in self._pulling}
        references = {}
        for ray_node_id in pulling:
            with suppress(Unavailable):  # gone: its pull says so
                references[ray_node_id] = calls.node(ray_node_id).pulls.remote()
        answers = calls.wait_all(list(references.values()), POLL_TIMEOUT_S, "node.pulls")
        found = {key: answer for key, answer in zip(references, answers, strict=True) if isinstance(answer, dict)}
        with self._lock:
            for target, shard in self._pulling:
                running = found.get(target.ray_node_id, {}).get(shard.shard_id)
                if running:
                    self._partial[target.node_id, shard.shard_id] = min(running.done_bytes, shard.stored_bytes)

    def _pull(self, target: NodeInfo, shard: ShardRef) -> None:
        left_s = self._deadline - time.monotonic()
        if self._pulls.is_cancelled:
            raise Cancelled(f"{self._manifest.name}: the shipment was cancelled; ship again to go on")
        if left_s <= 0:
            raise DeadlineExceeded(f"{self._manifest.name}: not all shipped by the deadline; ship again to go on")
        with self._lock:
            self._pulling.append((target, shard))
        whole_bytes = moved_bytes = twice_bytes = 0
        try:
            sources = self._broadcast.sources(target, shard)
            outcome = self._pulls.pull(target, shard, self._qos, None, sources=sources, timeout_s=left_s)
            moved_bytes, twice_bytes = outcome.moved_bytes, outcome.twice_bytes
            if self._is_pinned:
                self._session.ask_node(target, PinShards(shard_ids=(shard.shard_id,), is_pinned=True))
            whole_bytes = shard.stored_bytes
        finally:
            with self._lock:
                self._pulling.remove((target, shard))
                self._partial.pop((target.node_id, shard.shard_id), None)
                self._whole_bytes += whole_bytes
                self._moved_bytes += moved_bytes
                self._twice_bytes += twice_bytes


def start_shipment(
    session: Session,
    reference: Reference,
    to: str | Sequence[str],
    qos: QosClass,
    deadline_s: float | None,
    on_progress: OnProgress | None,
    *,
    is_pinned: bool,
) -> Shipment:
    """Resolves version and targets, raising `NotFound` or `UsageError` at once, and starts the shipment."""
    manifest = session.manifest(reference)
    targets = _targets(session, to)
    limit_s = deadline_s or session.settings.pull_deadline_s
    return Shipment(session, manifest, targets, qos, limit_s, on_progress, is_pinned=is_pinned)


def unpin(session: Session, reference: Reference, nodes: str | Sequence[str]) -> None:
    """Lets copies that were shipped to stay give way again. All nodes are asked before one that did not answer is
    told. Raises `NotFound`, `UsageError`, `Unavailable`, `DeadlineExceeded`."""
    shard_ids = list(session.manifest(reference).distinct_shards())
    failed: RaylogError | None = None
    for target in _targets(session, nodes):
        try:
            for first in range(0, len(shard_ids), SHARDS_MAX):
                asked = tuple(shard_ids[first : first + SHARDS_MAX])
                session.ask_node(target, PinShards(shard_ids=asked, is_pinned=False))
        except (Unavailable, DeadlineExceeded) as error:
            log.warning("copies on node %s are pinned still: %s", target.node_id[:12], error)
            failed = error
    if failed:
        raise failed


def _targets(session: Session, to: str | Sequence[str]) -> list[NodeInfo]:
    if isinstance(to, str) and to != "all":
        raise UsageError(f"expected 'all' or a list of node ids, got {to!r}")
    targets = session.nodes() if to == "all" else [session.node(node_id) for node_id in to]
    if not targets:
        raise UsageError("expected at least one node, got none")
    return targets
