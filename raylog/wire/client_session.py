"""The puller's shell: a session with one source, its threads and sockets, and the sinks that its pulls fill."""

import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from raylog import __version__
from raylog.codec.frame import Frame
from raylog.errors import Cancelled, DamagedData, NotPermitted, PeerFault, RaylogError, Unavailable
from raylog.security.credentials import Credentials
from raylog.security.identity import Identity
from raylog.spec import QosClass, ShardRef
from raylog.wire.bounds import Bounds
from raylog.wire.cargo import END_RECORD, OPEN_RECORD, CargoReceiver, send_all, send_bare, tune
from raylog.wire.dial import dial
from raylog.wire.effects import (
    Close,
    CloseStream,
    Complete,
    ConnectStream,
    CreateShard,
    DropChunk,
    Effect,
    Fail,
    TakeChunk,
)
from raylog.wire.endpoints import ShardSink, ShardWriter
from raylog.wire.messages import ByeReason
from raylog.wire.puller import PullerSession
from raylog.wire.record import Head, RecordSealer, RecordType, preamble
from raylog.wire.runner import SessionRunner
from raylog.wire.session import Parties
from raylog.wire.tls import Refusal, TlsChannel

WAIT_S_MAX = 0.1  # how late a cancelled pull sees it
CLOSE_TIMEOUT_S = 10.0
Progress = Callable[[int, int], None]
"""Called with verified and total sealed bytes of the shard's chunks, in the thread that pulls, a few times a second."""
Event = Callable[[float], list[Effect]]


@dataclass(slots=True, eq=False)
class _Transfer:
    """One pull, between the thread that waits for it and those that receive. The runner's lock guards it."""

    number: int = -1
    total_bytes: int = 0
    frame: Frame | None = None
    writer: ShardWriter | None = None
    outcome: Complete | Fail | None = None
    received_bytes: int = 0
    received_chunks: int = 0
    resumed_bytes: int = 0  # were verified here before
    busy: int = 0  # cargo threads that write to `writer` now


@dataclass(slots=True, eq=False)
class _Line:
    """A cargo stream that the machine has not closed. The runner's lock guards it."""

    closed: threading.Event = field(default_factory=threading.Event)
    connection: socket.socket | None = None


class ClientSession:
    """A session that `connect` made. Any thread may pull over it, several at once; `close` ends it."""

    def __init__(self, channel: TlsChannel, parties: Parties, host: str, bounds: Bounds, streams: int) -> None:
        self._channel, self._host, self._bounds = channel, host, bounds
        self._machine = PullerSession(parties, bounds, streams)
        self._runner = SessionRunner(self._machine, channel, self._carry_out)
        self._changed = threading.Condition(self._runner.lock)
        self._transfers: dict[int, _Transfer] = {}
        self._lines: dict[bytes, _Line] = {}
        self._threads: list[threading.Thread] = []
        self._error: RaylogError | None = None
        self._spawn(self._control, "raylog-wire-control")

    @classmethod
    def connect(
        cls,
        node_id: str,
        host: str,
        port: int,
        credentials: Credentials,
        bounds: Bounds,
        streams: int,
        timeout_s: float,
        cancel: threading.Event | None = None,
    ) -> "ClientSession":
        """Connects, shakes hands and makes sure that it is the node `node_id` that answers.

        Raises `Unavailable` (nobody there), `DeadlineExceeded`, `PeerFault` (somebody else, or not of this cluster),
        `NotPermitted` (our own certificate has expired), `Cancelled`.
        """
        where, step_s = f"node {node_id} at {host}:{port}", min(timeout_s, bounds.greeting_timeout_s)
        if credentials.not_after_s <= time.time():
            raise NotPermitted(f"{where}: our own certificate ({credentials.identity}) has expired: join again")
        connection = dial(host, port, time.monotonic() + step_s, cancel, where)
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
        return cls(channel, parties, host, bounds, streams)

    @property
    def is_usable(self) -> bool:
        return not self._machine.is_closed

    def pull(
        self,
        ref: ShardRef,
        sink: ShardSink,
        deadline: float,
        qos: QosClass,
        on_progress: Progress | None,
        cancel: threading.Event | None,
    ) -> tuple[int, int, int]:
        """Fills the sink and commits; sealed bytes and chunks that came, and how many were asked for again. `deadline`
        is of `time.monotonic`. Raises what `client.pull` says."""
        transfer = _Transfer()
        self._runner.apply(partial(self._begin, transfer, ref, qos, deadline))
        try:
            while transfer.outcome is None:
                if transfer.frame is not None and transfer.writer is None:
                    self._create(transfer, sink, transfer.frame)
                self._await_news(transfer)
                if on_progress is not None and transfer.writer is not None:
                    on_progress(transfer.resumed_bytes + transfer.received_bytes, transfer.total_bytes)
                if cancel is not None and cancel.is_set():
                    raise Cancelled(f"shard {ref.shard_id}: the pull was cancelled; pull again to resume")
                if time.monotonic() >= deadline:
                    self._runner.apply(self._machine.on_tick)
            if isinstance(transfer.outcome, Fail):
                raise transfer.outcome.error
            assert transfer.writer is not None
            self._await_idle(transfer)
            transfer.writer.commit()
            return transfer.received_bytes, transfer.received_chunks, transfer.outcome.asked_again
        finally:
            self._leave(transfer, ref)

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

    # The thread that pulls.

    def _begin(self, transfer: _Transfer, ref: ShardRef, qos: QosClass, deadline: float, now: float) -> list[Effect]:
        if self._machine.is_closed:
            gone = self._error or Unavailable("the session has ended; connect again")
            transfer.outcome = Fail(transfer.number, gone)
            return []
        transfer.number, effects = self._machine.open(ref, qos, deadline, now)
        self._transfers[transfer.number] = transfer
        return effects

    def _await_news(self, transfer: _Transfer) -> None:
        with self._changed:
            if transfer.outcome is None and (transfer.frame is None or transfer.writer is not None):
                self._changed.wait(WAIT_S_MAX)

    def _create(self, transfer: _Transfer, sink: ShardSink, frame: Frame) -> None:
        writer = sink.create(frame)
        transfer.writer = writer
        missing = writer.missing()
        missing_bytes = sum(
            frame.chunks[n].sealed_bytes for first, count in missing for n in range(first, first + count)
        )
        transfer.total_bytes = sum(entry.sealed_bytes for entry in frame.chunks)
        transfer.resumed_bytes = transfer.total_bytes - missing_bytes
        self._runner.apply(partial(self._machine.shard_created, transfer.number, missing))

    def _await_idle(self, transfer: _Transfer) -> None:
        """Nobody writes to the sink any more. A chunk takes long only if the sink's device hangs."""
        with self._changed:
            is_idle = self._changed.wait_for(lambda: not transfer.busy, timeout=CLOSE_TIMEOUT_S)
        if not is_idle:
            raise Unavailable(f"pull {transfer.number}: this node's store did not take a chunk in {CLOSE_TIMEOUT_S} s")

    def _leave(self, transfer: _Transfer, ref: ShardRef) -> None:
        if transfer.outcome is None:
            given_up = Cancelled(f"shard {ref.shard_id}: the pull was given up here")
            self._runner.apply(partial(self._machine.fail, transfer.number, given_up))
        self._transfers.pop(transfer.number, None)
        if transfer.writer is not None:
            self._await_idle(transfer)
            transfer.writer.close()

    # Effects; under the runner's lock.

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case CreateShard(pull, frame):
                self._transfers[pull].frame = frame
                self._changed.notify_all()
            case Complete(pull) | Fail(pull):
                if (transfer := self._transfers.get(pull)) is not None:
                    transfer.outcome = effect
                    self._changed.notify_all()
            case ConnectStream(stream):
                self._lines[stream] = line = _Line()
                self._spawn(partial(self._carry_cargo, effect, line), "raylog-wire-cargo")
            case CloseStream(stream):
                if (closing := self._lines.pop(stream, None)) is not None:
                    _close(closing)
            case Close(error):
                self._error = error

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
            self._runner.apply(partial(self._machine.stream_lost, effect.stream, why))

    def _receive_stream(self, effect: ConnectStream, line: _Line) -> None:
        timeout_s = self._bounds.stream_timeout_s
        where = f"cargo port {effect.port} of {self._host}"
        with dial(self._host, effect.port, time.monotonic() + timeout_s, line.closed, where) as connection:
            tune(connection, self._bounds.progress_timeout_s)
            with self._runner.lock:
                line.connection = connection
            sealer = RecordSealer(effect.keys.from_puller, self._bounds.rekey_bytes)
            try:
                send_all(connection, memoryview(preamble(effect.stream)), timeout_s)
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
        receiver = CargoReceiver(connection, effect.keys.from_source, bounds.rekey_bytes, bounds.progress_timeout_s)
        while not line.closed.is_set() and self._receive_chunk(effect.stream, receiver):
            pass

    def _receive_chunk(self, stream: bytes, receiver: CargoReceiver) -> bool:
        """Takes one record; False when it was the last."""
        head = receiver.next_head()
        if head.type is not RecordType.CHUNK:
            return False
        arriving = partial(self._machine.chunk_arriving, stream, head.pull, head.chunk, head.body_bytes)
        for effect in self._runner.apply(arriving):
            match effect:
                case TakeChunk():
                    receiver.receive_body(head)
                    self._store_chunk(stream, receiver, head)
                    return True
                case DropChunk():
                    receiver.receive_body(head)
                    receiver.open_body_into(receiver.scratch(head.body_bytes))
                    return True
        return False

    def _store_chunk(self, stream: bytes, receiver: CargoReceiver, head: Head) -> None:
        with self._runner.lock:
            transfer = self._transfers.get(head.pull)
            writer = None if transfer is None or transfer.outcome is not None else transfer.writer
            if transfer is not None and writer is not None:
                transfer.busy += 1
        event: Event = partial(self._machine.chunk_verified, stream, head.pull, head.chunk)
        if transfer is None or writer is None:
            receiver.open_body_into(receiver.scratch(head.body_bytes))
            self._runner.apply(event)
            return
        received_bytes = 0
        try:
            _fill(writer, receiver, head)
            received_bytes = head.body_bytes
        except PeerFault:
            raise  # the record does not open: the stream is over
        except DamagedData:
            event = partial(self._machine.chunk_damaged, stream, head.pull, head.chunk)
        except RaylogError as error:
            event = partial(self._machine.fail, head.pull, error)
        finally:
            with self._changed:
                transfer.received_bytes += received_bytes
                transfer.received_chunks += bool(received_bytes)
                transfer.busy -= 1
                if transfer.outcome is not None:
                    self._changed.notify_all()
        self._runner.apply(event)


def _fill(writer: ShardWriter, receiver: CargoReceiver, head: Head) -> None:
    """Opens the received body to where the sink wants it, and has the sink verify it."""
    place = writer.chunk_buffer(head.chunk)
    if place is None:
        sealed = receiver.scratch(head.body_bytes)
        receiver.open_body_into(sealed)
        writer.write_chunk(head.chunk, sealed)
        return
    receiver.open_body_into(place)
    del place  # whoever keeps an error of the next line must not keep the sink's memory
    writer.commit_chunk(head.chunk)


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
        with suppress(OSError):  # it is cut already
            line.connection.shutdown(socket.SHUT_RD)
