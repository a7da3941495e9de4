"""The machines one event at a time: what each does, and whose fault it is when something does not belong."""

from collections.abc import Iterable

import pytest
from wire_parts import PULLER, SOURCE, parties

from raylog.errors import (
    Cancelled,
    DamagedData,
    DeadlineExceeded,
    NotFound,
    NotPermitted,
    PeerFault,
    RaylogError,
    Unavailable,
)
from raylog.spec import QosClass
from raylog.testing.shards import sample_shard
from raylog.wire import messages
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
    Offered,
    OpenShard,
    ReleaseShard,
    Send,
    SendChunk,
    TakeChunk,
)
from raylog.wire.messages import ByeReason, MessageBuffer, RefusalReason, encode
from raylog.wire.puller import PullerSession
from raylog.wire.session import Session
from raylog.wire.source import SourceSession
from raylog.wire.states import PULL, SESSION, PullState, SessionState, step

BOUNDS = Bounds(window_bytes=SEALED_CHUNK_BYTES_MAX, streams_max=4, pulls_max=2, ranges_queued_max=16)
SHARD = sample_shard(1, (1000, 2000, 3000, 4000))
BIG = sample_shard(2, (2_000_000,) * 6)
STREAM, NONCE = b"s" * 16, b"n" * 32


def sent(effects: Iterable[Effect]) -> list[messages.Message]:
    return [effect.message for effect in effects if isinstance(effect, Send)]


def others(effects: Iterable[Effect]) -> list[Effect]:
    return [effect for effect in effects if not isinstance(effect, Send)]


def hello(me: str, versions: tuple[int, ...] = (1,)) -> messages.Hello:
    return messages.Hello(
        versions=list(versions), cluster_id="c" * 32, node_id=me, software="test", secret=me[0].encode() * 32
    )


def tell(machine: Session, *told: messages.Message, now: float = 0.0) -> list[Effect]:
    return machine.receive(b"".join(encode(message) for message in told), now)


def puller(streams: int = 1, bounds: Bounds = BOUNDS) -> PullerSession:
    machine = PullerSession(parties(PULLER, SOURCE, 1), bounds, streams)
    machine.start(0.0)
    assert tell(machine, hello(SOURCE)) == []
    return machine


def source() -> SourceSession:
    machine = SourceSession(parties(SOURCE, PULLER, 1), BOUNDS, 4000)
    machine.start(0.0)
    assert tell(machine, hello(PULLER)) == []
    return machine


def frame_pieces(shard: object = SHARD, pull: int = 0) -> list[messages.Frame]:
    metadata = shard.frame.metadata  # type: ignore[attr-defined]
    half = len(metadata) // 2
    return [
        messages.Frame(pull=pull, offset=0, total=len(metadata), data=metadata[:half]),
        messages.Frame(pull=pull, offset=half, total=len(metadata), data=metadata[half:]),
    ]


def moving(
    chunks: Iterable[int], streams: int = 1, bounds: Bounds = BOUNDS
) -> tuple[PullerSession, list[bytes], list[Effect]]:
    """A puller that has its frame, its sink, its streams and all offers, and has asked for `chunks`."""
    machine = puller(streams, bounds)
    _, effects = machine.open(SHARD.frame.ref(), QosClass.SHIP, 1000.0, 0.0)
    ids = announced(effects)
    assert others(tell(machine, *frame_pieces())) == [CreateShard(0, SHARD.frame)]
    assert tell(machine, have((0, 4))) == [Offered(0, ((0, 4),))]
    for stream in ids:
        tell(machine, messages.StreamReady(stream=stream, nonce=NONCE, port=9))
        machine.stream_connected(stream, 0.0)
    assert machine.shard_created(0, 0.0) == []
    return machine, ids, machine.ask(0, chunks, 0.0)


def have(*ranges: tuple[int, int], pull: int = 0) -> messages.Have:
    return messages.Have(pull=pull, ranges=list(ranges))


def take(machine: PullerSession, stream: bytes, chunk: int, now: float = 0.0) -> list[Effect]:
    """A chunk of pull 0 comes, and is good."""
    length = SHARD.frame.chunks[chunk].sealed_bytes
    assert machine.chunk_arriving(stream, 0, chunk, length, now) == [TakeChunk(0, chunk)]
    return machine.chunk_verified(stream, 0, chunk, now)


def announced(effects: Iterable[Effect]) -> list[bytes]:
    return [message.stream for message in sent(effects) if isinstance(message, messages.Stream)]


def wants(effects: Iterable[Effect]) -> list[tuple[int, int]]:
    return [(message.first, message.count) for message in sent(effects) if isinstance(message, messages.Want)]


def serving(shard: object = SHARD, streams: tuple[bytes, ...] = (STREAM,)) -> SourceSession:
    """A source with pull 0 opened and its streams attached."""
    machine = source()
    frame = shard.frame  # type: ignore[attr-defined]
    opened = tell(machine, opening(0, frame.header.shard_id, frame.digest))
    assert opened == [OpenShard(0, frame.header.shard_id, is_patient=False)]
    machine.shard_opened(0, frame, 0.0)
    for stream in streams:
        tell(machine, messages.Stream(stream=stream, nonce=NONCE))
        machine.stream_attached(stream, 0.0)
    return machine


def opening(pull: int, shard_id: str = SHARD.shard_id, digest: bytes = SHARD.frame.digest) -> messages.Open:
    return messages.Open(pull=pull, shard_id=shard_id, frame_digest=digest, qos=QosClass.READ)


def want(first: int, count: int, pull: int = 0, stream: bytes = STREAM) -> messages.Want:
    return messages.Want(pull=pull, stream=stream, first=first, count=count)


def credit(total_bytes: int, pull: int = 0) -> messages.Credit:
    return messages.Credit(pull=pull, total_bytes=total_bytes)


def assert_ended(effects: list[Effect], reason: ByeReason, *words: str) -> RaylogError:
    """The session said `Bye` for this reason and closed with an error that has these words."""
    assert [message.reason for message in sent(effects) if isinstance(message, messages.Bye)] == [reason]
    (close,) = (effect for effect in effects if isinstance(effect, Close))
    assert close.error is not None
    for word in words:
        assert word in str(close.error)
    return close.error


# Greeting, silence, expiry.


def test_a_whole_pull_byte_by_byte() -> None:
    """Both machines fed one byte at a time do the same as fed at once."""
    pull_end, serve_end = (
        PullerSession(parties(PULLER, SOURCE, 1), BOUNDS, 1),
        SourceSession(parties(SOURCE, PULLER, 1), BOUNDS, 4000),
    )
    done: list[Effect] = []
    pending: list[tuple[Session, Effect]] = []

    def does(machine: Session, effects: list[Effect]) -> None:
        pending.extend((machine, effect) for effect in effects)

    does(pull_end, pull_end.start(0.0))
    does(serve_end, serve_end.start(0.0))
    does(pull_end, pull_end.open(SHARD.frame.ref(), QosClass.SHIP, 100.0, 0.0)[1])
    while pending:
        machine, effect = pending.pop(0)
        other = serve_end if machine is pull_end else pull_end
        match effect:
            case Send(message):
                for byte in encode(message):
                    does(other, other.receive(bytes([byte]), 0.0))
            case OpenShard(pull):
                does(serve_end, serve_end.shard_opened(pull, SHARD.frame, 0.0))
            case ConnectStream(stream):
                does(serve_end, serve_end.stream_attached(stream, 0.0))
                does(pull_end, pull_end.stream_connected(stream, 0.0))
            case CreateShard(pull):
                does(pull_end, pull_end.shard_created(pull, 0.0))
            case Offered(pull, ranges):
                assert ranges == ((0, 4),)
                does(pull_end, pull_end.ask(pull, [1, 2, 3], 0.0))
            case SendChunk(stream, pull, chunk):
                length = SHARD.frame.chunks[chunk].sealed_bytes
                assert pull_end.chunk_arriving(stream, pull, chunk, length, 0.0) == [TakeChunk(pull, chunk)]
                done.append(effect)
                does(pull_end, pull_end.chunk_verified(stream, pull, chunk, 0.0))
                does(serve_end, serve_end.chunk_sent(stream, 0.0))
                if chunk == 3:
                    does(pull_end, pull_end.finish(pull, 0.0))
            case Complete() | ReleaseShard():
                done.append(effect)
    assert [effect.chunk for effect in done if isinstance(effect, SendChunk)] == [1, 2, 3]
    assert Complete(0, 0) in done and ReleaseShard(0) in done


def test_no_common_version_is_said_with_both_lists() -> None:
    machine = PullerSession(parties(PULLER, SOURCE, 1), BOUNDS, 1)
    machine.start(0.0)
    assert_ended(tell(machine, hello(SOURCE, (2, 3))), ByeReason.VERSION, "[2, 3]", "[1]")


def test_the_highest_common_version_is_enough() -> None:
    machine = PullerSession(parties(PULLER, SOURCE, 1), BOUNDS, 1)
    machine.start(0.0)
    assert tell(machine, hello(SOURCE, (1, 2))) == [] and machine.state is SessionState.OPEN


@pytest.mark.parametrize("field", ["node_id", "cluster_id"])
def test_a_hello_of_somebody_else_than_the_certificate_says_is_refused(field: str) -> None:
    machine = SourceSession(parties(SOURCE, PULLER, 1), BOUNDS, 4000)
    machine.start(0.0)
    lie = messages.Hello(**{**{f: getattr(hello(PULLER), f) for f in hello(PULLER).__struct_fields__}, field: "d" * 32})
    error = assert_ended(tell(machine, lie), ByeReason.IDENTITY, "expected the hello of")
    assert isinstance(error, PeerFault)


@pytest.mark.parametrize("message", [opening(0), messages.Ping(stamp=1), messages.Done(pull=0)])
def test_nothing_is_acted_on_before_both_hellos(message: messages.Message) -> None:
    machine = SourceSession(parties(SOURCE, PULLER, 1), BOUNDS, 4000)
    machine.start(0.0)
    assert_ended(tell(machine, message), ByeReason.PROTOCOL, "expected Hello or Bye, got")


def test_a_second_hello_is_refused() -> None:
    assert_ended(tell(source(), hello(PULLER)), ByeReason.PROTOCOL, "got Hello")


def test_no_hello_in_time() -> None:
    machine = SourceSession(parties(SOURCE, PULLER, 1), BOUNDS, 4000)
    machine.start(100.0)
    assert machine.next_deadline() == 110.0
    assert machine.on_tick(109.9) == []
    assert_ended(machine.on_tick(110.0), ByeReason.PROTOCOL, "no hello within 10 s")


def test_ping_after_five_seconds_and_silence_after_fifteen() -> None:
    machine = source()
    assert machine.next_deadline() == 5.0
    (ping,) = sent(machine.on_tick(5.0))
    assert isinstance(ping, messages.Ping)
    assert sent(tell(machine, messages.Ping(stamp=7), now=6.0)) == [messages.Pong(stamp=7)]
    assert machine.next_deadline() == 11.0
    machine.receive(b"\x05", 20.0)  # a byte is not a message: whoever trickles is silent
    assert_ended(machine.on_tick(21.0), ByeReason.SHUTDOWN, "silent for 15 s")


def test_a_session_ends_when_a_certificate_expires() -> None:
    machine = SourceSession(parties(SOURCE, PULLER, 1, expires=3.0), BOUNDS, 4000)
    machine.start(0.0)
    tell(machine, hello(PULLER))
    assert machine.next_deadline() == 3.0
    assert_ended(machine.on_tick(3.0), ByeReason.EXPIRED, "expired")


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        (ByeReason.PROTOCOL, PeerFault),
        (ByeReason.VERSION, PeerFault),
        (ByeReason.IDENTITY, NotPermitted),
        (ByeReason.EXPIRED, Unavailable),
        (ByeReason.SHUTDOWN, Unavailable),
        (ByeReason.DONE, Unavailable),
    ],
)
def test_a_bye_fails_the_pulls_with_what_it_means(reason: ByeReason, kind: type[RaylogError]) -> None:
    machine, _, _ = moving(range(4))
    effects = tell(machine, messages.Bye(reason=reason, message="so it is"))
    (fail,) = (effect for effect in effects if isinstance(effect, Fail))
    assert isinstance(fail.error, kind) and fail.pull == 0
    assert machine.is_closed and tell(machine, messages.Ping(stamp=1)) == []


def test_after_the_end_every_event_is_passed_over() -> None:
    machine, (stream,), _ = moving(range(4))
    assert machine.connection_lost(None, 1.0)
    assert machine.connection_lost(None, 1.0) == machine.on_tick(99.0) == machine.close(ByeReason.DONE, 1.0) == []
    assert machine.chunk_arriving(stream, 0, 0, 1000, 1.0) == machine.chunk_verified(stream, 0, 0, 1.0) == []
    assert machine.stream_lost(stream, "cut", 1.0) == machine.shard_created(0, 1.0) == []
    assert machine.ask(0, [1], 1.0) == machine.recall(0, [1], 1.0) == machine.cancel(0, [1], 1.0) == []
    assert machine.finish(0, 1.0) == []
    assert machine.fail(0, Cancelled("late"), 1.0) == []


# The puller.


def test_only_what_its_owner_wants_is_asked_for() -> None:
    _, (stream,), effects = moving([1, 2])
    window = BOUNDS.window_bytes
    assert sent(effects) == [credit(window), messages.Want(pull=0, stream=stream, first=1, count=2)]


def test_who_wants_nothing_more_says_done() -> None:
    machine, _, effects = moving([])
    assert effects == []
    assert machine.finish(0, 0.0) == [Send(messages.Done(pull=0)), Complete(0, 0)]
    assert machine.finish(0, 0.0) == []


def test_two_streams_share_the_work() -> None:
    _, streams, effects = moving(range(4), streams=2)
    assert wants(effects) == [(0, 3), (3, 1)]
    assert {one.stream for one in sent(effects) if isinstance(one, messages.Want)} == set(streams)


def test_a_frame_with_another_digest_is_damage_and_ends_that_pull_only() -> None:
    machine = puller()
    machine.open(SHARD.frame.ref(), QosClass.SHIP, 100.0, 0.0)
    effects = tell(machine, *frame_pieces(BIG))
    (fail,) = others(effects)
    assert isinstance(fail, Fail) and isinstance(fail.error, DamagedData) and "not the manifest's" in str(fail.error)
    assert sent(effects) == [messages.Done(pull=0)] and not machine.is_closed


@pytest.mark.parametrize(
    ("piece", "words"),
    [
        (messages.Frame(pull=0, offset=1, total=10, data=b"x"), "from byte 0 on"),
        (messages.Frame(pull=0, offset=0, total=2**32 - 1, data=b"x"), "at most"),
        (messages.Frame(pull=0, offset=0, total=1, data=b"xx"), "at most"),
        (messages.Frame(pull=3, offset=0, total=1, data=b"x"), "never opened"),
        (messages.StreamReady(stream=STREAM, nonce=NONCE, port=1), "not announced"),
        (have((0, 1)), "pull 0 is framing"),
        (have((0, 1), pull=3), "never opened"),
        (messages.Refused(pull=1, reason=RefusalReason.BUSY, message=""), "never opened"),
        (opening(0), "a puller's message"),
        (want(0, 1), "a puller's message"),
    ],
)
def test_what_a_source_may_not_say(piece: messages.Message, words: str) -> None:
    machine = puller()
    machine.open(SHARD.frame.ref(), QosClass.SHIP, 100.0, 0.0)
    error = assert_ended(tell(machine, piece), ByeReason.PROTOCOL, words, SOURCE)
    assert isinstance(error, PeerFault)


def test_a_frame_after_the_frame_is_refused() -> None:
    machine, _, _ = moving([0])
    assert_ended(tell(machine, frame_pieces()[0]), ByeReason.PROTOCOL, "pull 0 is moving")


@pytest.mark.parametrize(
    ("pull", "chunk", "length", "words"),
    [(0, 3, 4000, "not asked for"), (0, 99, 1, "not asked for"), (5, 0, 1000, "not asked for"), (0, 0, 999, "it has")],
)
def test_a_chunk_that_nobody_asked_for_ends_the_session(pull: int, chunk: int, length: int, words: str) -> None:
    machine, (stream,), _ = moving([0, 1])
    assert_ended(machine.chunk_arriving(stream, pull, chunk, length, 0.0), ByeReason.PROTOCOL, words)


def test_a_chunk_on_another_stream_than_asked_ends_the_session() -> None:
    machine, streams, effects = moving([0], streams=2)
    (asked,) = (message.stream for message in sent(effects) if isinstance(message, messages.Want))
    (other,) = set(streams) - {asked}
    assert_ended(machine.chunk_arriving(other, 0, 0, 1000, 0.0), ByeReason.PROTOCOL, "not asked for")


def test_a_damaged_chunk_is_asked_for_again_only_when_its_owner_does() -> None:
    machine, (stream,), _ = moving([0])
    for _ in range(3):
        machine.chunk_arriving(stream, 0, 0, 1000, 0.0)
        assert machine.chunk_damaged(stream, 0, 0, 0.0) == []
        assert wants(machine.ask(0, [0], 0.0)) == [(0, 1)]
    assert not machine.is_closed


@pytest.mark.parametrize(
    "offers",
    [
        [have((0, 5))],
        [have((4, 1))],
        [have((2**32 - 1, 2**32 - 1))],
        [have((0, 1), (1, 4))],
        [have((0, 3)), have((0, 2))],
    ],
)
def test_an_offer_of_chunks_that_do_not_exist_or_too_many_is_a_fault(offers: list[messages.Have]) -> None:
    machine = puller()
    machine.open(SHARD.frame.ref(), QosClass.SHIP, 100.0, 0.0)
    tell(machine, *frame_pieces())
    assert_ended(tell(machine, *offers), ByeReason.PROTOCOL, "expected offers of 4 chunks", SOURCE)


def test_offers_come_as_they_come_also_before_there_is_room() -> None:
    machine = puller()
    machine.open(SHARD.frame.ref(), QosClass.SHIP, 100.0, 0.0)
    effects = tell(machine, *frame_pieces(), have((2, 1)), have((0, 1), (3, 1)))
    assert others(effects) == [CreateShard(0, SHARD.frame), Offered(0, ((2, 1),)), Offered(0, ((0, 1), (3, 1)))]
    machine.finish(0, 0.0)
    assert tell(machine, have((1, 1))) == [] and not machine.is_closed, "late for a pull that has ended"


def test_what_was_asked_for_before_there_is_room_goes_out_when_there_is() -> None:
    machine = puller()
    _, effects = machine.open(SHARD.frame.ref(), QosClass.SHIP, 100.0, 0.0)
    (stream,) = announced(effects)
    tell(machine, *frame_pieces(), have((0, 4)), messages.StreamReady(stream=stream, nonce=NONCE, port=9))
    machine.stream_connected(stream, 0.0)
    assert machine.ask(0, [1], 0.0) == []
    assert wants(machine.shard_created(0, 0.0)) == [(1, 1)]


def test_a_chunk_in_flight_or_waiting_is_not_asked_for_twice() -> None:
    machine, (stream,), _ = moving([0, 1])
    assert wants(machine.ask(0, [1, 2], 0.0)) == [(2, 1)]
    (other,) = announced(machine.stream_lost(stream, "cut", 0.0))  # all three wait for another stream now
    assert machine.ask(0, [0, 1, 2, 3], 0.0) == []
    tell(machine, messages.StreamReady(stream=other, nonce=NONCE, port=9))
    assert wants(machine.stream_connected(other, 0.0)) == [(0, 4)]
    for chunk in range(4):
        take(machine, other, chunk)
    assert machine.finish(0, 0.0)[-1] == Complete(0, 3)


def test_recalled_chunks_are_not_asked_for_unless_they_are_on_their_way() -> None:
    machine, (stream,), _ = moving([0])
    (other,) = announced(machine.stream_lost(stream, "cut", 0.0))
    machine.ask(0, [1, 2], 0.0)
    assert machine.recall(0, [0, 2, 3], 0.0) == []
    tell(machine, messages.StreamReady(stream=other, nonce=NONCE, port=9))
    assert wants(machine.stream_connected(other, 0.0)) == [(1, 1)]
    machine.recall(0, [1], 0.0)
    take(machine, other, 1)  # it was on its way: it is good


def test_a_cancelled_chunk_is_dropped_when_it_comes_and_its_credit_is_free_again() -> None:
    big = sample_shard(4, (4_000_000,) * 4)
    machine = puller()
    _, effects = machine.open(big.frame.ref(), QosClass.SHIP, 1000.0, 0.0)
    (stream,) = announced(effects)
    tell(machine, *frame_pieces(big), have((0, 4)), messages.StreamReady(stream=stream, nonce=NONCE, port=9))
    machine.stream_connected(stream, 0.0)
    machine.shard_created(0, 0.0)
    assert wants(machine.ask(0, range(4), 0.0)) == [(0, 1)], "the window holds one chunk"
    machine.cancel(0, [0, 1], 0.0)
    (drop, *more) = machine.chunk_arriving(stream, 0, 0, 4_000_000, 0.0)
    assert drop == DropChunk() and wants(more) == [(2, 1)], "1 is not asked for at all"
    machine.cancel(0, [2], 0.0)
    machine.ask(0, [2], 0.0)  # it is wanted after all
    assert machine.chunk_arriving(stream, 0, 2, 4_000_000, 0.0) == [TakeChunk(0, 2)]
    machine.cancel(0, [2], 0.0)  # while it is verified
    assert wants(machine.chunk_verified(stream, 0, 2, 0.0)) == [(3, 1)]
    machine.cancel(0, [3], 0.0)
    assert wants(machine.stream_lost(stream, "cut", 0.0)) == [], "a cancelled chunk is not asked for again"
    assert machine.finish(0, 0.0)[-1] == Complete(0, 0)


def test_no_more_ranges_are_asked_for_than_a_source_must_queue() -> None:
    """A quarter of its bound: it may not have seen yet that three streams are lost."""
    machine, (stream,), effects = moving([0, 2, 1, 3], bounds=Bounds(ranges_queued_max=8))
    assert wants(effects) == [(0, 1), (2, 1)]
    number, _ = machine.open(SHARD.frame.ref(), QosClass.SHIP, 1000.0, 0.0)
    tell(machine, *frame_pieces(pull=number), have((0, 4), pull=number))
    machine.shard_created(number, 0.0)
    assert wants(machine.ask(number, [3], 0.0)) == []
    asked = sent(take(machine, stream, 0))
    assert messages.Want(pull=number, stream=stream, first=3, count=1) in asked, "the other pull has its turn"
    assert wants(machine.fail(number, Cancelled("enough"), 0.0)) == [(1, 1)]
    assert machine.chunk_arriving(stream, number, 3, 4000, 0.0) == [DropChunk()]
    take(machine, stream, 2)


def test_a_source_that_is_to_get_the_shard_is_given_time() -> None:
    machine = puller()
    _, effects = machine.open(SHARD.frame.ref(), QosClass.SHIP, 1000.0, 0.0, patience_s=20)
    (asked,) = (message for message in sent(effects) if isinstance(message, messages.Open))
    assert asked.patience_s == 20
    for now in (10.0, 20.0, 30.0, 34.0):
        tell(machine, messages.Pong(stamp=0), now=now)
    assert not any(isinstance(effect, Fail) for effect in machine.on_tick(34.9))
    assert any(isinstance(effect, Fail) for effect in machine.on_tick(35.0))


def test_a_source_that_owes_nothing_is_not_late() -> None:
    machine, (stream,), _ = moving([0])
    take(machine, stream, 0)
    tell(machine, messages.Pong(stamp=0), now=500.0)
    assert not any(isinstance(effect, Fail) for effect in machine.on_tick(500.0))
    machine.ask(0, [1], 500.0)
    tell(machine, messages.Pong(stamp=0), now=514.0)
    assert not any(isinstance(effect, Fail) for effect in machine.on_tick(514.9))
    assert any(isinstance(effect, Fail) for effect in machine.on_tick(515.0))


def test_a_cancelled_pull_says_done_and_its_late_chunks_are_dropped() -> None:
    machine, (stream,), _ = moving(range(4))
    machine.chunk_arriving(stream, 0, 0, 1000, 0.0)
    effects = machine.fail(0, Cancelled("enough"), 0.0)
    assert sent(effects) == [messages.Done(pull=0)] and isinstance(others(effects)[0], Fail)
    assert machine.chunk_verified(stream, 0, 0, 0.0) == []
    assert machine.chunk_arriving(stream, 0, 1, 2000, 0.0) == [DropChunk()]
    assert not machine.is_closed
    assert_ended(machine.chunk_arriving(stream, 0, 1, 2000, 0.0), ByeReason.PROTOCOL, "not asked for")


def test_a_late_frame_or_refusal_of_a_cancelled_pull_is_passed_over() -> None:
    machine = puller()
    machine.open(SHARD.frame.ref(), QosClass.SHIP, 100.0, 0.0)
    machine.fail(0, Cancelled("enough"), 0.0)
    refused = messages.Refused(pull=0, reason=RefusalReason.NOT_FOUND, message="")
    assert tell(machine, *frame_pieces(), refused) == [] and not machine.is_closed


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        (RefusalReason.NOT_FOUND, NotFound),
        (RefusalReason.DAMAGED, DamagedData),
        (RefusalReason.BUSY, Unavailable),
        (RefusalReason.NO_SPACE, Unavailable),
        (RefusalReason.NOT_PERMITTED, NotPermitted),
    ],
)
def test_refusals_end_one_pull_with_what_they_mean(reason: RefusalReason, kind: type[RaylogError]) -> None:
    machine, _, _ = moving(range(4))
    (fail,) = tell(machine, messages.Refused(pull=0, reason=reason, message="so it is", chunk=2))
    assert isinstance(fail, Fail) and type(fail.error) is kind
    assert SHARD.shard_id in str(fail.error) and "chunk 2" in str(fail.error) and not machine.is_closed


def test_the_deadline_of_a_pull() -> None:
    machine, _, _ = moving(range(4))
    for now in (5.0, 10.0):
        tell(machine, messages.Pong(stamp=0), now=now)
    assert machine.next_deadline() <= 15.0
    (fail,) = (effect for effect in machine.on_tick(15.0) if isinstance(effect, Fail))
    assert isinstance(fail.error, PeerFault) and "no chunk for 15 s" in str(fail.error)
    machine, _, _ = moving(range(4))
    tell(machine, messages.Pong(stamp=0), now=999.0)
    (fail,) = (effect for effect in machine.on_tick(1000.0) if isinstance(effect, Fail))
    assert isinstance(fail.error, DeadlineExceeded) and "deadline passed" in str(fail.error)


def test_a_slow_sink_is_not_the_sources_fault() -> None:
    machine = puller()
    machine.open(SHARD.frame.ref(), QosClass.SHIP, 1000.0, 0.0)
    tell(machine, *frame_pieces())
    tell(machine, messages.Pong(stamp=0), now=60.0)
    assert not any(isinstance(effect, Fail) for effect in machine.on_tick(60.0))
    assert not any(isinstance(effect, Fail) for effect in machine.shard_created(0, 60.0))


def test_a_stream_that_does_not_come_to_stand_is_replaced_and_then_the_source_given_up() -> None:
    machine = puller()
    machine.open(SHARD.frame.ref(), QosClass.SHIP, 1000.0, 0.0)
    tell(machine, *frame_pieces())
    for lost in range(BOUNDS.stream_losses_max):
        now = 10.0 * (lost + 1)
        tell(machine, messages.Pong(stamp=0), now=now)
        effects = machine.on_tick(now)
        assert any(isinstance(effect, CloseStream) for effect in effects)
        assert any(isinstance(message, messages.Stream) for message in sent(effects))
    tell(machine, messages.Pong(stamp=0), now=40.0)
    assert_ended(machine.on_tick(40.0), ByeReason.SHUTDOWN, "4 cargo streams were lost")


# The source.


def test_a_source_sends_as_far_as_the_credit_reaches_one_chunk_at_a_time() -> None:
    machine = serving()
    assert tell(machine, want(0, 4)) == []
    assert tell(machine, credit(3000)) == [SendChunk(STREAM, 0, 0)]
    assert machine.chunk_sent(STREAM, 0.0) == [SendChunk(STREAM, 0, 1)]
    assert machine.chunk_sent(STREAM, 0.0) == []
    assert tell(machine, credit(6000)) == [SendChunk(STREAM, 0, 2)]


def test_a_pull_without_credit_holds_up_no_other() -> None:
    machine = serving()
    tell(machine, opening(1))
    machine.shard_opened(1, SHARD.frame, 0.0)
    tell(machine, want(0, 4), want(2, 2, pull=1), want(0, 1, pull=1))
    assert tell(machine, credit(3000, pull=1)) == [SendChunk(STREAM, 1, 2)]
    assert machine.chunk_sent(STREAM, 0.0) == [], "pull 1 waits for chunk 3, its second range behind it"
    assert tell(machine, credit(1000)) == [SendChunk(STREAM, 0, 0)]


def test_what_a_lost_stream_had_to_send_counts_as_sent() -> None:
    other = b"t" * 16
    machine = serving(streams=(STREAM, other))
    tell(machine, credit(1000), want(0, 2), want(2, 2, stream=other))
    machine.stream_lost(STREAM, 0.0)  # 1000 were on their way, 2000 waited; on the other stream 3000 wait
    assert tell(machine, want(0, 1, stream=STREAM)) == [], "a stream just lost: forfeited"
    assert tell(machine, credit(6999)) == []
    assert tell(machine, credit(7000)) == [SendChunk(other, 0, 2)]


def test_done_drops_what_waits_and_releases_the_shard() -> None:
    machine = serving()
    tell(machine, credit(1000), want(0, 4))
    assert tell(machine, messages.Done(pull=0)) == [ReleaseShard(0)]
    assert machine.chunk_sent(STREAM, 0.0) == tell(machine, credit(9000), want(0, 1), messages.Done(pull=0)) == []
    assert not machine.is_closed


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (credit(2**40 + 1), "got 1099511627777"),
        (credit(2**63 - 1), "got 9223372036854775807"),
        (want(4, 1), "expected chunks of 0 to 3"),
        (want(0, 5), "asked for were 0 to 4"),
        (want(2**32 - 1, 2**32 - 1), "expected chunks"),
        (want(0, 1, stream=b"x" * 16), "not announced"),
        (want(0, 1, pull=7), "pull 7 was never opened"),
        (opening(0), "expected pull numbers that ascend, got 0"),
        (messages.Stream(stream=STREAM, nonce=NONCE), "announced twice"),
        (messages.Frame(pull=0, offset=0, total=1, data=b"x"), "a source's message"),
    ],
)
def test_what_a_puller_may_not_say(message: messages.Message, words: str) -> None:
    machine = serving()
    error = assert_ended(tell(machine, message), ByeReason.PROTOCOL, words, PULLER)
    assert isinstance(error, PeerFault)


def test_a_credit_that_shrinks_ends_the_session_and_releases_everything() -> None:
    machine = serving()
    tell(machine, credit(10))
    effects = tell(machine, credit(9))
    assert_ended(effects, ByeReason.PROTOCOL, "never shrinks")
    assert ReleaseShard(0) in effects and CloseStream(STREAM) in effects


def test_wanting_before_the_shard_is_open_is_refused() -> None:
    machine = source()
    tell(machine, opening(0), messages.Stream(stream=STREAM, nonce=NONCE))
    assert_ended(tell(machine, want(0, 1)), ByeReason.PROTOCOL, "pull 0 is opening")


def test_bounds_of_streams_ranges_and_pulls() -> None:
    streams = tuple(bytes([number]) * 16 for number in range(BOUNDS.streams_max))
    one_more = messages.Stream(stream=STREAM, nonce=NONCE)
    assert_ended(tell(serving(streams=streams), one_more), ByeReason.PROTOCOL, "at most 4 cargo streams")
    many = [want(0, 1) for _ in range(BOUNDS.ranges_queued_max + 1)]
    assert_ended(tell(serving(), *many), ByeReason.PROTOCOL, "more than 16 ranges")
    machine = serving()
    (_, refused) = tell(machine, opening(1), opening(2))
    assert isinstance(refused, Send) and isinstance(refused.message, messages.Refused)
    assert refused.message.reason is RefusalReason.BUSY and not machine.is_closed


def test_a_stream_that_nobody_connects_is_forgotten() -> None:
    machine = source()
    (expect,) = others(tell(machine, messages.Stream(stream=STREAM, nonce=NONCE), now=1.0))
    assert isinstance(expect, ExpectStream)
    assert others(machine.on_tick(11.0)) == [CloseStream(STREAM)]
    assert machine.stream_attached(STREAM, 11.0) == []


def test_a_shard_on_its_way_is_offered_as_it_comes() -> None:
    machine = source()
    tell(machine, opening(0))
    *_, offer = sent(machine.shard_opened(0, SHARD.frame, 0.0, [(2, 1)]))
    assert offer == have((2, 1))
    tell(machine, messages.Stream(stream=STREAM, nonce=NONCE), credit(9000))
    machine.stream_attached(STREAM, 0.0)
    assert tell(machine, want(2, 1)) == [SendChunk(STREAM, 0, 2)]
    assert sent(machine.chunks_available(0, [(0, 1), (1, 1), (2, 1)], 0.0)) == [have((0, 2))], "2 is known"
    assert machine.chunks_available(0, [(0, 1)], 0.0) == machine.chunks_available(7, [(0, 1)], 0.0) == []
    machine.chunk_sent(STREAM, 0.0)
    assert tell(machine, want(0, 2)) == [SendChunk(STREAM, 0, 0)]


def relaying(credit_bytes: int = 10_000) -> SourceSession:
    """A source with pull 0 of a shard of 40 chunks of which nothing has come yet, and its stream attached."""
    shard = sample_shard(3, (16,) * 40)
    machine = source()
    tell(machine, opening(0, shard.shard_id, shard.frame.digest))
    machine.shard_opened(0, shard.frame, 0.0, [])
    tell(machine, messages.Stream(stream=STREAM, nonce=NONCE), credit(credit_bytes))
    machine.stream_attached(STREAM, 0.0)
    return machine


def test_what_was_asked_for_ahead_is_sent_as_it_comes_and_not_offered() -> None:
    machine = relaying()
    assert tell(machine, want(0, 3)) == []
    assert machine.chunks_available(0, [(2, 1)], 0.0) == [SendChunk(STREAM, 0, 2)]
    assert machine.chunks_available(0, [(0, 1)], 0.0) == [], "the stream is busy"
    assert machine.chunk_sent(STREAM, 0.0) == [SendChunk(STREAM, 0, 0)]
    assert machine.chunk_sent(STREAM, 0.0) == []
    assert machine.chunks_available(0, [(1, 2)], 0.0) == [SendChunk(STREAM, 0, 1)], "2 is known"


def test_of_a_range_what_is_here_goes_at_once() -> None:
    machine = relaying()
    machine.chunks_available(0, [(1, 1)], 0.0)
    assert tell(machine, want(0, 3)) == [SendChunk(STREAM, 0, 1)]
    machine.chunk_sent(STREAM, 0.0)
    assert machine.chunks_available(0, [(2, 1)], 0.0) == [SendChunk(STREAM, 0, 2)]


def test_a_puller_that_has_work_is_told_of_other_chunks_some_at_a_time() -> None:
    machine = relaying()
    tell(machine, want(39, 1))
    assert machine.chunks_available(0, [(0, 15)], 0.0) == []
    assert sent(machine.chunks_available(0, [(15, 1)], 0.0)) == [have((0, 16))]
    assert machine.chunks_available(0, [(20, 2)], 0.0) == []
    last = machine.chunks_available(0, [(39, 1)], 0.0)
    assert others(last) == [SendChunk(STREAM, 0, 39)] and sent(last) == [have((20, 2))], "it would be idle soon"
    tell(machine, want(0, 1), want(38, 1))
    assert machine.chunks_available(0, [(30, 1)], 0.0) == [], "38 is still to come"
    assert sent(machine.stream_lost(STREAM, 0.0)) == [have((30, 1))], "nothing is owed any more"


def test_what_was_asked_for_ahead_on_a_lost_stream_counts_as_sent() -> None:
    machine, other = relaying(credit_bytes=3 * 16), b"t" * 16
    tell(machine, messages.Stream(stream=other, nonce=NONCE))
    machine.stream_attached(other, 0.0)
    tell(machine, want(0, 2), want(0, 1, stream=other))
    machine.stream_lost(STREAM, 0.0)
    assert machine.chunks_available(0, [(0, 2)], 0.0)[0] == SendChunk(other, 0, 0), "asked for on the other as well"
    machine.chunk_sent(other, 0.0)
    assert tell(machine, want(1, 1, stream=other)) == [], "the credit is used up"
    assert tell(machine, credit(4 * 16)) == [SendChunk(other, 0, 1)]


def test_every_chunk_that_is_asked_for_ahead_counts_as_a_range() -> None:
    assert tell(relaying(), want(0, BOUNDS.ranges_queued_max)) == []
    assert_ended(tell(relaying(), want(0, BOUNDS.ranges_queued_max + 1)), ByeReason.PROTOCOL, "more than 16 ranges")


def test_nothing_here_yet_is_a_frame_without_an_offer() -> None:
    machine = source()
    tell(machine, opening(0))
    assert all(isinstance(message, messages.Frame) for message in sent(machine.shard_opened(0, SHARD.frame, 0.0, [])))


def test_many_scattered_chunks_are_offered_in_several_messages() -> None:
    large = sample_shard(3, (16,) * 20_000)
    machine = source()
    tell(machine, opening(0, large.shard_id, large.frame.digest))
    effects = sent(machine.shard_opened(0, large.frame, 0.0, [(chunk, 1) for chunk in range(0, 20_000, 2)]))
    offers = [message.ranges for message in effects if isinstance(message, messages.Have)]
    assert [len(ranges) for ranges in offers] == [4096, 4096, 1808]


def test_a_patient_puller_is_refused_when_the_shard_does_not_begin_to_come() -> None:
    machine = source()
    patient = messages.Open(pull=0, shard_id=SHARD.shard_id, frame_digest=SHARD.frame.digest, qos=QosClass.SHIP,
                            patience_s=4)  # fmt: skip
    assert tell(machine, patient) == [OpenShard(0, SHARD.shard_id, is_patient=True)]
    assert machine.next_deadline() == 4.0 and others(machine.on_tick(3.9)) == []
    (refused, *_) = sent(effects := machine.on_tick(4.0))
    assert isinstance(refused, messages.Refused) and refused.reason is RefusalReason.NOT_FOUND
    assert "did not begin to come here in 4 s" in refused.message and others(effects) == [ReleaseShard(0)]
    tell(machine, messages.Open(**{**{f: getattr(patient, f) for f in patient.__struct_fields__}, "pull": 1}))
    machine.shard_opened(1, SHARD.frame, 5.0, [])
    tell(machine, messages.Pong(stamp=0), now=10.0)
    assert others(machine.on_tick(10.0)) == [], "once it has begun, its own bounds hold"


def test_a_shard_of_another_frame_or_none_is_refused() -> None:
    machine = source()
    tell(machine, opening(0, digest=bytes(32)), opening(1))
    effects = machine.shard_opened(0, SHARD.frame, 0.0)
    (refused,) = sent(effects)
    assert isinstance(refused, messages.Refused) and refused.reason is RefusalReason.NOT_FOUND
    assert others(effects) == [ReleaseShard(0)]
    (refused,) = sent(machine.refuse(1, RefusalReason.DAMAGED, "x" * 5000, 3, 0.0))
    assert isinstance(refused, messages.Refused) and refused.chunk == 3 and len(refused.message) == 1024
    assert machine.shard_opened(1, SHARD.frame, 0.0) == [ReleaseShard(1)], "opened too late"


def test_a_large_frame_goes_in_pieces() -> None:
    large = sample_shard(3, (16,) * 10_000)
    machine = source()
    tell(machine, opening(0, large.shard_id, large.frame.digest))
    *pieces, offer = sent(machine.shard_opened(0, large.frame, 0.0))
    assert len(pieces) == 3 and offer == have((0, 10_000))
    assert b"".join(piece.data for piece in pieces if isinstance(piece, messages.Frame)) == large.frame.metadata


def test_garbage_after_tls_ends_the_session() -> None:
    assert_ended(source().receive(b"GET / HTTP/1.1\r\n", 0.0), ByeReason.PROTOCOL, "1 to 1048576 bytes")


def test_what_stands_before_garbage_is_heard() -> None:
    machine = serving()
    raw = encode(credit(9000)) + encode(want(0, 1)) + b"\xff" * 8
    assert SendChunk(STREAM, 0, 0) in machine.receive(raw, 0.0)


# The tables.


def test_every_state_is_left_or_final() -> None:
    for table, final in ((SESSION, {SessionState.CLOSED}), (PULL, {PullState.COMPLETE, PullState.FAILED})):
        left, reached = {state for state, _ in table}, set(table.values())
        assert not left & final and left | final == set(type(next(iter(left))))
        assert final <= reached


def test_an_event_of_ours_out_of_place_is_our_bug_and_a_message_is_the_peers() -> None:
    with pytest.raises(AssertionError, match="event 'created' in state framing"):
        step(PULL, PullState.FRAMING, "'created'", "pull 1")
    with pytest.raises(PeerFault, match="pull 1 is moving: expected Have or Refused, got Frame"):
        step(PULL, PullState.MOVING, "Frame", "pull 1")


def test_messages_are_decoded_as_sent() -> None:
    buffer = MessageBuffer()
    buffer.feed(encode(opening(3)))
    assert buffer.next_message() == opening(3)
