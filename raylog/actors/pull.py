"""How a node gets a shard: one pull at a time per shard, from all sources that it is told at once; what has come is
offered to others while the rest is still on its way."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial

import msgspec

from raylog.actors.backup_copies import BackupCopies
from raylog.actors.elsewhere import NOWHERE, Elsewhere, ways
from raylog.codec.frame import Frame
from raylog.errors import (
    Cancelled,
    DamagedData,
    DeadlineExceeded,
    NoSpace,
    NotFound,
    NotPermitted,
    PeerFault,
    RaylogError,
    Unavailable,
    UsageError,
)
from raylog.monitor.meter import TransferMeter
from raylog.spec import Durability, QosClass, ShardRef, Use
from raylog.store.objects import Limit
from raylog.store.remote_shard import ShardSource
from raylog.store.tier import ShardWriter
from raylog.store.tiered import TieredStore
from raylog.wire.distrust import Distrust
from raylog.wire.endpoints import ShardSink
from raylog.wire.fetcher import Fetcher, Source
from raylog.wire.relay import Relay
from raylog.wire.sessions import Sessions

log = logging.getLogger("raylog.pull")
PULLS_AT_ONCE = 4
CANCELS_KEPT = 1024  # that came before their pull
CANCEL_SEEN_WITHIN_S = 0.2
ELSEWHERE = (Unavailable, NotFound, DamagedData, PeerFault, NotPermitted)  # what one place says, another may not


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a pull did: sealed bytes that crossed the network (0 when the shard was here), those that came twice, and
    the seconds it took."""

    moved_bytes: int
    twice_bytes: int
    seconds: float


class PullProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a running pull is: sealed bytes of the shard's chunks that are verified here, and of all of them."""

    done_bytes: int
    total_bytes: int


class Puller:
    """The node's incoming transfers. Thread-safe; at most `PULLS_AT_ONCE` run, others wait within their deadline."""

    def __init__(
        self, store: TieredStore, sessions: Sessions, meter: TransferMeter, relay: Relay, backups: BackupCopies
    ) -> None:
        self._store, self._sessions, self._meter, self._relay = store, sessions, meter, relay
        self._backups = backups
        self._distrust = Distrust()
        self._slots = threading.BoundedSemaphore(PULLS_AT_ONCE)
        self._shard_locks: dict[str, threading.Lock] = {}
        self._running: dict[str, PullProgress] = {}
        self._lock = threading.Lock()
        self.cancels = Cancels()

    def close(self) -> None:
        """Ends the sessions with other nodes; pulls under way fail."""
        self._sessions.close()

    def pull(
        self,
        ref: ShardRef,
        sources: Sequence[Source],
        durability: Durability | None,
        qos: QosClass,
        deadline_s: float,
        *,
        use: Use = Use.DATASET,
        pull_id: str = "",
        elsewhere: Elsewhere = NOWHERE,
    ) -> Outcome:
        """Makes the shard present here as `durability` promises; None: as cache, that may be evicted. Where no source
        gives it, it is had from `elsewhere`.

        What has come is kept when the pull fails. Raises `Unavailable`, `NotFound` or `DamagedData` with what every
        source said, `NoSpace`, `DeadlineExceeded`, `Cancelled` after `cancel(pull_id)`; then nothing of it is kept.
        """
        started_s = time.monotonic()
        deadline = started_s + deadline_s
        with self.cancels.watched(pull_id) as cancel, self._alone(ref.shard_id, deadline, cancel):
            if self._is_here(ref, durability):
                return Outcome(moved_bytes=0, twice_bytes=0, seconds=time.monotonic() - started_s)
            sink = StoreSink(self._store, durability, use, is_read=qos is QosClass.READ)
            try:
                with self._slot(deadline, cancel):
                    try:
                        return self._fetch(ref, sources, sink, qos, deadline, cancel, is_relayed=True)
                    except ELSEWHERE as error:
                        if not elsewhere or isinstance(error, (NoSpace, DeadlineExceeded)):
                            raise
                        log.info("shard %s is had from pieces or a backup: %s", ref.shard_id, error)
                    return self._fetch_elsewhere(ref, elsewhere, sink, Limit(deadline=deadline, cancel=cancel))
            except Cancelled:
                with suppress(NotFound):
                    self._store.delete(ref.shard_id)
                raise

    def cancel(self, pull_id: str) -> None:
        """Ends the pull of that id within a second; one that is still to come ends before it begins."""
        self.cancels.cancel(pull_id)

    def running(self) -> dict[str, PullProgress]:
        """The pulls and repairs that move bytes now, by shard id."""
        with self._lock:
            return dict(self._running)

    def repair(
        self,
        ref: ShardRef,
        numbers: Sequence[int],
        sources: Sequence[Source],
        deadline_s: float,
        elsewhere: Elsewhere = NOWHERE,
    ) -> int:
        """Replaces damaged chunks in every copy here: by those of a copy here that has them whole, else by other nodes'
        bytes or those had `elsewhere`, or the whole shard where it was put aside; how many chunks. Raises as `pull`."""
        try:
            frame = self._store.look(ref.shard_id)
        except NotFound:
            self.pull(ref, sources, Durability.DISK, QosClass.REPAIR, deadline_s, elsewhere=elsewhere)
            self._meter.repaired(len(numbers))
            return len(numbers)
        if frame.digest != ref.frame_digest:
            raise DamagedData(f"shard {ref.shard_id}: its frame here is not the manifest's", shard_id=ref.shard_id)
        if not all(0 <= number < ref.chunks for number in numbers):
            raise UsageError(f"shard {ref.shard_id} has chunks 0 to {ref.chunks - 1}, to be repaired are {numbers}")
        here = self._store.mend(ref.shard_id, numbers)
        sink = RepairSink(self._store, frame, here.missing)
        deadline = time.monotonic() + deadline_s
        if here.missing:
            try:
                self._fetch(ref, sources, sink, QosClass.REPAIR, deadline, is_relayed=False)
            except ELSEWHERE:
                if not elsewhere:
                    raise
                self._fetch_elsewhere(ref, elsewhere, sink, Limit(deadline=deadline))
        replaced = here.replaced + sink.replaced
        self._meter.repaired(replaced)
        return replaced

    def _fetch(
        self,
        ref: ShardRef,
        sources: Sequence[Source],
        sink: ShardSink,
        qos: QosClass,
        deadline: float,
        cancel: threading.Event | None = None,
        *,
        is_relayed: bool,
    ) -> Outcome:
        if not sources:
            raise Unavailable(
                f"shard {ref.shard_id}: no other living node holds it; bring one back that does", shard_id=ref.shard_id
            )
        onlooker = self._relay.incoming(ref.shard_id) if is_relayed else None
        try:
            with self._shown(ref):
                report = Fetcher(
                    ref,
                    self._distrust.last(sources),
                    sink,
                    self._sessions,
                    qos=qos,
                    deadline=deadline,
                    on_progress=partial(self._note, ref.shard_id),
                    on_damage=self._blame,
                    cancel=cancel,
                    onlooker=onlooker,
                ).run()
        except RaylogError as error:
            log.info("shard %s was not had: %s", ref.shard_id, error)
            self._meter.pull_failed()
            raise
        finally:
            if onlooker is not None:
                onlooker.close()
        for node_id, (sealed_bytes, chunks) in report.by_source.items():
            self._meter.received(node_id, sealed_bytes, chunks)
        self._meter.pulled(report.bytes, report.seconds)
        return Outcome(moved_bytes=report.bytes, twice_bytes=report.twice_bytes, seconds=report.seconds)

    def fetch_chunks(
        self, ref: ShardRef, numbers: Sequence[int], sources: Sequence[Source], limit: Limit
    ) -> dict[int, memoryview]:
        """Some chunks of a shard, verified, into memory. Raises as `pull`."""
        sink = MemorySink(numbers)
        self._fetch(ref, sources, sink, QosClass.READ, limit.deadline, limit.cancel, is_relayed=False)
        return sink.found

    def frame(
        self, ref: ShardRef, sources: Sequence[Source], deadline_s: float, elsewhere: Elsewhere = NOWHERE
    ) -> Frame:
        """A shard's frame, without the shard: as it is here, or as `pull` would have it. Raises as `pull`."""
        with suppress(NotFound, DamagedData):
            frame = self._store.look(ref.shard_id)
            if frame.digest == ref.frame_digest:
                return frame
        limit, sink = Limit.within(deadline_s), MemorySink(())
        try:
            self._fetch(ref, sources, sink, QosClass.READ, limit.deadline, is_relayed=False)
            return sink.frame
        except ELSEWHERE as error:
            last = error
        for way in self.ways(ref, elsewhere, limit):
            try:
                return way().frame
            except ELSEWHERE as error:
                last = error
        raise last

    def ways(self, ref: ShardRef, elsewhere: Elsewhere, limit: Limit) -> Iterator[Callable[[], ShardSource]]:
        """What to try where no node gives the shard (elsewhere.py)."""
        return ways(ref, elsewhere, self._store, self._backups, self.fetch_chunks, limit)

    def _fetch_elsewhere(self, ref: ShardRef, elsewhere: Elsewhere, sink: ShardSink, limit: Limit) -> Outcome:
        """What `sink` lacks, the first way that gives it. Raises the last one's error."""
        started_s = time.monotonic()
        last: RaylogError = NotFound(f"shard {ref.shard_id}: there is no other way to have it", shard_id=ref.shard_id)
        with self._shown(ref):
            for way in self.ways(ref, elsewhere, limit):
                try:
                    moved_bytes = self._copy(ref, way(), sink, limit)
                except ELSEWHERE as error:
                    log.warning("shard %s was not had: %s", ref.shard_id, error)
                    self._meter.pull_failed()
                    if isinstance(error, (NoSpace, DeadlineExceeded)):
                        raise
                    last = error
                else:
                    seconds = time.monotonic() - started_s
                    self._meter.pulled(moved_bytes, seconds)
                    return Outcome(moved_bytes=moved_bytes, twice_bytes=0, seconds=seconds)
        raise last

    def _copy(self, ref: ShardRef, source: ShardSource, sink: ShardSink, limit: Limit) -> int:
        """What `sink` lacks; how many sealed bytes that was."""
        moved_bytes = 0
        if source.frame.digest != ref.frame_digest:
            raise DamagedData(f"shard {ref.shard_id}: what was found has another frame than the manifest's")
        with closing(sink.create(source.frame)) as writer:
            lacking = [number for first, count in writer.missing() for number in range(first, first + count)]
            for number, sealed in source.chunks(lacking, limit):
                writer.write_chunk(number, sealed)
                moved_bytes += len(sealed)
                self._note(ref.shard_id, moved_bytes, ref.stored_bytes)
            writer.commit()
        return moved_bytes

    def _blame(self, node_id: str, error: DamagedData) -> None:
        self._distrust.blame(node_id, error)
        self._meter.damaged()

    def _is_here(self, ref: ShardRef, durability: Durability | None) -> bool:
        try:
            if self._store.look(ref.shard_id).digest != ref.frame_digest:
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
    """Where a pulled shard goes: as `durability` promises on a disk for its `use`, or into the cache for None, to the
    detriment of other cached copies if `is_read`, since a reader waits for it."""

    def __init__(self, store: TieredStore, durability: Durability | None, use: Use, *, is_read: bool) -> None:
        self._store, self._durability, self._use, self._is_read = store, durability, use, is_read

    def create(self, frame: Frame, /) -> ShardWriter:
        if self._durability is None:
            return self._store.create_cached(frame, displaces=self._is_read)
        return self._store.create(frame, self._durability, self._use)


class MemorySink:
    """A place for certain chunks of a shard, in memory."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self.found: dict[int, memoryview] = {}
        self._frame: Frame | None = None
        self._numbers = sorted(set(numbers))
        self._lock = threading.Lock()

    @property
    def frame(self) -> Frame:
        assert self._frame is not None
        return self._frame

    def create(self, frame: Frame, /) -> "MemorySink":
        self._frame = frame
        return self

    def missing(self) -> list[tuple[int, int]]:
        with self._lock:
            return [(number, 1) for number in self._numbers if number not in self.found]

    def chunk_buffer(self, number: int, /) -> memoryview | None:
        return None

    def commit_chunk(self, number: int, /) -> None:
        raise AssertionError("chunk_buffer gave no place")

    def write_chunk(self, number: int, sealed: memoryview, /) -> None:
        self.frame.verify_chunk(number, sealed)
        with self._lock:
            self.found[number] = memoryview(bytes(sealed))  # what came lies in a buffer that is used again

    def stored_chunk(self, number: int, /) -> memoryview:
        return self.found[number]

    def commit(self) -> None:
        """There is nothing to make durable."""

    def close(self) -> None:
        """What was found is the taker's."""


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

    def stored_chunk(self, number: int, /) -> memoryview:
        raise AssertionError("a repair is not passed on")

    def commit(self) -> None:
        """Each chunk was durable when it was written."""

    def close(self) -> None:
        """What was replaced is right and stays."""
