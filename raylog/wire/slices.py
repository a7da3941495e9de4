"""Whose chunk goes out next, over all streams and sessions of a node: start-time fair queueing over traffic classes.

Pure: chunks arrive and finish with the time passed in, `decide` says which of the waiting ones may go.

Each class has a *tag*, its virtual time: it grows by bytes over weight with each chunk that goes (Goyal, Vin, Cheng:
Start-time Fair Queueing, SIGCOMM 1996). The waiting class with the least tag goes first, and not while a class with a
lesser tag *claims* the link, because a chunk of it is on its way out, or was until a moment ago. So a class runs ahead
of another busy one by no more than one chunk over its weight, though nobody knows the link's rate: the classes are
clocked by each other's chunks going out. An idle class claims nothing, and its tag is lifted to the others' when it
comes back, so it saves nothing up.

Sending may block because a receiver, and not our link, is slow; then nobody should wait. So a class's claim lapses,
until its next chunk starts or ends, once no chunk of any class has started or ended for `PATIENCE` times as long as
all bytes on their way take at the link's rate. On a busy link something ends sooner than that, however TCP divides
it. The link's rate is the most that has been seen to leave (`LinkRate`) or the node's cap. So a chunk waits for a
slow one at most about `PATIENCE` chunks' time on the link, never longer than `PATIENCE_S_MAX`, and a class whose
receivers take r of a link of C holds the others up for `PATIENCE * r / C` of the time. In simulation the link is used
to 0.6 at worst, with r about C / 2, and to 0.87 and more for r below C / 12. For what a link could carry to be seen
at all, nobody claims anything during `PROBE_S` of every `PROBE_EVERY_S`.
"""

import itertools
import math
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from raylog.spec import QosClass
from raylog.units import format_rate
from raylog.wire.bucket import TokenBucket
from raylog.wire.classes import Slices

PATIENCE = 4
PATIENCE_S_MIN, PATIENCE_S_MAX = 0.005, 1.0
RETURN_S = 0.005  # from one chunk's end until its thread comes with the next, with much to spare
PROBE_S, PROBE_EVERY_S = 0.5, 20.0
LINK_WINDOW_S = 0.5
LINK_BYTES_PER_S_MIN = 125e6  # what a link without a cap is taken to carry at least: 1 Gbit/s
PEER_BUCKETS_MAX = 1024  # above it, those that owe nothing are forgotten


@dataclass(slots=True)
class LinkRate:
    """The most bytes per second that were seen to leave over a window; an old figure halves in a minute."""

    bytes_per_s: float = LINK_BYTES_PER_S_MIN
    _bytes: int = 0
    _since: float = -math.inf

    def add(self, left_bytes: int, now: float) -> None:
        self._bytes += left_bytes
        elapsed_s = now - self._since
        if elapsed_s < LINK_WINDOW_S:
            return
        faded = self.bytes_per_s * 0.5 ** min(elapsed_s / 60, 60)
        self.bytes_per_s = max(faded, self._bytes / elapsed_s, LINK_BYTES_PER_S_MIN)
        self._bytes, self._since = 0, now


@dataclass(slots=True, eq=False)
class Ticket:
    """A chunk that waits for its turn, or is on its way."""

    qos: QosClass
    peer: str
    bytes: int
    arrived: float
    number: int
    is_admitted: bool = False


@dataclass(slots=True, eq=False)
class _Class:
    qos: QosClass
    weight: float
    bucket: TokenBucket
    tag: float = 0.0
    waiting: dict[str, deque[Ticket]] = field(default_factory=dict)  # by peer where peers have a cap, else all by ""
    sending: Counter[str] = field(default_factory=Counter)  # chunks on their way, by peer
    finished: float = -math.inf  # when a chunk last was out
    has_lapsed: bool = False  # its claim, until its next chunk


class FairQueue:
    """Chunks that wait and chunks on their way, of one node."""

    def __init__(self, slices: Slices) -> None:
        self._slices = slices
        self._classes: Mapping[QosClass, _Class] = {
            qos: _Class(qos, slices.weight(qos), TokenBucket(slices.cap_bytes_per_s(qos))) for qos in QosClass
        }
        self._node = TokenBucket(slices.node_cap_bytes_per_s)
        self._peers: dict[str, TokenBucket] = {}
        self._numbers = itertools.count()
        self._virtual_time = 0.0
        self._link = LinkRate()
        self._sending_bytes = 0
        self._moved = -math.inf  # when a chunk of any class last began to go or was out
        self.wake_at = math.inf  # when `decide` may say more without an event

    # Events.

    def arrive(self, qos: QosClass, peer: str, chunk_bytes: int, now: float) -> Ticket:
        """A chunk is ready to be sent to `peer`."""
        ticket = Ticket(qos, peer, chunk_bytes, now, next(self._numbers))
        self._classes[qos].waiting.setdefault(self._lane(peer), deque()).append(ticket)
        return ticket

    def withdraw(self, ticket: Ticket) -> None:
        """A chunk that waits is no longer wanted."""
        waiting = self._classes[ticket.qos].waiting
        lane = waiting[self._lane(ticket.peer)]
        lane.remove(ticket)
        if not lane:
            del waiting[self._lane(ticket.peer)]

    def finish(self, ticket: Ticket, left_bytes: int, now: float) -> None:
        """An admitted chunk is out, or its stream is over. `left_bytes` are known to have left the machine since the
        last time that was told of its stream."""
        self._sending_bytes -= ticket.bytes
        self._link.add(left_bytes, now)
        of = self._classes[ticket.qos]
        of.finished = self._moved = now
        of.has_lapsed = False
        of.sending[ticket.peer] -= 1
        if not of.sending[ticket.peer]:
            del of.sending[ticket.peer]

    def decide(self, now: float) -> list[Ticket]:
        """The chunks that may go now; they are admitted."""
        admitted = []
        while (ticket := self._next(now)) is not None:
            self._admit(ticket, now)
            admitted.append(ticket)
        return admitted

    def why(self, ticket: Ticket, now: float) -> str:
        """What a waiting chunk waits for."""
        slices, of = self._slices, self._classes[ticket.qos]
        if self._peer_ready_at(ticket.peer) > now:
            return f"the cap of {format_rate(slices.peer_cap_bytes_per_s)} of peer {ticket.peer} (peer_cap_bytes_per_s)"
        if of.bucket.ready_at() > now:
            return f"the cap of {format_rate(of.bucket.rate_bytes_per_s)} of its class ({of.qos}_cap_bytes_per_s)"
        others = [c for c in self._classes.values() if c is not of and (c.waiting or c.sending)]
        beside = " and ".join(f"{c.qos}'s {c.weight:g}" for c in others) or "nothing, other chunks of its class apart"
        capped = f", under the node's cap of {format_rate(self._node.rate_bytes_per_s)} (node_cap_bytes_per_s)"
        return f"its weight {of.weight:g} beside {beside}{capped if self._node.rate_bytes_per_s else ''}"

    # Deciding.

    def _next(self, now: float) -> Ticket | None:
        self.wake_at = math.inf
        busy = [of for of in self._classes.values() if of.waiting]
        if not busy:
            return None
        if self._node.ready_at() > now:
            self.wake_at = self._node.ready_at()
            return None
        ready = {of.qos: head for of in busy if (head := self._head(of, now)) is not None}
        if not ready:
            return None
        best = min((self._classes[qos] for qos in ready), key=self._start)
        ahead = [of for of in self._classes.values() if of.qos not in ready and self._start(of) < self._start(best)]
        until = max((self._claims_until(of, now) for of in ahead), default=-math.inf)
        if until > now:
            self.wake_at = min(self.wake_at, until)
            return None
        return ready[best.qos]

    def _head(self, of: _Class, now: float) -> Ticket | None:
        """The chunk of a class that has waited longest, of those that no cap of class or peer holds back."""
        if of.bucket.ready_at() > now:
            self.wake_at = min(self.wake_at, of.bucket.ready_at())
            return None
        head: Ticket | None = None
        for peer, lane in of.waiting.items():
            if (ready_at := self._peer_ready_at(peer)) > now:
                self.wake_at = min(self.wake_at, ready_at)
            elif head is None or lane[0].number < head.number:
                head = lane[0]
        return head

    def _claims_until(self, of: _Class, now: float) -> float:
        """Until when a class that has no chunk ready holds others up, should nothing happen before. What is held to a
        cap just now is slow by order, and holds nobody up."""
        if of.bucket.ready_at() > now:
            return -math.inf
        if not any(self._peer_ready_at(peer) <= now for peer in of.sending):
            return of.finished + RETURN_S
        until = self._moved + self._patience_s()
        of.has_lapsed |= until <= now
        if of.has_lapsed:
            return -math.inf
        if self._node.rate_bytes_per_s:
            return until  # what may be sent is known: there is nothing to probe for
        into_s = now % PROBE_EVERY_S
        return -math.inf if into_s < PROBE_S else min(until, now - into_s + PROBE_EVERY_S)

    def _patience_s(self) -> float:
        link_bytes_per_s = self._node.rate_bytes_per_s or self._link.bytes_per_s
        return min(max(PATIENCE * self._sending_bytes / link_bytes_per_s, PATIENCE_S_MIN), PATIENCE_S_MAX)

    def _admit(self, ticket: Ticket, now: float) -> None:
        of = self._classes[ticket.qos]
        self.withdraw(ticket)
        ticket.is_admitted = True
        self._virtual_time = max(self._virtual_time, self._start(of))
        of.tag = self._start(of) + ticket.bytes / of.weight
        self._sending_bytes += ticket.bytes
        of.sending[ticket.peer] += 1
        of.has_lapsed = False
        self._moved = now
        self._node.spend(ticket.bytes, now)
        of.bucket.spend(ticket.bytes, now)
        if self._slices.peer_cap_bytes_per_s:
            self._charge_peer(ticket, now)

    def _start(self, of: _Class) -> float:
        return of.tag if of.tag > self._virtual_time else self._virtual_time

    def _lane(self, peer: str) -> str:
        return peer if self._slices.peer_cap_bytes_per_s else ""

    def _peer_ready_at(self, peer: str) -> float:
        bucket = self._peers.get(peer)
        return -math.inf if bucket is None else bucket.ready_at()

    def _charge_peer(self, ticket: Ticket, now: float) -> None:
        if len(self._peers) >= PEER_BUCKETS_MAX and ticket.peer not in self._peers:
            self._peers = {peer: bucket for peer, bucket in self._peers.items() if bucket.ready_at() > now}
        bucket = self._peers.setdefault(ticket.peer, TokenBucket(self._slices.peer_cap_bytes_per_s))
        bucket.spend(ticket.bytes, now)
