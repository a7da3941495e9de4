"""Whole pulls over real sockets and real TLS: what arrives, what is resumed, what each failure looks like."""

import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from wire_parts import Cluster, MemorySink, MemorySource, leak_check, wait_until

from raylog.codec.frame import Frame
from raylog.errors import (
    Cancelled,
    DamagedData,
    DeadlineExceeded,
    NoSpace,
    NotFound,
    PeerFault,
    RaylogError,
    Unavailable,
    UsageError,
)
from raylog.security.credentials import Credentials
from raylog.spec import Durability, ShardRef, new_id
from raylog.store.disk import DiskTier
from raylog.store.memory import MemoryTier
from raylog.store.tiered import TieredStore
from raylog.testing.shards import sample_shard
from raylog.units import MIB
from raylog.wire.bounds import SEALED_CHUNK_BYTES_MAX, Bounds
from raylog.wire.client import pull
from raylog.wire.fetcher import Source
from raylog.wire.server import WireServer
from raylog.wire.sessions import PeerAddress

SHARD = sample_shard(5, (70_000, 16, 200_000, *[100_000] * 40))
LARGE = sample_shard(6, (MIB,) * 24)
QUICK = Bounds(
    progress_timeout_s=0.6, stream_timeout_s=0.6, greeting_timeout_s=0.6, window_bytes=SEALED_CHUNK_BYTES_MAX
)


nothing_is_left = pytest.fixture(autouse=True)(leak_check)


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture(scope="module")
def node(cluster: Cluster) -> Credentials:
    return cluster.credentials()


@pytest.fixture(scope="module")
def me(cluster: Cluster) -> Credentials:
    return cluster.credentials()


def serve(node: Credentials, source: MemorySource, bounds: Bounds | None = None, host: str = "127.0.0.1") -> WireServer:
    return WireServer(lambda: node, source, bind_host=host, bounds=bounds)


def at(server: WireServer, node: Credentials) -> Source:
    return Source(peer=PeerAddress(node_id=node.identity.id, host=server.host, control_port=server.control_port))


@pytest.mark.parametrize("streams", [1, 2, 5])
@pytest.mark.parametrize("has_places", [True, False])
def test_a_shard_arrives_whole(node: Credentials, me: Credentials, streams: int, has_places: bool) -> None:
    source, sink = MemorySource(SHARD), MemorySink(SHARD, has_places=has_places)
    with serve(node, source) as server:
        report = pull(SHARD.frame.ref(), [at(server, node)], sink, me, deadline_s=20, streams=streams)
        wait_until(lambda: all(reader.is_closed for reader in source.readers), "the pin stays")
        counters = server.counters()
    assert [sink.chunks[number] for number in range(len(SHARD.chunks))] == list(SHARD.chunks)
    assert sink.is_committed and sorted(sink.verified) == list(range(len(SHARD.chunks)))
    total = sum(map(len, SHARD.chunks))
    assert (report.bytes, report.chunks, report.retried) == (total, len(SHARD.chunks), 0)
    assert (counters.sent_bytes, counters.sent_chunks, counters.sessions_admitted) == (total, len(SHARD.chunks), 1)
    assert counters.refused == {}


def test_a_pull_that_ends_well_is_not_warned_about(
    node: Credentials, me: Credentials, caplog: pytest.LogCaptureFixture
) -> None:
    with serve(node, MemorySource(SHARD)) as server:
        for _ in range(5):
            pull(SHARD.frame.ref(), [at(server, node)], MemorySink(SHARD), me, deadline_s=20)
        wait_until(lambda: server.counters().sessions_open == 0, "a session stays")
    assert caplog.text == ""


def test_more_than_the_window_passes_and_progress_is_told(node: Credentials, me: Credentials) -> None:
    sink, told = MemorySink(LARGE), []
    with serve(node, MemorySource(LARGE)) as server:
        pull(LARGE.frame.ref(), [at(server, node)], sink, me, deadline_s=20, bounds=QUICK,
             on_progress=lambda here, total: told.append((here, total)))  # fmt: skip
    assert sink.is_committed
    assert told == sorted(told) and {total for _, total in told} == {24 * MIB} and told[-1][0] <= 24 * MIB


def test_over_ipv6(node: Credentials, me: Credentials) -> None:
    with serve(node, MemorySource(SHARD), host="::1") as server:
        sink = MemorySink(SHARD)
        pull(SHARD.frame.ref(), [at(server, node)], sink, me, deadline_s=20)
    assert sink.is_committed


def test_a_client_pulls_too(cluster: Cluster, node: Credentials) -> None:
    sink = MemorySink(SHARD)
    with serve(node, MemorySource(SHARD)) as server:
        pull(SHARD.frame.ref(), [at(server, node)], sink, cluster.credentials("client"), deadline_s=20)
    assert sink.is_committed


def test_from_one_real_store_to_another(node: Credentials, me: Credentials, tmp_path: Path) -> None:
    shard = sample_shard(9, (50_000,) * 20)
    stores = [
        TieredStore(
            MemoryTier(Path(f"/dev/shm/raylog-test-{new_id()}"), 8 * MIB),
            DiskTier(tmp_path / name, cluster_id="c" * 32),
        )
        for name in ("source", "sink")
    ]
    with stores[0].create(shard.frame, Durability.DISK) as writer:
        for number in range(len(shard.chunks)):
            writer.write_chunk(number, shard.sealed(number))
        writer.commit()

    class Sink:
        def create(self, frame: Frame) -> object:
            return stores[1].create(frame, Durability.DISK)

    with WireServer(lambda: node, stores[0], bind_host="127.0.0.1") as server:
        pull(shard.frame.ref(), [at(server, node)], Sink(), me, deadline_s=20)  # type: ignore[arg-type]
    with stores[1].open(shard.shard_id) as reader:
        assert [bytes(reader.chunk(number)) for number in range(20)] == list(shard.chunks)
    for store in stores:
        store.close()


def test_many_pulls_at_once(node: Credentials, me: Credentials) -> None:
    sinks = [MemorySink(SHARD) for _ in range(8)]
    with serve(node, MemorySource(SHARD)) as server:
        threads = [
            threading.Thread(
                target=pull, args=(SHARD.frame.ref(), [at(server, node)], sink, me), kwargs={"deadline_s": 30}
            )
            for sink in sinks
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert all(sink.is_committed for sink in sinks)


# Resume.


def test_only_the_missing_chunks_are_asked_for(node: Credentials, me: Credentials) -> None:
    source, sink = MemorySource(SHARD), MemorySink(SHARD)
    for number in (0, 5, 6, 7, 30):
        sink.write_chunk(number, SHARD.sealed(number))
    with serve(node, source) as server:
        report = pull(SHARD.frame.ref(), [at(server, node)], sink, me, deadline_s=20)
    assert sorted(source.asked) == [n for n in range(len(SHARD.chunks)) if n not in (0, 5, 6, 7, 30)]
    assert report.chunks == len(SHARD.chunks) - 5 and sink.is_committed


def test_a_shard_that_is_here_moves_nothing(node: Credentials, me: Credentials) -> None:
    source, sink = MemorySource(SHARD), MemorySink(SHARD)
    for number in range(len(SHARD.chunks)):
        sink.write_chunk(number, SHARD.sealed(number))
    with serve(node, source) as server:
        assert pull(SHARD.frame.ref(), [at(server, node)], sink, me, deadline_s=20).bytes == 0
    assert source.asked == [] and sink.is_committed


SOURCE_PROCESS = """
    import sys, time
    sys.path.insert(0, {here!r})
    from pathlib import Path
    from wire_parts import MemorySource
    from raylog.security.credentials import Credentials
    from raylog.testing.shards import sample_shard
    from raylog.wire.server import WireServer

    shard = sample_shard(6, (1 << 20,) * 24)
    def slow(number):
        time.sleep(0.02)
        return shard.sealed(number)
    credentials = Credentials.load(Path(sys.argv[1]))
    server = WireServer(lambda: credentials, MemorySource(shard, slow), bind_host="127.0.0.1")
    print(server.control_port, flush=True)
    sys.stdin.read()
"""


def test_a_source_that_is_killed_half_way_and_another_that_gives_the_rest(
    node: Credentials, me: Credentials, tmp_path: Path
) -> None:
    node.save(tmp_path / "credentials")
    script = textwrap.dedent(SOURCE_PROCESS.format(here=str(Path(__file__).parent)))
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "credentials")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None and process.stdout is not None
    sink = MemorySink(LARGE)
    address = Source(
        peer=PeerAddress(node_id=node.identity.id, host="127.0.0.1", control_port=int(process.stdout.readline()))
    )

    def kill_half_way() -> None:
        wait_until(lambda: len(sink.verified) >= 8, "nothing comes")
        process.send_signal(signal.SIGKILL)

    killer = threading.Thread(target=kill_half_way)
    killer.start()
    with pytest.raises(Unavailable):
        pull(LARGE.frame.ref(), [address], sink, me, deadline_s=20)
    killer.join()
    process.communicate()
    here = set(sink.verified)
    assert 8 <= len(here) < 24 and sink.closed == 1 and not sink.is_committed
    source = MemorySource(LARGE)
    with serve(node, source) as server:
        report = pull(LARGE.frame.ref(), [at(server, node)], sink, me, deadline_s=20)
    assert sink.is_committed and sorted(source.asked) == sorted(set(range(24)) - here)
    assert report.chunks == 24 - len(here) and sorted(sink.verified) == list(range(24))


# What goes wrong at the source.


def test_a_shard_that_is_not_there(node: Credentials, me: Credentials) -> None:
    missing = sample_shard(77).frame.ref()
    with serve(node, MemorySource(SHARD)) as server, pytest.raises(NotFound, match=missing.shard_id) as caught:
        pull(missing, [at(server, node)], MemorySink(SHARD), me, deadline_s=20)
    assert vars(caught.value)["peer"] == node.identity.id


def test_a_shard_with_another_frame(node: Credentials, me: Credentials) -> None:
    ref = ShardRef(
        **{**{f: getattr(SHARD.frame.ref(), f) for f in ShardRef.__struct_fields__}, "frame_digest": bytes(32)}
    )
    with serve(node, MemorySource(SHARD)) as server, pytest.raises(NotFound, match="has frame digest"):
        pull(ref, [at(server, node)], MemorySink(SHARD), me, deadline_s=20)


@pytest.mark.parametrize("has_places", [True, False])
def test_the_right_chunk_with_wrong_bytes_is_asked_for_again(
    node: Credentials, me: Credentials, has_places: bool
) -> None:
    bad = {7}

    def chunk(number: int) -> memoryview:
        if number in bad:
            bad.discard(number)
            return memoryview(bytes(len(SHARD.chunks[number])))
        return SHARD.sealed(number)

    sink = MemorySink(SHARD, has_places=has_places)
    with serve(node, MemorySource(SHARD, chunk)) as server:
        report = pull(SHARD.frame.ref(), [at(server, node)], sink, me, deadline_s=20)
    assert report.retried == 1 and sink.is_committed and sink.chunks[7] == SHARD.chunks[7]


def test_a_source_whose_bytes_stay_wrong_is_named(node: Credentials, me: Credentials) -> None:
    def chunk(number: int) -> memoryview:
        return memoryview(bytes(len(SHARD.chunks[7]))) if number == 7 else SHARD.sealed(number)

    sink = MemorySink(SHARD)
    with serve(node, MemorySource(SHARD, chunk)) as server, pytest.raises(DamagedData) as caught:
        pull(SHARD.frame.ref(), [at(server, node)], sink, me, deadline_s=20)
    assert vars(caught.value) == {"shard_id": SHARD.shard_id, "chunk": 7, "peer": node.identity.id}
    assert 7 not in sink.chunks and not sink.is_committed and sink.closed == 1


def test_a_source_mends_its_arena_from_its_disk_when_asked_again(
    node: Credentials, me: Credentials, tmp_path: Path
) -> None:
    memory = MemoryTier(Path(f"/dev/shm/raylog-test-{new_id()}"), 16 * MIB)
    store = TieredStore(memory, DiskTier(tmp_path, cluster_id=new_id()))
    try:
        with store.create(SHARD.frame, Durability.DISK) as writer:
            for number in range(len(SHARD.chunks)):
                writer.write_chunk(number, SHARD.sealed(number))
            writer.commit()
        with memory.path.open("r+b") as arena:
            arena.seek(memory.pin(SHARD.shard_id).offset + SHARD.frame.chunks[7].offset)
            arena.write(bytes(16))
        sink = MemorySink(SHARD)
        with WireServer(lambda: node, store, bind_host="127.0.0.1") as server:
            report = pull(SHARD.frame.ref(), [at(server, node)], sink, me, deadline_s=20)
        assert report.retried == 1 and sink.is_committed and sink.chunks[7] == SHARD.chunks[7]
        with memory.open(SHARD.shard_id) as reader:
            assert reader.chunk(7) == SHARD.sealed(7)
    finally:
        store.close()


def test_a_source_that_cannot_read_its_own_copy(node: Credentials, me: Credentials) -> None:
    def chunk(number: int) -> memoryview:
        if number == 7:
            raise DamagedData("a bad sector", shard_id=SHARD.shard_id, chunk=7)
        return SHARD.sealed(number)

    source = MemorySource(SHARD, chunk)
    with serve(node, source) as server, pytest.raises(DamagedData, match="a bad sector") as caught:
        pull(SHARD.frame.ref(), [at(server, node)], MemorySink(SHARD), me, deadline_s=20)
    assert vars(caught.value)["chunk"] == 7 and all(reader.is_closed for reader in source.readers)


def test_a_source_that_stalls_for_ever(node: Credentials, me: Credentials) -> None:
    released, stalling = threading.Event(), threading.Event()

    def chunk(number: int) -> memoryview:
        if number > 5:
            stalling.set()
            released.wait(20)
        return SHARD.sealed(number)

    with serve(node, MemorySource(SHARD, chunk)) as server:
        began = time.monotonic()
        with pytest.raises(PeerFault, match=r"no chunk for 0\.6 s"):
            pull(SHARD.frame.ref(), [at(server, node)], MemorySink(SHARD), me, deadline_s=20, bounds=QUICK)
        with pytest.raises(DeadlineExceeded, match="chunks missing"):
            pull(SHARD.frame.ref(), [at(server, node)], MemorySink(SHARD), me, deadline_s=0.5)
        assert time.monotonic() - began < 5
        stalling.clear()
        cancel, cancelled_s = threading.Event(), []

        def cancel_once_it_stalls() -> None:
            stalling.wait(20)  # before the frame is there the pull says something else
            cancelled_s.append(time.monotonic())
            cancel.set()

        threading.Thread(target=cancel_once_it_stalls).start()
        with pytest.raises(Cancelled, match=r"with .* of .* sealed bytes here"):
            pull(SHARD.frame.ref(), [at(server, node)], MemorySink(SHARD), me, deadline_s=20, cancel=cancel)
        assert time.monotonic() - cancelled_s[0] < 1.0
        released.set()


def test_nobody_listens(node: Credentials, me: Credentials) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    address = Source(peer=PeerAddress(node_id=node.identity.id, host="127.0.0.1", control_port=port))
    with pytest.raises(Unavailable, match="cannot connect"):
        pull(SHARD.frame.ref(), [address], MemorySink(SHARD), me, deadline_s=5)


def test_a_cancel_is_seen_while_nobody_answers(me: Credentials) -> None:
    """A listener whose backlog is full: connecting waits, and so does the first byte of a handshake before that."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = Source(peer=PeerAddress(node_id=new_id(), host="127.0.0.1", control_port=listener.getsockname()[1]))
        fillers = []
        for _ in range(2):  # the first shakes hands, the second connects
            cancel = threading.Event()
            threading.Timer(0.1, cancel.set).start()
            began = time.monotonic()
            with pytest.raises(Cancelled, match="before any source had shown its frame; pull again to resume"):
                pull(SHARD.frame.ref(), [address], MemorySink(SHARD), me, deadline_s=20, cancel=cancel)
            assert time.monotonic() - began < 1.1
            for _ in range(4):
                filler = socket.socket()
                filler.setblocking(False)
                filler.connect_ex(listener.getsockname())
                fillers.append(filler)
        for filler in fillers:
            filler.close()


def test_a_server_that_goes_down_says_so(node: Credentials, me: Credentials) -> None:
    released = threading.Event()

    def chunk(number: int) -> memoryview:
        if number > 5:
            released.wait(20)
        return SHARD.sealed(number)

    server, sink, caught = serve(node, MemorySource(SHARD, chunk)), MemorySink(SHARD), []

    def run() -> None:
        try:
            pull(SHARD.frame.ref(), [at(server, node)], sink, me, deadline_s=20)
        except RaylogError as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: len(sink.verified) >= 3, "nothing comes")
    threading.Timer(0.3, released.set).start()
    server.close()
    thread.join(10)
    assert isinstance(caught[0], Unavailable) and "shutdown" in str(caught[0]) and sink.closed == 1


# What goes wrong at the sink.


def test_a_sink_without_room(node: Credentials, me: Credentials) -> None:
    class Full:
        def create(self, frame: Frame) -> MemorySink:
            raise NoSpace("the disk is full")

    source = MemorySource(SHARD)
    with serve(node, source) as server:
        with pytest.raises(NoSpace, match="the disk is full"):
            pull(SHARD.frame.ref(), [at(server, node)], Full(), me, deadline_s=20)
        wait_until(lambda: all(reader.is_closed for reader in source.readers), "the pin stays")
    assert source.asked == []


def test_a_sink_that_fails_half_way(node: Credentials, me: Credentials) -> None:
    class Failing(MemorySink):
        def write_chunk(self, number: int, sealed: memoryview) -> None:
            if number == 20:
                raise NoSpace("the disk is full")
            super().write_chunk(number, sealed)

    sink = Failing(SHARD)
    with serve(node, MemorySource(SHARD)) as server, pytest.raises(NoSpace, match="the disk is full"):
        pull(SHARD.frame.ref(), [at(server, node)], sink, me, deadline_s=20)
    assert sink.closed == 1 and not sink.is_committed and sink.verified


@pytest.mark.parametrize("arguments", [{"streams": 0}, {"streams": 17}, {"deadline_s": 0}])
def test_arguments_that_cannot_be(node: Credentials, me: Credentials, arguments: dict[str, int]) -> None:
    address = Source(peer=PeerAddress(node_id=node.identity.id, host="127.0.0.1", control_port=1))
    with pytest.raises(UsageError, match="expected"):
        pull(SHARD.frame.ref(), [address], MemorySink(SHARD), me, **{"deadline_s": 5, **arguments})
