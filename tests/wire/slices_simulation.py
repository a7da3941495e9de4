"""A link and its sending streams in simulated time, through the real `FairQueue`.

The link divides itself equally among the streams that have bytes in the kernel, as TCP roughly does, as far as their
receivers take them. A send ends when all but `kernel_bytes` of the stream's bytes have left, and the stream's thread
is back at the queue `return_s` later.
"""

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from raylog.spec import QosClass
from raylog.wire.classes import Slices
from raylog.wire.slices import FairQueue, Ticket

EPSILON = 1e-6


@dataclass(eq=False)
class Sender:
    qos: QosClass
    chunk_bytes: Callable[[], int]
    peer: str = "peer"
    receiver_bytes_per_s: float = math.inf
    begins_s: float = 0.0
    ends_s: float = math.inf
    ticket: Ticket | None = None
    backlog: float = 0.0
    told: float = 0.0  # the backlog when last told of

    def is_live(self, now: float) -> bool:
        return now < self.ends_s


@dataclass
class Simulation:
    slices: Slices
    link_bytes_per_s: float
    senders: list[Sender]
    kernel_bytes: int = 1 << 20
    return_s: float = 0.0002
    now: float = 0.0
    sent: Counter[Sender] = field(default_factory=Counter)  # admitted
    admitted: list[tuple[float, Sender, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.queue = FairQueue(self.slices)
        self._numbers = itertools.count()
        self._arrivals = [(sender.begins_s, next(self._numbers), sender) for sender in self.senders]
        heapq.heapify(self._arrivals)
        self._waiting: dict[Ticket, Sender] = {}
        self._sending: list[Sender] = []

    def run(self, until_s: float) -> "Simulation":
        while self.now < until_s:
            self._arrive()
            self._finish()
            for ticket in self.queue.decide(self.now):
                self._admit(ticket)
            rates = self._rates()
            self._advance(min(until_s, self._next_event(rates)), rates)
        return self

    def share(self, qos: QosClass, since_s: float = 0.0) -> float:
        """The class's part of all bytes admitted since then."""
        return self.bytes(qos, since_s) / sum(count for at, _, count in self.admitted if at >= since_s)

    def bytes(self, qos: QosClass, since_s: float = 0.0) -> int:
        return sum(count for at, sender, count in self.admitted if at >= since_s and sender.qos is qos)

    def _arrive(self) -> None:
        while self._arrivals and self._arrivals[0][0] <= self.now:
            _, _, sender = heapq.heappop(self._arrivals)
            if sender.is_live(self.now):
                ticket = self.queue.arrive(sender.qos, sender.peer, sender.chunk_bytes(), self.now)
                self._waiting[ticket] = sender

    def _admit(self, ticket: Ticket) -> None:
        sender = self._waiting.pop(ticket)
        sender.ticket = ticket
        sender.backlog += ticket.bytes
        sender.told += ticket.bytes
        self._sending.append(sender)
        self.admitted.append((self.now, sender, ticket.bytes))

    def _finish(self) -> None:
        for sender in [one for one in self._sending if one.backlog <= self.kernel_bytes + EPSILON]:
            self._sending.remove(sender)
            assert sender.ticket is not None
            self.queue.finish(sender.ticket, int(sender.told - sender.backlog), self.now)
            sender.told = sender.backlog
            heapq.heappush(self._arrivals, (self.now + self.return_s, next(self._numbers), sender))

    def _rates(self) -> dict[Sender, float]:
        """Max-min over the streams with bytes to send."""
        left, rates = self.link_bytes_per_s, {}
        busy = sorted((one for one in self.senders if one.backlog > EPSILON), key=lambda one: one.receiver_bytes_per_s)
        for place, sender in enumerate(busy):
            rates[sender] = min(sender.receiver_bytes_per_s, left / (len(busy) - place))
            left -= rates[sender]
        return rates

    def _next_event(self, rates: dict[Sender, float]) -> float:
        times = [self._arrivals[0][0]] if self._arrivals else []
        if self._waiting:
            times.append(max(self.queue.wake_at, self.now + EPSILON))
        for sender, rate in rates.items():
            to_go = sender.backlog - self.kernel_bytes if sender in self._sending else sender.backlog
            times.append(self.now + max(to_go, EPSILON) / rate)
        return min(times, default=math.inf)

    def _advance(self, until_s: float, rates: dict[Sender, float]) -> None:
        for sender, rate in rates.items():
            sender.backlog = max(0.0, sender.backlog - rate * (until_s - self.now))
        self.now = until_s
