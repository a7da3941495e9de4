"""The gate through which every chunk of a node's cargo streams goes: slices.py decides, threads wait here."""

import fcntl
import logging
import math
import socket
import struct
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from raylog.errors import Unavailable
from raylog.spec import QosClass
from raylog.wire.classes import ClassCounters, Slices
from raylog.wire.slices import FairQueue, Ticket

log = logging.getLogger(__name__)

LONG_WAIT_S = 5.0  # a chunk that waits longer is told of, once in LOG_EVERY_S per class
LOG_EVERY_S = 60.0
SO_MAX_PACING_RATE = 47  # socket(7); Python has no name for it
PACE_OVER_CAP = 4  # the kernel only smooths what the token buckets allow, and must never be what chunks wait for
_UNPACED = 2**64 - 1
_RATE = struct.Struct("@Q")
_COUNT = struct.Struct("@i")


@dataclass(slots=True, eq=False)
class _Stream:
    peer: str
    connection: socket.socket
    pace_bytes_per_s: int = _UNPACED
    queued_bytes: int = 0  # in the kernel's send queue when last seen
    ticket: Ticket | None = None
    has_come: threading.Condition = field(init=False)
    waited_s: float = 0.0


class Gate:
    """One per node. A stream takes part from `attach` to `detach`, which lets a waiting thread go at once."""

    def __init__(self, slices: Slices, timeout_s: float) -> None:
        self._slices, self._timeout_s = slices, timeout_s
        self._lock = threading.Lock()
        self._queue = FairQueue(slices)
        self._streams: dict[bytes, _Stream] = {}
        self._waiting: dict[Ticket, _Stream] = {}
        self._timekeeper: Ticket | None = None  # whose thread wakes for the queue's own times
        self._counters = dict.fromkeys(QosClass, ClassCounters())
        self._told_at = dict.fromkeys(QosClass, -math.inf)

    def attach(self, stream: bytes, peer: str, connection: socket.socket) -> None:
        entry = _Stream(peer, connection)
        entry.has_come = threading.Condition(self._lock)
        with self._lock:
            self._streams[stream] = entry

    def detach(self, stream: bytes) -> None:
        """Its thread, should it wait, goes on as if its turn had come, and so does any that comes later: whoever
        detaches a stream has seen to it that nothing is left to send on it."""
        with self._lock:
            entry = self._streams.pop(stream, None)
            if entry is not None:
                entry.has_come.notify()

    @contextmanager
    def turn(self, stream: bytes, qos: QosClass, chunk_bytes: int) -> Iterator[None]:
        """Waits until a chunk may be sent; it is on its way until the block ends. Raises `Unavailable` when its turn
        has not come in time, naming what it waited for."""
        with self._lock:
            entry = self._streams.get(stream)
            ticket = None if entry is None else self._wait(stream, entry, qos, chunk_bytes)
        if entry is None or ticket is None:
            yield
            return
        try:
            self._pace(entry, qos)
            yield
        finally:
            left_bytes = self._left_bytes(entry, chunk_bytes)
            with self._lock:
                now = time.monotonic()
                self._queue.finish(ticket, left_bytes, now)
                self._decide(now)

    def sent(self, stream: bytes, qos: QosClass, sealed_bytes: int) -> float:
        """Counts the chunk whose turn it is on a stream; how long it had waited for it."""
        with self._lock:
            entry = self._streams.get(stream)
            waited_s = 0.0 if entry is None else entry.waited_s
            self._counters[qos] = self._counters[qos].plus(sealed_bytes, 1, waited_s)
        return waited_s

    def counters(self) -> dict[QosClass, ClassCounters]:
        with self._lock:
            return dict(self._counters)

    # Waiting; under the lock.

    def _wait(self, stream: bytes, entry: _Stream, qos: QosClass, chunk_bytes: int) -> Ticket | None:
        """The ticket when its turn has come, None when the stream was detached."""
        now = time.monotonic()
        ticket = self._queue.arrive(qos, entry.peer, chunk_bytes, now)
        self._waiting[ticket] = entry
        try:
            self._decide(now)
            while not ticket.is_admitted and self._streams.get(stream) is entry:
                self._wait_once(entry, ticket)
        finally:
            if not ticket.is_admitted:
                del self._waiting[ticket]
                self._queue.withdraw(ticket)
            self._hand_on_time(ticket)
        entry.waited_s = time.monotonic() - ticket.arrived
        return ticket if ticket.is_admitted else None

    def _wait_once(self, entry: _Stream, ticket: Ticket) -> None:
        if self._timekeeper is None:
            self._timekeeper = ticket
        now = time.monotonic()
        if now - ticket.arrived >= self._timeout_s:
            why = self._queue.why(ticket, now)
            raise Unavailable(
                f"a chunk of class {ticket.qos} to {ticket.peer} could not be sent within {self._timeout_s:g} s: it "
                f"waited for {why}; raise the cap or the weight, or ask for less at once"
            )
        if now - ticket.arrived >= LONG_WAIT_S:
            self._tell(ticket, now)
        until = ticket.arrived + (LONG_WAIT_S if now - ticket.arrived < LONG_WAIT_S else self._timeout_s)
        if self._timekeeper is ticket:
            until = min(until, self._queue.wake_at)
        entry.has_come.wait(min(max(until - now, 0.0), self._timeout_s))
        if not ticket.is_admitted:
            self._decide(time.monotonic())

    def _decide(self, now: float) -> None:
        """Wakes whose turn has come, and the timekeeper when it would sleep too long."""
        if not self._waiting:
            return
        before = self._queue.wake_at
        for ticket in self._queue.decide(now):
            self._waiting.pop(ticket).has_come.notify()
        if self._queue.wake_at < before and self._timekeeper in self._waiting:
            self._waiting[self._timekeeper].has_come.notify()

    def _hand_on_time(self, ticket: Ticket) -> None:
        """The thread that kept the time goes; another one that waits takes over."""
        if self._timekeeper is ticket:
            self._timekeeper = next(iter(self._waiting), None)
            if self._timekeeper is not None:
                self._waiting[self._timekeeper].has_come.notify()

    def _tell(self, ticket: Ticket, now: float) -> None:
        if now - self._told_at[ticket.qos] >= LOG_EVERY_S:
            self._told_at[ticket.qos] = now
            why = self._queue.why(ticket, now)
            log.warning("a chunk of class %s to %s waits for %g s now: %s", ticket.qos, ticket.peer, LONG_WAIT_S, why)

    # The stream's own socket; by its own thread.

    def _pace(self, entry: _Stream, qos: QosClass) -> None:
        """Has the kernel spread a capped chunk over its time, where it can."""
        cap = self._slices.least_cap_bytes_per_s(qos)
        pace = int(cap * PACE_OVER_CAP) or _UNPACED
        if pace != entry.pace_bytes_per_s:
            entry.pace_bytes_per_s = pace
            try:
                entry.connection.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, _RATE.pack(pace))
            except OSError as error:
                log.info("no pacing by the kernel, chunks leave in bursts: %s", error.strerror)

    @staticmethod
    def _left_bytes(entry: _Stream, chunk_bytes: int) -> int:
        """How much of the stream has left this machine since the last chunk: what was sent, less what the kernel
        still keeps."""
        try:
            queued = fcntl.ioctl(entry.connection, termios.TIOCOUTQ, _COUNT.pack(0))
        except (OSError, ValueError):
            return 0  # cut
        before, (entry.queued_bytes,) = entry.queued_bytes, _COUNT.unpack(queued)
        return max(0, chunk_bytes + before - entry.queued_bytes)
