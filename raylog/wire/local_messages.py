"""What processes of one machine say to their node over its Unix socket: `u32 length ‖ msgpack map`, at most 1 MiB.

A connection carries one request and its reply at a time. A reply that gives a descriptor carries it with the first
byte of its length. Every wait ends at a deadline given in `time.monotonic()` seconds.
"""

import os
import socket
import struct
import time
from typing import Annotated

import msgspec

from raylog import errors
from raylog.errors import DeadlineExceeded, NotPermitted, PeerFault, RaylogError, Unavailable
from raylog.spec import Durability, ShardRef, TierKind, Use

MESSAGE_BYTES_MAX = 1 << 20

_LENGTH = struct.Struct("<I")
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid

Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", forbid_unknown_fields=True):
    pass


class Stage(_Message, frozen=True, tag=True):
    """`in_memory`: in the arena if there is room for so many bytes there, of which the shard takes no more then."""

    expected_bytes: Count
    use: Use = Use.DATASET
    in_memory: bool = False


class Adopt(_Message, frozen=True, tag=True):
    stage_id: str
    frame_digest: Digest
    durability: Durability
    stored_bytes: Count = 0  # of a shard in the arena


class Discard(_Message, frozen=True, tag=True):
    stage_id: str


class Open(_Message, frozen=True, tag=True):
    shard_id: str


class Check(_Message, frozen=True, tag=True):
    generation: Count


class Release(_Message, frozen=True, tag=True):
    pins: list[Count]


class Done(_Message, frozen=True, tag=True):
    pass


class Staged(_Message, frozen=True, tag=True):
    """With a descriptor, open for reading and writing: of a file, or of the arena, in which `length` bytes from
    `offset` on are for the shard, and not one more."""

    stage_id: str
    offset: Count = 0
    length: Count = 0


class Adopted(_Message, frozen=True, tag=True):
    ref: ShardRef


class Opened(_Message, frozen=True, tag=True):
    """With a read-only descriptor; the shard's file is `length` bytes from `offset` on."""

    pin: Count
    offset: Count
    length: Count
    tier: TierKind
    generation: Count
    frame_digest: Digest


class Checked(_Message, frozen=True, tag=True):
    is_current: bool


class Failed(_Message, frozen=True, tag=True):
    """An error of raylog: its class, message and plain attributes."""

    kind: str
    message: str
    details: dict[str, str | int]


Request = Stage | Adopt | Discard | Open | Check | Release
Reply = Done | Staged | Adopted | Opened | Checked | Failed

_decode_request = msgspec.msgpack.Decoder(Request).decode
_decode_reply = msgspec.msgpack.Decoder(Reply).decode
_ERRORS = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, RaylogError)
}


def send(connection: socket.socket, message: Request | Reply, deadline: float, descriptor: int | None = None) -> None:
    """Sends one message; raises `OSError`, `DeadlineExceeded`."""
    body = msgspec.msgpack.encode(message)
    assert len(body) <= MESSAGE_BYTES_MAX
    _set_timeout(connection, deadline)
    try:
        if descriptor is None:
            connection.sendall(_LENGTH.pack(len(body)) + body)
        else:
            socket.send_fds(connection, [_LENGTH.pack(len(body))], [descriptor])
            connection.sendall(body)
    except TimeoutError as error:
        raise DeadlineExceeded("local socket: the other end does not read") from error


def receive_request(connection: socket.socket, timeout_s: float) -> Request | None:
    """The next request, whenever it comes; once begun it must be whole within `timeout_s`. None when the client has
    closed. Raises `PeerFault` for anything that is no request, `DeadlineExceeded`, `OSError`."""
    connection.settimeout(None)
    first = connection.recv(_LENGTH.size)
    if not first:
        return None
    deadline = time.monotonic() + timeout_s
    body = _receive_body(connection, first, deadline)
    try:
        request: Request = _decode_request(body)
    except msgspec.DecodeError as error:
        raise PeerFault(f"local socket: expected a request, got something else: {error}") from error
    return request


def receive_reply(connection: socket.socket, deadline: float) -> tuple[Reply, list[int]]:
    """The reply and the descriptors that came with it, which are then the caller's to close. Raises `PeerFault`,
    `DeadlineExceeded`, `Unavailable` when the node has closed, `OSError`."""
    _set_timeout(connection, deadline)
    descriptors: list[int] = []
    try:
        first, descriptors, _, _ = socket.recv_fds(connection, _LENGTH.size, 1, socket.MSG_CMSG_CLOEXEC)
        return _decode_reply(_receive_body(connection, first, deadline)), descriptors
    except BaseException as error:
        for descriptor in descriptors:
            os.close(descriptor)
        if isinstance(error, TimeoutError):
            raise DeadlineExceeded("local socket: no reply from the node in time") from error
        if isinstance(error, msgspec.DecodeError):
            raise PeerFault(f"local socket: expected a reply, got something else: {error}") from error
        raise


def _receive_body(connection: socket.socket, first: bytes, deadline: float) -> bytes:
    prefix = first + _receive_exactly(connection, _LENGTH.size - len(first), deadline)
    (length,) = _LENGTH.unpack(prefix)
    if not 1 <= length <= MESSAGE_BYTES_MAX:
        raise PeerFault(f"local socket: expected a message of 1 to {MESSAGE_BYTES_MAX} bytes, got a length of {length}")
    return _receive_exactly(connection, length, deadline)


def _receive_exactly(connection: socket.socket, length: int, deadline: float) -> bytes:
    parts, missing = [], length
    while missing:
        _set_timeout(connection, deadline)
        try:
            part = connection.recv(missing)
        except TimeoutError as error:
            raise DeadlineExceeded("local socket: a message did not come whole in time") from error
        if not part:
            raise Unavailable("local socket: the other end closed in the middle of a message")
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def _set_timeout(connection: socket.socket, deadline: float) -> None:
    connection.settimeout(max(deadline - time.monotonic(), 0.001))


def failed(error: RaylogError) -> Failed:
    """The error as a reply; attributes that are not plain stay behind."""
    details = {name: value for name, value in vars(error).items() if isinstance(value, (str, int))}
    kind = next(cls.__name__ for cls in type(error).__mro__ if cls.__name__ in _ERRORS)
    return Failed(kind=kind, message=str(error)[:65536], details=details)


def error_of(reply: Failed) -> RaylogError:
    """The error that a reply tells of, to be raised."""
    return _ERRORS.get(reply.kind, PeerFault)(reply.message, **reply.details)


def check_same_user(connection: socket.socket) -> int:
    """The process id of the other end, by what the kernel says (SO_PEERCRED); 0 when it is of another container.
    Refuses a process of another user (`NotPermitted`)."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(credentials)
    if uid != os.getuid():
        raise NotPermitted(f"local socket: expected a process of user {os.getuid()}, got process {pid} of user {uid}")
    return int(pid)
