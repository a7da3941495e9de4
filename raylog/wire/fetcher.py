"""Carries one fetch out (fetch.py): connects to sources, has their chunks stored, commits. One thread waits, the
threads of cargo streams do the work."""

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from raylog.codec.frame import Frame
from raylog.errors import Cancelled, DamagedData, RaylogError, Unavailable
from raylog.spec import QosClass, ShardRef
from raylog.wire.endpoints import ShardSink, ShardWriter
from raylog.wire.fetch import (
    Cancel,
    Complete,
    Connect,
    Create,
    Fail,
    Fetch,
    FetchEffect,
    Leave,
    Ready,
    SourceSpec,
)
from raylog.wire.receiver import Puller, Range
from raylog.wire.same_machine import SameMachine
from raylog.wire.schedule import WHOLE, Ask, Recall, Stripe
from raylog.wire.sessions import PeerAddress, Sessions

WAIT_S_MAX = 0.1  # how late a cancelled fetch sees it
IDLE_TIMEOUT_S = 10.0
RELAY_PATIENCE_S = 20  # for a node that is to get the shard and has not begun

Progress = Callable[[int, int], None]
"""Called with verified and total sealed bytes of the shard's chunks, in the thread that waits, a few times a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A node that a shard may be had from; see `SourceSpec`."""

    peer: PeerAddress
    rank: int = 0
    stripe: Stripe = WHOLE
    is_relay: bool = False

    @property
    def spec(self) -> SourceSpec:
        return SourceSpec(node_id=self.peer.node_id, rank=self.rank, stripe=self.stripe, is_relay=self.is_relay)


@dataclass(frozen=True, slots=True, kw_only=True)
class PullReport:
    """What a pull moved: sealed bytes and chunks that came and were verified (not those that were here before), the
    seconds it took, how many chunks had to be asked for again, bytes that came twice, and by source (bytes, chunks)."""

    bytes: int
    chunks: int
    seconds: float
    retried: int
    twice_bytes: int
    by_source: dict[str, tuple[int, int]]


class Onlooker(Protocol):
    """Who wants to know of chunks as they become good, to pass them on."""

    def begun(self, frame: Frame, writer: ShardWriter) -> None: ...

    def verified(self, chunk: int) -> None: ...

    def ended(self, is_whole: bool) -> None: ...


class Fetcher:
    """One fetch; `run` it once. `on_damage` is told of every node that sent a chunk with wrong bytes."""

    def __init__(
        self,
        ref: ShardRef,
        sources: Sequence[Source],
        sink: ShardSink,
        sessions: Sessions,
        *,
        qos: QosClass,
        deadline: float,
        on_progress: Progress | None = None,
        on_damage: Callable[[str, DamagedData], None] | None = None,
        cancel: threading.Event | None = None,
        onlooker: Onlooker | None = None,
    ) -> None:
        self._ref, self._sink, self._sessions, self._qos = ref, sink, sessions, qos
        self._peers = {source.peer.node_id: source.peer for source in sources}
        self._deadline = deadline
        self._on_progress, self._on_damage, self._cancel, self._onlooker = on_progress, on_damage, cancel, onlooker
        self._machine = Fetch(ref, [source.spec for source in sources], deadline, sessions.bounds.window_bytes)
        self._lock = threading.Lock()  # of the machine and of everything below
        self._idle = threading.Condition(self._lock)
        self._links: dict[int, _Link] = {}
        self._news: queue.SimpleQueue[Callable[[float], list[FetchEffect]] | None] = queue.SimpleQueue()
        self._over = threading.Event()
        self._connecting: list[threading.Thread] = []
        self._frame: Frame | None = None
        self._writer: ShardWriter | None = None
        self._writing = 0  # cargo threads that write now
        self._outcome: Complete | Fail | None = None
        self._total_bytes = self._resumed_bytes = self._received_bytes = self._received_chunks = 0
        self._asked_again = self._twice_bytes = 0
        self._bytes_by, self._chunks_by = Counter[str](), Counter[str]()

    def run(self) -> PullReport:
        """Returns when the shard is whole and committed. Raises what `client.pull` says."""
        began = time.monotonic()
        self._apply(self._machine.start)
        try:
            while self._outcome is None:
                self._wait()
            if isinstance(self._outcome, Fail):
                raise self._outcome.error
            self._commit()
        finally:
            self._leave()
        return PullReport(
            bytes=self._received_bytes,
            chunks=self._received_chunks,
            seconds=time.monotonic() - began,
            retried=self._asked_again,
            twice_bytes=self._twice_bytes,
            by_source={node_id: (count, self._chunks_by[node_id]) for node_id, count in self._bytes_by.items()},
        )

    # The thread that waits.

    def _wait(self) -> None:
        now = time.monotonic()
        with self._lock:
            next_deadline = self._machine.next_deadline()
        timeout_s = max(0.0, min(next_deadline - now, WAIT_S_MAX))
        with suppress(queue.Empty):
            while True:  # all that has come
                event = self._news.get(timeout=timeout_s)
                if event is not None:
                    self._apply(event)
                timeout_s = 0.0
        if self._frame is not None and self._writer is None and self._outcome is None:
            self._create(self._frame)
        if self._on_progress is not None and self._writer is not None:
            self._on_progress(self._resumed_bytes + self._received_bytes, self._total_bytes)
        if self._cancel is not None and self._cancel.is_set():
            given_up = Cancelled(
                f"shard {self._ref.shard_id}: the pull was cancelled {self._how_far()}; pull again to resume"
            )
            self._apply(lambda _: self._machine.give_up(given_up))
        if time.monotonic() >= next_deadline:
            self._apply(self._machine.on_tick)

    def _how_far(self) -> str:
        if self._writer is None:
            return "before any source had shown its frame" if self._frame is None else "before there was room for it"
        return f"with {self._resumed_bytes + self._received_bytes} of {self._total_bytes} sealed bytes here"

    def _create(self, frame: Frame) -> None:
        try:
            writer = self._sink.create(frame)
        except RaylogError as error:
            self._apply(partial(self._give_up, error))
            return
        missing = writer.missing()
        sizes = [entry.sealed_bytes for entry in frame.chunks]
        self._total_bytes = sum(sizes)
        self._resumed_bytes = self._total_bytes - sum(sum(sizes[first : first + count]) for first, count in missing)
        if self._onlooker is not None:
            self._onlooker.begun(frame, writer)
        with self._lock:
            self._writer = writer
        self._apply(partial(self._machine.created, sizes, missing))

    def _give_up(self, error: RaylogError, _: float) -> list[FetchEffect]:
        return self._machine.give_up(error)

    def _commit(self) -> None:
        assert self._writer is not None
        self._await_idle()
        self._writer.commit()
        if self._onlooker is not None:
            self._onlooker.ended(True)

    def _leave(self) -> None:
        """Whatever happened: no thread writes any more, what is verified stays."""
        self._over.set()
        if not self._machine.has_ended:
            self._apply(partial(self._give_up, Cancelled(f"shard {self._ref.shard_id}: the pull was given up here")))
        for thread in self._connecting:
            thread.join()
        if self._writer is not None:
            if self._onlooker is not None:
                self._onlooker.ended(False)
            self._await_idle()
            self._writer.close()

    def _await_idle(self) -> None:
        with self._idle:
            is_idle = self._idle.wait_for(lambda: not self._writing, timeout=IDLE_TIMEOUT_S)
        if not is_idle:
            raise Unavailable(
                f"shard {self._ref.shard_id}: this node's store did not take a chunk in {IDLE_TIMEOUT_S} s"
            )

    # Effects.

    def _apply(self, event: Callable[[float], list[FetchEffect]]) -> None:
        """Gives the machine one event and carries out what follows, in whatever thread this is."""
        with self._lock:
            effects = event(time.monotonic())
        for effect in effects:
            self._carry_out(effect)

    def _carry_out(self, effect: FetchEffect) -> None:
        match effect:
            case Connect(attempt, spec):
                self._links[attempt] = link = _Link(self, attempt, spec)
                thread = threading.Thread(target=self._connect, args=(link,), name="raylog-wire-connect", daemon=True)
                thread.start()
                self._connecting.append(thread)
            case Create(frame):
                self._frame = frame
                self._news.put(None)
            case Complete() | Fail():
                self._outcome = effect
                self._news.put(None)
            case Ready(attempt) | Leave(attempt) | Ask(attempt) | Recall(attempt) | Cancel(attempt):
                self._links[attempt].tell(effect)

    def _connect(self, link: "_Link") -> None:
        peer = self._peers[link.spec.node_id]
        if self._sessions.shares_memory_with(peer) and not link.spec.is_relay:
            SameMachine(Path(peer.socket_path)).open(self._ref, link)
            return self._leave_if_over(link)
        try:
            session = self._sessions.get(peer, self._qos, self._deadline, self._over)
        except RaylogError as error:
            link.failed(error)
            return None
        except OSError as error:
            link.failed(Unavailable(f"node {peer.node_id}: this process cannot connect: {error}"))
            return None
        patience_s = RELAY_PATIENCE_S if link.spec.is_relay else 0
        session.open(self._ref, self._qos, self._deadline, link, patience_s)
        return self._leave_if_over(link)

    def _leave_if_over(self, link: "_Link") -> None:
        """The fetch may have ended before the link had anything to leave."""
        with self._lock:
            has_ended = self._machine.has_ended
        if has_ended:
            link.tell(Leave(link.attempt))

    # What links tell.

    @property
    def is_alone(self) -> bool:
        return len(self._peers) == 1

    def post(self, event: Callable[[float], list[FetchEffect]]) -> None:
        """For the thread that waits."""
        self._news.put(event)

    def take(self) -> ShardWriter | None:
        with self._lock:
            if self._writer is None or self._machine.has_ended:
                return None
            self._writing += 1
            return self._writer

    def put_down(self) -> None:
        with self._idle:
            self._writing -= 1
            self._idle.notify_all()

    def stored(self, link: "_Link", chunk: int, sealed_bytes: int) -> None:
        if self._onlooker is not None:
            self._onlooker.verified(chunk)
        self._apply(partial(self._note_stored, link, chunk, sealed_bytes))

    def _note_stored(self, link: "_Link", chunk: int, sealed_bytes: int, now: float) -> list[FetchEffect]:
        self._received_bytes += sealed_bytes
        self._received_chunks += 1
        self._bytes_by[link.spec.node_id] += sealed_bytes
        self._chunks_by[link.spec.node_id] += 1
        return self._machine.verified(link.attempt, chunk, now)

    def damaged(self, link: "_Link", chunk: int, error: DamagedData) -> None:
        self._asked_again += 1
        if self._on_damage is not None:
            self._on_damage(link.spec.node_id, error)
        self._apply(partial(self._machine.damaged, link.attempt, chunk, error))

    def failed(self, link: "_Link", error: RaylogError) -> None:
        self.post(partial(self._machine.failed, link.attempt, error))

    def broken(self, error: RaylogError) -> None:
        self._apply(partial(self._give_up, error))

    def dropped(self, sealed_bytes: int) -> None:
        with self._lock:
            self._twice_bytes += sealed_bytes

    def finished(self, asked_again: int) -> None:
        self._asked_again += asked_again

    def framed(self, link: "_Link", frame: Frame) -> None:
        self.post(partial(self._machine.framed, link.attempt, frame))

    def offered(self, link: "_Link", ranges: Sequence[Range]) -> None:
        self.post(partial(self._machine.offered, link.attempt, ranges))


class _Link:
    """One attempt at one source: what a session tells goes to the fetcher, and the other way round."""

    def __init__(self, fetcher: Fetcher, attempt: int, spec: SourceSpec) -> None:
        self.attempt, self.spec = attempt, spec
        self._fetcher = fetcher
        self._session: Puller | None = None
        self._pull = -1

    def tell(self, effect: Ready | Leave | Ask | Recall | Cancel) -> None:
        if self._session is None:
            return  # it is still connecting, and is left as soon as it has
        match effect:
            case Ready():
                self._session.ready(self._pull)
            case Leave():
                self._session.leave(self._pull)
            case Ask(_, chunks):
                self._session.ask(self._pull, chunks)
            case Recall(_, chunks):
                self._session.recall(self._pull, chunks)
            case Cancel(_, chunk):
                self._session.cancel(self._pull, [chunk])

    # As `Receiver` says.

    def opened(self, session: Puller, pull: int) -> None:
        self._session, self._pull = session, pull

    def framed(self, frame: Frame) -> None:
        self._fetcher.framed(self, frame)

    def offered(self, ranges: Sequence[Range]) -> None:
        self._fetcher.offered(self, ranges)

    def failed(self, error: RaylogError) -> None:
        self._fetcher.failed(self, error)

    def finished(self, asked_again: int) -> None:
        self._fetcher.finished(asked_again)

    @property
    def is_alone(self) -> bool:
        return self._fetcher.is_alone

    def take(self) -> ShardWriter | None:
        return self._fetcher.take()

    def put_down(self) -> None:
        self._fetcher.put_down()

    def stored(self, chunk: int, sealed_bytes: int) -> None:
        self._fetcher.stored(self, chunk, sealed_bytes)

    def damaged(self, chunk: int, error: DamagedData) -> None:
        self._fetcher.damaged(self, chunk, error)

    def broken(self, error: RaylogError) -> None:
        self._fetcher.broken(error)

    def dropped(self, sealed_bytes: int) -> None:
        self._fetcher.dropped(sealed_bytes)
