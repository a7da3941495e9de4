"""The shells of probes: the puller calls a few times a second while cargo moves, the source probes, the puller echoes.

The puller speaks first, so that the way back is open, and the source, which sends the cargo and decides how, measures.
"""

import logging
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from raylog.errors import Unavailable
from raylog.wire.paths import Paths
from raylog.wire.probe import (
    DATAGRAM_BYTES,
    Outstanding,
    Probe,
    ProbeKeys,
    ProbeKind,
    ProbeOpener,
    ProbeSealer,
    Rate,
    session_of,
)

log = logging.getLogger(__name__)

CALL_EVERY_S = 0.25
FIRST_CALLS = 5  # a session's, all at once
_PER_SESSION_PER_S = 20.0  # calls and echoes
_IN_ALL_PER_S = 4000.0
_FLOOD_SAID_EVERY_S = 60.0


@dataclass(slots=True, eq=False)
class _Probed:
    """One session at the source."""

    peer_id: str
    sealer: ProbeSealer
    opener: ProbeOpener
    rate: Rate = field(default_factory=lambda: Rate(_PER_SESSION_PER_S))
    outstanding: Outstanding = field(default_factory=Outstanding)


class Responder:
    """The source's end for all its sessions: one socket, one thread. `close` ends it."""

    def __init__(self, bind_host: str, port_range: tuple[int, int], paths: Paths) -> None:
        self._paths = paths
        self._lock = threading.Lock()
        self._sessions: dict[bytes, _Probed] = {}
        self._dropped: Counter[str] = Counter()
        self._rate = Rate(_IN_ALL_PER_S)
        self._flood_said = float("-inf")
        self._is_closing = False
        self._socket = _bind(bind_host, port_range)
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, name="raylog-wire-probes", daemon=True)
        self._thread.start()

    def expect(self, peer_id: str, keys: ProbeKeys) -> None:
        """A session's datagrams are answered from now on, until `forget`."""
        probed = _Probed(peer_id, ProbeSealer(keys.id, keys.from_source), ProbeOpener(keys.id, keys.from_puller))
        with self._lock:
            self._sessions[keys.id] = probed

    def forget(self, session_id: bytes) -> None:
        with self._lock:
            self._sessions.pop(session_id, None)

    def dropped(self) -> dict[str, int]:
        """Datagrams that were not answered, by reason: `unknown`, `flood`, `sealed` (does not open)."""
        with self._lock:
            return dict(self._dropped)

    def close(self) -> None:
        self._is_closing = True
        _wake(self._socket)
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                datagram, address = self._socket.recvfrom(DATAGRAM_BYTES + 1)
            except OSError:  # an ICMP error of an earlier answer
                datagram, address = b"", None
            if self._is_closing:
                return
            if (answer := self._answer(datagram, time.monotonic())) is not None:
                with suppress(OSError):  # a full queue, an address that is gone: the probe is lost
                    self._socket.sendto(answer, address)

    def _answer(self, datagram: bytes, now: float) -> bytes | None:
        session_id = session_of(datagram)
        with self._lock:
            probed = None if session_id is None else self._sessions.get(session_id)
        if probed is None:
            self._drop("unknown", now)
        elif not (probed.rate.take(now) and self._rate.take(now)):
            self._drop("flood", now)
        elif (probe := probed.opener.open(datagram)) is None:
            self._drop("sealed", now)
        else:
            return self._heard(probed, probe, now)
        return None

    def _heard(self, probed: _Probed, probe: Probe, now: float) -> bytes | None:
        if probe.kind is ProbeKind.ECHO and (rtt_s := probed.outstanding.echo(probe.number, now)) is not None:
            self._paths.probed(probed.peer_id, rtt_s)
        if probe.kind is not ProbeKind.CALL:
            return None
        for _ in range(probed.outstanding.overdue(now)):
            self._paths.probed(probed.peer_id, None)
        return probed.sealer.seal(Probe(ProbeKind.PROBE, probed.outstanding.send(now)))

    def _drop(self, why: str, now: float) -> None:
        with self._lock:
            self._dropped[why] += 1
        if why == "flood" and now - self._flood_said >= _FLOOD_SAID_EVERY_S:
            self._flood_said = now
            log.warning(
                "probes flood port %d: those above %g a second from one session and %g in all are dropped unread",
                self.port, _PER_SESSION_PER_S, _IN_ALL_PER_S,
            )  # fmt: skip


class Caller:
    """The puller's end of one session. `run` in a thread of its own, until `close`."""

    def __init__(self, keys: ProbeKeys, is_busy: Callable[[], bool]) -> None:
        self._sealer, self._opener = ProbeSealer(keys.id, keys.from_puller), ProbeOpener(keys.id, keys.from_source)
        self._is_busy = is_busy
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._is_closed = False

    def run(self, host: str, port: int) -> None:
        """Calls and echoes. Where UDP does not pass, nothing comes back, and nothing else changes."""
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
            with socket.socket(family, kind, protocol) as connection:
                connection.connect(address)
                with self._lock:
                    self._socket = connection
                try:
                    self._talk(connection)
                finally:
                    with self._lock:
                        self._socket = None
        except OSError as error:
            log.info("no probes to %s, port %d: %s", host, port, error)

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            if self._socket is not None:
                _wake(self._socket)

    def _talk(self, connection: socket.socket) -> None:
        calls, has_heard = FIRST_CALLS, False
        while not self._is_closed:
            for _ in range(calls):
                self._send(connection, Probe(ProbeKind.CALL, 0))
            until = time.monotonic() + CALL_EVERY_S
            while (left_s := until - time.monotonic()) > 0 and not self._is_closed:
                has_heard |= self._echo(connection, left_s)
            calls = int(self._is_busy())
        if not has_heard:
            log.debug("no probe came from %s: UDP may be blocked", connection)

    def _echo(self, connection: socket.socket, timeout_s: float) -> bool:
        connection.settimeout(timeout_s)
        try:
            probe = self._opener.open(connection.recv(DATAGRAM_BYTES + 1))
        except TimeoutError:
            return False
        except OSError:  # nobody listens there: the same as silence, without a busy loop
            time.sleep(min(timeout_s, 0.01))
            return False
        if probe is None or probe.kind is not ProbeKind.PROBE:
            return False
        self._send(connection, Probe(ProbeKind.ECHO, probe.number))
        return True

    def _send(self, connection: socket.socket, probe: Probe) -> None:
        with suppress(OSError):  # a full queue, an ICMP error of an earlier one: the probe is lost
            connection.send(self._sealer.seal(probe))


def _wake(connection: socket.socket) -> None:
    with suppress(OSError):  # Linux wakes a waiting `recv` also where it says that the socket is not connected
        connection.shutdown(socket.SHUT_RDWR)


def _bind(host: str, port_range: tuple[int, int]) -> socket.socket:
    """A datagram socket on the first free port of the range."""
    first, last = port_range
    failure: OSError | None = None
    for port in range(first, last + 1):
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                host, port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE
            )[0]
            datagrams = socket.socket(family, kind, protocol)
        except OSError as error:
            raise Unavailable(f"cannot take datagrams at {host!r}: {error}") from None
        try:
            datagrams.bind(address)
            return datagrams
        except OSError as error:
            datagrams.close()
            failure = error
    raise Unavailable(
        f"cannot take datagrams at {host}, UDP ports {first} to {last}: {failure}; widen `port_first` to `port_last`"
    )
