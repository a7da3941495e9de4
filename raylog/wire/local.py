"""How processes of one machine reach their node's store without copies: descriptors over a Unix socket.

A reader gets a read-only descriptor of the arena or of the shard's file and reads the sealed bytes by itself; a putter
gets a file to write a sealed shard into, or some bytes of the arena. What a connection holds, its pins and stagings,
ends with it, however its process ends; but what it may write into in the arena, only with its process.

The socket is for processes of the node's own user (mode 0600 in a directory of mode 0700, and the kernel's word on the
other end's user). The read-only descriptor guards against mistakes, not against that user's malice: whoever may
trace the node's process may write its memory.
"""

import logging
import os
import socket
import stat
import threading
import time
from collections.abc import Collection
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Protocol

from raylog.codec.frame import Frame
from raylog.errors import Conflict, NotFound, NotPermitted, RaylogError, Unavailable, UsageError
from raylog.spec import Durability, ShardRef, TierKind, Use
from raylog.wire.local_messages import (
    Adopt,
    Adopted,
    Check,
    Checked,
    Discard,
    Done,
    Open,
    Opened,
    Release,
    Reply,
    Request,
    Stage,
    Staged,
    check_same_user,
    failed,
    receive_request,
    send,
)
from raylog.wire.process import Process

log = logging.getLogger(__name__)

PATH_BYTES_MAX = 107  # of a Unix socket's address, without the closing zero
CONNECTIONS_MAX = 256
PINS_PER_CONNECTION_MAX = 4096
STAGINGS_PER_CONNECTION_MAX = 64
MESSAGE_TIMEOUT_S = 10.0  # from the first byte of a message to its last
CLOSE_TIMEOUT_S = 10.0


class Pinned(Protocol):
    """A shard held in its place: `length` bytes at `offset` of `descriptor`, which stays the store's."""

    @property
    def frame(self) -> Frame: ...
    @property
    def descriptor(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def length(self) -> int: ...
    @property
    def tier(self) -> TierKind: ...
    @property
    def generation(self) -> int: ...
    def close(self) -> None: ...


class Staging(Protocol):
    """A file to write one sealed shard into; `descriptor` stays the store's."""

    @property
    def stage_id(self) -> str: ...
    @property
    def descriptor(self) -> int: ...


class StagedExtent(Staging, Protocol):
    """The same in the arena: `length` bytes at `offset` of `descriptor`."""

    @property
    def offset(self) -> int: ...
    @property
    def length(self) -> int: ...


class LocalHandler(Protocol):
    """What the service needs of a node's store. Called from many threads."""

    def stage(self, expected_bytes: int, use: Use) -> Staging: ...
    def stage_in_memory(self, length: int) -> StagedExtent | None: ...
    def adopt(self, stage_id: str, frame_digest: bytes, durability: Durability, stored_bytes: int) -> ShardRef: ...
    def discard(self, stage_id: str) -> None: ...
    def pin(self, shard_id: str) -> Pinned: ...
    def is_current(self, generation: int) -> bool: ...


class LocalServer:
    """Serves `handler` on a Unix socket at `path` until `close`; one thread per connection.

    Makes the directory (mode 0700) if need be and replaces a socket that nobody listens on. Raises `UsageError` when
    the path is too long, `NotPermitted` when others may enter the directory, `Conflict` when a node listens there.
    """

    def __init__(self, path: Path, handler: LocalHandler) -> None:
        self.path = path
        self._handler = handler
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._is_closing = False
        self._listener = _listen(path)
        self._inode = path.stat().st_ino
        self._acceptor = threading.Thread(target=self._accept, name="raylog-local-accept", daemon=True)
        self._acceptor.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                if self._is_closing:
                    return
                log.warning("local socket %s: cannot accept: %s", self.path, error.strerror)
                time.sleep(0.1)  # out of descriptors: the connections that end give some back
                continue
            thread = threading.Thread(target=self._serve, args=(connection,), name="raylog-local", daemon=True)
            with self._lock:
                self._connections[connection] = thread
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        session = _Session(self._handler)
        try:
            session.client = Process(self._admit(connection))
            while (request := receive_request(connection, MESSAGE_TIMEOUT_S)) is not None:
                reply, descriptor = session.answer(request)
                send(connection, reply, time.monotonic() + MESSAGE_TIMEOUT_S, descriptor)
        except RaylogError as error:
            log.warning("local socket %s: connection ended: %s", self.path, error)
            with suppress(OSError, RaylogError):
                send(connection, failed(error), time.monotonic() + MESSAGE_TIMEOUT_S)
        except OSError:
            log.debug("local socket %s: a client is gone", self.path)
        finally:
            session.end()
            with self._lock:
                self._connections.pop(connection, None)
            connection.close()

    def _admit(self, connection: socket.socket) -> int:
        """The client's process id; 0 when it is not known."""
        process_id = check_same_user(connection)
        with self._lock:
            if len(self._connections) > CONNECTIONS_MAX:
                raise Unavailable(f"local socket {self.path}: {CONNECTIONS_MAX} connections are served already")
        return process_id

    def close(self) -> None:
        """Ends every connection (and with it its pins and stagings) and removes the socket."""
        with self._lock:
            if self._is_closing:
                return
            self._is_closing = True
            connections = dict(self._connections)
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes `accept`
        for connection in connections:
            with suppress(OSError):  # it has just ended by itself
                connection.shutdown(socket.SHUT_RDWR)
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        for thread in (self._acceptor, *connections.values()):
            thread.join(max(0.0, deadline - time.monotonic()))
        self._listener.close()
        with suppress(FileNotFoundError):
            if self.path.stat().st_ino == self._inode:  # else a later node has its own socket there
                self.path.unlink()

    def __enter__(self) -> "LocalServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Session:
    """What one connection holds, and the answers to its requests."""

    def __init__(self, handler: LocalHandler) -> None:
        self._handler = handler
        self.client = Process(0)
        self._pins: dict[int, Pinned] = {}
        self._stagings: set[str] = set()
        self._in_memory: set[str] = set()  # of them
        self._pins_given = 0

    def answer(self, request: Request) -> tuple[Reply, int | None]:
        """The reply, and the descriptor to send with it. What a request may rightly meet is a `Failed` reply."""
        try:
            return self._answer(request)
        except RaylogError as error:
            return failed(error), None

    def _answer(self, request: Request) -> tuple[Reply, int | None]:
        match request:
            case Stage():
                return self._stage(request)
            case Adopt():
                self._own(request.stage_id)
                ref = self._handler.adopt(
                    request.stage_id, request.frame_digest, request.durability, request.stored_bytes
                )
                self._forget(request.stage_id)
                return Adopted(ref=ref), None
            case Discard():
                self._own(request.stage_id)
                self._handler.discard(request.stage_id)
                self._forget(request.stage_id)
                return Done(), None
            case Open():
                return self._open(request)
            case Check():
                return Checked(is_current=self._handler.is_current(request.generation)), None
            case Release():
                for number in request.pins:
                    if (pin := self._pins.pop(number, None)) is not None:
                        pin.close()
                return Done(), None

    def _stage(self, request: Stage) -> tuple[Reply, int]:
        if len(self._stagings) >= STAGINGS_PER_CONNECTION_MAX:
            raise Unavailable(f"this connection has {STAGINGS_PER_CONNECTION_MAX} stagings: adopt or discard one first")
        if request.in_memory and self.client.is_known:
            extent = self._handler.stage_in_memory(request.expected_bytes)
            if extent is not None:
                self._stagings.add(extent.stage_id)
                self._in_memory.add(extent.stage_id)
                reply = Staged(stage_id=extent.stage_id, offset=extent.offset, length=extent.length)
                return reply, extent.descriptor
        staging = self._handler.stage(request.expected_bytes, request.use)
        self._stagings.add(staging.stage_id)
        return Staged(stage_id=staging.stage_id), staging.descriptor

    def _open(self, request: Open) -> tuple[Reply, int]:
        if len(self._pins) >= PINS_PER_CONNECTION_MAX:
            raise Unavailable(f"this connection has {PINS_PER_CONNECTION_MAX} shards open: close one first")
        pin = self._handler.pin(request.shard_id)
        self._pins_given += 1
        self._pins[self._pins_given] = pin
        reply = Opened(
            pin=self._pins_given,
            offset=pin.offset,
            length=pin.length,
            tier=pin.tier,
            generation=pin.generation,
            frame_digest=pin.frame.digest,
        )
        return reply, pin.descriptor

    def _own(self, stage_id: str) -> None:
        if stage_id not in self._stagings:
            raise NotFound(f"no staging {stage_id[:80]!r} of this connection; stage again")

    def _forget(self, stage_id: str) -> None:
        self._stagings.discard(stage_id)
        self._in_memory.discard(stage_id)

    def end(self) -> None:
        for pin in self._pins.values():
            pin.close()
        for stage_id in self._stagings - self._in_memory:
            self._handler.discard(stage_id)
        if self._in_memory:  # whose writer may live on and write into them still
            self.client.when_gone(partial(self._discard_all, frozenset(self._in_memory)))
        else:
            self.client.close()

    def _discard_all(self, stage_ids: Collection[str]) -> None:
        for stage_id in stage_ids:
            self._handler.discard(stage_id)


def check_path(path: Path) -> str:
    """The path as a socket's address; raises `UsageError` when it is longer than the system takes."""
    text = str(path)
    if len(os.fsencode(text)) > PATH_BYTES_MAX:
        raise UsageError(
            f"expected a socket path of at most {PATH_BYTES_MAX} bytes, got {len(os.fsencode(text))}: {text}; "
            "use a shorter state directory"
        )
    return text


def _listen(path: Path) -> socket.socket:
    address = check_path(path)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.parent.stat()
    if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise NotPermitted(
            f"expected {path.parent} to belong to user {os.getuid()} with mode 0700, got user {status.st_uid} with "
            f"mode {stat.S_IMODE(status.st_mode):04o}: others could reach the node's socket; chmod it or use another"
        )
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _clear_stale(path, address)
        listener.bind(address)
        path.chmod(0o600)
        listener.listen(64)
    except BaseException:
        listener.close()
        raise
    return listener


def _clear_stale(path: Path, address: str) -> None:
    """Removes a socket that an ended node left; nothing else is ever removed."""
    if not os.path.lexists(path):
        return
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise Conflict(f"expected no file or an old socket at {path}, found something else: name another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(address)
        except ConnectionRefusedError:
            path.unlink()
            return
    raise Conflict(f"a node listens on {path} already: stop it first")
