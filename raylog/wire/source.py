"""The source's machine: which shards it serves, and which chunk goes out next on which stream. Pure; see session.py."""

from collections import deque
from collections.abc import Iterable

from raylog.codec.frame import Frame
from raylog.errors import NotPermitted, PeerFault, RaylogError
from raylog.spec import CargoRecords, QosClass
from raylog.wire import messages
from raylog.wire.bounds import Bounds
from raylog.wire.effects import (
    CloseStream,
    Effect,
    ExpectProbes,
    ExpectStream,
    OpenShard,
    ReleaseShard,
    Send,
    SendChunk,
)
from raylog.wire.messages import FRAME_PIECE_BYTES_MAX, HAVE_RANGES_MAX, Message, RefusalReason, shorten
from raylog.wire.probe import derive_probe_keys
from raylog.wire.record import StreamContext, derive_keys
from raylog.wire.serve_state import Queued, Served, SourceStream
from raylog.wire.session import Parties, Session
from raylog.wire.states import ServeState, SessionState, StreamState

STREAM_IDS_MAX = 4096  # ever used in one session
HELD_MAX = 16  # chunks that a puller is not told of one by one, while others that it asked for are to be sent


class SourceSession(Session):
    """Serves one puller. `cargo_port` is where its cargo connections are awaited, `probe_port` where its probes. Cargo
    records are encrypted, or authenticated only where `records` allows it and the puller asks for it.

    A stream has one chunk to send at a time: `SendChunk`, then `chunk_sent`. So the choice of the next one is made
    here, when the last is out, and when it goes by the node's gate (gate.py); a pull without credit holds up no other.
    """

    def __init__(
        self,
        parties: Parties,
        bounds: Bounds,
        cargo_port: int,
        records: CargoRecords = CargoRecords.ENCRYPTED,
        probe_port: int = 0,
    ) -> None:
        super().__init__(parties, bounds, probe_port)
        self._cargo_port, self._records = cargo_port, records
        self._served: dict[int, Served] = {}
        self._streams: dict[bytes, SourceStream] = {}
        self._stream_ids: set[bytes] = set()
        self._next_pull = 0
        self._has_advised = False

    # Events.

    def shard_opened(
        self, number: int, frame: Frame, now: float, available: Iterable[tuple[int, int]] | None = None
    ) -> list[Effect]:
        """Our store has the shard, or what is `available` of it (ranges; None: all), and holds it. When the puller has
        meanwhile left: release it."""
        served = self._served.get(number)
        if served is None:
            return [ReleaseShard(number)]
        if frame.digest != served.opening.frame_digest:
            message = f"this node's shard {served.opening.shard_id} has frame digest {frame.digest.hex()}"
            return [*self.refuse(number, RefusalReason.NOT_FOUND, message, None, now)]
        served.step("'opened'")
        served.open(frame)
        metadata = frame.metadata
        pieces: list[Effect] = [
            Send(
                messages.Frame(
                    pull=number,
                    offset=offset,
                    total=len(metadata),
                    data=metadata[offset : offset + FRAME_PIECE_BYTES_MAX],
                )
            )
            for offset in range(0, len(metadata), FRAME_PIECE_BYTES_MAX)
        ]
        offers = self._come(served, [(0, len(frame.chunks))] if available is None else available)
        return self._noted([*pieces, *offers], now)

    def chunks_available(self, number: int, ranges: Iterable[tuple[int, int]], now: float) -> list[Effect]:
        """More of a shard that is on its way to this node is here."""
        served = self._served.get(number)
        if served is None or served.state is not ServeState.SERVING:
            return []
        return self._noted(self._come(served, ranges), now)

    def _come(self, served: Served, ranges: Iterable[tuple[int, int]]) -> list[Effect]:
        """Sends what the puller waits for, and offers the rest."""
        sends: list[Effect] = []
        for stream, queued in served.come(ranges):
            sends += self._queue(self._streams[stream], queued)
        return [*sends, *self._offer(served)]

    def _offer(self, served: Served) -> list[Effect]:
        """At once to a puller that waits for nothing else, else some at a time."""
        if self._owes(served) and sum(count for _, count in served.held) < HELD_MAX:
            return []
        fresh, served.held = served.held, []
        return [
            Send(messages.Have(pull=served.number, ranges=fresh[start : start + HAVE_RANGES_MAX]))
            for start in range(0, len(fresh), HAVE_RANGES_MAX)
        ]

    def refuse(self, number: int, reason: RefusalReason, message: str, chunk: int | None, now: float) -> list[Effect]:
        """This pull cannot go on: our store has no such shard, or cannot read `chunk` of it."""
        served = self._served.get(number)
        if served is None:
            return []
        served.step("'refuse'")
        refused = messages.Refused(pull=number, reason=reason, message=shorten(message), chunk=chunk)
        return self._noted([Send(refused), *self._release(served)], now)

    def stream_attached(self, stream_id: bytes, now: float) -> list[Effect]:
        """A cargo connection has proven itself."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return []
        stream.step("'attached'")
        return self._noted(self._pump(stream), now)

    def chunk_sent(self, stream_id: bytes, now: float) -> list[Effect]:
        """The chunk of the last `SendChunk` on this stream is out, or was found to be no longer wanted."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return []
        stream.is_sending = False
        sends = self._pump(stream)
        offers = [offer for served in self._served.values() if served.held for offer in self._offer(served)]
        return self._noted([*sends, *offers], now)

    def advise(self, streams: int, now: float) -> list[Effect]:
        """With so many streams, or as many as there may be, the puller would get more. Said once per session."""
        streams = min(streams, self.bounds.streams_max)
        if self._has_advised or self.state is not SessionState.OPEN or len(self._streams) >= streams:
            return []
        self._has_advised = True
        return self._noted([Send(messages.Advise(streams=streams))], now)

    def stream_lost(self, stream_id: bytes, now: float) -> list[Effect]:
        """A cargo connection ended. What it had to send counts as sent (credit.py)."""
        stream = self._streams.pop(stream_id, None)
        if stream is None:
            return []
        stream.step("'lost'")
        for queued in stream.queue:
            self._served[queued.pull].forfeit(queued)
        offers: list[Effect] = []
        for served in self._served.values():
            served.forfeit_awaited(stream_id)
            offers += self._offer(served)
        return self._noted(offers, now)

    def slice_of(self, pull: int, chunk: int) -> tuple[QosClass, int] | None:
        """The traffic class and the sealed bytes of a chunk that is to be sent; None when its pull has ended."""
        served = self._served.get(pull)
        return None if served is None else (served.opening.qos, served.sealed_bytes(chunk))

    # Messages.

    def _greeted(self, now: float) -> list[Effect]:
        if not self.probe_port:
            return []
        keys = derive_probe_keys(
            puller_secret=self.peer_secret,
            source_secret=self.secret,
            cluster_id=self.parties.me.cluster_id,
            puller_id=self.parties.peer.id,
            source_id=self.parties.me.id,
        )
        return [ExpectProbes(keys)]

    def _on_business(self, message: Message, now: float) -> list[Effect]:
        match message:
            case messages.Open():
                return self._on_open(message, now)
            case messages.Stream():
                return self._on_stream(message, now)
            case messages.Want():
                return self._on_want(message)
            case messages.Credit():
                return self._on_credit(message)
            case messages.Done():
                return self._on_done(message)
            case _:
                raise PeerFault(f"{type(message).__name__} is a source's message, and we are the source")

    def _on_open(self, opening: messages.Open, now: float) -> list[Effect]:
        if opening.pull < self._next_pull:
            raise PeerFault(f"expected pull numbers that ascend, got {opening.pull} after {self._next_pull - 1}")
        self._next_pull = opening.pull + 1
        if len(self._served) >= self.bounds.pulls_max:
            message = f"{self.bounds.pulls_max} pulls are served in this session; ask again when one is done"
            return [Send(messages.Refused(pull=opening.pull, reason=RefusalReason.BUSY, message=message))]
        self._served[opening.pull] = Served(opening.pull, opening, now + opening.patience_s)
        return [OpenShard(opening.pull, opening.shard_id, bool(opening.patience_s))]

    def _on_stream(self, stream: messages.Stream, now: float) -> list[Effect]:
        if stream.stream in self._stream_ids or len(self._stream_ids) >= STREAM_IDS_MAX:
            raise PeerFault(f"cargo stream {stream.stream.hex()} was announced twice, or is one too many")
        if len(self._streams) >= self.bounds.streams_max:
            raise PeerFault(f"expected at most {self.bounds.streams_max} cargo streams in a session")
        if stream.records not in (CargoRecords.ENCRYPTED, self._records):
            return self._end(messages.ByeReason.RECORDS, self._not_allowed(stream.records))
        self._stream_ids.add(stream.stream)
        self._streams[stream.stream] = SourceStream(stream.stream, now + self.bounds.stream_timeout_s)
        context = StreamContext(
            puller_secret=self.peer_secret,
            source_secret=self.secret,
            cluster_id=self.parties.me.cluster_id,
            puller_id=self.parties.peer.id,
            source_id=self.parties.me.id,
            stream=stream.stream,
            puller_nonce=stream.nonce,
            source_nonce=self.parties.random_bytes(messages.NONCE_BYTES),
            records=stream.records,
        )
        ready = messages.StreamReady(stream=stream.stream, nonce=context.source_nonce, port=self._cargo_port)
        return [ExpectStream(stream.stream, derive_keys(context)), Send(ready)]

    def _not_allowed(self, asked: CargoRecords) -> NotPermitted:
        return NotPermitted(
            f"{self._peer} asked for {asked} cargo records, this node sends {self._records} ones; set `cargo_records` "
            "alike on both"
        )

    def _on_want(self, want: messages.Want) -> list[Effect]:
        served = self._find(want.pull)
        if served is None:
            return []
        served.step("Want")
        assert served.frame is not None
        end, chunks = want.first + want.count, len(served.frame.chunks)
        if end > chunks:
            raise PeerFault(
                f"expected chunks of 0 to {chunks - 1} (shard {served.opening.shard_id}), "
                f"asked for were {want.first} to {end - 1}"
            )
        wanted, stream = Queued(want.pull, want.first, end), self._streams.get(want.stream)
        if stream is None:
            if want.stream not in self._stream_ids:
                raise PeerFault(f"chunks were asked for on cargo stream {want.stream.hex()}, which was not announced")
            served.forfeit(wanted)
            return []
        stream.step("Want")
        effects: list[Effect] = []
        for queued in served.ask(wanted, stream.id):
            effects += self._queue(stream, queued)
        waiting = sum(len(one.queue) for one in self._streams.values())
        waiting += sum(len(streams) for one in self._served.values() for streams in one.awaited.values())
        if waiting > self.bounds.ranges_queued_max:
            raise PeerFault(f"more than {self.bounds.ranges_queued_max} ranges were asked for and not yet sent")
        return effects

    def _on_credit(self, credit: messages.Credit) -> list[Effect]:
        served = self._find(credit.pull)
        if served is None:
            return []
        served.step("Credit")
        served.allowance.raise_to(credit.total_bytes)
        return [effect for stream in self._streams.values() for effect in self._pump(stream)]

    def _on_done(self, done: messages.Done) -> list[Effect]:
        served = self._find(done.pull)
        if served is None:
            return []
        served.step("Done")
        return self._release(served)

    # Deadlines.

    def _deadlines(self) -> list[float]:
        streams = [stream.deadline for stream in self._streams.values() if stream.state is StreamState.ANNOUNCED]
        return [*streams, *(served.patience_deadline for served in self._patient())]

    def _patient(self) -> list[Served]:
        """Pulls of shards that may still come here."""
        return [one for one in self._served.values() if one.state is ServeState.OPENING and one.opening.patience_s]

    def _tick(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for served in self._patient():
            if now >= served.patience_deadline:
                message = f"shard {served.opening.shard_id} did not begin to come here in {served.opening.patience_s} s"
                effects += self.refuse(served.number, RefusalReason.NOT_FOUND, message, None, now)
        for stream in list(self._streams.values()):
            if stream.state is StreamState.ANNOUNCED and now >= stream.deadline:
                effects.append(CloseStream(stream.id))
                effects += self.stream_lost(stream.id, now)
        return effects

    # Work.

    def _pump(self, stream: SourceStream) -> list[Effect]:
        """The next chunk on an idle stream: of the first range in its queue whose pull has credit."""
        if stream.state is not StreamState.LIVE or stream.is_sending:
            return []
        waiting: set[int] = set()  # a pull's ranges stay in order
        for queued in stream.queue:
            served = self._served[queued.pull]
            length = served.sealed_bytes(queued.next)
            if queued.pull in waiting or not served.allowance.permits(length):
                waiting.add(queued.pull)
                continue
            served.allowance.spend(length)
            chunk, queued.next = queued.next, queued.next + 1
            if queued.next == queued.end:
                stream.queue.remove(queued)
            stream.is_sending = True
            return [SendChunk(stream.id, queued.pull, chunk)]
        return []

    def _owes(self, served: Served) -> bool:
        """Whether something that this pull asked for has still to be sent."""
        queued = (one.pull == served.number for stream in self._streams.values() for one in stream.queue)
        return bool(served.awaited) or any(queued)

    def _queue(self, stream: SourceStream, queued: Queued) -> list[Effect]:
        stream.queue.append(queued)
        return self._pump(stream)

    def _release(self, served: Served) -> list[Effect]:
        del self._served[served.number]
        for stream in self._streams.values():
            stream.queue = deque(queued for queued in stream.queue if queued.pull != served.number)
        return [ReleaseShard(served.number)]

    def _let_go(self, error: RaylogError | None) -> list[Effect]:
        releases: list[Effect] = [ReleaseShard(number) for number in self._served]
        closes: list[Effect] = [CloseStream(stream_id) for stream_id in self._streams]
        self._served.clear()
        self._streams.clear()
        return [*releases, *closes]

    def _find(self, number: int) -> Served | None:
        """The pull, None when it has ended. Raises `PeerFault`."""
        if number >= self._next_pull:
            raise PeerFault(f"pull {number} was never opened")
        return self._served.get(number)
