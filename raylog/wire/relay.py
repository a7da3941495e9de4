"""Shards on their way to this node, offered to others chunk by chunk, the moment each is verified.

A *follower* is somebody who was promised such a shard. What it is told it is told in order, under a lock: it takes note
and does not call back.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from raylog.codec.frame import Frame
from raylog.errors import UsageError
from raylog.wire.endpoints import ShardReader, ShardWriter

Range = tuple[int, int]


class Follower(Protocol):
    def begun(self, incoming: "Incoming", available: Sequence[Range]) -> None:
        """The shard is on its way; these chunks are here."""
        ...

    def more(self, ranges: Sequence[Range]) -> None: ...

    def gone(self) -> None:
        """The shard will not become whole now; what was offered can no longer be had."""
        ...


class Relay:
    """A node's incoming shards and those who follow them. `open_shard` gives a reader of one that has become whole."""

    def __init__(self, open_shard: Callable[[str], ShardReader]) -> None:
        self._open_shard = open_shard
        self._lock = threading.Lock()
        self._incoming: dict[str, Incoming] = {}
        self._waiting: dict[str, list[Follower]] = {}

    def incoming(self, shard_id: str) -> "Incoming":
        """For whoever gets the shard; one at a time. It counts from `begun` to `close`."""
        return Incoming(self, shard_id, self._open_shard)

    def follow(self, shard_id: str, follower: Follower, *, wait: bool) -> bool:
        """Whether the shard is on its way: then the follower is told of it. If it is not and `wait` says so, it will be
        as soon as that begins."""
        with self._lock:
            incoming = self._incoming.get(shard_id)
            if incoming is not None:
                incoming.add(follower)
            elif wait:
                self._waiting.setdefault(shard_id, []).append(follower)
            return incoming is not None

    def unfollow(self, shard_id: str, follower: Follower) -> None:
        """Ends the waiting for a shard that has not begun to come; nothing to do for others."""
        with self._lock:
            waiting = self._waiting.get(shard_id, [])
            if follower in waiting:
                waiting.remove(follower)
            if not waiting:
                self._waiting.pop(shard_id, None)

    def _begin(self, incoming: "Incoming") -> None:
        with self._lock:
            self._incoming[incoming.shard_id] = incoming
            for follower in self._waiting.pop(incoming.shard_id, []):
                incoming.add(follower)

    def _end(self, incoming: "Incoming") -> None:
        with self._lock:
            if self._incoming.get(incoming.shard_id) is incoming:
                del self._incoming[incoming.shard_id]


class Incoming:
    """One shard on its way. To its fetch it is the onlooker, to those who follow it a reader of what is here."""

    def __init__(self, relay: Relay, shard_id: str, open_shard: Callable[[str], ShardReader]) -> None:
        self.shard_id = shard_id
        self._relay, self._open_shard = relay, open_shard
        self._lock = threading.RLock()
        self._frame: Frame | None = None
        self._writer: ShardWriter | None = None
        self._here: set[int] = set()
        self._followers: list[Follower] = []
        self._has_failed = False
        self._reader: ShardReader | None = None  # of the whole shard, once somebody asks after its end

    # What its fetch says.

    def begun(self, frame: Frame, writer: ShardWriter) -> None:
        missing = {chunk for first, count in writer.missing() for chunk in range(first, first + count)}
        self._frame, self._writer = frame, writer
        self._here = set(range(len(frame.chunks))) - missing
        self._relay._begin(self)

    def verified(self, chunk: int) -> None:
        with self._lock:
            self._here.add(chunk)
            for follower in self._followers:
                follower.more([(chunk, 1)])

    def ended(self, is_whole: bool) -> None:
        """`False` after `True` does nothing."""
        with self._lock:
            if self._writer is None:
                return
            self._writer, self._has_failed = None, not is_whole
            for follower in [] if is_whole else self._followers:
                follower.gone()

    def close(self) -> None:
        self._relay._end(self)

    # What its followers do.

    def add(self, follower: Follower) -> None:
        with self._lock:
            self._followers.append(follower)
            follower.begun(self, [(chunk, 1) for chunk in sorted(self._here)])
            if self._has_failed:
                follower.gone()

    def remove(self, follower: Follower) -> None:
        """The last one to go closes the door."""
        with self._lock:
            if follower in self._followers:
                self._followers.remove(follower)
            reader = self._reader if not self._followers else None
            if reader is not None:
                self._reader = None
        if reader is not None:
            reader.close()

    @property
    def frame(self) -> Frame:
        assert self._frame is not None
        return self._frame

    def chunk(self, number: int) -> memoryview:
        """A chunk that was offered. Raises `NotFound` when the shard did not become whole, `DamagedData`."""
        writer = self._writer
        if writer is not None:
            try:
                return writer.stored_chunk(number)
            except UsageError:
                pass  # it has ended this very moment
        with self._lock:
            if self._reader is None:
                self._reader = self._open_shard(self.shard_id)
            reader = self._reader
        return reader.chunk(number)  # whoever reads still follows, so the door stays open
