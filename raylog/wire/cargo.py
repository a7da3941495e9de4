"""Cargo connections: records over plain TCP through buffers that are reused, with a bound on every wait.

Sockets stay blocking, with the kernel's own timeouts (SO_RCVTIMEO, SO_SNDTIMEO): one system call without the
interpreter's lock moves a whole record, where Python's own timeouts would poll for every piece of it.
"""

import socket
import struct
import time

from raylog.buffers import BufferPool
from raylog.errors import PeerFault, Unavailable
from raylog.spec import CargoRecords
from raylog.units import KIB
from raylog.wire.record import (
    BESIDE_BYTES,
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


def receive_exactly(connection: socket.socket, parts: list[memoryview], timeout_s: float) -> bool:
    """Fills `parts`, one after the other, from a tuned connection; False when not a byte came in time. Raises
    `Unavailable` when the connection ends, `PeerFault` when bytes stop coming or trickle for longer than twice the
    time."""
    begun, here, total = time.monotonic(), 0, sum(map(len, parts))
    while here < total:
        try:
            count = connection.recvmsg_into(parts, 0, socket.MSG_WAITALL)[0]
        except BlockingIOError:
            if not here:
                return False
            raise PeerFault(f"a record stopped after {here} of {total} bytes for {timeout_s:g} s") from None
        except OSError as error:
            raise Unavailable(f"the cargo connection was cut: {error.strerror}") from None
        if not count:
            raise Unavailable("the cargo connection was cut")
        here += count
        if here < total:
            parts = _after(parts, count)
            if time.monotonic() - begun > 2 * timeout_s:
                raise PeerFault(f"a record did not come whole within {2 * timeout_s:g} s: {here} of {total} bytes")
    return True


def _after(parts: list[memoryview], count: int) -> list[memoryview]:
    """What of `parts` is left after their first `count` bytes."""
    left = []
    for part in parts:
        if count < len(part):
            left.append(part[count:])
        count = max(0, count - len(part))
    return left


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


def send_all(connection: socket.socket, parts: list[memoryview], timeout_s: float) -> None:
    """Raises `Unavailable` when the connection ends or does not take the bytes in time."""
    deadline = time.monotonic() + timeout_s
    while parts:
        try:
            parts = _after(parts, connection.sendmsg(parts))
        except BlockingIOError:
            pass
        except OSError as error:
            raise Unavailable(f"the cargo connection was cut: {error.strerror}") from None
        if parts and time.monotonic() >= deadline:
            raise Unavailable(f"the cargo connection did not take a record within {timeout_s:g} s")


def send_bare(connection: socket.socket, sealer: RecordSealer, head: Head, timeout_s: float) -> None:
    """Sends a record without a body; raises `Unavailable`."""
    buffer = memoryview(bytearray(SEALED_HEAD_BYTES))
    sealer.seal_into(head, b"", buffer)
    send_all(connection, [buffer], timeout_s)


class CargoSender:
    """Sends records. Encrypted ones are sealed into one buffer that is reused; an authenticated one's body leaves from
    where it lies."""

    def __init__(
        self, connection: socket.socket, key: bytes, rekey_bytes: int, timeout_s: float, records: CargoRecords
    ) -> None:
        self._connection, self._timeout_s = connection, timeout_s
        self._sealer = RecordSealer(key, rekey_bytes)
        is_beside = records == CargoRecords.AUTHENTICATED
        self._beside = memoryview(bytearray(BESIDE_BYTES)) if is_beside else None
        self._buffer = _BUFFERS.take(SEALED_HEAD_BYTES if is_beside else RECORD_BYTES_MAX)

    def send(self, head: Head, body: memoryview | bytes = b"") -> None:
        """Raises `Unavailable`; the stream is then over."""
        beside = self._beside
        if beside is None or not head.body_bytes:
            length = self._sealer.seal_into(head, body, self._buffer)
            parts = [self._buffer[:length]]
        else:
            self._sealer.seal_beside(head, body, beside)
            parts = [beside[:SEALED_HEAD_BYTES], memoryview(body), beside[SEALED_HEAD_BYTES:]]
        send_all(self._connection, parts, self._timeout_s)


class CargoReceiver:
    """Receives records and opens them to where they belong: encrypted ones through one buffer that is reused, an
    authenticated one's body straight to its place."""

    def __init__(
        self, connection: socket.socket, key: bytes, rekey_bytes: int, timeout_s: float, records: CargoRecords
    ) -> None:
        self._connection, self._timeout_s = connection, timeout_s
        self._opener = RecordOpener(key, rekey_bytes)
        self.is_direct = records == CargoRecords.AUTHENTICATED
        self._buffer = _BUFFERS.take(SEALED_HEAD_BYTES if self.is_direct else RECORD_BYTES_MAX)
        self._tag = memoryview(bytearray(TAG_BYTES))
        self._body = self._buffer[:0]
        self._scratch: memoryview | None = None

    def next_head(self) -> Head:
        """The next record's head, whenever it comes: whoever started this receiver ends the connection when it has
        waited enough. Raises `Unavailable`, `PeerFault`."""
        sealed = self._buffer[:SEALED_HEAD_BYTES]
        while not receive_exactly(self._connection, [sealed], self._timeout_s):
            pass
        return self._opener.open_head(sealed)

    def receive_body(self, head: Head) -> None:
        """Receives an encrypted body, to be opened next. Raises `Unavailable`, `PeerFault`."""
        assert not self.is_direct
        self._body = self._buffer[: head.body_bytes + TAG_BYTES]
        self._receive([self._body])

    def open_body_into(self, out: memoryview) -> None:
        """Writes the body to `out`, zeros when its tag does not fit: the one that was received, or, when this receiver
        `is_direct`, the one that comes now. Raises `Unavailable`, `PeerFault`; `out` then holds nothing of worth."""
        if self.is_direct:
            self._receive([out, self._tag])
            self._opener.check_body(out, self._tag)
        else:
            self._opener.open_body_into(self._body, out)

    def open_body(self, head: Head) -> memoryview:
        """As `open_body_into`, to a buffer that is reused with the next record."""
        if self._scratch is None:
            self._scratch = _BUFFERS.take(RECORD_BYTES_MAX)
        body = self._scratch[: head.body_bytes]
        self.open_body_into(body)
        return body

    def _receive(self, parts: list[memoryview]) -> None:
        if not receive_exactly(self._connection, parts, self._timeout_s):
            raise PeerFault(f"a record's body did not come within {self._timeout_s:g} s")


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
    if receive_exactly(connection, [sealed], timeout_s) and opener.open_head(sealed).type is not RecordType.END:
        raise PeerFault("a puller sent a cargo record that is no end record")
