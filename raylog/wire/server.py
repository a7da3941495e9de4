"""Serves a node's shards to other nodes and clients: a control listener (TLS), a cargo listener, and their bounds."""

import logging
import secrets
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from functools import partial

from raylog import __version__
from raylog.errors import PeerFault, RaylogError, Unavailable, UsageError
from raylog.security.credentials import Credentials
from raylog.security.identity import Certificate
from raylog.spec import CargoRecords, QosClass
from raylog.wire import messages
from raylog.wire.bounds import Bounds
from raylog.wire.cargo import receive_proof
from raylog.wire.classes import ClassCounters, Slices
from raylog.wire.endpoints import ShardSource
from raylog.wire.gate import Gate
from raylog.wire.messages import ByeReason
from raylog.wire.paths import Paths
from raylog.wire.probe import ProbeKeys
from raylog.wire.prober import Responder
from raylog.wire.record import PREAMBLE_BYTES, RecordOpener, RecordType, StreamKeys, parse_preamble
from raylog.wire.relay import Relay
from raylog.wire.server_session import Offers, ServerSession
from raylog.wire.session import Parties
from raylog.wire.tls import Refusal, TlsChannel

log = logging.getLogger(__name__)

BACKLOG = 128
CLOSE_TIMEOUT_S = 10.0
_ACCEPT_PAUSE_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerCounters:
    """Since the start: chunks and sealed bytes sent, what each traffic class got of that, sessions admitted,
    connections refused and datagrams dropped by reason; and sessions that run now."""

    sent_bytes: int
    sent_chunks: int
    classes: dict[QosClass, ClassCounters]
    sessions_admitted: int
    sessions_open: int
    refused: dict[str, int]
    datagrams_dropped: dict[str, int]


class WireServer:
    """Serves `store` at `bind_host` from the return of the constructor until `close`. One thread per connection.

    `credentials` is asked at each new connection, so that a renewed certificate counts from then on. Control and cargo
    listen on two free ports of `port_range` (first, last), or on any two for (0, 0). `slices` are the weights and caps
    of traffic classes over all sessions. `on_sent(peer id, class, sealed bytes, seconds waited)` is called for every
    chunk, from many threads. What `relay` knows to be on its way here is served as it comes. Raises `Unavailable` when
    there is no free port. Cargo is encrypted once more, unless `records` allows authenticated records and a puller asks
    for them.
    """

    def __init__(
        self,
        credentials: Callable[[], Credentials],
        store: ShardSource,
        *,
        bind_host: str,
        port_range: tuple[int, int] = (0, 0),
        bounds: Bounds | None = None,
        slices: Slices | None = None,
        on_sent: Callable[[str, QosClass, int, float], None] | None = None,
        relay: Relay | None = None,
        records: CargoRecords = CargoRecords.ENCRYPTED,
    ) -> None:
        self._records = records
        self._credentials, self._store, self._on_sent = credentials, store, on_sent
        self._relay = relay or Relay(store.open)
        self._bounds = bounds or Bounds()
        self.paths = Paths()
        self._gate = Gate(slices or Slices(), self._bounds.progress_timeout_s)
        self._lock = threading.Lock()
        self._is_closing = False
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._sessions: set[ServerSession] = set()
        self._probed: dict[ServerSession, bytes] = {}  # the id in its datagrams
        self._expected: dict[bytes, tuple[ServerSession, StreamKeys]] = {}
        self._refused: Counter[str] = Counter()
        self._sessions_admitted = 0
        self._handshakes = threading.BoundedSemaphore(self._bounds.handshakes_max)
        self._unproven = threading.BoundedSemaphore(self._bounds.cargo_unproven_max)
        self._control_listener = _listen(bind_host, port_range)
        try:
            self._cargo_listener = _listen(bind_host, port_range)
        except BaseException:
            self._control_listener.close()
            raise
        try:
            self._probes = Responder(bind_host, port_range, self.paths)
        except BaseException:
            self._control_listener.close()
            self._cargo_listener.close()
            raise
        self.host = bind_host
        self.control_port: int = self._control_listener.getsockname()[1]
        self.cargo_port: int = self._cargo_listener.getsockname()[1]
        self._acceptors = [
            threading.Thread(target=partial(self._accept, *arguments), name=f"raylog-wire-accept-{name}", daemon=True)
            for name, arguments in {
                "control": (self._control_listener, self._handshakes, self._serve_control),
                "cargo": (self._cargo_listener, self._unproven, self._serve_cargo),
            }.items()
        ]
        for acceptor in self._acceptors:
            acceptor.start()

    @property
    def address(self) -> tuple[str, int]:
        """Host and control port, as pullers name them."""
        return self.host, self.control_port

    def counters(self) -> ServerCounters:
        classes = self._gate.counters()
        with self._lock:
            return ServerCounters(
                sent_bytes=sum(of.sent_bytes for of in classes.values()),
                sent_chunks=sum(of.sent_chunks for of in classes.values()),
                classes=classes,
                sessions_admitted=self._sessions_admitted,
                sessions_open=len(self._sessions),
                refused=dict(self._refused),
                datagrams_dropped=self._probes.dropped(),
            )

    def close(self) -> None:
        """Says goodbye to every session, then ends every connection and thread."""
        with self._lock:
            if self._is_closing:
                return
            self._is_closing = True
            sessions = list(self._sessions)
        for listener in (self._control_listener, self._cargo_listener):
            listener.shutdown(socket.SHUT_RDWR)  # wakes `accept`
        for session in sessions:
            session.close()
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        self._join(self._acceptors, deadline)
        with self._lock:
            connections = dict(self._connections)
        for connection in connections:
            with suppress(OSError):  # it has just ended by itself
                connection.shutdown(socket.SHUT_RDWR)  # what was said last still leaves
        self._join(list(connections.values()), deadline)
        self._probes.close()
        self._control_listener.close()
        self._cargo_listener.close()

    def __enter__(self) -> "WireServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @staticmethod
    def _join(threads: list[threading.Thread], deadline: float) -> None:
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                log.error("%s did not end within %s s", thread.name, CLOSE_TIMEOUT_S)

    # What sessions call.

    def expect(self, stream: bytes, session: ServerSession, keys: StreamKeys) -> None:
        with self._lock:
            self._expected[stream] = session, keys

    def forget(self, stream: bytes) -> None:
        with self._lock:
            self._expected.pop(stream, None)
        self._gate.detach(stream)

    def expect_probes(self, session: ServerSession, keys: ProbeKeys) -> None:
        with self._lock:
            self._probed[session] = keys.id
        self._probes.expect(session.peer_id, keys)

    def turn(self, stream: bytes, qos: QosClass, sealed_bytes: int) -> AbstractContextManager[None]:
        return self._gate.turn(stream, qos, sealed_bytes)

    def sent(self, stream: bytes, peer_id: str, qos: QosClass, sealed_bytes: int) -> None:
        waited_s = self._gate.sent(stream, qos, sealed_bytes)
        if self._on_sent is not None:
            self._on_sent(peer_id, qos, sealed_bytes, waited_s)

    # Accepting.

    def _accept(
        self,
        listener: socket.socket,
        unproven: threading.BoundedSemaphore,
        serve: Callable[[socket.socket, str], None],
    ) -> None:
        while True:
            try:
                connection, address = listener.accept()
            except OSError as error:
                if self._is_closing:
                    return
                log.warning("port %d: cannot accept: %s", listener.getsockname()[1], error.strerror)
                time.sleep(_ACCEPT_PAUSE_S)  # out of descriptors: the connections that end give some back
                continue
            where = f"{address[0]}:{address[1]}"
            if not unproven.acquire(blocking=False):
                connection.close()
                self._refuse(where, Refusal.BUSY, "too many connections have not proved themselves yet")
                continue
            thread = threading.Thread(
                target=partial(self._serve, serve, connection, where), name="raylog-wire-serve", daemon=True
            )
            with self._lock:
                self._connections[connection] = thread
            thread.start()

    def _serve(self, serve: Callable[[socket.socket, str], None], connection: socket.socket, where: str) -> None:
        try:
            serve(connection, where)
        except RaylogError as error:
            self._refuse(where, getattr(error, "refusal", Refusal.CARGO), str(error))
        except OSError as error:
            self._refuse(where, Refusal.CUT, str(error))
        finally:
            with self._lock:
                self._connections.pop(connection, None)
            connection.close()

    def _refuse(self, where: str, refusal: Refusal, why: str) -> None:
        with self._lock:
            self._refused[refusal] += 1
        log.warning("connection from %s refused (%s): %s", where, refusal, why)

    # Control.

    def _serve_control(self, connection: socket.socket, where: str) -> None:
        with ExitStack() as stack:
            slot = stack.enter_context(ExitStack())
            slot.callback(self._handshakes.release)
            credentials = self._credentials()
            channel = TlsChannel(connection, credentials, server_side=True, where=where)
            stack.callback(channel.close)
            certificate = channel.handshake(self._bounds.greeting_timeout_s)
            slot.close()
            self._serve_session(channel, credentials, certificate, where)

    def _serve_session(
        self, channel: TlsChannel, credentials: Credentials, certificate: Certificate, where: str
    ) -> None:
        not_after_s = min(credentials.not_after_s, certificate.not_after_s)
        parties = Parties(
            me=credentials.identity,
            peer=certificate.identity,
            expires=time.monotonic() + not_after_s - time.time(),
            software=__version__,
            random_bytes=secrets.token_bytes,
        )
        offers = Offers(self.cargo_port, self._probes.port, self._records)
        session = ServerSession(channel, parties, self._store, self, offers, self._bounds, self._relay, self.paths)
        try:
            self._admit(session)
        except Unavailable as error:
            bye = messages.Bye(reason=ByeReason.SHUTDOWN, message=str(error))
            with suppress(OSError):
                channel.send(messages.encode(bye))
            raise
        try:
            session.run()
        finally:
            with self._lock:
                self._sessions.discard(session)
                probed = self._probed.pop(session, None)
            if probed is not None:
                self._probes.forget(probed)
        if session.error is not None:
            log.warning("session with %s at %s ended: %s", parties.peer, where, session.error)

    def _admit(self, session: ServerSession) -> None:
        with self._lock:
            if self._is_closing or len(self._sessions) >= self._bounds.sessions_max:
                why = "it is going down" if self._is_closing else f"it serves {len(self._sessions)} sessions already"
                raise Unavailable(f"this node takes no session: {why}", refusal=Refusal.BUSY)
            self._sessions.add(session)
            self._sessions_admitted += 1

    # Cargo.

    def _serve_cargo(self, connection: socket.socket, where: str) -> None:
        try:
            session, stream, keys, opener = self._prove(connection)
        finally:
            self._unproven.release()
        self._gate.attach(stream, session.peer_id, connection)
        try:
            session.serve_cargo(connection, stream, keys, opener)
        except RaylogError as error:
            log.warning("cargo stream %s to %s ended: %s", stream.hex(), where, error)
        finally:
            self._gate.detach(stream)

    def _prove(self, connection: socket.socket) -> tuple[ServerSession, bytes, StreamKeys, RecordOpener]:
        """Whose stream this is. Nothing is sent, and no stream is given away, before the key is proven."""
        proof = receive_proof(connection, self._bounds.stream_timeout_s)
        stream = parse_preamble(proof[:PREAMBLE_BYTES])
        with self._lock:
            expected = self._expected.get(stream)
        if expected is None:
            raise PeerFault(f"no session awaits cargo stream {stream.hex()}")
        session, keys = expected
        opener = RecordOpener(keys.from_puller, self._bounds.rekey_bytes)
        if opener.open_head(proof[PREAMBLE_BYTES:]).type is not RecordType.OPEN:
            raise PeerFault("a cargo connection does not begin with an open record")
        with self._lock:
            if self._expected.pop(stream, None) is None:
                raise PeerFault(f"cargo stream {stream.hex()} was connected twice")
        return session, stream, keys, opener


def _listen(host: str, port_range: tuple[int, int]) -> socket.socket:
    """A listener on the first free port of the range."""
    first, last = port_range
    if not 0 <= first <= last <= 65535:
        raise UsageError(f"expected a port range within 0 to 65535, got {first} to {last}")
    failure: OSError | None = None
    for port in range(first, last + 1):
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            listener = socket.socket(family, kind, protocol)
        except OSError as error:
            raise Unavailable(f"cannot listen at {host!r}: {error}; set `bind` to an address of this machine") from None
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
            return listener
        except OSError as error:
            listener.close()
            failure = error
    raise Unavailable(f"cannot listen at {host}, ports {first} to {last}: {failure}; widen `port_first` to `port_last`")
