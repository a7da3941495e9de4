"""How a node gets a shard: one pull at a time per shard, source after source until one has given it whole."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import msgspec

from raylog.codec.frame import Frame
from raylog.errors import (
    Cancelled,
    DamagedData,
    DeadlineExceeded,
    NoSpace,
    NotFound,
    NotPermitted,
    PeerFault,
    Unavailable,
)
from raylog.monitor.meter import TransferMeter
from raylog.security.certs import Credentials
from raylog.settings import Settings
from raylog.spec import Durability, QosClass, ShardRef
from raylog.store.tier import ShardWriter
from raylog.store.tiered import TieredStore
from raylog.wire.client import PeerAddress, pull
from raylog.wire.endpoints import ShardSink

log = logging.getLogger("raylog.pull")
PULLS_AT_ONCE = 4
CANCELS_KEPT = 1024  # that came before their pull
CANCEL_SEEN_WITHIN_S = 0.2


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a pull did: sealed bytes that crossed the network (0 when the shard was here), and the seconds it took."""

    moved_bytes: int
    seconds: float


class Puller:
    """The node's incoming transfers. Thread-safe; at most `PULLS_AT_ONCE` run, others wait within their deadline."""

    def __init__(
        self, store: TieredStore, credentials: Callable[[], Credentials], settings: Settings, meter: TransferMeter
    ) -> None:
        self._store, self._credentials, self._settings, self._meter = store, credentials, settings, meter
        self._slots = threading.BoundedSemaphore(PULLS_AT_ONCE)
        self._shard_locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()
        self._cancels = Cancels()

    def pull(
        self,
        ref: ShardRef,
        sources: Sequence[PeerAddress],
        durability: Durability | None,
        qos: QosClass,
        deadline_s: float,
        pull_id: str = "",
    ) -> Outcome:
        """Makes the shard present here as `durability` promises; None: as cache, that may be evicted.

        What one source has given is kept when it fails, the next is asked for the rest. Raises `Unavailable`,
        `NotFound` or `DamagedData` with what every source said, `NoSpace`, `DeadlineExceeded`, `Cancelled` after
        `cancel(pull_id)`; then nothing of it is kept.
        """
        started_s = time.monotonic()
        deadline = started_s + deadline_s
        with self._cancels.watched(pull_id) as cancel, self._alone(ref.shard_id, deadline, cancel):
            if self._is_here(ref, durability):
                return Outcome(moved_bytes=0, seconds=time.monotonic() - started_s)
            sink = StoreSink(self._store, durability)
            try:
                with self._slot(deadline, cancel):
                    moved_bytes = self._each(ref, sources, sink, qos, deadline, cancel)
            except Cancelled:
                with suppress(NotFound):
                    self._store.delete(ref.shard_id)
                raise
        return Outcome(moved_bytes=moved_bytes, seconds=time.monotonic() - started_s)

    def cancel(self, pull_id: str) -> None:
        """Ends the pull of that id within a second; one that is still to come ends before it begins."""
        self._cancels.cancel(pull_id)

    def repair(self, ref: ShardRef, numbers: Sequence[int], sources: Sequence[PeerAddress], deadline_s: float) -> int:
        """Replaces damaged chunks in every copy here by other nodes' bytes, or the whole shard where it was put aside;
        how many chunks. Raises as `pull`."""
        try:
            with self._store.open(ref.shard_id) as reader:
                frame = reader.frame
        except NotFound:
            self.pull(ref, sources, Durability.DISK, QosClass.REPAIR, deadline_s)
            self._meter.repaired(len(numbers))
            return len(numbers)
        if frame.digest != ref.frame_digest:
            raise DamagedData(f"shard {ref.shard_id}: its frame here is not the manifest's", shard_id=ref.shard_id)
        sink = RepairSink(self._store, frame, numbers)
        self._each(ref, sources, sink, QosClass.REPAIR, time.monotonic() + deadline_s)
        self._meter.repaired(sink.replaced)
        return sink.replaced

    def _each(
        self,
        ref: ShardRef,
        sources: Sequence[PeerAddress],
        sink: ShardSink,
        qos: QosClass,
        deadline: float,
        cancel: threading.Event | None = None,
    ) -> int:
        """Asks source after source; the bytes that the one moved which gave the rest."""
        failures: list[str] = []
        for source in sources:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise DeadlineExceeded(f"shard {ref.shard_id}: not here by the deadline ({'; '.join(failures)})")
            try:
                report = pull(ref, source, sink, self._credentials(), deadline_s=left_s, qos=qos,
                              streams=self._settings.streams, cancel=cancel)  # fmt: skip
            except (Unavailable, PeerFault, NotFound, NotPermitted, DamagedData) as error:
                if isinstance(error, NoSpace):
                    raise
                log.info("shard %s: node %s did not give it: %s", ref.shard_id, source.node_id, error)
                failures.append(f"{source.node_id[:12]}: {error}")
                self._meter.pull_failed()
                continue
            self._meter.received(source.node_id, report.bytes, report.chunks)
            self._meter.pulled()
            return report.bytes
        said = "; ".join(failures) or "no node holds it"
        raise Unavailable(f"shard {ref.shard_id} could not be had from {len(sources)} node(s): {said}")

    def _is_here(self, ref: ShardRef, durability: Durability | None) -> bool:
        try:
            with self._store.open(ref.shard_id) as reader:
                if reader.frame.digest != ref.frame_digest:
                    raise DamagedData(f"shard {ref.shard_id} here has another frame than the manifest's")
        except NotFound:
            return False
        except DamagedData as error:
            log.warning("shard %s is taken out of sight: %s", ref.shard_id, error)
            self._store.quarantine(ref.shard_id)
            return False
        try:
            if durability is not None:
                self._store.keep(ref.shard_id, durability)
        except NotFound:  # a cached copy, evicted meanwhile
            return False
        return True

    @contextmanager
    def _alone(self, shard_id: str, deadline: float, cancel: threading.Event) -> Iterator[None]:
        with self._lock:
            lock = self._shard_locks.setdefault(shard_id, threading.Lock())
        if not _acquired(lock, deadline, cancel):
            raise DeadlineExceeded(f"shard {shard_id}: another pull of it here took until the deadline")
        try:
            yield
        finally:
            lock.release()
            with self._lock:
                if not lock.locked():
                    self._shard_locks.pop(shard_id, None)

    @contextmanager
    def _slot(self, deadline: float, cancel: threading.Event) -> Iterator[None]:
        if not _acquired(self._slots, deadline, cancel):
            raise DeadlineExceeded(f"{PULLS_AT_ONCE} other pulls took until the deadline")
        try:
            yield
        finally:
            self._slots.release()


def _acquired(lock: "threading.Lock | threading.Semaphore", deadline: float, cancel: threading.Event) -> bool:
    """Whether the lock was had by the deadline. Raises `Cancelled`."""
    while not cancel.is_set():
        left_s = max(deadline - time.monotonic(), 0)
        if lock.acquire(timeout=min(left_s, CANCEL_SEEN_WITHIN_S)):
            return True
        if not left_s:
            return False
    raise Cancelled("the pull was cancelled while it waited for others; pull again")


class Cancels:
    """Who shall end: an event per pull that is under way, and the ids whose cancel overtook their pull."""

    def __init__(self) -> None:
        self._events: dict[str, threading.Event] = {}
        self._early: deque[str] = deque(maxlen=CANCELS_KEPT)
        self._lock = threading.Lock()

    @contextmanager
    def watched(self, pull_id: str) -> Iterator[threading.Event]:
        """The event of a pull while it runs."""
        event = threading.Event()
        with self._lock:
            self._events[pull_id] = event
            if pull_id in self._early:
                event.set()
        try:
            yield event
        finally:
            with self._lock:
                self._events.pop(pull_id, None)

    def cancel(self, pull_id: str) -> None:
        with self._lock:
            event = self._events.get(pull_id)
            if event is None:
                self._early.append(pull_id)
            else:
                event.set()


class StoreSink:
    """Where a pulled shard goes: as `durability` promises, or into the cache for None."""

    def __init__(self, store: TieredStore, durability: Durability | None) -> None:
        self._store, self._durability = store, durability

    def create(self, frame: Frame, /) -> ShardWriter:
        if self._durability is None:
            return self._store.create_cached(frame)
        return self._store.create(frame, self._durability)


class RepairSink:
    """A place for certain chunks of a shard that is here already: each replaces the damaged one in every copy."""

    def __init__(self, store: TieredStore, frame: Frame, numbers: Sequence[int]) -> None:
        self.frame = frame
        self.replaced = 0
        self._store = store
        self._missing = sorted(set(numbers))
        self._lock = threading.Lock()

    def create(self, frame: Frame, /) -> "RepairSink":
        if frame.digest != self.frame.digest:
            raise DamagedData(f"shard {frame.header.shard_id}: the source holds another frame than this node")
        return self

    def missing(self) -> list[tuple[int, int]]:
        with self._lock:
            return [(number, 1) for number in self._missing]

    def chunk_buffer(self, number: int, /) -> memoryview | None:
        return None

    def commit_chunk(self, number: int, /) -> None:
        raise AssertionError("chunk_buffer gave no place")

    def write_chunk(self, number: int, sealed: memoryview, /) -> None:
        self._store.replace_chunk(self.frame.header.shard_id, number, sealed)
        with self._lock:
            if number in self._missing:
                self._missing.remove(number)
                self.replaced += 1

    def commit(self) -> None:
        """Each chunk was durable when it was written."""

    def close(self) -> None:
        """What was replaced is right and stays."""
