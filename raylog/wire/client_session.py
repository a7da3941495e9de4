"""The puller's shell of one session with one source: its threads and sockets. What it receives goes to `Receiver`s."""

import itertools
import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from raylog import __version__
from raylog.errors import DamagedData, NotPermitted, PeerFault, RaylogError, Unavailable
from raylog.security.credentials import Credentials
from raylog.security.identity import Identity
from raylog.spec import CargoRecords, QosClass, ShardRef
from raylog.wire.bounds import Bounds
from raylog.wire.cargo import END_RECORD, OPEN_RECORD, CargoReceiver, send_all, send_bare, tune
from raylog.wire.dial import dial
from raylog.wire.effects import (
    CallProbes,
    Close,
    CloseStream,
    Complete,
    ConnectStream,
    CreateShard,
    DropChunk,
    Effect,
    Fail,
    Offered,
    TakeChunk,
)
from raylog.wire.endpoints import ShardWriter
from raylog.wire.messages import ByeReason
from raylog.wire.prober import Caller
from raylog.wire.puller import PullerSession
from raylog.wire.receiver import Receiver
from raylog.wire.record import Head, RecordSealer, RecordType, preamble
from raylog.wire.runner import SessionRunner
from raylog.wire.session import Parties
from raylog.wire.tls import Refusal, TlsChannel

log = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 10.0
Event = Callable[[float], list[Effect]]


@dataclass(slots=True, eq=False)
class _Line:
    """A cargo stream that the machine has not closed. The runner's lock guards it."""

    host: str
    closed: threading.Event = field(default_factory=threading.Event)
    connection: socket.socket | None = None
    filling: int | None = None  # the pull whose writer is being received into
    is_cut: bool = False  # by us, for that pull has ended


class ClientSession:
    """A session that `connect` made. Any thread may pull over it, several at once; `close` ends it."""

    def __init__(
        self,
        channel: TlsChannel,
        parties: Parties,
        hosts: Sequence[str],
        bounds: Bounds,
        streams: int,
        records: CargoRecords,
    ) -> None:
        self._channel, self._bounds = channel, bounds
        self._host = hosts[0]
        self._caller: Caller | None = None
        self._hosts = itertools.cycle(hosts)  # streams take turns over the source's addresses
        self._machine = PullerSession(parties, bounds, streams, records)
        self._runner = SessionRunner(self._machine, channel, self._carry_out)
        self._receivers: dict[int, Receiver] = {}
        self._lines: dict[bytes, _Line] = {}
        self._threads: list[threading.Thread] = []
        self._error: RaylogError | None = None
        self._spawn(self._control, "raylog-wire-control")

    @classmethod
    def connect(
        cls,
        node_id: str,
        hosts: Sequence[str],
        port: int,
        credentials: Credentials,
        bounds: Bounds,
        streams: int,
        timeout_s: float,
        cancel: threading.Event | None = None,
        *,
        records: CargoRecords = CargoRecords.ENCRYPTED,
    ) -> "ClientSession":
        """Connects to the first of `hosts`, shakes hands and makes sure that it is the node `node_id` that answers.

        Raises `Unavailable` (nobody there), `DeadlineExceeded`, `PeerFault` (somebody else, or not of this cluster),
        `NotPermitted` (our own certificate has expired), `Cancelled`.
        """
        where, step_s = f"node {node_id} at {hosts[0]}:{port}", min(timeout_s, bounds.greeting_timeout_s)
        if credentials.not_after_s <= time.time():
            raise NotPermitted(f"{where}: our own certificate ({credentials.identity}) has expired: join again")
        connection = dial(hosts[0], port, time.monotonic() + step_s, cancel, where)
        channel = TlsChannel(connection, credentials, server_side=False, where=where)
        try:
            certificate = channel.handshake(step_s, cancel)
            _check_is_node(certificate.identity, node_id, where)
        except BaseException:
            channel.close()
            raise
        not_after_s = min(credentials.not_after_s, certificate.not_after_s)
        parties = Parties(
            me=credentials.identity,
            peer=certificate.identity,
            expires=time.monotonic() + not_after_s - time.time(),
            software=__version__,
            random_bytes=secrets.token_bytes,
        )
        return cls(channel, parties, hosts, bounds, streams, records)

    @property
    def is_usable(self) -> bool:
        return not self._machine.is_closed

    @property
    def is_idle(self) -> bool:
        """Whether no pull runs over it."""
        return not self._receivers

    def open(self, ref: ShardRef, qos: QosClass, deadline: float, receiver: Receiver, patience_s: int = 0) -> None:
        """Begins to pull a shard; `deadline` is of `time.monotonic`. Everything else is told to `receiver`."""
        self._runner.apply(partial(self._begin, ref, qos, deadline, receiver, patience_s))

    def ready(self, pull: int) -> None:
        self._runner.apply(partial(self._machine.shard_created, pull))

    def ask(self, pull: int, chunks: Iterable[int]) -> None:
        self._runner.apply(partial(self._machine.ask, pull, chunks))

    def recall(self, pull: int, chunks: Iterable[int]) -> None:
        self._runner.apply(partial(self._machine.recall, pull, chunks))

    def cancel(self, pull: int, chunks: Iterable[int]) -> None:
        self._runner.apply(partial(self._machine.cancel, pull, chunks))

    def leave(self, pull: int) -> None:
        self._runner.apply(partial(self._machine.finish, pull))

    def close(self) -> None:
        """Says `Bye` and lets go of every thread and socket; pulls that still run fail."""
        self._runner.apply(partial(self._machine.close, ByeReason.DONE))
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        for thread in list(self._threads):
            thread.join(max(0.0, deadline - time.monotonic()))
            assert not thread.is_alive(), f"{thread.name} did not end within {CLOSE_TIMEOUT_S} s"

    def __enter__(self) -> "ClientSession":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(
        self, ref: ShardRef, qos: QosClass, deadline: float, receiver: Receiver, patience_s: int, now: float
    ) -> list[Effect]:
        if self._machine.is_closed:
            receiver.failed(self._error or Unavailable("the session has ended; connect again"))
            return []
        number, effects = self._machine.open(ref, qos, deadline, now, patience_s)
        self._receivers[number] = receiver
        receiver.opened(self, number)
        return effects

    # Effects; under the runner's lock.

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case CreateShard(pull, frame):
                self._receivers[pull].framed(frame)
            case Offered(pull, ranges):
                self._receivers[pull].offered(ranges)
            case Complete(pull, asked_again):
                self._stop_filling(pull)
                self._receivers.pop(pull).finished(asked_again)
            case Fail(pull, error):
                self._stop_filling(pull)
                self._receivers.pop(pull).failed(error)
            case ConnectStream(stream):
                self._lines[stream] = line = _Line(next(self._hosts))
                self._spawn(partial(self._carry_cargo, effect, line), "raylog-wire-cargo")
            case CloseStream(stream):
                if (closing := self._lines.pop(stream, None)) is not None:
                    _close(closing)
            case CallProbes(port, keys):
                self._caller = caller = Caller(keys, lambda: bool(self._receivers))
                self._spawn(partial(caller.run, self._host, port), "raylog-wire-probe")
            case Close(error):
                self._error = error
                if isinstance(error, PeerFault):  # others may give the shard: the pull need not fail of it
                    log.warning("a session with a source ended: %s", error)
                if self._caller is not None:
                    self._caller.close()

    def _stop_filling(self, pull: int) -> None:
        """The pull is over: its writer's memory is not the source's to write into any more."""
        for line in self._lines.values():
            if line.filling == pull and line.connection is not None:
                line.is_cut = True
                _cut(line.connection)

    def _spawn(self, target: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=target, name=name, daemon=True)
        self._threads = [one for one in self._threads if one.is_alive()]
        self._threads.append(thread)
        thread.start()

    # The control thread.

    def _control(self) -> None:
        try:
            self._runner.run()
        finally:
            self._runner.apply(partial(self._machine.connection_lost, None))  # nothing if it ended as it should
            self._channel.close()

    # Cargo threads.

    def _carry_cargo(self, effect: ConnectStream, line: _Line) -> None:
        why = "its thread ended"
        try:
            self._receive_stream(effect, line)
        except (RaylogError, OSError) as error:
            why = str(error)
        finally:
            self._runner.apply(partial(self._machine.stream_lost, effect.stream, why, is_ours=line.is_cut))

    def _receive_stream(self, effect: ConnectStream, line: _Line) -> None:
        timeout_s = self._bounds.stream_timeout_s
        where = f"cargo port {effect.port} of {line.host}"
        with dial(line.host, effect.port, time.monotonic() + timeout_s, line.closed, where) as connection:
            tune(connection, self._bounds.progress_timeout_s)
            with self._runner.lock:
                line.connection = connection
            sealer = RecordSealer(effect.keys.from_puller, self._bounds.rekey_bytes)
            try:
                send_all(connection, [memoryview(preamble(effect.stream))], timeout_s)
                send_bare(connection, sealer, OPEN_RECORD, timeout_s)
                self._runner.apply(partial(self._machine.stream_connected, effect.stream))
                self._receive_chunks(effect, connection, line)
            finally:
                with self._runner.lock:
                    self._lines.pop(effect.stream, None)
                    line.connection = None
                if line.closed.is_set():
                    with suppress(Unavailable):  # a farewell: nothing depends on it
                        send_bare(connection, sealer, END_RECORD, timeout_s)

    def _receive_chunks(self, effect: ConnectStream, connection: socket.socket, line: _Line) -> None:
        bounds = self._bounds
        receiver = CargoReceiver(
            connection, effect.keys.from_source, bounds.rekey_bytes, bounds.progress_timeout_s, effect.keys.records
        )
        while not line.closed.is_set() and self._receive_chunk(effect.stream, receiver, line):
            pass

    def _receive_chunk(self, stream: bytes, receiver: CargoReceiver, line: _Line) -> bool:
        """Takes one record; False when it was the last."""
        head = receiver.next_head()
        if head.type is not RecordType.CHUNK:
            return False
        arriving = partial(self._machine.chunk_arriving, stream, head.pull, head.chunk, head.body_bytes)
        for effect in self._runner.apply(arriving):
            match effect:
                case TakeChunk():
                    self._store_chunk(stream, receiver, head, line)
                    return True
                case DropChunk():
                    if not receiver.is_direct:
                        receiver.receive_body(head)
                    receiver.open_body(head)
                    self._tell_dropped(head)
                    return True
        return False

    def _tell_dropped(self, head: Head) -> None:
        with self._runner.lock:
            target = self._receivers.get(head.pull)
        if target is not None:
            target.dropped(head.body_bytes)

    def _store_chunk(self, stream: bytes, cargo: CargoReceiver, head: Head, line: _Line) -> None:
        with self._runner.lock:
            target = self._receivers.get(head.pull)
            if cargo.is_direct and target is not None and target.is_alone:
                line.filling = head.pull
        try:
            self._take_in(stream, target, cargo, head, in_place=line.filling is not None)
        finally:
            line.filling = None

    def _take_in(
        self, stream: bytes, target: Receiver | None, cargo: CargoReceiver, head: Head, *, in_place: bool
    ) -> None:
        body = None
        if not cargo.is_direct:
            cargo.receive_body(head)
        elif not in_place:
            body = cargo.open_body(head)
        settled: Event = partial(self._machine.chunk_verified, stream, head.pull, head.chunk)
        writer = None if target is None else target.take()
        if target is None or writer is None:
            if body is None:
                cargo.open_body(head)
            self._runner.apply(settled)
            return
        try:
            error = _store(writer, cargo, head, body)
        finally:
            target.put_down()
        match error:
            case None:
                tell = partial(target.stored, head.chunk, head.body_bytes)
            case DamagedData():
                settled = partial(self._machine.chunk_damaged, stream, head.pull, head.chunk)
                tell = partial(target.damaged, head.chunk, error)
            case _:
                tell = partial(target.broken, error)
        self._runner.apply(settled)
        tell()


def _store(writer: ShardWriter, cargo: CargoReceiver, head: Head, body: memoryview | None) -> RaylogError | None:
    """Opens the body to where the sink wants it, unless it is open, and has the sink verify it; returns what the sink
    has against it. Raises what the receiver does: the record does not come or open, and the stream is over."""
    place = writer.chunk_buffer(head.chunk) if body is None else None
    if place is not None:
        cargo.open_body_into(place)
    elif body is None:
        body = cargo.open_body(head)
    del place  # whoever keeps an error of the sink must not keep the sink's memory
    try:
        if body is None:
            writer.commit_chunk(head.chunk)
        else:
            writer.write_chunk(head.chunk, body)
    except RaylogError as error:
        return error.with_traceback(None)  # nor may the frames below, which hold views of it
    return None


def _check_is_node(identity: Identity, node_id: str, where: str) -> None:
    if (identity.role, identity.id) != ("node", node_id):
        raise PeerFault(
            f"{where}: expected the certificate of node {node_id}, got that of {identity.role} {identity.id}: another "
            "process listens there now; look up the node's address again",
            refusal=Refusal.IDENTITY,
        )


def _close(line: _Line) -> None:
    """Ends the connecting or receiving of the line's thread, which then closes the connection."""
    line.closed.set()
    if line.connection is not None:
        _cut(line.connection)


def _cut(connection: socket.socket) -> None:
    with suppress(OSError):  # it is cut already
        connection.shutdown(socket.SHUT_RD)
