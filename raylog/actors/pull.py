"""How a node gets a shard: one pull at a time per shard, source after source until one has given it whole."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import msgspec

from raylog.codec.frame import Frame
from raylog.errors import (
    DamagedData,
    DeadlineExceeded,
    NoSpace,
    NotFound,
    NotPermitted,
    PeerFault,
    Unavailable,
    UsageError,
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


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a pull did: sealed bytes that crossed the network (0 when the shard was here), and the seconds it took."""

    moved_bytes: int
    seconds: float


class PullProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a running pull is: sealed bytes of the shard's chunks that are verified here, and of all of them."""

    done_bytes: int
    total_bytes: int


class Puller:
    """The node's incoming transfers. Thread-safe; at most `PULLS_AT_ONCE` run, others wait within their deadline."""

    def __init__(
        self, store: TieredStore, credentials: Callable[[], Credentials], settings: Settings, meter: TransferMeter
    ) -> None:
        self._store, self._credentials, self._settings, self._meter = store, credentials, settings, meter
        self._slots = threading.BoundedSemaphore(PULLS_AT_ONCE)
        self._shard_locks: dict[str, threading.Lock] = {}
        self._running: dict[str, PullProgress] = {}
        self._lock = threading.Lock()

    def pull(
        self,
        ref: ShardRef,
        sources: Sequence[PeerAddress],
        durability: Durability | None,
        qos: QosClass,
        deadline_s: float,
    ) -> Outcome:
        """Makes the shard present here as `durability` promises; None: as cache, that may be evicted.

        What one source has given is kept when it fails, the next is asked for the rest. Raises `Unavailable`,
        `NotFound` or `DamagedData` with what every source said, `NoSpace`, `DeadlineExceeded`.
        """
        started_s = time.monotonic()
        deadline = started_s + deadline_s
        with self._alone(ref.shard_id, deadline):
            if self._is_here(ref, durability):
                return Outcome(moved_bytes=0, seconds=time.monotonic() - started_s)
            with self._slot(deadline), self._shown(ref):
                moved_bytes = self._from_any(ref, sources, durability, qos, deadline)
        return Outcome(moved_bytes=moved_bytes, seconds=time.monotonic() - started_s)

    def running(self) -> dict[str, PullProgress]:
        """The pulls and repairs that move bytes now, by shard id."""
        with self._lock:
            return dict(self._running)

    def repair(self, ref: ShardRef, numbers: Sequence[int], sources: Sequence[PeerAddress], deadline_s: float) -> int:
        """Replaces damaged chunks in every copy here: by those of a copy here that has them whole, else by other nodes'
        bytes, or the whole shard where it was put aside; how many chunks. Raises as `pull`."""
        try:
            with self._store.open(ref.shard_id) as reader:
                frame = reader.frame
        except NotFound:
            self.pull(ref, sources, Durability.DISK, QosClass.REPAIR, deadline_s)
            self._meter.repaired(len(numbers))
            return len(numbers)
        if frame.digest != ref.frame_digest:
            raise DamagedData(f"shard {ref.shard_id}: its frame here is not the manifest's", shard_id=ref.shard_id)
        if not all(0 <= number < ref.chunks for number in numbers):
            raise UsageError(f"shard {ref.shard_id} has chunks 0 to {ref.chunks - 1}, to be repaired are {numbers}")
        here = self._store.mend(ref.shard_id, numbers)
        sink = RepairSink(self._store, frame, here.missing)
        if here.missing:
            with self._shown(ref):
                self._each(ref, sources, sink, QosClass.REPAIR, time.monotonic() + deadline_s)
        replaced = here.replaced + sink.replaced
        self._meter.repaired(replaced)
        return replaced

    def _from_any(
        self,
        ref: ShardRef,
        sources: Sequence[PeerAddress],
        durability: Durability | None,
        qos: QosClass,
        deadline: float,
    ) -> int:
        return self._each(ref, sources, StoreSink(self._store, durability), qos, deadline)

    def _each(
        self,
        ref: ShardRef,
        sources: Sequence[PeerAddress],
        sink: ShardSink,
        qos: QosClass,
        deadline: float,
    ) -> int:
        """Asks source after source; the bytes that the one moved which gave the rest."""
        failures: list[str] = []
        note = partial(self._note, ref.shard_id)
        for source in sources:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise DeadlineExceeded(f"shard {ref.shard_id}: not here by the deadline ({'; '.join(failures)})")
            try:
                report = pull(ref, source, sink, self._credentials(), deadline_s=left_s, qos=qos,
                              streams=self._settings.streams, on_progress=note)  # fmt: skip
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

    def _note(self, shard_id: str, done_bytes: int, total_bytes: int) -> None:
        with self._lock:
            self._running[shard_id] = PullProgress(done_bytes=done_bytes, total_bytes=total_bytes)

    @contextmanager
    def _shown(self, ref: ShardRef) -> Iterator[None]:
        """`running` shows the shard meanwhile."""
        self._note(ref.shard_id, 0, ref.stored_bytes)
        try:
            yield
        finally:
            with self._lock:
                self._running.pop(ref.shard_id, None)

    @contextmanager
    def _alone(self, shard_id: str, deadline: float) -> Iterator[None]:
        with self._lock:
            lock = self._shard_locks.setdefault(shard_id, threading.Lock())
        if not lock.acquire(timeout=max(deadline - time.monotonic(), 0)):
            raise DeadlineExceeded(f"shard {shard_id}: another pull of it here took until the deadline")
        try:
            yield
        finally:
            lock.release()
            with self._lock:
                if not lock.locked():
                    self._shard_locks.pop(shard_id, None)

    @contextmanager
    def _slot(self, deadline: float) -> Iterator[None]:
        if not self._slots.acquire(timeout=max(deadline - time.monotonic(), 0)):
            raise DeadlineExceeded(f"{PULLS_AT_ONCE} other pulls took until the deadline")
        try:
            yield
        finally:
            self._slots.release()


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
