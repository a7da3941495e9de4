"""The pool of sessions of a node, over real sockets."""

import threading
import time
from contextlib import closing

import pytest
from wire_parts import Cluster, MemorySink, MemorySource, leak_check, wait_until

from raylog.errors import Cancelled, RaylogError, Unavailable
from raylog.security.credentials import Credentials
from raylog.spec import QosClass
from raylog.testing.shards import sample_shard
from raylog.wire import sessions as pool
from raylog.wire.client_session import ClientSession
from raylog.wire.fetcher import Fetcher, Source
from raylog.wire.server import WireServer
from raylog.wire.sessions import PeerAddress, Sessions

SHARD = sample_shard(5, (70_000, 16, 200_000, *[100_000] * 10))
CLUSTER = Cluster()
NODE, ME = CLUSTER.credentials(), CLUSTER.credentials()

nothing_is_left = pytest.fixture(autouse=True)(leak_check)


def serve(node: Credentials = NODE) -> WireServer:
    return WireServer(lambda: node, MemorySource(SHARD), bind_host="127.0.0.1")


def address(server: WireServer, node: Credentials = NODE) -> PeerAddress:
    return PeerAddress(node_id=node.identity.id, host=server.host, control_port=server.control_port)


def get(sessions: Sessions, peer: PeerAddress, qos: QosClass = QosClass.SHIP) -> ClientSession:
    return sessions.get(peer, qos, time.monotonic() + 20, threading.Event())


def test_many_callers_share_one_connection() -> None:
    with serve() as server, closing(Sessions(lambda: ME)) as sessions:
        found: list[ClientSession] = []
        threads = [threading.Thread(target=lambda: found.append(get(sessions, address(server)))) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 10 and len(set(map(id, found))) == 1
        wait_until(lambda: server.counters().sessions_admitted == 1, "there is no session")
        assert get(sessions, address(server), QosClass.READ) is not found[0], "one for each class"


def test_pulls_one_after_another_use_one_session() -> None:
    with serve() as server, closing(Sessions(lambda: ME)) as sessions:
        for _ in range(3):
            sink = MemorySink(SHARD)
            source = Source(peer=address(server))
            fetcher = Fetcher(SHARD.frame.ref(), [source], sink, sessions, qos=QosClass.SHIP,
                              deadline=time.monotonic() + 20)  # fmt: skip
            fetcher.run()
            assert sink.is_committed
        wait_until(lambda: get(sessions, address(server)).is_idle, "a pull is left open")
        assert server.counters().sessions_admitted == 1


def test_a_dead_session_is_replaced() -> None:
    with serve() as server, closing(Sessions(lambda: ME)) as sessions:
        first = get(sessions, address(server))
        first.close()
        assert get(sessions, address(server)) is not first
        wait_until(lambda: server.counters().sessions_admitted == 2, "there is no second session")


def test_idle_sessions_are_ended_and_others_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "IDLE_S", 0.2)
    monkeypatch.setattr(pool, "LOOK_S", 0.05)
    with serve() as server, closing(Sessions(lambda: ME)) as sessions:
        first = get(sessions, address(server))
        wait_until(lambda: not first.is_usable, "it stays")
        wait_until(lambda: server.counters().sessions_open == 0, "the other end stays")
        assert get(sessions, address(server)).is_usable


def test_who_waited_for_a_session_that_was_just_taken_out_gets_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "LOOK_S", 100.0)
    with serve() as server, closing(Sessions(lambda: ME)) as sessions:
        first = get(sessions, address(server))
        (place,) = sessions._places.values()
        found: list[ClientSession] = []
        with place.lock:  # as while it connects
            waiting = threading.Thread(target=lambda: found.append(get(sessions, address(server))))
            waiting.start()
            time.sleep(0.1)
            place.is_gone = True
            sessions._places.clear()
        first.close()
        waiting.join()
        assert found[0] is not first and found[0].is_usable
        (place,) = sessions._places.values()
        assert place.session is found[0], "in the pool, which ends it"


def test_close_ends_what_waits_and_what_runs() -> None:
    with serve() as server:
        sessions = Sessions(lambda: ME)
        first = get(sessions, address(server))
        (place,) = sessions._places.values()
        errors: list[RaylogError] = []

        def wait() -> None:
            try:
                get(sessions, address(server))
            except RaylogError as error:
                errors.append(error)

        with place.lock:
            waiting = [threading.Thread(target=wait) for _ in range(4)]
            closes = threading.Thread(target=sessions.close)
            for thread in [*waiting, closes]:
                thread.start()
            time.sleep(0.1)
        for thread in [*waiting, closes]:
            thread.join(10)
        assert not first.is_usable
        assert all(isinstance(error, Unavailable) and "goes down" in str(error) for error in errors)
        with pytest.raises(Unavailable, match="goes down"):
            get(sessions, address(server))


def test_who_waits_may_be_cancelled() -> None:
    with serve() as server, closing(Sessions(lambda: ME)) as sessions:
        get(sessions, address(server))
        (place,) = sessions._places.values()
        cancel = threading.Event()
        cancel.set()
        with place.lock, pytest.raises(Cancelled):
            sessions.get(address(server), QosClass.SHIP, time.monotonic() + 20, cancel)
