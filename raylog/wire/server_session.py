"""The source's shell: one puller's session, the shards that it holds pinned, and its cargo threads."""

import logging
import queue
import socket
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

from raylog.codec.frame import Frame
from raylog.errors import DamagedData, NotFound, NotPermitted, RaylogError, Unavailable
from raylog.spec import CargoRecords, QosClass
from raylog.wire.bounds import Bounds
from raylog.wire.cargo import END_RECORD, CargoSender, has_come, receive_end, tune
from raylog.wire.effects import (
    Close,
    CloseStream,
    Effect,
    ExpectProbes,
    ExpectStream,
    OpenShard,
    ReleaseShard,
    SendChunk,
)
from raylog.wire.endpoints import ShardReader, ShardSource
from raylog.wire.messages import ByeReason, RefusalReason
from raylog.wire.paths import Paths
from raylog.wire.probe import ProbeKeys
from raylog.wire.record import Head, RecordOpener, RecordType, StreamKeys
from raylog.wire.relay import Incoming, Range, Relay
from raylog.wire.runner import SessionRunner
from raylog.wire.session import Parties
from raylog.wire.source import SourceSession
from raylog.wire.tls import TlsChannel

log = logging.getLogger(__name__)

IDLE_LOOK_S = 1.0  # how late a cargo stream that has nothing to send sees that it was closed


class Offers(NamedTuple):
    """What a server has for its sessions: ports, and the kind of cargo records that it allows."""

    cargo_port: int
    probe_port: int
    records: CargoRecords


class Listener(Protocol):
    """What a session needs of the server around it."""

    def expect(self, stream: bytes, session: "ServerSession", keys: StreamKeys) -> None:
        """A cargo connection of this stream is to be handed to the session."""
        ...

    def forget(self, stream: bytes) -> None: ...

    def expect_probes(self, session: "ServerSession", keys: ProbeKeys) -> None: ...

    def turn(self, stream: bytes, qos: QosClass, sealed_bytes: int) -> AbstractContextManager[None]:
        """Entered before a chunk is sent, which waits for its turn, and left when it is out. Raises `Unavailable`."""
        ...

    def sent(self, stream: bytes, peer_id: str, qos: QosClass, sealed_bytes: int) -> None:
        """A chunk went out."""
        ...


@dataclass(slots=True, eq=False)
class _Lease:
    """A reader that cargo threads borrow: closed when it is released and none of them has it."""

    reader: ShardReader
    sent: bytearray  # one byte per chunk: whether it went out in this pull
    borrowers: int = 0
    is_released: bool = False


class ServerSession:
    """Serves one puller until it leaves, breaks the protocol, or `close`."""

    def __init__(
        self,
        channel: TlsChannel,
        parties: Parties,
        source: ShardSource,
        listener: Listener,
        offers: Offers,
        bounds: Bounds,
        relay: Relay,
        paths: Paths,
    ) -> None:
        self._relay, self._paths = relay, paths
        self._channel, self._source, self._listener, self._bounds = channel, source, listener, bounds
        self.peer_id = parties.peer.id
        self._machine = SourceSession(parties, bounds, offers.cargo_port, offers.records, offers.probe_port)
        self._runner = SessionRunner(self._machine, channel, self._carry_out)
        self._to_open: deque[OpenShard] = deque()
        self._following: dict[int, _Following] = {}  # what has not begun to come here
        self._heard: deque[Callable[[], None]] = deque()  # what followed shards have told, for the control thread
        self._leases: dict[int, _Lease] = {}
        self._to_close: list[ShardReader] = []
        self._jobs: dict[bytes, queue.SimpleQueue[SendChunk | None]] = {}
        self.error: RaylogError | None = None

    def run(self) -> None:
        """The control loop; returns when the session is over."""
        try:
            self._runner.run(self._do_deferred)
        finally:
            self._runner.apply(partial(self._machine.connection_lost, None))  # nothing if it ended as it should
            self._do_deferred()

    def close(self) -> None:
        """Says that this node goes down."""
        self._runner.apply(partial(self._machine.close, ByeReason.SHUTDOWN))

    # Effects; under the runner's lock.

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case OpenShard():
                self._to_open.append(effect)
            case ReleaseShard(pull):
                if (following := self._following.pop(pull, None)) is not None:
                    self._to_close.append(following)
                if (lease := self._leases.pop(pull, None)) is not None:
                    lease.is_released = True
                    if not lease.borrowers:
                        self._to_close.append(lease.reader)
            case ExpectStream(stream, keys):
                self._jobs[stream] = queue.SimpleQueue()
                self._listener.expect(stream, self, keys)
            case ExpectProbes(keys):
                self._listener.expect_probes(self, keys)
            case SendChunk(stream):
                self._jobs[stream].put(effect)
            case CloseStream(stream):
                self._listener.forget(stream)
                self._jobs.pop(stream).put(None)
            case Close(error):
                self.error = error

    # The control thread.

    def _do_deferred(self) -> None:
        with self._runner.lock:
            opens, self._to_open = self._to_open, deque()
            closes, self._to_close = self._to_close, []
        for reader in closes:
            reader.close()
        for effect in opens:
            self._open(effect)
        while self._heard:
            self._heard.popleft()()

    def _open(self, effect: OpenShard) -> None:
        """Of a shard that is on its way here, what is here of it; else the whole one."""
        if self._machine.is_closed:
            return
        following = _Following(self, effect.pull, effect.shard_id, self._relay)
        with self._runner.lock:
            self._following[effect.pull] = following
        if self._relay.follow(effect.shard_id, following, wait=False):
            return
        try:
            reader = self._source.open(effect.shard_id)
        except NotFound as error:
            if effect.is_patient:
                self._await(effect, following)
            else:
                self._refuse(effect.pull, error)
        except RaylogError as error:
            self._refuse(effect.pull, error)
        else:
            self._lend(effect.pull, reader, None)

    def _await(self, effect: OpenShard, following: "_Following") -> None:
        """Of a shard that is neither here nor on its way."""
        if self._relay.follow(effect.shard_id, following, wait=True):
            return
        try:
            reader = self._source.open(effect.shard_id)  # it may have come between the two questions, all of it
        except NotFound:
            return
        except RaylogError as error:
            self._refuse(effect.pull, error)
            return
        with self._runner.lock:
            self._following.pop(effect.pull, None)
        following.close()
        self._lend(effect.pull, reader, None)

    def _lend(self, pull: int, reader: ShardReader, available: Sequence[Range] | None) -> None:
        with self._runner.lock:
            self._leases[pull] = _Lease(reader, bytearray(len(reader.frame.chunks)))
        self._runner.apply(partial(self._machine.shard_opened, pull, reader.frame, available=available))

    def _refuse(self, pull: int, error: RaylogError) -> None:
        reason, chunk = _reason_of(error), getattr(error, "chunk", None)
        self._runner.apply(partial(self._machine.refuse, pull, reason, str(error), chunk))

    # What followed shards tell, from any thread.

    def hear(self, what: Callable[[], None]) -> None:
        """Has the control thread do this soon."""
        self._heard.append(what)
        self._runner.nudge()

    def begin(self, following: "_Following", available: Sequence[Range]) -> None:
        with self._runner.lock:
            is_awaited = self._following.pop(following.pull, None) is not None
        if not is_awaited:
            following.close()
            return
        self._lend(following.pull, following, available)
        following.is_lent = True

    def offer(self, pull: int, ranges: Sequence[Range]) -> None:
        self._runner.note(partial(self._machine.chunks_available, pull, ranges))

    def lose(self, pull: int) -> None:
        self._refuse(pull, Unavailable("the shard was on its way to this node, and that has ended"))

    # Cargo threads.

    def serve_cargo(self, connection: socket.socket, stream: bytes, keys: StreamKeys, opener: RecordOpener) -> None:
        """Sends on a connection that has proven itself, until either end closes the stream."""
        timeout_s = self._bounds.progress_timeout_s
        tune(connection, timeout_s)
        sender = CargoSender(connection, keys.from_source, self._bounds.rekey_bytes, timeout_s, keys.records)
        with self._runner.lock:
            jobs = self._jobs.get(stream)
        if jobs is None:
            return
        watch = self._paths.watch(self.peer_id, connection)
        try:
            self._runner.apply(partial(self._machine.stream_attached, stream))
            while (job := _next_job(jobs, connection)) is not None:
                self._send_in_turn(sender, job)
                watch.look()
                if watch.streams_wanted is not None:
                    self._runner.apply(partial(self._machine.advise, watch.streams_wanted))
            if has_come(connection):
                receive_end(connection, opener, timeout_s)
            with suppress(RaylogError):  # a farewell: nothing depends on it
                sender.send(END_RECORD)
        finally:
            watch.end()
            self._runner.apply(partial(self._lost, stream))

    def _lost(self, stream: bytes, now: float) -> list[Effect]:
        self._jobs.pop(stream, None)
        return self._machine.stream_lost(stream, now)

    def _send_in_turn(self, sender: CargoSender, job: SendChunk) -> None:
        with self._runner.lock:
            slice_of = self._machine.slice_of(job.pull, job.chunk)
        if slice_of is None:
            self._runner.apply(partial(self._machine.chunk_sent, job.stream))
            return
        qos, sealed_bytes = slice_of
        with self._listener.turn(job.stream, qos, sealed_bytes):
            self._send(sender, job, qos)

    def _send(self, sender: CargoSender, job: SendChunk, qos: QosClass) -> None:
        with self._runner.lock:
            lease = self._leases.get(job.pull)
            if lease is not None:
                lease.borrowers += 1
        if lease is not None:
            try:
                self._send_chunk(sender, job, lease, qos)
            finally:
                with self._runner.lock:
                    lease.borrowers -= 1
                    is_last = lease.is_released and not lease.borrowers
                if is_last:
                    lease.reader.close()
        self._runner.apply(partial(self._machine.chunk_sent, job.stream))

    def _send_chunk(self, sender: CargoSender, job: SendChunk, lease: _Lease, qos: QosClass) -> None:
        try:
            if lease.sent[job.chunk]:
                self._recheck(lease.reader, job.chunk)
            sealed = lease.reader.chunk(job.chunk)
        except RaylogError as error:
            shard_id = lease.reader.frame.header.shard_id
            log.warning("shard %s, chunk %d: cannot be read: %s", shard_id, job.chunk, error)
            refusal: Callable[[float], list[Effect]] = partial(
                self._machine.refuse, job.pull, _reason_of(error), str(error), job.chunk
            )
            self._runner.apply(refusal)
            return
        lease.sent[job.chunk] = True
        sender.send(Head(RecordType.CHUNK, job.pull, job.chunk, len(sealed)), sealed)
        self._listener.sent(job.stream, self.peer_id, qos, len(sealed))

    def _recheck(self, reader: ShardReader, number: int) -> None:
        """A chunk that has gone out and is asked for again may have come damaged: a store verifies what it takes into
        memory, not what it gives out of it. Raises `DamagedData` when it cannot be mended here."""
        with suppress(NotFound):  # a shard that is still on its way
            self._source.mend(reader.frame.header.shard_id, [number])
        reader.frame.verify_chunk(number, reader.chunk(number))


class _Following:
    """One pull of a shard that is on its way to this node: a `Follower`, and the reader of what is here."""

    def __init__(self, session: ServerSession, pull: int, shard_id: str, relay: Relay) -> None:
        self.pull = pull
        self._session, self._shard_id, self._relay = session, shard_id, relay
        self._incoming: Incoming | None = None
        self.is_lent = False  # the session's machine knows of it

    def begun(self, incoming: Incoming, available: Sequence[Range]) -> None:
        self._incoming = incoming
        self._session.hear(partial(self._session.begin, self, available))

    def more(self, ranges: Sequence[Range]) -> None:
        offer = partial(self._session.offer, self.pull, ranges)
        if self.is_lent:
            offer()
        else:
            self._session.hear(offer)

    def gone(self) -> None:
        self._session.hear(partial(self._session.lose, self.pull))

    @property
    def frame(self) -> Frame:
        assert self._incoming is not None
        return self._incoming.frame

    def chunk(self, number: int) -> memoryview:
        assert self._incoming is not None
        return self._incoming.chunk(number)

    def close(self) -> None:
        self._relay.unfollow(self._shard_id, self)  # first: it may begin at this very moment
        if self._incoming is not None:
            self._incoming.remove(self)


def _next_job(jobs: "queue.SimpleQueue[SendChunk | None]", connection: socket.socket) -> SendChunk | None:
    """The next chunk to send; None when one of the two ends has closed the stream."""
    while True:
        try:
            return jobs.get(timeout=IDLE_LOOK_S)
        except queue.Empty:
            if has_come(connection):
                return None


def _reason_of(error: RaylogError) -> RefusalReason:
    match error:
        case NotFound():
            return RefusalReason.NOT_FOUND
        case DamagedData():
            return RefusalReason.DAMAGED
        case NotPermitted():
            return RefusalReason.NOT_PERMITTED
        case _:
            return RefusalReason.BUSY
