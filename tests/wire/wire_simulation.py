"""A puller and a source as a pair over a link that delays, reorders between streams, cuts, corrupts and repeats.

Both machines are the real ones; the shells, the clock and the network are this file. One seed is one history.
"""

import functools
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from raylog.errors import DamagedData, RaylogError, Unavailable
from raylog.security.identity import Identity
from raylog.spec import QosClass
from raylog.testing.shards import SampleShard, sample_shard
from raylog.wire.bounds import SEALED_CHUNK_BYTES_MAX, Bounds
from raylog.wire.effects import (
    Close,
    CloseStream,
    Complete,
    ConnectStream,
    CreateShard,
    DropChunk,
    Effect,
    ExpectStream,
    Fail,
    OpenShard,
    Send,
    SendChunk,
    TakeChunk,
)
from raylog.wire.messages import Credit, encode
from raylog.wire.puller import PullerSession
from raylog.wire.record import StreamKeys
from raylog.wire.session import Parties, Session
from raylog.wire.source import SourceSession

CLUSTER, PULLER, SOURCE = "c" * 32, "a" * 32, "b" * 32
ATTEMPTS_MAX = 60
DEADLINE_S = 120.0
BOUNDS = Bounds(window_bytes=SEALED_CHUNK_BYTES_MAX)


@dataclass(frozen=True, kw_only=True)
class Faults:
    """Chances per occasion."""

    cut_control: float = 0.0
    cut_stream: float = 0.0
    corrupt: float = 0.0
    repeat: float = 0.0
    stall: float = 0.0
    refuse_connect: float = 0.0

    @classmethod
    def draw(cls, source: random.Random) -> "Faults":
        return cls(
            **{name: source.choice([0.0, 0.0, 0.02, 0.1]) for name in cls.__dataclass_fields__},
        )


def parties(me: str, peer: str, seed: int, expires: float = 1e9) -> Parties:
    bytes_source = random.Random(f"{me}{seed}")
    return Parties(
        me=Identity(role="node", id=me, cluster_id=CLUSTER),
        peer=Identity(role="node", id=peer, cluster_id=CLUSTER),
        expires=expires,
        software="test",
        random_bytes=bytes_source.randbytes,
    )


class World:
    """The clock, what is still to happen, and what the puller has."""

    def __init__(self, seed: int, faults: Faults | None = None) -> None:
        self.random = random.Random(seed)
        self.faults = faults if faults is not None else Faults.draw(self.random)
        self.shard = _shard(seed % 7)
        self.now = 0.0
        self.verified: set[int] = set()
        self.errors: list[RaylogError] = []
        self.is_complete = False
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def later(self, delay_s: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (self.now + delay_s, next(self._order), event))

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def missing(self) -> list[tuple[int, int]]:
        return [(number, 1) for number in range(len(self.shard.chunks)) if number not in self.verified]

    def run(self) -> None:
        """Attempt after attempt until the shard is whole; each gets what the others have left."""
        for attempt in range(ATTEMPTS_MAX):
            if self.is_complete:
                return
            Attempt(self, attempt).run()
        assert self.is_complete, f"not whole after {ATTEMPTS_MAX} attempts: {self.errors[-3:]}"

    def step(self, deadline: float) -> bool:
        """Advances to the next event, or to `deadline` if that is earlier (False)."""
        if not self._heap or self._heap[0][0] > deadline:
            self.now = max(self.now, deadline)
            return False
        self.now, _, event = heapq.heappop(self._heap)
        event()
        return True

    def forget(self) -> None:
        self._heap.clear()


@functools.cache
def _shard(seed: int) -> SampleShard:
    """Chunks so large that credit binds, and some small ones."""
    source = random.Random(seed)
    sizes = [source.choice([100, 700_000, 1_500_000]) for _ in range(source.randint(1, 24))]
    return sample_shard(seed, tuple(sizes))


@dataclass
class Line:
    """One cargo stream: what is on its way, and what the puller works on."""

    keys: StreamKeys
    arriving: deque[tuple[int, int, bool]] = field(default_factory=deque)
    is_busy: bool = False
    is_cut: bool = False
    latest: float = 0.0


class Attempt:
    """One session."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.puller = PullerSession(parties(PULLER, SOURCE, number), BOUNDS, world.random.randint(1, 3))
        self.source = SourceSession(parties(SOURCE, PULLER, number), BOUNDS, 4000)
        self.lines: dict[bytes, Line] = {}
        self.expected: dict[bytes, StreamKeys] = {}
        self.credit = self.sent_bytes = 0
        self.unsettled: dict[tuple[bytes, int], int] = {}
        self.latest = {id(self.puller): 0.0, id(self.source): 0.0}
        self.is_cut = self.has_ended = False

    def run(self) -> None:
        world = self.world
        self.puller_does(self.puller.start(world.now))
        self.source_does(self.source.start(world.now))
        ref = world.shard.frame.ref()
        self.puller_does(self.puller.open(ref, QosClass.SHIP, world.now + DEADLINE_S, world.now)[1])
        limit = world.now + 10 * DEADLINE_S
        while not self.puller.is_closed and not self.has_ended:
            assert world.now < limit, "an attempt outlives its deadline"
            deadline = min(machine.next_deadline() for machine in (self.puller, self.source) if not machine.is_closed)
            if not world.step(deadline):
                self.puller_does(self.puller.on_tick(world.now))
                self.source_does(self.source.on_tick(world.now))
        world.forget()
        self.is_cut = True
        self.source_does(self.source.connection_lost(None, world.now))
        self.puller_does(self.puller.connection_lost(None, world.now))

    # Control.

    def send(self, sender: Session, effect: Send) -> None:
        raw, world = encode(effect.message), self.world
        receiver, does = (self.source, self.source_does) if sender is self.puller else (self.puller, self.puller_does)
        if world.chance(world.faults.cut_control * 0.2):
            self.cut_control()
        while raw:  # in pieces of any size, in order
            size = world.random.choice([1, 7, 1000, len(raw)])
            piece, raw = raw[:size], raw[size:]
            self.latest[id(sender)] = max(self.latest[id(sender)], world.now + world.random.random() * 0.05)
            world.later(self.latest[id(sender)] - world.now, partial(self.deliver, receiver, does, piece))

    def deliver(self, receiver: Session, does: Callable[[list[Effect]], None], piece: bytes) -> None:
        if not self.is_cut and not receiver.is_closed:
            does(receiver.receive(piece, self.world.now))

    def cut_control(self) -> None:
        def lost() -> None:
            self.is_cut = True
            self.puller_does(self.puller.connection_lost(None, self.world.now))
            self.source_does(self.source.connection_lost(None, self.world.now))

        self.world.later(0.01, lost)

    # The source's shell.

    def source_does(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send():
                    self.send(self.source, effect)
                case OpenShard(pull):
                    self.world.later(0.01, partial(self.open_shard, pull))
                case ExpectStream(stream, keys):
                    self.expected[stream] = keys
                case SendChunk():
                    self.send_chunk(effect)
                case CloseStream(stream):
                    self.cut_line(stream)
                case _:
                    pass

    def open_shard(self, pull: int) -> None:
        if not self.source.is_closed:
            self.source_does(self.source.shard_opened(pull, self.world.shard.frame, self.world.now))

    def send_chunk(self, job: SendChunk) -> None:
        world = self.world
        length = world.shard.frame.chunks[job.chunk].sealed_bytes
        self.sent_bytes += length
        assert self.sent_bytes <= self.credit, "credit exceeded"
        self.unsettled[job.stream, job.chunk] = length
        assert sum(self.unsettled.values()) <= BOUNDS.window_bytes, "window exceeded"
        if world.chance(world.faults.stall):
            return  # this stream never says another word
        line = self.lines[job.stream]
        if world.chance(world.faults.cut_stream):
            world.later(world.random.random() * 0.2, partial(self.cut_line, job.stream))
        is_good = not world.chance(world.faults.corrupt)
        line.latest = max(line.latest, world.now + world.random.random() * 0.3)
        for _ in range(2 if world.chance(world.faults.repeat) else 1):
            world.later(line.latest - world.now, partial(self.arrive, job, is_good))
        world.later(world.random.random() * 0.1, partial(self.chunk_is_out, job.stream))

    def chunk_is_out(self, stream: bytes) -> None:
        if not self.source.is_closed:
            self.source_does(self.source.chunk_sent(stream, self.world.now))

    # The puller's shell.

    def puller_does(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(message):
                    if isinstance(message, Credit):
                        assert message.total_bytes > self.credit
                        self.credit = message.total_bytes
                    self.send(self.puller, effect)
                case CreateShard(pull):
                    self.world.later(self.world.random.random(), partial(self.create, pull))
                case ConnectStream(stream, _, keys):
                    self.world.later(self.world.random.random() * 0.2, partial(self.connect, stream, keys))
                case CloseStream(stream):
                    self.cut_line(stream)
                case Complete():
                    assert not self.world.missing()
                    self.world.is_complete = self.has_ended = True
                case Fail(_, error):
                    self.world.errors.append(error)
                    self.has_ended = True
                case Close():
                    self.has_ended = True
                case _:
                    pass

    def create(self, pull: int) -> None:
        if not self.puller.is_closed:
            self.puller_does(self.puller.shard_created(pull, self.world.missing(), self.world.now))

    def connect(self, stream: bytes, keys: StreamKeys) -> None:
        if self.puller.is_closed:
            return
        if stream not in self.expected or self.world.chance(self.world.faults.refuse_connect):
            self.puller_does(self.puller.stream_lost(stream, "refused", self.world.now))
            return
        assert self.expected[stream] == keys, "both ends derive the same keys"
        self.lines[stream] = Line(keys)
        self.puller_does(self.puller.stream_connected(stream, self.world.now))
        self.world.later(0.05, lambda: self.source_does(self.source.stream_attached(stream, self.world.now)))

    def cut_line(self, stream: bytes) -> None:
        line = self.lines.get(stream)
        if line is None or line.is_cut:
            return
        line.is_cut = True
        self.source_does(self.source.stream_lost(stream, self.world.now))
        if not line.is_busy:
            self.line_ended(stream)

    def line_ended(self, stream: bytes) -> None:
        self.unsettled = {key: length for key, length in self.unsettled.items() if key[0] != stream}
        self.puller_does(self.puller.stream_lost(stream, "cut", self.world.now))

    def arrive(self, job: SendChunk, is_good: bool) -> None:
        line = self.lines[job.stream]
        if not line.is_cut:
            line.arriving.append((job.pull, job.chunk, is_good))
            self.work(job.stream)

    def work(self, stream: bytes) -> None:
        """The thread of one stream: a chunk at a time."""
        line = self.lines[stream]
        if line.is_busy or line.is_cut or not line.arriving or self.puller.is_closed:
            return
        pull, chunk, is_good = line.arriving.popleft()
        length = self.world.shard.frame.chunks[chunk].sealed_bytes
        effects = self.puller.chunk_arriving(stream, pull, chunk, length, self.world.now)
        if TakeChunk(pull, chunk) in effects:
            assert chunk not in self.world.verified, "a chunk that is here was asked for again"
            line.is_busy = True
            verified = partial(self.verify, stream, pull, chunk, is_good)
            self.world.later(self.world.random.random() * 0.05, verified)
        elif DropChunk() not in effects:
            self.puller_does(effects)

    def verify(self, stream: bytes, pull: int, chunk: int, is_good: bool) -> None:
        line, now = self.lines[stream], self.world.now
        line.is_busy = False
        self.unsettled.pop((stream, chunk), None)
        if self.puller.is_closed:
            return
        if is_good:
            assert chunk not in self.world.verified, "verified twice"
            self.world.verified.add(chunk)
            self.puller_does(self.puller.chunk_verified(stream, pull, chunk, now))
        else:
            self.puller_does(self.puller.chunk_damaged(stream, pull, chunk, now))
        if line.is_cut:
            self.line_ended(stream)
        self.work(stream)


__all__ = ["BOUNDS", "PULLER", "SOURCE", "DamagedData", "Faults", "Unavailable", "World", "parties"]
