"""One shard from several nodes at once, and passed on while it comes, over real sockets."""

import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from wire_parts import Cluster, MemorySink, MemorySource, leak_check, wait_until

from raylog.codec.frame import Frame
from raylog.errors import NotFound, UsageError
from raylog.security.credentials import Credentials
from raylog.spec import QosClass
from raylog.testing.shards import sample_shard
from raylog.units import MIB
from raylog.wire.client import pull
from raylog.wire.fetcher import Fetcher, PullReport, Source
from raylog.wire.relay import Relay
from raylog.wire.schedule import Stripe
from raylog.wire.server import WireServer
from raylog.wire.sessions import PeerAddress, Sessions

SHARD = sample_shard(6, (MIB,) * 24)
ALL = range(len(SHARD.chunks))
CLUSTER = Cluster()
ME = CLUSTER.credentials()
NODES = [CLUSTER.credentials() for _ in range(3)]

nothing_is_left = pytest.fixture(autouse=True)(leak_check)


def at(server: WireServer, node: Credentials, **how: object) -> Source:
    peer = PeerAddress(node_id=node.identity.id, host=server.host, control_port=server.control_port)
    return Source(peer=peer, **how)  # type: ignore[arg-type]


def serve(node: Credentials, source: MemorySource, relay: Relay | None = None) -> WireServer:
    return WireServer(lambda: node, source, bind_host="127.0.0.1", relay=relay)


def slowly(seconds: float) -> Callable[[int], memoryview]:
    def chunk(number: int) -> memoryview:
        time.sleep(seconds)
        return SHARD.sealed(number)

    return chunk


class Writer(MemorySink):
    """Ends as a store's writer does."""

    def stored_chunk(self, number: int) -> memoryview:
        if self.is_committed or self.closed:
            raise UsageError("the writing has ended")
        return super().stored_chunk(number)


class RelayNode:
    """A node that gets the shard from `sources` and passes it on as it comes."""

    def __init__(self, node: Credentials) -> None:
        self.node, self.sink = node, Writer(SHARD)
        self.store = MemorySource(SHARD)
        self.relay = Relay(self.open)
        self.server = WireServer(lambda: node, self, bind_host="127.0.0.1", relay=self.relay)
        self.report: PullReport | None = None
        self.error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def open(self, shard_id: str) -> object:
        if not self.sink.is_committed:
            raise NotFound(f"shard {shard_id} is not here")
        return self.store.open(shard_id)

    def get(self, sources: list[Source]) -> None:
        self._thread = threading.Thread(target=self._run, args=(sources,))
        self._thread.start()

    def _run(self, sources: list[Source]) -> None:
        incoming = self.relay.incoming(SHARD.shard_id)
        with closing(Sessions(lambda: self.node)) as sessions:
            fetcher = Fetcher(SHARD.frame.ref(), sources, self.sink, sessions, qos=QosClass.SHIP,
                              deadline=time.monotonic() + 60, onlooker=incoming)  # fmt: skip
            try:
                self.report = fetcher.run()
            except BaseException as error:
                self.error = error
            finally:
                incoming.close()

    def join(self) -> PullReport:
        assert self._thread is not None
        self._thread.join(60)
        assert self.report is not None, self.error
        return self.report

    def close(self) -> None:
        self.server.close()
        if self._thread is not None:
            self._thread.join(60)


def partly(node: RelayNode, chunks: list[int]) -> None:
    """The node has these chunks of a shard that it gets and does not get further."""
    for chunk in chunks:
        node.sink.write_chunk(chunk, SHARD.sealed(chunk))
    node.relay.incoming(SHARD.shard_id).begun(SHARD.frame, node.sink)


def test_three_sources_with_parts_that_overlap_make_one_shard() -> None:
    parts = [list(range(12)), list(range(8, 20)), [0, 1, *range(16, 24)]]
    with ExitStack() as stack:
        nodes = [stack.enter_context(closing(RelayNode(node))) for node in NODES]
        for node, part in zip(nodes, parts, strict=True):
            partly(node, part)
        sink = MemorySink(SHARD)
        report = pull(SHARD.frame.ref(), [at(n.server, n.node) for n in nodes], sink, ME, deadline_s=30)
    assert sink.is_committed and sorted(set(sink.verified)) == list(ALL)
    assert set(report.by_source) == {node.identity.id for node in NODES}
    assert all(report.by_source[n.identity.id][1] >= 4 for n in (NODES[0], NODES[2])), "what only they have"


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
        time.sleep(0.05)
        return shard.sealed(number)
    credentials = Credentials.load(Path(sys.argv[1]))
    server = WireServer(lambda: credentials, MemorySource(shard, slow), bind_host="127.0.0.1")
    print(server.control_port, flush=True)
    sys.stdin.read()
"""


def test_one_of_three_sources_is_killed_half_way(tmp_path: Path) -> None:
    NODES[0].save(tmp_path / "credentials")
    script = textwrap.dedent(SOURCE_PROCESS.format(here=str(Path(__file__).parent)))
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "credentials")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None and process.stdout is not None
    peer = PeerAddress(node_id=NODES[0].identity.id, host="127.0.0.1", control_port=int(process.stdout.readline()))
    sink = MemorySink(SHARD)

    def kill_half_way() -> None:
        wait_until(lambda: len(sink.verified) >= 8, "nothing comes", 30)
        process.send_signal(signal.SIGKILL)

    killer = threading.Thread(target=kill_half_way)
    killer.start()
    others = [MemorySource(SHARD, slowly(0.1)) for _ in NODES[1:]]
    with serve(NODES[1], others[0]) as one, serve(NODES[2], others[1]) as two:
        sources = [Source(peer=peer), at(one, NODES[1]), at(two, NODES[2])]
        report = pull(SHARD.frame.ref(), sources, sink, ME, deadline_s=60)
    killer.join()
    process.communicate()
    assert sink.is_committed and report.chunks >= 24 and sink.closed
    assert sum(len(other.asked) for other in others) >= 24 - report.by_source.get(NODES[0].identity.id, (0, 0))[1]


def test_the_last_of_a_chain_has_chunks_before_the_middle_one_has_the_shard() -> None:
    with (
        serve(NODES[0], MemorySource(SHARD, slowly(0.1))) as first,
        closing(RelayNode(NODES[1])) as middle,
        closing(RelayNode(NODES[2])) as last,
    ):
        last.get([at(middle.server, NODES[1], is_relay=True)])  # before the middle one has begun
        middle.get([at(first, NODES[0])])
        wait_until(lambda: len(last.sink.verified) >= 3, "nothing is passed on", 30)
        assert not middle.sink.is_committed and len(middle.sink.verified) < len(ALL)
        assert middle.join().chunks == last.join().chunks == len(ALL)
    assert [last.sink.chunks[number] for number in ALL] == list(SHARD.chunks)
    assert all(reader.is_closed for reader in middle.store.readers)


def test_a_shard_that_comes_whole_just_when_it_is_asked_for_is_served_at_once() -> None:
    class JustCome(MemorySource):
        looked = 0

        def open(self, shard_id: str) -> object:
            self.looked += 1
            if self.looked == 1:
                raise NotFound(f"shard {shard_id} is not here")
            return super().open(shard_id)

    began, sink = time.monotonic(), MemorySink(SHARD)
    with serve(NODES[0], JustCome(SHARD)) as source:
        pull(SHARD.frame.ref(), [at(source, NODES[0], is_relay=True)], sink, ME, deadline_s=60)
    assert sink.is_committed and time.monotonic() - began < 10, "it did not wait for the shard to begin to come"


def test_a_relay_that_fails_is_left_for_the_holder() -> None:
    class Failing(Writer):
        def write_chunk(self, number: int, sealed: memoryview) -> None:
            if len(self.verified) >= 6:
                raise UsageError("this store has had enough")
            super().write_chunk(number, sealed)

    with (
        serve(NODES[0], MemorySource(SHARD, slowly(0.05))) as first,
        closing(RelayNode(NODES[1])) as middle,
        closing(RelayNode(NODES[2])) as last,
    ):
        middle.sink = Failing(SHARD)
        last.get([at(middle.server, NODES[1], is_relay=True), at(first, NODES[0], rank=1)])
        middle.get([at(first, NODES[0])])
        assert last.join().chunks >= len(ALL) - 6
        assert isinstance(middle.error, UsageError)


def test_a_slow_source_does_not_hold_up_the_end() -> None:
    with serve(NODES[0], MemorySource(SHARD, slowly(1.5))) as slow, serve(NODES[1], MemorySource(SHARD)) as fast:
        sink, began = MemorySink(SHARD), time.monotonic()
        sources = [at(slow, NODES[0], stripe=Stripe(0, 2)), at(fast, NODES[1], stripe=Stripe(1, 2))]
        report = pull(SHARD.frame.ref(), sources, sink, ME, deadline_s=60)
        took_s = time.monotonic() - began
    assert sink.is_committed and took_s < 12 * 1.5, took_s
    assert report.by_source[NODES[1].identity.id][1] > 12, "the fast one gave of the slow one's stripe"


def test_a_source_that_sends_wrong_bytes_is_left_after_two_and_the_rest_comes_from_another() -> None:
    def wrong(number: int) -> memoryview:
        return memoryview(bytes(MIB))

    bad, good = MemorySource(SHARD, wrong), MemorySource(SHARD)
    with serve(NODES[0], bad) as one, serve(NODES[1], good) as two:
        sink = MemorySink(SHARD)
        sources = [at(one, NODES[0]), at(two, NODES[1], rank=1)]
        report = pull(SHARD.frame.ref(), sources, sink, ME, deadline_s=60)
    assert sink.is_committed and NODES[0].identity.id not in report.by_source
    assert report.by_source[NODES[1].identity.id][1] == len(ALL)
    assert 2 <= report.retried <= 4, "two, and what its other stream had brought meanwhile"


def test_who_waits_for_a_node_that_never_begins_is_told() -> None:
    """A relay that is not patient here: `Open` without patience is answered at once."""
    with closing(RelayNode(NODES[1])) as idle, pytest.raises(NotFound, match="is not here"):
        pull(SHARD.frame.ref(), [at(idle.server, NODES[1])], MemorySink(SHARD), ME, deadline_s=20)


def test_a_frame_is_taken_from_whoever_shows_it_first() -> None:
    sinks: list[Frame] = []

    class Counting(MemorySink):
        def create(self, frame: Frame) -> MemorySink:
            sinks.append(frame)
            return super().create(frame)

    with ExitStack() as stack:
        servers = [stack.enter_context(serve(node, MemorySource(SHARD))) for node in NODES]
        sources = [at(server, node) for server, node in zip(servers, NODES, strict=True)]
        pull(SHARD.frame.ref(), sources, Counting(SHARD), ME, deadline_s=30)
    assert len(sinks) == 1, "room is made once"
