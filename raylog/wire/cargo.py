"""Cargo connections: records over plain TCP through buffers that are reused, with a bound on every wait.

Sockets stay blocking, with the kernel's own timeouts (SO_RCVTIMEO, SO_SNDTIMEO): one system call without the
interpreter's lock moves a whole record, where Python's own timeouts would poll for every piece of it.
"""

import socket
import struct
import time

from raylog.buffers import BufferPool
from raylog.errors import PeerFault, Unavailable
from raylog.units import KIB
from raylog.wire.record import (
    PREAMBLE_BYTES,
    RECORD_BYTES_MAX,
    SEALED_HEAD_BYTES,
    TAG_BYTES,
    Head,
    RecordOpener,
    RecordSealer,
    RecordType,
)

PROOF_BYTES = PREAMBLE_BYTES + SEALED_HEAD_BYTES
OPEN_RECORD = Head(RecordType.OPEN)
END_RECORD = Head(RecordType.END)

_BUFFERS = BufferPool(idle_max=16)  # 4 MiB each, in use by one stream at a time; sealed bytes only
UNSENT_BYTES_MAX = 256 * KIB  # in the kernel: a send ends when its bytes leave, so that classes can be clocked by it
_TIMEVAL = struct.Struct("@ll")


def tune(connection: socket.socket, timeout_s: float) -> None:
    """Makes a connection ready for cargo; no single wait on it takes longer than `timeout_s`."""
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES_MAX)
    value = _TIMEVAL.pack(int(timeout_s), int(timeout_s % 1 * 1e6))
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        connection.setsockopt(socket.SOL_SOCKET, option, value)


def receive_exactly(connection: socket.socket, view: memoryview, timeout_s: float) -> bool:
    """Fills `view` from a tuned connection; False when not a byte of it came in time. Raises `Unavailable` when the
    connection ends, `PeerFault` when bytes stop coming or trickle for longer than twice the time."""
    begun, here = time.monotonic(), 0
    while here < len(view):
        try:
            count = connection.recv_into(view[here:], 0, socket.MSG_WAITALL)
        except BlockingIOError:
            if not here:
                return False
            raise PeerFault(f"a record stopped after {here} of {len(view)} bytes for {timeout_s:g} s") from None
        except OSError as error:
            raise Unavailable(f"the cargo connection was cut: {error.strerror}") from None
        if not count:
            raise Unavailable("the cargo connection was cut")
        here += count
        if here < len(view) and time.monotonic() - begun > 2 * timeout_s:
            raise PeerFault(f"a record did not come whole within {2 * timeout_s:g} s: {here} of {len(view)} bytes")
    return True


def receive_proof(connection: socket.socket, timeout_s: float) -> bytes:
    """What a cargo connection begins with: preamble and sealed open record, all within `timeout_s` and from anybody.
    Raises `PeerFault`, `Unavailable`."""
    deadline, data = time.monotonic() + timeout_s, b""
    try:
        while len(data) < PROOF_BYTES:
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            part = connection.recv(PROOF_BYTES - len(data))
            if not part:
                raise Unavailable("a cargo connection ended before it proved itself")
            data += part
    except TimeoutError:
        raise PeerFault(f"a cargo connection did not prove itself within {timeout_s:g} s") from None
    except OSError as error:
        raise Unavailable(f"a cargo connection was cut before it proved itself: {error.strerror}") from None
    return data


def send_all(connection: socket.socket, view: memoryview, timeout_s: float) -> None:
    """Raises `Unavailable` when the connection ends or does not take the bytes in time."""
    deadline = time.monotonic() + timeout_s
    while view:
        try:
            view = view[connection.send(view) :]
        except BlockingIOError:
            pass
        except OSError as error:
            raise Unavailable(f"the cargo connection was cut: {error.strerror}") from None
        if view and time.monotonic() >= deadline:
            raise Unavailable(f"the cargo connection did not take a record within {timeout_s:g} s")


def send_bare(connection: socket.socket, sealer: RecordSealer, head: Head, timeout_s: float) -> None:
    """Sends a record without a body; raises `Unavailable`."""
    buffer = memoryview(bytearray(SEALED_HEAD_BYTES))
    sealer.seal_into(head, b"", buffer)
    send_all(connection, buffer, timeout_s)


class CargoSender:
    """Seals records into one buffer and sends them."""

    def __init__(self, connection: socket.socket, key: bytes, rekey_bytes: int, timeout_s: float) -> None:
        self._connection, self._timeout_s = connection, timeout_s
        self._sealer = RecordSealer(key, rekey_bytes)
        self._buffer = _BUFFERS.take(RECORD_BYTES_MAX)

    def send(self, head: Head, body: memoryview | bytes = b"") -> None:
        """Raises `Unavailable`; the stream is then over."""
        length = self._sealer.seal_into(head, body, self._buffer)
        send_all(self._connection, self._buffer[:length], self._timeout_s)


class CargoReceiver:
    """Receives records into one buffer and opens them to where they belong."""

    def __init__(self, connection: socket.socket, key: bytes, rekey_bytes: int, timeout_s: float) -> None:
        self._connection, self._timeout_s = connection, timeout_s
        self._opener = RecordOpener(key, rekey_bytes)
        self._buffer = _BUFFERS.take(RECORD_BYTES_MAX)
        self._body = self._buffer[:0]
        self._scratch: memoryview | None = None

    def scratch(self, length: int) -> memoryview:
        """A reused buffer to open a body into that has no place of its own."""
        if self._scratch is None:
            self._scratch = _BUFFERS.take(RECORD_BYTES_MAX)
        return self._scratch[:length]

    def next_head(self) -> Head:
        """The next record's head, whenever it comes: whoever started this receiver ends the connection when it has
        waited enough. Raises `Unavailable`, `PeerFault`."""
        sealed = self._buffer[:SEALED_HEAD_BYTES]
        while not receive_exactly(self._connection, sealed, self._timeout_s):
            pass
        return self._opener.open_head(sealed)

    def receive_body(self, head: Head) -> None:
        """Raises `Unavailable`, `PeerFault`."""
        self._body = self._buffer[: head.body_bytes + TAG_BYTES]
        if not receive_exactly(self._connection, self._body, self._timeout_s):
            raise PeerFault(f"a record's body did not come within {self._timeout_s:g} s")

    def open_body_into(self, out: memoryview) -> None:
        """Writes the body that was received to `out`; raises `PeerFault` and leaves zeros there."""
        self._opener.open_body_into(self._body, out)


def has_come(connection: socket.socket) -> bool:
    """Whether something of the other end waits to be received, its end included. Does not wait."""
    try:
        connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def receive_end(connection: socket.socket, opener: RecordOpener, timeout_s: float) -> None:
    """Takes the puller's end record, the only thing that it may say after its proof. Raises `PeerFault`,
    `Unavailable`."""
    sealed = memoryview(bytearray(SEALED_HEAD_BYTES))
    if receive_exactly(connection, sealed, timeout_s) and opener.open_head(sealed).type is not RecordType.END:
        raise PeerFault("a puller sent a cargo record that is no end record")
