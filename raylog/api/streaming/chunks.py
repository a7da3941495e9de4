"""The chunks of a table, all shards of a version in one row: opened one by one, in any order, by any thread. Shards
come to this node when they are needed, and are held there for no longer than they have to be."""

import logging
import os
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import NamedTuple

import pyarrow as pa

from raylog.actors import calls
from raylog.api.get import Reading
from raylog.api.local_copy import LocalCopy
from raylog.api.pulls import Pulls
from raylog.codec.arrow import BatchOpener, batch_sizes
from raylog.codec.frame import Frame
from raylog.errors import NoSpace, NotFound, Unavailable, UsageError
from raylog.spec import Kind

log = logging.getLogger("raylog.stream")
LOOKS_AT_ONCE = 8
HELD_SHARDS_MAX = 512  # of those that this node keeps, each with an open file; beyond them as if they were cached
TRIES = 3  # to hold a shard that gives way between coming and being held
PATIENCE_S = 30.0  # with a node whose cache is full of what others hold, and with nodes that are away
PAUSE_S = 0.1


class _Held(NamedTuple):
    """A shard in this node's store, held in its place; for one thread at a time."""

    position: int
    shard: LocalCopy
    batches: BatchOpener


class TableChunks:
    """`rows` and `content_bytes`: of every chunk, in the order in which it was put; `chunks`: how many each shard has,
    `stored_bytes`: of each shard. Threads may share it.

    A shard that this node keeps is held until `close` (`is_kept`). One that is at most cached here is pulled when a
    chunk of it is needed; so many bytes of those as `held_bytes` says stay held for the next chunk, the others may give
    way and are pulled again. Making one brings nothing here.
    """

    def __init__(self, reading: Reading, columns: Sequence[str] | None, held_bytes: int) -> None:
        """Raises `UsageError` for what is no table and for unknown columns, and as `Client.get`."""
        if reading.kind is not Kind.ARROW:
            raise UsageError(
                f"expected a table to stream from, got {reading.manifest.name} with {reading.kind.name.lower()}: put "
                "its samples as the rows of a table"
            )
        self._reading, self._columns, self._held_bytes = reading, columns, held_bytes
        self._process = os.getpid()
        self._lock = threading.Lock()  # of what follows
        self._idle: defaultdict[int, list[_Held]] = defaultdict(list)  # of cached shards the longest unused first
        self._idle_bytes = 0  # of those that this node only caches
        self._is_closed = self._is_whole = False
        self.is_kept = [is_kept and at < HELD_SHARDS_MAX for at, is_kept in enumerate(reading.kept_here())]
        self.stored_bytes = [entry.shard.stored_bytes for entry in reading.manifest.shards]
        try:
            with ThreadPoolExecutor(LOOKS_AT_ONCE, thread_name_prefix="look") as executor:
                sizes = [batch_sizes(frame) for frame in executor.map(self._look, range(len(self.is_kept)))]
        except BaseException:
            self.close()
            raise
        self.rows = [count for rows, _ in sizes for count in rows]
        self.content_bytes = [count for _, lengths in sizes for count in lengths]
        self.chunks = [len(rows) for rows, _ in sizes]
        self._ends = list(accumulate(self.chunks))
        self._shard_of = [position for position, count in enumerate(self.chunks) for _ in range(count)]

    @property
    def name(self) -> str:
        return self._reading.manifest.name

    def shard_of(self, chunk: int) -> int:
        """The position of the shard that has a chunk."""
        return self._shard_of[chunk]

    def schema_by(self, position: int) -> pa.Schema:
        """That of the chosen columns, as this shard says, or one that is held already. Raises `UsageError` for unknown
        columns."""
        with self._lock:
            present = next((held[0] for held in self._idle.values() if held), None)
        if present is None:
            present = self._take(position, self._reading.pulls())
            self._give_back(present)
        schema: pa.Schema = present.batches.schema
        return schema

    def batch(self, chunk: int, pulls: Pulls) -> pa.RecordBatch:
        """Raises `DamagedData` when no copy of it can be had whole, and as `Pulls.pull`."""
        position = self._shard_of[chunk]
        for left in reversed(range(TRIES)):
            held = self._take(position, pulls)
            try:
                return held.batches.batch(chunk - self._ends[position] + self.chunks[position])
            except Unavailable:
                if not left or held.shard.is_held:  # else the connection to the node went: it is held anew
                    raise
            finally:
                self._give_back(held)
        raise AssertionError("the last try returns or raises")

    def bring(self, position: int, pulls: Pulls) -> None:
        """Makes a shard present here. Raises as `Pulls.pull`."""
        self._give_back(self._take(position, pulls, patience_s=0))

    def pulls(self) -> Pulls:
        """For `batch` and `bring`; to be cancelled when nobody needs what is under way any more."""
        return self._reading.pulls()

    def hold_all(self) -> None:
        """Brings and holds all of them, until `close`: for forked processes, that can bring nothing. Raises `NoSpace`
        when this node has no room for that, and as `Pulls.pull`."""
        with self._lock:
            self._is_whole = True
            missing = [position for position in range(len(self.chunks)) if not self._idle[position]]
        try:
            for position in missing:
                self.bring(position, self._reading.pulls())
        except BaseException as error:
            self._is_whole = False
            self._let_go(0)
            if not isinstance(error, NoSpace):
                raise
            raise NoSpace(
                f"{error}: workers need all of {self.name} on their node; take num_workers=0, which brings shards as "
                "they are needed",
                **error.__dict__,
            ) from error

    def close(self) -> None:
        """Nothing may be opened afterwards."""
        with self._lock:
            self._is_closed = True
            leaving = [held for several in self._idle.values() for held in several]
            self._idle.clear()
        for held in leaving:
            held.shard.close()

    def _look(self, position: int) -> Frame:
        """The frame of a shard, which is held from here on if this node keeps it."""
        if not self.is_kept[position]:
            return calls.retried(lambda _: self._reading.frame(position), PATIENCE_S)
        held = self._open(position, self._reading.pulls())
        self._give_back(held)
        return held.shard.frame

    def _take(self, position: int, pulls: Pulls, patience_s: float = PATIENCE_S) -> _Held:
        """Waits for as long as others here, or those who bring shards ahead, leave no room for it."""
        while idle := self._take_idle(position):
            if idle.shard.is_held:
                return idle
            idle.shard.close()
        deadline = time.monotonic() + patience_s
        while True:
            try:
                return self._open(position, pulls)
            except NoSpace:
                if time.monotonic() > deadline:
                    raise
                self._let_go(0)  # what is held here may be what fills this node
                time.sleep(PAUSE_S)

    def _take_idle(self, position: int) -> _Held | None:
        with self._lock:
            several = self._idle[position]
            if not several:
                return None
            if not self.is_kept[position]:
                self._idle_bytes -= self.stored_bytes[position]
            return several.pop()

    def _open(self, position: int, pulls: Pulls) -> _Held:
        shard = self._bring(position, pulls)
        try:
            return _Held(position, shard, BatchOpener(self._reading.opener(position, shard), self._columns))
        except BaseException:
            shard.close()
            raise

    def _bring(self, position: int, pulls: Pulls) -> LocalCopy:
        """Tried again while nodes that hold the shard are away, as they are for a moment when they restart."""
        deadline, tries = time.monotonic() + PATIENCE_S, TRIES
        while True:
            try:
                return self._reading.bring(position, pulls)
            except NoSpace:
                raise
            except (NotFound, Unavailable) as error:
                if self._reading.is_deleted():
                    raise NotFound(
                        f"{self.name}: the version that is streamed was deleted, and its shard {position} of "
                        f"{len(self.chunks)} is not held here: stream another version, and hold (client.hold) what is "
                        "in use"
                    ) from error
                tries -= isinstance(error, NotFound)  # it came, and gave way before it was held
                if not tries or time.monotonic() > deadline:
                    raise
                log.info("shard %d of %s is tried again: %s", position, self.name, error)
            time.sleep(PAUSE_S)

    def _give_back(self, held: _Held) -> None:
        position = held.position
        with self._lock:
            is_held = held.shard.is_held and not self._is_closed and not self._is_beyond(position)
            if is_held:
                self._idle[position] = [*self._idle.pop(position, []), held]  # the last key now
                if not self.is_kept[position]:
                    self._idle_bytes += self.stored_bytes[position]
        if not is_held:
            held.shard.close()
        elif self._idle_bytes > self._held_bytes:
            self._let_go(self._held_bytes)

    def _is_beyond(self, position: int) -> bool:
        """Whether a shard that is kept here is held already, and as many files are open as may be."""
        return (
            self.is_kept[position]
            and bool(self._idle[position])
            and sum(map(len, self._idle.values())) >= HELD_SHARDS_MAX
        )

    def _let_go(self, limit_bytes: int) -> None:
        """Of shards that are only cached here, the longest unused, until no more than `limit_bytes` are held unused."""
        leaving = []
        with self._lock:
            if self._is_whole or os.getpid() != self._process:  # a forked process lives on what its parent holds
                return
            for position in [one for one in self._idle if not self.is_kept[one]]:
                while self._idle[position] and self._idle_bytes > limit_bytes:
                    leaving.append(self._idle[position].pop())
                    self._idle_bytes -= self.stored_bytes[position]
        for held in leaving:
            held.shard.close()
