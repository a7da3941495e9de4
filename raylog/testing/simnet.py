"""A simulated network of nodes that fetch one shard from each other: the real machines, a simulated world around them.

Everything that decides is the real thing: `Fetch`, `Schedule`, `PullerSession`, `SourceSession`, and every control
message as bytes. Simulated are the clock, the links, the stores and the order in which things happen. TCP is taken as
it shows itself to the machines: a connection delivers in order or not at all, packet loss is delay, streams overtake
each other. One seed is one history.
"""

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from raylog.codec.frame import Frame
from raylog.errors import DamagedData, RaylogError, Unavailable
from raylog.security.identity import Identity
from raylog.spec import QosClass
from raylog.testing.shards import SampleShard
from raylog.wire import effects as wire
from raylog.wire import fetch as fetching
from raylog.wire.bounds import Bounds
from raylog.wire.fetch import Fetch, FetchEffect, SourceSpec
from raylog.wire.messages import Credit, RefusalReason, encode
from raylog.wire.puller import PullerSession
from raylog.wire.record import StreamKeys
from raylog.wire.schedule import Ask, Recall
from raylog.wire.session import Parties, Session
from raylog.wire.source import SourceSession

CLUSTER = "c" * 32
PATIENCE_S = 20
RETRY_S = 0.5  # after a fetch that failed, whoever wanted the shard asks again


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What a node is connected by: bytes/s out and in, one-way delay, and the share of packets lost on the way out (a
    loss costs a retransmission's delay)."""

    rate_bytes_per_s: float = 125e6
    delay_s: float = 0.0002
    loss: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Chances per occasion: of a cargo stream or a whole connection to be cut when something is sent on it, of a chunk
    to come corrupted, to come twice, or never to come though its connection stands, of a connection to be refused, of a
    thread to be overtaken by another between two effects that it carries out."""

    cut_stream: float = 0.0
    cut_session: float = 0.0
    corrupt: float = 0.0
    repeat: float = 0.0
    stall: float = 0.0
    refuse: float = 0.0
    overtake: float = 0.0


class World:
    """The clock, what is still to happen, and the nodes."""

    def __init__(self, seed: int, shard: SampleShard, bounds: Bounds, faults: Faults, streams: int = 2) -> None:
        self.random = random.Random(seed)  # noqa: S311 - histories that repeat, not secrets
        self.shard, self.bounds, self.faults, self.streams = shard, bounds, faults, streams
        self.now = 0.0
        self.nodes: dict[str, SimNode] = {}
        self.cuts: set[frozenset[str]] = set()
        self.control_messages = self.events = 0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def add(self, name: str, link: Link = Link(), *, is_holder: bool = False) -> "SimNode":
        node = SimNode(self, name, link)
        if is_holder:
            node.here = set(range(len(self.shard.chunks)))
        self.nodes[node.id] = node
        return node

    def later(self, delay_s: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (self.now + delay_s, next(self._order), event))

    def chance(self, probability: float) -> bool:
        return bool(probability) and self.random.random() < probability

    def are_apart(self, one: str, other: str) -> bool:
        return frozenset((one, other)) in self.cuts

    def run(self, until: Callable[[], bool], limit_s: float) -> bool:
        """Lets things happen until `until` holds; False when it does not by `limit_s`."""
        while not until():
            if not self._heap or self._heap[0][0] > limit_s:
                return False
            self.now, _, event = heapq.heappop(self._heap)
            self.events += 1
            event()
        return True


class SimNode:
    """A node: what it has of the shard, the fetch that it runs, the sessions that it serves."""

    def __init__(self, world: World, name: str, link: Link) -> None:
        self.world, self.link = world, link
        self.id = name.encode().hex().rjust(32, "0")
        self.here: set[int] = set()
        self.life = 0  # counts its deaths
        self.is_up = True
        self.errors: list[RaylogError] = []
        self.twice_bytes = self.sent_bytes = 0
        self.whole_at: float | None = None
        self._up_free_at = self._down_free_at = 0.0
        self._sources: Sequence[SourceSpec] = ()
        self.fetch: Fetch | None = None
        self._frame: Frame | None = None  # while there is room for the shard here
        self._lines: dict[int, Connection] = {}  # our attempts
        self.served: list[Connection] = []
        self._waiting: list[tuple[Connection, int]] = []
        self._followed: list[tuple[Connection, int]] = []
        self._alarm_at = float("inf")

    @property
    def is_whole(self) -> bool:
        return len(self.here) == len(self.world.shard.chunks)

    # Getting the shard.

    def want(self, sources: Sequence[SourceSpec], deadline_s: float = 120.0) -> None:
        """Fetches the shard; after a failure again and again."""
        self._sources, self._deadline_s = sources, deadline_s
        self._begin(self.life)

    def _begin(self, life: int) -> None:
        world = self.world
        if life != self.life or not self.is_up:
            return
        if self.is_whole:
            self.whole_at = self.whole_at or world.now  # it died between the last chunk and its end
            return
        fetch = Fetch(world.shard.frame.ref(), self._sources, world.now + self._deadline_s, world.bounds.window_bytes)
        self.fetch, self._alarm_at = fetch, float("inf")
        self.does(fetch, fetch.start(world.now))

    def does(self, fetch: Fetch, effects: Sequence[FetchEffect]) -> None:
        if fetch is not self.fetch:
            return  # it died with the process
        for place, effect in enumerate(effects):
            if self.world.chance(self.world.faults.overtake):
                self.world.later(self.world.random.random() * 0.003, partial(self.does, fetch, effects[place:]))
                break
            match effect:
                case fetching.Connect(attempt, spec):
                    self._connect(fetch, attempt, spec)
                case fetching.Create(frame):
                    self.world.later(self.world.random.random() * 0.02, partial(self._create, fetch, frame, self.life))
                case fetching.Ready(attempt):
                    self._tell(attempt, PullerSession.shard_created)
                case Ask(attempt, chunks):
                    self._tell(attempt, PullerSession.ask, chunks)
                case Recall(attempt, chunks):
                    self._tell(attempt, PullerSession.recall, chunks)
                case fetching.Cancel(attempt, chunk):
                    self._tell(attempt, PullerSession.cancel, [chunk])
                case fetching.Leave(attempt):
                    self._tell(attempt, PullerSession.finish)
                    if (line := self._lines.pop(attempt, None)) is not None:
                        self.world.later(0.001, line.leave)
                case fetching.Complete():
                    assert self.is_whole
                    self.whole_at = self.world.now
                case fetching.Fail(error):
                    self.errors.append(error)
                    self._lose_followers()
                    self.world.later(RETRY_S, partial(self._begin, self.life))
        self._set_alarm(fetch)

    def _tell(self, attempt: int, event: Callable[..., list[wire.Effect]], *arguments: object) -> None:
        line = self._lines.get(attempt)
        if line is not None and not line.puller.is_closed:
            line.puller_does(event(line.puller, line.pull, *arguments, self.world.now))

    def _connect(self, fetch: Fetch, attempt: int, spec: SourceSpec) -> None:
        world, source, life = self.world, self.world.nodes[spec.node_id], self.life

        def failed(error: RaylogError) -> None:
            if life == self.life:
                self.does(fetch, fetch.failed(attempt, error, world.now))

        def connected() -> None:
            if life != self.life or fetch.has_ended:
                return
            if not source.is_up or world.chance(world.faults.refuse):
                failed(Unavailable("connection refused"))
                return
            self._lines[attempt] = line = Connection(self, fetch, attempt, source, spec)
            source.served.append(line)
            line.start()

        if world.are_apart(self.id, source.id):
            world.later(world.bounds.greeting_timeout_s, partial(failed, Unavailable("no answer in time")))
        else:
            world.later(4 * (self.link.delay_s + source.link.delay_s) + 0.004, connected)

    def _create(self, fetch: Fetch, frame: Frame, life: int) -> None:
        if life != self.life or fetch.has_ended:
            return
        self._frame = frame
        waiting, self._waiting = self._waiting, []
        for line, pull in waiting:
            self.open_shard(line, pull, is_patient=False)
        sizes = [len(chunk) for chunk in self.world.shard.chunks]
        missing = [(chunk, 1) for chunk in range(len(sizes)) if chunk not in self.here]
        self.does(fetch, fetch.created(sizes, missing, self.world.now))

    def _set_alarm(self, fetch: Fetch) -> None:
        at = fetch.next_deadline()
        if fetch.has_ended or at >= self._alarm_at:
            return
        self._alarm_at = at

        def ring() -> None:
            if self.fetch is fetch and self._alarm_at == at:
                self._alarm_at = float("inf")
                self.does(fetch, fetch.on_tick(self.world.now))

        self.world.later(max(0.0, at - self.world.now), ring)

    def stored(self, line: "Connection", chunk: int) -> None:
        """A chunk came and is good."""
        if chunk in self.here:
            self.twice_bytes += len(self.world.shard.chunks[chunk])
        else:
            self.here.add(chunk)
            for follower, pull in self._followed:
                follower.source_does(follower.source.chunks_available(pull, [(chunk, 1)], self.world.now))
        self.does(line.fetch, line.fetch.verified(line.attempt, chunk, self.world.now))

    # Giving it.

    def open_shard(self, line: "Connection", pull: int, *, is_patient: bool) -> None:
        if line.source.is_closed:
            return
        now = self.world.now
        if not self.is_whole and self._frame is None:
            if is_patient:
                self._waiting.append((line, pull))
            else:
                line.source_does(line.source.refuse(pull, RefusalReason.NOT_FOUND, "not here", None, now))
            return
        if not self.is_whole:
            self._followed.append((line, pull))
        frame = self.world.shard.frame
        line.source_does(line.source.shard_opened(pull, frame, now, [(chunk, 1) for chunk in sorted(self.here)]))

    def _lose_followers(self) -> None:
        followed, self._followed, self._frame = self._followed, [], None
        for line, pull in followed:
            if not line.source.is_closed:
                gone = line.source.refuse(pull, RefusalReason.BUSY, "its own pull has ended", None, self.world.now)
                line.source_does(gone)

    def transmit(self, receiver: "SimNode", length: int) -> tuple[float, float]:
        """Seconds until a chunk of `length` bytes is out, and until it is there: links send one thing at a time."""
        world, now = self.world, self.world.now
        begins = max(now, self._up_free_at)
        self._up_free_at = begins + length / self.link.rate_bytes_per_s
        arrives = max(self._up_free_at, receiver._down_free_at + length / receiver.link.rate_bytes_per_s)
        receiver._down_free_at = arrives
        delay_s = self.link.delay_s + receiver.link.delay_s
        if world.chance(self.link.loss * length / 1500 / 50):
            delay_s += world.random.random() * 0.05
        self.sent_bytes += length
        return self._up_free_at - now, arrives - now + delay_s

    # Dying.

    def crash(self, *, keeps: float, is_silent: bool) -> None:
        """All of its sessions end, heard by the others or not; a share of what it had is there again later."""
        self.life, self.is_up, self.fetch, self._frame = self.life + 1, False, None, None
        self._alarm_at = float("inf")
        self._waiting, self._followed = [], []
        if not self.is_whole:
            self.here = {chunk for chunk in sorted(self.here) if self.world.random.random() < keeps}
        lines, self._lines = [*self._lines.values(), *self.served], {}
        self.served = []
        for line in lines:
            line.cut(is_silent=is_silent)

    def restart(self) -> None:
        self.is_up = True
        self._up_free_at = self._down_free_at = self.world.now
        if self._sources:
            self._begin(self.life)


@dataclass(slots=True, eq=False)
class _Stream:
    """One cargo stream: what is on its way, and what the puller works on."""

    keys: StreamKeys
    arriving: deque[tuple[int, bool]] = field(default_factory=deque)
    is_busy: bool = False
    is_cut: bool = False
    latest: float = 0.0


class Connection:
    """One session between two nodes, both ends of it, and the network between them."""

    def __init__(self, node: SimNode, fetch: Fetch, attempt: int, server: SimNode, spec: SourceSpec) -> None:
        world = node.world
        self.world, self.node, self.fetch, self.attempt, self.server, self.spec = (
            world, node, fetch, attempt, server, spec,
        )  # fmt: skip
        self.puller = PullerSession(_parties(node.id, server.id, world.random), world.bounds, world.streams)
        self.source = SourceSession(_parties(server.id, node.id, world.random), world.bounds, 4000)
        self.pull = 0
        self.is_cut = False
        self._streams: dict[bytes, _Stream] = {}
        self._expected: dict[bytes, StreamKeys] = {}
        self._latest = {True: 0.0, False: 0.0}  # arrival of the last control byte, to the source or not
        self._credit = self._asked_bytes = 0
        self._unsettled: dict[tuple[bytes, int], int] = {}  # sent, and neither come nor lost with its stream
        self._alarms = {True: float("inf"), False: float("inf")}

    def start(self) -> None:
        now, life = self.world.now, self.server.life
        self.puller_does(self.puller.start(now))
        self.source_does(self.source.start(now))
        if life != self.server.life:
            return
        deadline = self.fetch.next_deadline() + 1e6  # the fetch has the deadline
        ref, patience_s = self.world.shard.frame.ref(), PATIENCE_S if self.spec.is_relay else 0
        self.pull, effects = self.puller.open(ref, QosClass.SHIP, deadline, now, patience_s)
        self.puller_does(effects)

    def leave(self) -> None:
        """The puller needs the session no more."""
        self.cut(is_silent=False)

    def cut(self, *, is_silent: bool) -> None:
        """Nothing passes any more. When it is silent, the ends find out by themselves."""
        if self.is_cut:
            return
        self.is_cut = True
        if not is_silent:
            self.world.later(0.001, self._tell_both)

    def _tell_both(self) -> None:
        now = self.world.now
        self.source_does(self.source.connection_lost(None, now))
        self.puller_does(self.puller.connection_lost(None, now))

    # Control.

    def _send(self, effect: wire.Send, *, to_source: bool) -> None:
        world = self.world
        world.control_messages += 1
        if world.chance(world.faults.cut_session):
            self.cut(is_silent=False)
        raw, delay_s = encode(effect.message), self.node.link.delay_s + self.server.link.delay_s
        if world.chance(0.01):
            delay_s += world.random.random() * 0.05  # a packet had to be sent again
        self._latest[to_source] = max(self._latest[to_source], world.now + delay_s)
        world.later(self._latest[to_source] - world.now, partial(self._deliver, raw, to_source))

    def _deliver(self, raw: bytes, to_source: bool) -> None:
        machine: Session = self.source if to_source else self.puller
        if self.is_cut or machine.is_closed or self.world.are_apart(self.node.id, self.server.id):
            return
        size = self.world.random.choice([len(raw), len(raw), 3])  # cut anyhow
        for piece in (raw[:size], raw[size:]):
            if piece and not machine.is_closed:
                effects = machine.receive(piece, self.world.now)
                self.source_does(effects) if to_source else self.puller_does(effects)

    def _set_alarm(self, machine: Session, *, is_source: bool) -> None:
        if machine.is_closed or (at := machine.next_deadline()) >= self._alarms[is_source]:
            return
        self._alarms[is_source] = at

        def ring() -> None:
            if machine.is_closed or self._alarms[is_source] != at:
                return
            self._alarms[is_source] = float("inf")
            effects = machine.on_tick(self.world.now)
            self.source_does(effects) if is_source else self.puller_does(effects)

        self.world.later(max(0.0, at - self.world.now), ring)

    # The source's shell.

    def source_does(self, effects: Sequence[wire.Effect]) -> None:
        for effect in effects:
            match effect:
                case wire.Send():
                    self._send(effect, to_source=False)
                case wire.OpenShard(pull, _, is_patient):
                    opened = partial(self.server.open_shard, self, pull, is_patient=is_patient)
                    self.world.later(0.0005, opened)
                case wire.ExpectStream(stream, keys):
                    self._expected[stream] = keys
                case wire.SendChunk():
                    self._send_chunk(effect)
                case wire.CloseStream(stream):
                    self._cut_stream(stream)
                case _:
                    pass
        self._set_alarm(self.source, is_source=True)

    def _send_chunk(self, job: wire.SendChunk) -> None:
        world, faults = self.world, self.world.faults
        length = len(world.shard.chunks[job.chunk])
        assert job.chunk in self.server.here, "a source sends what it does not have"
        self._asked_bytes += length
        assert self._asked_bytes <= self._credit, "credit exceeded"
        self._unsettled[job.stream, job.chunk] = length
        assert sum(self._unsettled.values()) <= world.bounds.window_bytes, "window exceeded"
        if world.chance(faults.stall):
            return  # this stream never says another word
        stream = self._streams[job.stream]
        if world.chance(faults.cut_stream):
            world.later(world.random.random() * 0.05, partial(self._cut_stream, job.stream))
        out_s, there_s = self.server.transmit(self.node, length)
        stream.latest = max(stream.latest, world.now + there_s)
        is_good = not world.chance(faults.corrupt)
        for _ in range(2 if world.chance(faults.repeat) else 1):
            world.later(stream.latest - world.now, partial(self._arrive, job, is_good))
        world.later(out_s, partial(self._chunk_is_out, job.stream))

    def _chunk_is_out(self, stream: bytes) -> None:
        if not self.source.is_closed and not self.is_cut:
            self.source_does(self.source.chunk_sent(stream, self.world.now))

    # The puller's shell.

    def puller_does(self, effects: Sequence[wire.Effect]) -> None:
        for effect in effects:
            match effect:
                case wire.Send(message):
                    if isinstance(message, Credit):
                        assert message.total_bytes > self._credit
                        self._credit = message.total_bytes
                    self._send(effect, to_source=True)
                case wire.CreateShard(_, frame):
                    self._to_fetch(partial(self.fetch.framed, self.attempt, frame))
                case wire.Offered(_, ranges):
                    self._to_fetch(partial(self.fetch.offered, self.attempt, ranges))
                case wire.ConnectStream(stream, _, keys):
                    self.world.later(0.002, partial(self._connect_stream, stream, keys))
                case wire.CloseStream(stream):
                    self._cut_stream(stream)
                case wire.Fail(_, error):
                    self._to_fetch(partial(self.fetch.failed, self.attempt, error))
                case _:
                    pass
        self._set_alarm(self.puller, is_source=False)

    def _to_fetch(self, event: Callable[[float], list[FetchEffect]]) -> None:
        def tell() -> None:
            if self.fetch is self.node.fetch:
                self.node.does(self.fetch, event(self.world.now))

        self.world.later(0.0, tell)  # as by the thread that waits

    def _connect_stream(self, stream: bytes, keys: StreamKeys) -> None:
        if self.puller.is_closed:
            return
        if self.is_cut or stream not in self._expected or self.world.chance(self.world.faults.refuse):
            self.puller_does(self.puller.stream_lost(stream, "refused", self.world.now))
            return
        assert self._expected[stream] == keys, "both ends derive the same keys"
        self._streams[stream] = _Stream(keys)
        self.puller_does(self.puller.stream_connected(stream, self.world.now))
        attached = partial(self.source.stream_attached, stream)
        self.world.later(0.001, lambda: self.source_does(attached(self.world.now)))

    def _cut_stream(self, stream: bytes) -> None:
        line = self._streams.get(stream)
        if line is None or line.is_cut:
            return
        line.is_cut = True
        self.source_does(self.source.stream_lost(stream, self.world.now))
        if not line.is_busy:
            self._lose(stream)

    def _lose(self, stream: bytes) -> None:
        self._unsettled = {key: length for key, length in self._unsettled.items() if key[0] != stream}
        self.puller_does(self.puller.stream_lost(stream, "cut", self.world.now))

    def _arrive(self, job: wire.SendChunk, is_good: bool) -> None:
        line = self._streams[job.stream]
        apart = self.world.are_apart(self.node.id, self.server.id)
        if not line.is_cut and not self.is_cut and not apart:
            line.arriving.append((job.chunk, is_good))
            self._work(job.stream)

    def _work(self, stream: bytes) -> None:
        """The thread of one stream: a chunk at a time."""
        line = self._streams[stream]
        while line.arriving and not line.is_busy and not line.is_cut and not self.puller.is_closed:
            chunk, is_good = line.arriving.popleft()
            length = len(self.world.shard.chunks[chunk])
            effects = self.puller.chunk_arriving(stream, self.pull, chunk, length, self.world.now)
            if wire.TakeChunk(self.pull, chunk) in effects:
                line.is_busy = True
                self.world.later(0.0005, partial(self._verify, stream, chunk, is_good))
            elif wire.DropChunk() in effects:
                self._unsettled.pop((stream, chunk), None)
                self.node.twice_bytes += length
            self.puller_does(effects)

    def _verify(self, stream: bytes, chunk: int, is_good: bool) -> None:
        line, now = self._streams[stream], self.world.now
        line.is_busy = False
        self._unsettled.pop((stream, chunk), None)
        if self.fetch is not self.node.fetch or self.fetch.has_ended:
            return
        if not self.puller.is_closed:
            settle = self.puller.chunk_verified if is_good else self.puller.chunk_damaged
            self.puller_does(settle(stream, self.pull, chunk, now))
        if is_good:
            self.node.stored(self, chunk)
        else:
            error = DamagedData(f"chunk {chunk} is not the one that was sealed")
            self.node.does(self.fetch, self.fetch.damaged(self.attempt, chunk, error, now))
        if line.is_cut and not self.puller.is_closed:
            self._lose(stream)
        self._work(stream)


def _parties(me: str, peer: str, source: random.Random) -> Parties:
    return Parties(
        me=Identity(role="node", id=me, cluster_id=CLUSTER),
        peer=Identity(role="node", id=peer, cluster_id=CLUSTER),
        expires=1e9,
        software="simulated",
        random_bytes=random.Random(source.random()).randbytes,  # noqa: S311
    )
