"""Traffic classes through one real server, over real sockets: shares, caps, and threads that are let go."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest
from wire_parts import Cluster, MemorySink, MemorySource, leak_check, wait_until

from raylog.errors import RaylogError, Unavailable
from raylog.spec import QosClass, new_id
from raylog.testing.shards import sample_shard
from raylog.units import MIB
from raylog.wire.classes import Slices
from raylog.wire.client import pull
from raylog.wire.fetcher import Source
from raylog.wire.gate import Gate
from raylog.wire.runner import SessionRunner
from raylog.wire.server import WireServer
from raylog.wire.sessions import PeerAddress

SHARD = sample_shard(11, (MIB,) * 160)
CAP_BYTES_PER_S = 40_000_000

nothing_is_left = pytest.fixture(autouse=True)(leak_check)


def test_two_classes_share_a_capped_node_by_weight() -> None:
    cluster = Cluster()
    node, cancel = cluster.credentials(), threading.Event()
    slices = Slices(node_cap_bytes_per_s=CAP_BYTES_PER_S)

    def take(qos: QosClass) -> None:
        with pytest.raises(RaylogError):
            while True:
                pull(SHARD.frame.ref(), [address], MemorySink(SHARD), cluster.credentials(), deadline_s=30, qos=qos,
                     streams=2, cancel=cancel)  # fmt: skip

    with WireServer(lambda: node, MemorySource(SHARD), bind_host="127.0.0.1", slices=slices) as server:
        address = Source(peer=PeerAddress(node_id=node.identity.id, host=server.host, control_port=server.control_port))
        threads = [threading.Thread(target=take, args=(qos,)) for qos in (QosClass.READ, QosClass.SHIP)]
        for thread in threads:
            thread.start()
        both = (QosClass.READ, QosClass.SHIP)
        wait_until(lambda: all(server.counters().classes[qos].sent_chunks > 2 for qos in both), "not both send")
        before, began = server.counters(), time.monotonic()
        time.sleep(4)
        after, seconds = server.counters(), time.monotonic() - began
        cancel.set()
        for thread in threads:
            thread.join(10)
    moved = {qos: after.classes[qos].sent_bytes - before.classes[qos].sent_bytes for qos in QosClass}
    assert 0.95 * CAP_BYTES_PER_S < sum(moved.values()) / seconds < 1.05 * CAP_BYTES_PER_S
    assert moved[QosClass.READ] / sum(moved.values()) == pytest.approx(0.8, rel=0.1)
    assert moved[QosClass.SHIP] / sum(moved.values()) == pytest.approx(0.2, rel=0.1)
    assert after.classes[QosClass.SHIP].waited_s > before.classes[QosClass.SHIP].waited_s
    assert moved[QosClass.REPAIR] == 0 and after.sent_bytes == sum(of.sent_bytes for of in after.classes.values())


def test_closing_a_server_lets_threads_that_wait_for_their_turn_go() -> None:
    cluster = Cluster()
    node = cluster.credentials()
    caught: list[RaylogError] = []

    def take() -> None:
        try:
            pull(SHARD.frame.ref(), [address], MemorySink(SHARD), cluster.credentials(), deadline_s=30)
        except RaylogError as error:
            caught.append(error)

    server = WireServer(lambda: node, MemorySource(SHARD), bind_host="127.0.0.1",
                        slices=Slices(node_cap_bytes_per_s=1_000_000))  # fmt: skip
    address = Source(peer=PeerAddress(node_id=node.identity.id, host=server.host, control_port=server.control_port))
    thread = threading.Thread(target=take)
    thread.start()
    wait_until(lambda: server.counters().sent_chunks >= 1, "nothing is sent")
    began = time.monotonic()
    server.close()
    assert time.monotonic() - began < 0.8  # a chunk's turn comes every 1.05 s
    thread.join(10)
    assert "shutdown" in str(caught[0])


def test_a_farewell_leaves_though_its_thread_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """The session's own thread ends as soon as another one has closed the session: it must not take the line along."""
    flush = SessionRunner._flush

    def late(self: SessionRunner) -> None:
        if threading.current_thread() is threading.main_thread():
            self.nudge()
            time.sleep(1.0)  # longer than the session's own thread takes to end and close the line
        flush(self)

    monkeypatch.setattr(SessionRunner, "_flush", late)
    cluster, caught = Cluster(), []
    node = cluster.credentials()
    server = WireServer(lambda: node, MemorySource(SHARD), bind_host="127.0.0.1",
                        slices=Slices(node_cap_bytes_per_s=1_000_000))  # fmt: skip
    address = Source(peer=PeerAddress(node_id=node.identity.id, host=server.host, control_port=server.control_port))

    def take() -> None:
        with pytest.raises(RaylogError) as failed:
            pull(SHARD.frame.ref(), [address], MemorySink(SHARD), cluster.credentials(), deadline_s=30)
        caught.append(str(failed.value))

    thread = threading.Thread(target=take)
    thread.start()
    wait_until(lambda: server.counters().sent_chunks >= 1, "nothing is sent")
    server.close()
    thread.join(10)
    assert "shutdown" in caught[0]


@pytest.fixture
def pair() -> Iterator[socket.socket]:
    left, right = socket.socketpair()
    yield left
    left.close()
    right.close()


def test_a_detached_stream_goes_on_at_once(pair: socket.socket) -> None:
    gate = Gate(Slices(node_cap_bytes_per_s=1_000_000), 10.0)
    gate.attach(b"a", "peer", pair)
    with gate.turn(b"a", QosClass.SHIP, 4 * MIB):
        pass
    threading.Timer(0.1, gate.detach, [b"a"]).start()
    began = time.monotonic()
    with gate.turn(b"a", QosClass.SHIP, 4 * MIB):
        assert 0.05 < time.monotonic() - began < 0.5


def test_a_turn_that_does_not_come_says_what_it_waited_for(pair: socket.socket) -> None:
    gate = Gate(Slices(class_caps_bytes_per_s={QosClass.SHIP: 1_000_000}), 0.2)
    peer = new_id()
    gate.attach(b"a", peer, pair)
    with gate.turn(b"a", QosClass.SHIP, 4 * MIB):
        pass
    match = rf"class ship to {peer} .* within 0\.2 s: it waited for the cap of 1\.00 MB/s of its class"
    with pytest.raises(Unavailable, match=match), gate.turn(b"a", QosClass.SHIP, MIB):
        pass
    with gate.turn(b"a", QosClass.READ, MIB):  # another class is not held up
        pass


def test_a_turn_costs_microseconds(pair: socket.socket) -> None:
    gate = Gate(Slices(), 10.0)
    gate.attach(b"a", "peer", pair)
    best = min(_seconds(gate, 200) for _ in range(5))
    assert best / 200 < 200e-6


def _seconds(gate: Gate, turns: int) -> float:
    began = time.perf_counter()
    for _ in range(turns):
        with gate.turn(b"a", QosClass.SHIP, MIB):
            gate.sent(b"a", QosClass.SHIP, MIB)
    return time.perf_counter() - began
