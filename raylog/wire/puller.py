"""The puller's machine: which chunks it asks for on which stream, and what has come. Pure; see session.py."""

from collections.abc import Iterable
from itertools import islice

from raylog.errors import (
    DamagedData,
    DeadlineExceeded,
    NotFound,
    NotPermitted,
    PeerFault,
    RaylogError,
    Unavailable,
)
from raylog.spec import CargoRecords, QosClass, ShardRef
from raylog.wire import messages
from raylog.wire.bounds import Bounds
from raylog.wire.credit import Window
from raylog.wire.deal import deal
from raylog.wire.effects import (
    CallProbes,
    CloseStream,
    Complete,
    ConnectStream,
    CreateShard,
    DropChunk,
    Effect,
    Fail,
    Offered,
    Send,
    TakeChunk,
)
from raylog.wire.messages import Message, RefusalReason
from raylog.wire.probe import derive_probe_keys
from raylog.wire.pull_state import CargoStream, Pull
from raylog.wire.record import StreamContext, derive_keys
from raylog.wire.session import Parties, Session
from raylog.wire.states import PullState, SessionState, StreamState

_REFUSALS: dict[RefusalReason, type[RaylogError]] = {
    RefusalReason.NOT_FOUND: NotFound,
    RefusalReason.DAMAGED: DamagedData,
    RefusalReason.BUSY: Unavailable,
    RefusalReason.NO_SPACE: Unavailable,  # the source's, not ours: another one may do
    RefusalReason.NOT_PERMITTED: NotPermitted,
}


class PullerSession(Session):
    """Asks one source for shards over `streams` cargo streams with `records` of one kind, which serve all pulls of the
    session.

    Which chunks it asks for is its owner's choice (`ask`, `cancel`, `finish`): whoever holds sessions with several
    sources deals the chunks out to them (fetch.py).
    """

    def __init__(
        self, parties: Parties, bounds: Bounds, streams: int, records: CargoRecords = CargoRecords.ENCRYPTED
    ) -> None:
        super().__init__(parties, bounds)
        assert 1 <= streams <= bounds.streams_max
        self._streams_wanted, self._records = streams, records
        self._streams: dict[bytes, CargoStream] = {}
        self._pulls: dict[int, Pull] = {}
        self._pulls_opened = 0
        self._waiting_opens: list[messages.Open] = []  # for the greeting
        self._streams_lost = 0

    # Events.

    def open(
        self, ref: ShardRef, qos: QosClass, deadline: float, now: float, patience_s: int = 0
    ) -> tuple[int, list[Effect]]:
        """Begins to pull a shard; its number in this session. Before the greeting it is kept until then. A source that
        is only about to get the shard may take `patience_s` to begin."""
        assert not self.is_closed
        number, self._pulls_opened = self._pulls_opened, self._pulls_opened + 1
        progress_deadline = now + self.bounds.progress_timeout_s + patience_s
        pull = Pull(number, ref, deadline, Window(self.bounds.window_bytes), progress_deadline)
        if len(self._pulls) == self.bounds.pulls_max:
            busy = Unavailable(f"{self._peer}: {self.bounds.pulls_max} pulls run in this session; wait for one")
            return number, [Fail(number, busy)]
        self._pulls[number] = pull
        opening = messages.Open(
            pull=number, shard_id=ref.shard_id, frame_digest=ref.frame_digest, qos=qos, patience_s=patience_s
        )
        self._waiting_opens.append(opening)
        return number, self._noted(self._send_opens(now), now)

    def shard_created(self, number: int, now: float) -> list[Effect]:
        """Our sink has room: what is to be asked for, from now on and since before, is asked for."""
        pull = self._pulls.get(number)
        if pull is None:
            return []
        pull.step("'created'")
        pull.progress_deadline = now + self.bounds.progress_timeout_s
        return self._noted(self._advance(pull), now)

    def ask(self, number: int, chunks: Iterable[int], now: float) -> list[Effect]:
        """Asks for chunks that were offered. What is on its way already is not asked for twice."""
        pull = self._pulls.get(number)
        if pull is None:
            return []
        if not pull.is_waiting:
            pull.progress_deadline = now + self.bounds.progress_timeout_s
        wanted = list(chunks)
        pull.unwanted.difference_update(wanted)
        pull.todo.update(dict.fromkeys(chunk for chunk in wanted if chunk not in pull.in_flight))
        return self._noted(self._advance(pull), now)

    def recall(self, number: int, chunks: Iterable[int], now: float) -> list[Effect]:
        """Does not ask for these chunks if it has not yet."""
        pull = self._pulls.get(number)
        if pull is not None:
            for chunk in chunks:
                pull.todo.pop(chunk, None)
        return []

    def cancel(self, number: int, chunks: Iterable[int], now: float) -> list[Effect]:
        """These chunks have come from elsewhere. What the source sends of them all the same is dropped."""
        pull = self._pulls.get(number)
        if pull is not None:
            cancelled = set(chunks)
            self.recall(number, cancelled, now)
            pull.unwanted |= cancelled & pull.in_flight
        return []

    def finish(self, number: int, now: float) -> list[Effect]:
        """Nothing more is wanted of this source."""
        pull = self._pulls.get(number)
        if pull is None:
            return []
        pull.step("'finish'")
        self._forget(pull)
        done: list[Effect] = [Send(messages.Done(pull=number)), Complete(number, pull.asked_again)]
        return self._noted([*done, *self._advance_all()], now)

    def stream_connected(self, stream_id: bytes, now: float) -> list[Effect]:
        """The cargo connection stands and has sent its proof."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return []
        stream.step("'connected'")
        return self._noted(self._advance_all(), now)

    def stream_lost(self, stream_id: bytes, why: str, now: float, *, is_ours: bool = False) -> list[Effect]:
        """A cargo connection did not come to stand, was cut, or brought a record that does not open. `is_ours`: our own
        shell cut it, which the source is not blamed for."""
        stream = self._streams.pop(stream_id, None)
        if stream is None or self.is_closed:
            return []
        stream.step("'lost'")
        self._streams_lost += not is_ours
        self._settle_lost(stream)
        if self._streams_lost > self.bounds.stream_losses_max:
            message = f"{self._peer}: {self._streams_lost} cargo streams were lost, the last: {why}; ask another source"
            return self._noted(self._end(messages.ByeReason.SHUTDOWN, Unavailable(message)), now)
        effects = self._announce_streams(now) if self._pulls else []
        return self._noted([*effects, *self._advance_all()], now)

    def chunk_arriving(self, stream_id: bytes, number: int, chunk: int, body_bytes: int, now: float) -> list[Effect]:
        """A record's head is here: `TakeChunk` or `DropChunk`, or the end of the session when nobody asked for it.
        An empty list when the stream or the session is gone."""
        stream = self._streams.get(stream_id)
        if stream is None or self.is_closed:
            return []
        if (number, chunk) in stream.abandoned:
            stream.abandoned.discard((number, chunk))
            return [DropChunk()]
        expected_bytes = stream.asked.get((number, chunk))
        if expected_bytes != body_bytes:
            what = "it was not asked for" if expected_bytes is None else f"it has {expected_bytes}"
            fault = PeerFault(f"chunk {chunk} of pull {number} came with {body_bytes} bytes on stream "
                              f"{stream_id.hex()}: {what}")  # fmt: skip
            return self.fault(fault, now)
        pull = self._pulls[number]
        pull.step("'arrived'")
        pull.progress_deadline = now + self.bounds.progress_timeout_s
        if chunk in pull.unwanted:
            self._settle(stream_id, number, chunk)
            return [DropChunk(), *self._noted(self._advance_all(pull), now)]
        return [TakeChunk(number, chunk)]

    def chunk_verified(self, stream_id: bytes, number: int, chunk: int, now: float) -> list[Effect]:
        """The chunk of the last `TakeChunk` on this stream is verified and stored."""
        pull = self._settle(stream_id, number, chunk)
        if pull is None:
            return []
        pull.step("'verified'")
        pull.progress_deadline = now + self.bounds.progress_timeout_s
        return self._noted(self._advance_all(pull), now)

    def chunk_damaged(self, stream_id: bytes, number: int, chunk: int, now: float) -> list[Effect]:
        """The chunk of the last `TakeChunk` on this stream is not the one that was sealed. It is not asked for again
        here unless the owner does."""
        pull = self._settle(stream_id, number, chunk)
        if pull is None:
            return []
        pull.step("'damaged'")
        return self._noted(self._advance_all(pull), now)

    def fail(self, number: int, error: RaylogError, now: float) -> list[Effect]:
        """Our end gives this pull up: cancelled, out of time, or the sink failed."""
        pull = self._pulls.get(number)
        return [] if pull is None else self._noted(self._fail(pull, error), now)

    # Messages.

    def _greeted(self, now: float) -> list[Effect]:
        opens = self._send_opens(now)
        if not self.peer_probe_port:
            return opens
        keys = derive_probe_keys(
            puller_secret=self.secret,
            source_secret=self.peer_secret,
            cluster_id=self.parties.me.cluster_id,
            puller_id=self.parties.me.id,
            source_id=self.parties.peer.id,
        )
        return [*opens, CallProbes(self.peer_probe_port, keys)]

    def _on_business(self, message: Message, now: float) -> list[Effect]:
        match message:
            case messages.Frame():
                return self._on_frame(message, now)
            case messages.Have():
                return self._on_have(message)
            case messages.StreamReady():
                return self._on_stream_ready(message, now)
            case messages.Advise():
                return self._on_advise(message, now)
            case messages.Refused():
                return self._on_refused(message)
            case _:
                raise PeerFault(f"{type(message).__name__} is a puller's message, and we are the puller")

    def _on_frame(self, piece: messages.Frame, now: float) -> list[Effect]:
        pull = self._find(piece.pull)
        if pull is None:
            return []
        pull.step("Frame")
        try:
            pull.take_piece(piece)
        except DamagedData as error:
            where = f"shard {pull.ref.shard_id} from {self._peer}"
            return self._fail(pull, DamagedData(f"{where}: {error}", **self._place(pull, None)))
        pull.progress_deadline = now + self.bounds.progress_timeout_s
        if pull.frame is None:
            return []
        pull.step("'frame whole'")
        return [CreateShard(pull.number, pull.frame)]

    def _on_have(self, have: messages.Have) -> list[Effect]:
        pull = self._find(have.pull)
        if pull is None:
            return []
        pull.step("Have")
        assert pull.frame is not None
        chunks = len(pull.frame.chunks)
        pull.offered += sum(count for _, count in have.ranges)
        if pull.offered > chunks or any(first + count > chunks for first, count in have.ranges):
            raise PeerFault(
                f"expected offers of {chunks} chunks (shard {pull.ref.shard_id}), each once, got {have.ranges[:4]}"
            )
        return [Offered(pull.number, tuple(have.ranges))]

    def _on_stream_ready(self, ready: messages.StreamReady, now: float) -> list[Effect]:
        stream = self._streams.get(ready.stream)
        if stream is None:
            raise PeerFault(f"cargo stream {ready.stream.hex()} was not announced")
        stream.step("StreamReady")
        stream.deadline = now + self.bounds.stream_timeout_s
        context = StreamContext(
            puller_secret=self.secret,
            source_secret=self.peer_secret,
            cluster_id=self.parties.me.cluster_id,
            puller_id=self.parties.me.id,
            source_id=self.parties.peer.id,
            stream=stream.id,
            puller_nonce=stream.nonce,
            source_nonce=ready.nonce,
            records=self._records,
        )
        return [ConnectStream(stream.id, ready.port, derive_keys(context))]

    def _on_advise(self, advice: messages.Advise, now: float) -> list[Effect]:
        """More streams, within our own bound; fewer would end what is on its way."""
        self._streams_wanted = max(self._streams_wanted, min(advice.streams, self.bounds.streams_max))
        return self._announce_streams(now) if self._pulls else []

    def _on_refused(self, refused: messages.Refused) -> list[Effect]:
        pull = self._find(refused.pull)
        if pull is None:
            return []
        pull.step("Refused")
        self._forget(pull)
        at = "" if refused.chunk is None else f", chunk {refused.chunk}"
        error = _REFUSALS[refused.reason](
            f"shard {pull.ref.shard_id}{at}: {self._peer} refused ({refused.reason}): {refused.message}",
            **self._place(pull, refused.chunk),
        )
        return [Fail(pull.number, error), *self._advance_all()]

    # Deadlines.

    def _deadlines(self) -> list[float]:
        pulls = [min(pull.deadline, self._progress_deadline(pull)) for pull in self._pulls.values()]
        return [*pulls, *(stream.deadline for stream in self._streams.values() if stream.state is not StreamState.LIVE)]

    @staticmethod
    def _progress_deadline(pull: Pull) -> float:
        # While our own sink makes room, or we have nothing to ask for, the source is not to blame.
        is_idle = pull.state is PullState.CREATING or (pull.state is PullState.MOVING and not pull.is_waiting)
        return float("inf") if is_idle else pull.progress_deadline

    def _tick(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for pull in list(self._pulls.values()):
            shard = f"shard {pull.ref.shard_id} from {self._peer}"
            if now >= pull.deadline:
                late = DeadlineExceeded(
                    f"{shard}: the deadline passed before all of it was here; ask again to resume",
                    **self._place(pull, None),
                )
                effects += self._fail(pull, late)
            elif now >= self._progress_deadline(pull):
                message = f"{shard}: no chunk for {self.bounds.progress_timeout_s:g} s; ask another source"
                effects += self._fail(pull, PeerFault(message, **self._place(pull, None)))
        for stream in list(self._streams.values()):
            if stream.state is not StreamState.LIVE and now >= stream.deadline and not self.is_closed:
                effects.append(CloseStream(stream.id))
                effects += self.stream_lost(stream.id, f"not standing after {self.bounds.stream_timeout_s:g} s", now)
        return effects

    # Work.

    def _advance_all(self, last: Pull | None = None) -> list[Effect]:
        """There is room for more ranges: others come before the pull that made it."""
        pulls = [pull for pull in self._pulls.values() if pull.todo and pull is not last]
        if last is not None:
            pulls.append(last)
        return [effect for pull in pulls for effect in self._advance(pull)]

    def _advance(self, pull: Pull) -> list[Effect]:
        """Grants credit and asks for chunks as far as it reaches."""
        if pull.state is not PullState.MOVING:
            return []
        live = {one.id: one.in_flight_bytes for one in self._streams.values() if one.state is StreamState.LIVE}
        if not pull.todo or not live:
            return []
        effects: list[Effect] = []
        if (total_bytes := pull.window.grant()) is not None:
            effects.append(Send(messages.Credit(pull=pull.number, total_bytes=total_bytes)))
        if pull.sealed_bytes(next(iter(pull.todo))) > pull.window.room_bytes:
            return effects  # asked for together with others, at the next grant
        # Each chunk may be a range of its own at the source, which may not have seen yet that streams were lost.
        ranges_max = self.bounds.ranges_queued_max // (self.bounds.stream_losses_max + 1)
        room_chunks = ranges_max - sum(len(one.asked) for one in self._streams.values())
        ready = islice(pull.todo, max(room_chunks, 0))
        for stream_id, first, count in deal(ready, pull.sealed_bytes, live, pull.window.room_bytes):
            stream = self._streams[stream_id]
            for chunk in range(first, first + count):
                assert pull.todo.popitem(last=False)[0] == chunk
                pull.in_flight.add(chunk)
                sealed_bytes = pull.sealed_bytes(chunk)
                pull.window.ask(sealed_bytes)
                stream.asked[pull.number, chunk] = sealed_bytes
                stream.in_flight_bytes += sealed_bytes
            effects.append(Send(messages.Want(pull=pull.number, stream=stream_id, first=first, count=count)))
        return effects

    def _settle(self, stream_id: bytes, number: int, chunk: int) -> Pull | None:
        """A chunk has come. None when the pull or the session has ended meanwhile."""
        stream, pull = self._streams.get(stream_id), self._pulls.get(number)
        if stream is None or self.is_closed:
            return None
        if pull is None:
            stream.abandoned.discard((number, chunk))
            return None
        stream.settle(number, chunk)
        pull.window.settle(pull.sealed_bytes(chunk))
        pull.in_flight.discard(chunk)
        pull.unwanted.discard(chunk)
        return pull

    def _settle_lost(self, stream: CargoStream) -> None:
        """What was asked for on a lost stream and did not come is to be asked for again, first."""
        for (number, chunk), sealed_bytes in reversed(stream.asked.items()):
            pull = self._pulls[number]
            pull.window.settle(sealed_bytes)
            pull.in_flight.discard(chunk)
            if chunk in pull.unwanted:
                pull.unwanted.discard(chunk)
            else:
                pull.todo[chunk] = None
                pull.todo.move_to_end(chunk, last=False)
                pull.asked_again += 1

    def _fail(self, pull: Pull, error: RaylogError) -> list[Effect]:
        pull.step("'fail'")
        self._forget(pull)
        is_opened = self.state is SessionState.OPEN
        done: list[Effect] = [Send(messages.Done(pull=pull.number))] if is_opened else []
        return [*done, Fail(pull.number, error), *self._advance_all()]

    def _forget(self, pull: Pull) -> None:
        del self._pulls[pull.number]
        self._waiting_opens = [opening for opening in self._waiting_opens if opening.pull != pull.number]
        for stream in self._streams.values():
            stream.abandon(pull.number)

    def _send_opens(self, now: float) -> list[Effect]:
        if self.state is not SessionState.OPEN or not self._waiting_opens:
            return []
        opens: list[Effect] = [Send(opening) for opening in self._waiting_opens]
        self._waiting_opens = []
        return [*opens, *self._announce_streams(now)]

    def _announce_streams(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        while len(self._streams) < self._streams_wanted:
            stream_id = self.parties.random_bytes(messages.STREAM_ID_BYTES)
            nonce = self.parties.random_bytes(messages.NONCE_BYTES)
            self._streams[stream_id] = CargoStream(stream_id, nonce, now + self.bounds.stream_timeout_s)
            effects.append(Send(messages.Stream(stream=stream_id, nonce=nonce, records=self._records)))
        return effects

    def _let_go(self, error: RaylogError | None) -> list[Effect]:
        left = error or Unavailable(f"{self._peer} left the session before the shard was whole")
        fails: list[Effect] = [Fail(number, left) for number in self._pulls]
        closes: list[Effect] = [CloseStream(stream_id) for stream_id in self._streams]
        self._pulls.clear()
        self._streams.clear()
        return [*fails, *closes]

    def _find(self, number: int) -> Pull | None:
        """The pull, None when it has ended (its messages may still be on their way). Raises `PeerFault`."""
        if number >= self._pulls_opened:
            raise PeerFault(f"pull {number} was never opened")
        return self._pulls.get(number)

    def _place(self, pull: Pull, chunk: int | None) -> dict[str, str | int | None]:
        return {"shard_id": pull.ref.shard_id, "chunk": chunk, "peer": self.parties.peer.id}
