"""The other end of `local.py`: how a process on a node's machine reads shards from it and puts shards into it."""

import contextlib
import errno
import mmap
import os
import select
import socket
import threading
import time
import weakref
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import numpy as np

from raylog.buffers import BufferPool
from raylog.codec.frame import Frame
from raylog.errors import DamagedData, DeadlineExceeded, NoSpace, PeerFault, Unavailable, UsageError
from raylog.spec import Durability, ShardRef, TierKind, Use
from raylog.wire.local import check_path
from raylog.wire.local_messages import (
    Adopt,
    Adopted,
    Check,
    Checked,
    Discard,
    Done,
    Failed,
    Open,
    Opened,
    Release,
    Reply,
    Request,
    Stage,
    Staged,
    check_same_user,
    error_of,
    receive_reply,
    send,
)

CALL_TIMEOUT_S = 30.0
ADOPT_TIMEOUT_S = 600.0  # a shard of 4 GiB is read, hashed and fsynced in some seconds, on a slow disk in minutes
R = TypeVar("R", bound=Reply)


class LocalClient:
    """A connection to the node that serves `path`. Threads may share it; a call waits for those before it.

    After a missed deadline or a broken connection it is of no use any more, and neither are the shards opened through
    it. Raises `Unavailable` when no node listens, `NotPermitted` when another user's process does.
    """

    def __init__(self, path: Path, *, timeout_s: float = CALL_TIMEOUT_S) -> None:
        self.path = path
        self._timeout_s = timeout_s
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._unpinned: deque[int] = deque()  # pins whose last view is gone; told to the node with the next call
        self._buffers = BufferPool()
        connection, self.node_pid = _connect(path, timeout_s)
        self._socket: socket.socket | None = connection

    @property
    def is_connected(self) -> bool:
        return self._socket is not None

    @property
    def is_alive(self) -> bool:
        """Whether the node is still at the other end, as far as the kernel has heard; asks nobody."""
        connection = self._socket
        if connection is None:
            return False
        ended = select.poll()
        try:
            ended.register(connection, select.POLLRDHUP)  # POLLHUP and POLLERR come unasked
            return not ended.poll(0)
        except (OSError, ValueError):
            return False  # closed by another thread just now

    def stage(self, expected_bytes: int = 0, use: Use = Use.DATASET, *, is_apart: bool = False) -> "LocalStaging":
        """A file to write one sealed shard into, on a disk for its `use`. `is_apart`: over a connection of its own,
        that ends with it, so that nobody's call waits while the node adopts it. Raises `NoSpace` when `expected_bytes`
        do not fit."""
        return self._stage(Stage(expected_bytes=expected_bytes, use=use), is_apart)

    def stage_in_memory(
        self, sealed_bytes_max: int, use: Use = Use.DATASET, *, is_apart: bool = False
    ) -> "LocalStaging":
        """An extent of the node's arena to seal one shard of at most so many bytes into, where it will stay; a file as
        `stage` gives where the arena has no room. Raises `NoSpace`."""
        return self._stage(Stage(expected_bytes=sealed_bytes_max, use=use, in_memory=True), is_apart)

    def _stage(self, request: Stage, is_apart: bool) -> "LocalStaging":
        client = LocalClient(self.path, timeout_s=self._timeout_s) if is_apart else self
        try:
            reply, descriptors = client._call(request, Staged, self._timeout_s)
        except BaseException:
            if is_apart:
                client.close()
            raise
        return LocalStaging(client, is_apart, reply.stage_id, _one(descriptors), reply.offset, reply.length or None)

    def open(self, shard_id: str) -> "LocalShard":
        """The node's copy of the shard, pinned. Raises `NotFound`, `DamagedData`."""
        reply, descriptors = self._call(Open(shard_id=shard_id), Opened, self._timeout_s)
        return LocalShard(self, shard_id, reply, _one(descriptors))

    def is_current(self, generation: int) -> bool:
        """Whether the node has not recycled the extent of this generation."""
        return self._call(Check(generation=generation), Checked, self._timeout_s)[0].is_current

    def _adopt(
        self, stage_id: str, frame_digest: bytes, durability: Durability, timeout_s: float, stored_bytes: int
    ) -> ShardRef:
        request = Adopt(stage_id=stage_id, frame_digest=frame_digest, durability=durability, stored_bytes=stored_bytes)
        return self._call(request, Adopted, timeout_s)[0].ref

    def _discard(self, stage_id: str) -> None:
        self._give_back(Discard(stage_id=stage_id))

    def _release_unpinned(self) -> None:
        pins = []
        while self._unpinned:
            pins.append(self._unpinned.popleft())
        if pins:
            self._give_back(Release(pins=pins))

    def _give_back(self, request: Discard | Release) -> None:
        # When the connection ends or has ended, the node takes everything back by itself. What a forked process
        # inherited is its parent's to give back.
        if self.is_connected and os.getpid() == self._process:
            with contextlib.suppress(Unavailable):
                self._call(request, Done, self._timeout_s)

    def _call(self, request: Request, expected: type[R], timeout_s: float) -> tuple[R, list[int]]:
        if os.getpid() != self._process:
            raise UsageError(f"{self._where}: the connection is process {self._process}'s; after a fork open another")
        if not isinstance(request, Release):
            self._release_unpinned()
        if not self._lock.acquire(timeout=ADOPT_TIMEOUT_S):  # the longest that a call before this one may take
            raise DeadlineExceeded(f"{self._where}: other calls took more than {ADOPT_TIMEOUT_S:.0f} s")
        try:
            reply, descriptors = self._exchange(request, time.monotonic() + timeout_s)
        finally:
            self._lock.release()
        if isinstance(reply, Failed):
            raise error_of(reply)
        if not isinstance(reply, expected):
            self.close()
            raise PeerFault(f"{self._where}: expected {expected.__name__}, got {type(reply).__name__}")
        return reply, descriptors

    def _exchange(self, request: Request, deadline: float) -> tuple[Reply, list[int]]:
        connection = self._socket
        if connection is None:
            raise Unavailable(f"{self._where}: the connection is closed; open another")
        try:
            # A node that refuses this process says so and closes, perhaps before the request is out.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                send(connection, request, deadline)
            return receive_reply(connection, deadline)
        except OSError as error:
            self._drop()
            raise Unavailable(f"{self._where}: the node has gone ({error.strerror}); connect again") from error
        except BaseException:  # Ctrl-C too
            self._drop()  # a late reply would be taken for the next call's
            raise

    def _drop(self) -> None:
        connection, self._socket = self._socket, None
        if connection is not None:
            connection.close()

    @property
    def _where(self) -> str:
        return f"local socket {self.path}"

    def close(self) -> None:
        """Ends the connection; the node drops its pins and stagings."""
        self._drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class LocalStaging:
    """A file of the node's, for one sealed shard, or `length` bytes of its arena from `first` on, which the node gives
    to nobody else before this is adopted or discarded, or this process has ended: a connection that breaks does not
    keep a thread from writing on. As a context manager it discards what was not adopted."""

    def __init__(
        self, client: LocalClient, is_apart: bool, stage_id: str, descriptor: int, first: int, length: int | None
    ) -> None:
        self._client, self._is_apart, self._stage_id = client, is_apart, stage_id
        self._descriptor, self._first, self._length = descriptor, first, length
        self._stored_bytes = 0
        self._is_adopted = False

    @property
    def descriptor(self) -> int:
        """Open for reading and writing, until the staging ends."""
        if self._descriptor < 0:
            raise UsageError("the staging has ended; stage again")
        return self._descriptor

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Writes all of `data` at `offset`. Raises `NoSpace`, `Unavailable`. Misuse: writing after `adopt`."""
        view, done = memoryview(data), 0
        if self._length is not None and offset + len(view) > self._length:
            raise NoSpace(
                f"expected at most {self._length} bytes of a sealed shard, got {offset + len(view)}: stage more"
            )
        self._stored_bytes = max(self._stored_bytes, offset + len(view))
        try:
            while done < len(view):
                done += os.pwrite(self.descriptor, view[done:], self._first + offset + done)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise NoSpace(
                    f"the node's disk is full after {offset + done} bytes of the shard: delete something",
                    needed_bytes=offset + len(view),
                ) from error
            raise Unavailable(f"cannot write to the node's disk: {error.strerror}") from error

    def adopt(
        self, frame_digest: bytes, durability: Durability = Durability.DISK, *, timeout_s: float = ADOPT_TIMEOUT_S
    ) -> ShardRef:
        """Hands the finished shard over: the node checks frame and every chunk and keeps it. On an error the staging
        is still there. Raises `DamagedData`, `Conflict`, `NoSpace`."""
        ref = self._client._adopt(self._stage_id, frame_digest, durability, timeout_s, self._stored_bytes)
        self._is_adopted = True
        self._end()
        return ref

    def discard(self) -> None:
        """Ends the staging; after `adopt` nothing is left to do."""
        self._close_file()
        if not self._is_adopted:
            self._is_adopted = True
            self._client._discard(self._stage_id)
        self._end()

    def _end(self) -> None:
        self._close_file()
        if self._is_apart:
            self._client.close()

    def _close_file(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()


class LocalShard:
    """A shard of the node's store, read by this process itself.

    The pin lasts until `close` and until every view that `chunk` gave is gone.
    """

    def __init__(self, client: LocalClient, shard_id: str, opened: Opened, descriptor: int) -> None:
        self._client, self._opened = client, opened
        self._source: _Mapped | _File | None = None
        try:
            if opened.tier is TierKind.MEMORY:
                self._source = _Mapped(descriptor, opened.offset, opened.length)
            else:
                self._source = _File(os.dup(descriptor), opened.offset, client._buffers)
            weakref.finalize(self._source.owner, client._unpinned.append, opened.pin).atexit = False
            self.frame: Frame = Frame.read(self._source.read_at, opened.length, opened.frame_digest)
        finally:
            os.close(descriptor)
        if self.frame.header.shard_id != shard_id:
            raise PeerFault(f"local socket: asked for shard {shard_id}, got {self.frame.header.shard_id}")

    @property
    def tier(self) -> TierKind:
        return self._opened.tier

    @property
    def is_held(self) -> bool:
        """Whether the node holds it for this process still: its pin goes with the connection."""
        return self._client.is_connected

    def chunk(self, number: int) -> memoryview:
        """The sealed bytes of a chunk, read-only. From the arena: a view, verified when it came there. From a disk:
        read into a reused buffer and verified now; raises `DamagedData`.

        Raises `Unavailable` once the connection is gone: nobody holds the bytes in their place any more. When a chunk
        of the arena fails to open, ask `is_current` before calling it damaged.
        """
        source = self._source
        if source is None:
            raise UsageError(f"shard {self.frame.header.shard_id}: closed; open it again")
        if not self.is_held:
            raise Unavailable(
                f"shard {self.frame.header.shard_id}: the node's pin went with the connection; open again"
            )
        entry = self.frame.chunks[number]
        view = source.view(entry.offset, entry.sealed_bytes)
        if self.tier is not TierKind.MEMORY:
            self.frame.verify_chunk(number, view)
        return view

    def is_current(self) -> bool:
        """Whether what `chunk` shows is still this shard. False when the node is gone or has recycled the bytes."""
        return self._client.is_connected and self._client.is_current(self._opened.generation)

    def close(self) -> None:
        """Lets go, and tells the node unless views are still held; then the next call after the last of them does."""
        self._source = None
        self._client._release_unpinned()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Mapped:
    """An extent of the arena, mapped read-only. `owner` lives as long as any view of it."""

    def __init__(self, descriptor: int, offset: int, length: int) -> None:
        mapping = mmap.mmap(descriptor, length, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ, offset=offset)
        self.owner = np.frombuffer(mapping, dtype=np.uint8)
        self._view = self.owner.data

    def view(self, offset: int, length: int) -> memoryview:
        return self._view[offset : offset + length]

    def read_at(self, offset: int, length: int) -> bytes:
        return bytes(self.view(offset, length))


class _File:
    """A shard's file, read by `pread` into pooled buffers; they are this process's own, so the file alone is pinned."""

    def __init__(self, descriptor: int, offset: int, buffers: BufferPool) -> None:
        self._descriptor, self._offset, self._buffers = descriptor, offset, buffers
        weakref.finalize(self, os.close, descriptor).atexit = False

    @property
    def owner(self) -> "_File":
        return self

    def view(self, offset: int, length: int) -> memoryview:
        buffer, done = self._buffers.take(length), 0
        while done < length:
            try:
                count = os.preadv(self._descriptor, [buffer[done:]], self._offset + offset + done)
            except OSError as error:
                raise Unavailable(f"cannot read the node's shard file: {error.strerror}") from error
            if count == 0:
                raise DamagedData(f"the shard's file ends at {offset + done}, expected {offset + length} bytes")
            done += count
        return buffer.toreadonly()

    def read_at(self, offset: int, length: int) -> bytes:
        return bytes(self.view(offset, length))


def _connect(path: Path, timeout_s: float) -> tuple[socket.socket, int]:
    """A connection, and the process id of the node at its other end."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout_s)
        connection.connect(check_path(path))
        return connection, check_same_user(connection)
    except OSError as error:
        connection.close()
        reason = error.strerror or "no answer in time"
        raise Unavailable(f"local socket {path}: no node answers ({reason}); is raylog up on this machine?") from error
    except BaseException:
        connection.close()
        raise


def _one(descriptors: list[int]) -> int:
    if len(descriptors) != 1:
        raise PeerFault(f"local socket: expected one descriptor with the reply, got {len(descriptors)}")
    return descriptors[0]
