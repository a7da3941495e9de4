"""The control connection: TLS 1.3 over a socket, by memory BIOs, and who is at the other end.

Python's SSL sockets are not safe to read and write from two threads at once before 3.13. Here OpenSSL only ever works
on memory under a lock, so any thread may send while one receives, and every wait is a plain socket's with a deadline.
"""

import enum
import os
import select
import socket
import ssl
import threading
import time
from contextlib import suppress

from raylog.errors import DeadlineExceeded, NotPermitted, PeerFault, RaylogError, Unavailable
from raylog.security.credentials import Credentials
from raylog.security.identity import Certificate
from raylog.wire.dial import wait_ready

_RECEIVE_BYTES = 64 << 10
_LINGER_S = 0.5


class Refusal(enum.StrEnum):
    """Why a connection was not admitted; errors of the greeting carry one as `refusal`."""

    GARBAGE = "garbage"
    HTTP = "http"
    TLS_VERSION = "tls-version"
    NO_CERTIFICATE = "no-certificate"
    AUTHORITY = "authority"
    EXPIRED = "expired"
    IDENTITY = "identity"
    TIMEOUT = "timeout"
    CUT = "cut"
    BUSY = "busy"
    CARGO = "cargo"  # a cargo connection without a stream or without its key


class TlsChannel:
    """One TLS connection over `connection`, which it owns from now on. `send` is for any thread, the rest for one."""

    def __init__(self, connection: socket.socket, credentials: Credentials, *, server_side: bool, where: str) -> None:
        self._connection, self._credentials, self._where = connection, credentials, where
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = credentials.tls_context(server_side)
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)
        self._tls_lock, self._send_lock = threading.Lock(), threading.Lock()
        self._has_ended = False
        self._is_over = False
        self._waker: int | None = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._waker_lock = threading.Lock()
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._poll_all = select.poll()
        for descriptor in (connection.fileno(), self._waker):
            self._poll_all.register(descriptor, select.POLLIN)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def handshake(self, timeout_s: float, cancel: threading.Event | None = None) -> Certificate:
        """Shakes hands, and says who is there. What is refused, and by whom, stands in the error, as `refusal` too.

        Raises `PeerFault` when the peer is not one of this cluster, `NotPermitted` when it does not take us for one
        (a server learns that here, a client of TLS 1.3 only by its first `receive`), `DeadlineExceeded`, `Unavailable`,
        `Cancelled` once `cancel` is set.
        """
        deadline = time.monotonic() + timeout_s
        self._connection.settimeout(timeout_s)  # from here on the bound of a single send
        try:
            while not self._is_done():
                self._flush()
                self._await_bytes(deadline, cancel)
            self._flush()
        except ssl.SSLError as error:
            with suppress(OSError):
                self._flush()  # the alert that tells the peer
            raise explain(error, self._where) from None
        except OSError as error:
            raise Unavailable(f"{self._where}: cut during the handshake: {error}", refusal=Refusal.CUT) from None
        try:
            return self._credentials.verify_peer(self._tls, time.time())
        except NotPermitted as error:
            raise PeerFault(f"{self._where}: {error}", refusal=Refusal.IDENTITY) from None

    def _is_done(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def _await_bytes(self, deadline: float, cancel: threading.Event | None) -> None:
        try:
            wait_ready(self._poll, deadline, cancel, f"{self._where}: TLS handshake")
        except DeadlineExceeded as error:
            raise DeadlineExceeded(str(error), refusal=Refusal.TIMEOUT) from None
        data = self._connection.recv(_RECEIVE_BYTES)
        if not data:
            raise Unavailable(f"{self._where}: cut during the handshake", refusal=Refusal.CUT)
        self._incoming.write(data)

    def send(self, data: bytes) -> None:
        """Raises `OSError` when the connection is gone or does not take the bytes in time."""
        with self._send_lock:
            with self._tls_lock:
                self._tls.write(data)
            self._flush()

    def receive(self, timeout_s: float) -> bytes | None:
        """What has come within `timeout_s`: None for nothing yet (or `wake`), empty when the other end has closed.
        Raises `OSError` for a cut, `NotPermitted` when the peer refuses our certificate, `PeerFault` for no TLS."""
        plain = self._decrypt(b"")
        if plain or self._has_ended:
            return plain
        ready = [descriptor for descriptor, _ in self._poll_all.poll(max(0.0, timeout_s) * 1000)]
        if self._waker in ready and not self._is_over:
            os.eventfd_read(self._waker)
        if self._connection.fileno() not in ready:
            return None
        data = self._connection.recv(_RECEIVE_BYTES)
        if not data:
            return b""
        plain = self._decrypt(data)
        return plain if plain or self._has_ended else None

    def _decrypt(self, data: bytes) -> bytes:
        parts = []
        with self._tls_lock:
            self._incoming.write(data)
            try:
                while part := self._tls.read(_RECEIVE_BYTES):
                    parts.append(part)
                self._has_ended = True
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLZeroReturnError:
                self._has_ended = True
            except ssl.SSLError as error:
                raise explain(error, self._where) from None
        return b"".join(parts)

    def _flush(self) -> None:
        with self._tls_lock:
            data = self._outgoing.read()
        if data:
            self._connection.sendall(data)

    def wake(self) -> None:
        """Makes `receive` return, now and from then on; from any thread, also after `close`."""
        self._is_over = True
        self.nudge()

    def nudge(self) -> None:
        """Makes `receive` return once; from any thread, also after `close`."""
        with self._waker_lock:
            if self._waker is not None:
                os.eventfd_write(self._waker, 1)

    def close(self) -> None:
        """Lets the last bytes out (closing at once with bytes unread would take them back), then closes."""
        with self._waker_lock:
            if self._waker is not None:
                os.close(self._waker)
                self._waker = None
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)
            deadline = time.monotonic() + _LINGER_S
            while self._poll.poll(max(0.0, deadline - time.monotonic()) * 1000) and self._connection.recv(
                _RECEIVE_BYTES
            ):
                pass
        self._connection.close()


_EXPIRED, _NOT_YET = 10, 9  # X509_V_ERR_CERT_HAS_EXPIRED, X509_V_ERR_CERT_NOT_YET_VALID
_REASONS: dict[str, tuple[Refusal, str]] = {
    "HTTP_REQUEST": (Refusal.HTTP, "it speaks HTTP: this is raylog's control port"),
    "HTTPS_PROXY_REQUEST": (Refusal.HTTP, "it speaks HTTP: this is raylog's control port"),
    "UNSUPPORTED_PROTOCOL": (Refusal.TLS_VERSION, "expected TLS 1.3, it offers an older one only"),
    "TLSV1_ALERT_PROTOCOL_VERSION": (Refusal.TLS_VERSION, "expected TLS 1.3, it speaks an older one only"),
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": (Refusal.NO_CERTIFICATE, "it showed no certificate; it must join first"),
}


def explain(error: ssl.SSLError, where: str) -> RaylogError:
    """What a TLS failure means here, with its `refusal`."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in (_EXPIRED, _NOT_YET):
            message = f"{where}: its certificate is not valid now ({error.verify_message}); renew it, compare clocks"
            return PeerFault(message, refusal=Refusal.EXPIRED)
        message = f"{where}: its certificate is not of this cluster's authority ({error.verify_message})"
        return PeerFault(message, refusal=Refusal.AUTHORITY)
    reason = error.reason or "UNKNOWN"
    if reason in _REASONS:
        refusal, words = _REASONS[reason]
        return PeerFault(f"{where}: {words}", refusal=refusal)
    if "ALERT" in reason:
        message = f"{where}: it does not accept our certificate ({reason.lower().replace('_', ' ')}): join this cluster"
        return NotPermitted(message, refusal=Refusal.IDENTITY)
    return PeerFault(f"{where}: expected TLS, got something else ({reason})", refusal=Refusal.GARBAGE)
