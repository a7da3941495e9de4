"""Pulls whose cargo is authenticated only: what arrives, what an onlooker sees, what is refused, what is left."""

import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from wire_parts import PULLER, SOURCE, Cluster, MemorySink, MemorySource, leak_check, parties, wait_until

from raylog.codec.frame import Frame
from raylog.errors import Cancelled, DeadlineExceeded, NotPermitted, PeerFault, RaylogError
from raylog.spec import CargoRecords, QosClass, new_id
from raylog.store.memory import MemoryTier
from raylog.store.memory_shard import MemoryWriter
from raylog.testing.shards import SampleShard, sample_shard
from raylog.units import KIB, MIB
from raylog.wire import messages
from raylog.wire.bounds import Bounds
from raylog.wire.client import pull
from raylog.wire.effects import ConnectStream, Effect, ExpectStream, Fail, Send
from raylog.wire.fetcher import Fetcher, PullReport, Source
from raylog.wire.puller import PullerSession
from raylog.wire.record import PREAMBLE_BYTES, SEALED_HEAD_BYTES
from raylog.wire.server import WireServer
from raylog.wire.session import Session
from raylog.wire.sessions import PeerAddress, Sessions
from raylog.wire.source import SourceSession

ENCRYPTED, AUTHENTICATED = CargoRecords
SHARD = sample_shard(5, (70_000, 16, 200_000, *[100_000] * 40))
CLUSTER = Cluster()
NODE, OTHER, ME = CLUSTER.credentials(), CLUSTER.credentials(), CLUSTER.credentials()

nothing_is_left = pytest.fixture(autouse=True)(leak_check)


def serve(source: object, credentials: object = NODE, records: CargoRecords = AUTHENTICATED) -> WireServer:
    return WireServer(lambda: credentials, source, bind_host="127.0.0.1", records=records)  # type: ignore[arg-type,return-value]


def at(server: WireServer, node_id: str = NODE.identity.id) -> Source:
    return Source(peer=PeerAddress(node_id=node_id, host=server.host, control_port=server.control_port))


def fetch(
    sources: list[Source],
    sink: object,
    shard: SampleShard = SHARD,
    *,
    records: CargoRecords = AUTHENTICATED,
    **more: object,
) -> PullReport:
    return pull(shard.frame.ref(), sources, sink, ME, deadline_s=20, records=records, **more)  # type: ignore[arg-type]


@contextmanager
def arena(size: int = 80 * MIB) -> Iterator[MemoryTier]:
    tier = MemoryTier(Path(f"/dev/shm/raylog-test-{new_id()}"), size)
    try:
        yield tier
    finally:
        tier.close()


def fill(tier: MemoryTier, shard: SampleShard) -> None:
    with tier.create(shard.frame) as writer:
        for number in range(len(shard.chunks)):
            writer.write_chunk(number, shard.sealed(number))
        writer.commit()


class Arena:
    """A memory tier as a server's store."""

    def __init__(self, tier: MemoryTier) -> None:
        self.open = tier.open

    def mend(self, shard_id: str, numbers: object) -> None:
        """There is no other copy."""


@pytest.mark.parametrize("streams", [1, 3])
@pytest.mark.parametrize("has_places", [True, False])
def test_a_shard_arrives_whole(streams: int, has_places: bool) -> None:
    sink = MemorySink(SHARD, has_places=has_places)
    with serve(MemorySource(SHARD)) as server:
        report = fetch([at(server)], sink, streams=streams)
    assert [sink.chunks[number] for number in range(len(SHARD.chunks))] == list(SHARD.chunks)
    assert sink.is_committed and report.retried == 0


def test_several_sources_over_buffers_of_our_own() -> None:
    """Two may bring the same chunk: neither is let into the place of what the other brought and was verified."""

    class Watched(MemorySink):
        def chunk_buffer(self, number: int) -> memoryview | None:
            raise AssertionError("a place was lent to a source that is not alone")

    sink = Watched(SHARD)
    with serve(MemorySource(SHARD)) as one, serve(MemorySource(SHARD), OTHER) as other:
        fetch([at(one), at(other, OTHER.identity.id)], sink)
    assert sink.is_committed


def test_from_arena_to_arena() -> None:
    with arena() as source, arena() as target:
        fill(source, SHARD)
        with serve(Arena(source)) as server:
            fetch([at(server)], target)
        with target.open(SHARD.shard_id) as reader:
            assert [bytes(reader.chunk(number)) for number in range(len(SHARD.chunks))] == list(SHARD.chunks)


@pytest.mark.parametrize("records", CargoRecords)
def test_nothing_of_a_chunks_size_is_allocated_in_steady_state(records: CargoRecords) -> None:
    shard = sample_shard(8, (512 * KIB,) * 130)
    sent = []

    def trace(peer_id: str, qos: QosClass, sealed_bytes: int, waited_s: float) -> None:
        sent.append(sealed_bytes)
        if len(sent) == 24:  # the stream has its buffers
            tracemalloc.start()

    with arena() as source, arena() as target:
        fill(source, shard)
        server = WireServer(lambda: NODE, Arena(source), bind_host="127.0.0.1", records=records, on_sent=trace)
        try:
            with server:
                fetch([at(server)], target, shard, records=records, streams=1)
                _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert len(sent) == 130 and target.holds(shard.shard_id)
    assert peak_bytes < 256 * KIB, f"{peak_bytes} bytes while 100 chunks of 512 KiB passed"


# What is on the wire.


class Tap:
    """Between a puller and a source's cargo port: keeps what passes, and may change it."""

    def __init__(self, port: int, change: Callable[[bytes], bytes] = bytes) -> None:
        self.port, self.change, self.seen = port, change, bytearray()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.threads = [threading.Thread(target=self._accept)]
        self.threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                far = socket.create_connection(("127.0.0.1", self.port))
                for one, other, change in ((near, far, bytes), (far, near, self._note)):
                    self.threads.append(threading.Thread(target=self._pass, args=(one, other, change)))
                    self.threads[-1].start()

    def _note(self, data: bytes) -> bytes:
        self.seen += data
        return self.change(data)

    @staticmethod
    def _pass(one: socket.socket, other: socket.socket, change: Callable[[bytes], bytes]) -> None:
        with one, suppress(OSError):
            while data := one.recv(1 << 16):
                other.sendall(change(data))
        with suppress(OSError):
            other.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self.threads:
            thread.join(10)


def tapped(server: WireServer, change: Callable[[bytes], bytes] = bytes) -> Tap:
    """Has the server announce the tap's port in place of its own."""
    tap = Tap(server.cargo_port, change)
    server.cargo_port = tap.listener.getsockname()[1]
    return tap


@pytest.mark.parametrize("records", CargoRecords)
def test_an_onlooker_sees_sealed_chunks_only_where_records_are_authenticated(records: CargoRecords) -> None:
    with serve(MemorySource(SHARD)) as server:
        tap = tapped(server)
        fetch([at(server)], MemorySink(SHARD), records=records, streams=1)
    tap.close()
    assert len(tap.seen) > sum(map(len, SHARD.chunks))
    assert all((chunk in tap.seen) is (records is AUTHENTICATED) for chunk in SHARD.chunks)


@pytest.mark.parametrize(
    "place", [10, SEALED_HEAD_BYTES + 5, SEALED_HEAD_BYTES + 70_000 + 3], ids=["head", "body", "tag"]
)
def test_a_bit_that_is_flipped_on_the_way_ends_the_stream_and_blames_no_source(place: int) -> None:
    shard, passed = sample_shard(3, (70_000,) * 6), 0

    def flip(data: bytes) -> bytes:
        nonlocal passed
        first, passed = passed, passed + len(data)
        if not first <= place < passed:
            return data
        changed = bytearray(data)
        changed[place - first] ^= 4
        return bytes(changed)

    damaged: list[object] = []
    with arena() as target, serve(MemorySource(shard)) as server:
        tap = tapped(server, flip)
        sessions = Sessions(lambda: ME, streams=1, records=AUTHENTICATED)
        try:
            report = Fetcher(
                shard.frame.ref(), [at(server)], target, sessions, qos=QosClass.SHIP, deadline=time.monotonic() + 20,
                on_damage=lambda *told: damaged.append(told),
            ).run()  # fmt: skip
        finally:
            sessions.close()
        assert report.retried > 0 and damaged == [] and target.holds(shard.shard_id)
        with target.open(shard.shard_id) as reader:
            assert [bytes(reader.chunk(number)) for number in range(6)] == list(shard.chunks)
    tap.close()


# What is refused.


def test_a_source_that_is_not_set_to_it_refuses_by_name_and_serves_encrypted_records() -> None:
    with serve(MemorySource(SHARD), records=ENCRYPTED) as server:
        with pytest.raises(NotPermitted, match=r"authenticated cargo records.*set `cargo_records` alike"):
            fetch([at(server)], MemorySink(SHARD))
        sink = MemorySink(SHARD)
        fetch([at(server)], sink, records=ENCRYPTED)
    assert sink.is_committed


def test_a_puller_that_is_not_set_to_it_gets_encrypted_records_from_a_source_that_is() -> None:
    with serve(MemorySource(SHARD)) as server:
        sink = MemorySink(SHARD)
        fetch([at(server)], sink, records=ENCRYPTED)
    assert sink.is_committed


def test_an_unknown_kind_is_no_message() -> None:
    raw = messages.encode(messages.Stream(stream=b"s" * 16, nonce=b"n" * 32, records=AUTHENTICATED))
    buffer = messages.MessageBuffer()
    buffer.feed(raw.replace(b"authenticated", b"unprotected!!"))
    with pytest.raises(PeerFault, match="unprotected!!"):
        buffer.next_message()


def sent(effects: list[Effect]) -> list[messages.Message]:
    return [effect.message for effect in effects if isinstance(effect, Send)]


def greeted(mine: CargoRecords, theirs: CargoRecords) -> tuple[PullerSession, SourceSession]:
    puller = PullerSession(parties(PULLER, SOURCE, 1), Bounds(), 1, mine)
    source = SourceSession(parties(SOURCE, PULLER, 1), Bounds(), 4000, theirs)
    hellos = [sent(machine.start(0.0)) for machine in (puller, source)]
    tell(source, hellos[0])
    tell(puller, hellos[1])
    return puller, source


def tell(machine: Session, told: list[messages.Message]) -> list[Effect]:
    return machine.receive(b"".join(messages.encode(message) for message in told), 0.0)


def test_the_source_says_which_kind_it_refuses_and_the_puller_that_it_may_not() -> None:
    puller, source = greeted(AUTHENTICATED, ENCRYPTED)
    _, effects = puller.open(SHARD.frame.ref(), QosClass.SHIP, 1000.0, 0.0)
    (bye,) = (message for message in sent(tell(source, sent(effects))) if isinstance(message, messages.Bye))
    assert bye.reason is messages.ByeReason.RECORDS and source.is_closed
    (failed,) = (effect for effect in tell(puller, [bye]) if isinstance(effect, Fail))
    assert isinstance(failed.error, NotPermitted) and "this node sends encrypted ones" in str(failed.error)


@pytest.mark.parametrize("records", CargoRecords)
def test_both_ends_have_the_keys_of_the_kind_that_was_asked_for(records: CargoRecords) -> None:
    puller, source = greeted(records, AUTHENTICATED)
    _, effects = puller.open(SHARD.frame.ref(), QosClass.SHIP, 1000.0, 0.0)
    effects = tell(source, sent(effects))
    (expected,) = (effect for effect in effects if isinstance(effect, ExpectStream))
    (connect,) = (effect for effect in tell(puller, sent(effects)) if isinstance(effect, ConnectStream))
    assert expected.keys == connect.keys and connect.keys.records is records


def test_a_stream_that_we_cut_ourselves_is_not_counted_against_the_source() -> None:
    puller, _ = greeted(AUTHENTICATED, AUTHENTICATED)
    _, effects = puller.open(SHARD.frame.ref(), QosClass.SHIP, 1000.0, 0.0)
    for _ in range(Bounds().stream_losses_max + 2):
        (stream,) = (message for message in sent(effects) if isinstance(message, messages.Stream))
        effects = puller.stream_lost(stream.stream, "its pull has ended", 0.0, is_ours=True)
    assert not puller.is_closed


# A source that stops while it has our memory.


@pytest.mark.parametrize("ending", [Cancelled, DeadlineExceeded])
def test_a_pull_ends_in_time_though_a_source_holds_a_place_and_stalls(ending: type[RaylogError]) -> None:
    """And then no byte of the source reaches the arena, and the extent is free."""
    stall, lent = threading.Event(), threading.Event()
    passed = 0

    def hold(data: bytes) -> bytes:
        nonlocal passed
        passed += len(data)
        if passed > PREAMBLE_BYTES + MIB // 2:
            stall.wait(20)
        return data

    class Sink:
        def create(self, frame: Frame) -> MemoryWriter:
            writer = target.create(frame)
            lent.set()
            return writer

    shard, cancel = sample_shard(4, (MIB,) * 4), threading.Event()
    with ExitStack() as stack:
        target = stack.enter_context(arena())
        free_bytes = target.free_bytes
        server = stack.enter_context(serve(MemorySource(shard)))
        tap = tapped(server, hold)
        stack.callback(tap.close)
        stack.callback(stall.set)
        sessions = Sessions(lambda: ME, Bounds(progress_timeout_s=20), streams=1, records=AUTHENTICATED)
        stack.callback(sessions.close)
        lifetime_s = 1.0 if ending is DeadlineExceeded else 20.0
        if ending is Cancelled:
            threading.Timer(0.7, cancel.set).start()
        began = time.monotonic()
        with pytest.raises(ending):
            Fetcher(
                shard.frame.ref(), [at(server)], Sink(), sessions, qos=QosClass.SHIP, deadline=began + lifetime_s,
                cancel=cancel,
            ).run()  # fmt: skip
        assert lent.is_set() and time.monotonic() - began < 3
        fill(target, shard)
        target.delete(shard.shard_id)
        wait_until(lambda: target.free_bytes == free_bytes, "a view of the arena stays")
