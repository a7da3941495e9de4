"""Paths over real sockets: live streams are switched, decisions kept, peers bounded."""

import socket

import pytest

from raylog.wire import paths as paths_module
from raylog.wire.path import Sent
from raylog.wire.paths import PEERS_MAX, PROBES_WITHIN_S, Paths
from raylog.wire.tcp_info import can_use, congestion_control, default_congestion_control, set_congestion_control

LOSSY = Sent(segments=10_000, retransmitted_segments=200, rtt_s=0.001, min_rtt_s=0.001, delivery_rate_bytes_per_s=1)


@pytest.fixture
def connection():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        left = socket.create_connection(listener.getsockname())
        right, _ = listener.accept()
    with left, right:
        yield left


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def paths(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Paths:
    """Of a host whose default is one that minds loss, whatever it is here."""
    monkeypatch.setattr(paths_module, "default_congestion_control", lambda: "reno")
    return Paths(clock)


def see_loss(paths: Paths, clock: Clock, peer_id: str) -> None:
    for _ in range(4):
        paths.sent(peer_id, LOSSY)
        clock.now += 0.1


@pytest.mark.skipif(not can_use("bbr"), reason="this kernel gives this process no bbr")
def test_a_live_stream_is_switched_and_the_decision_says_why(
    paths: Paths, clock: Clock, connection: socket.socket, caplog
) -> None:
    set_congestion_control(connection, "reno")
    caplog.set_level("INFO")
    watch = paths.watch("a" * 32, connection)
    assert congestion_control(connection) == "reno"
    see_loss(paths, clock, "a" * 32)
    connection.sendall(bytes(1000))
    clock.now += 0.1
    watch.look()
    assert congestion_control(connection) == "bbr"
    (decision,) = paths.decisions()
    assert (decision.peer_id, decision.before, decision.after) == ("a" * 32, "reno", "bbr")
    assert "sent again" in decision.reason and str(decision) in caplog.text
    (report,) = paths.report()
    assert (report.streams, report.decision) == (1, decision)
    watch.end()
    assert paths.report()[0].streams == 0


@pytest.mark.skipif(not can_use("bbr"), reason="this kernel gives this process no bbr")
def test_the_next_stream_to_a_lossy_peer_begins_with_bbr(paths: Paths, clock: Clock, connection: socket.socket) -> None:
    see_loss(paths, clock, "a" * 32)
    set_congestion_control(connection, "reno")
    paths.watch("a" * 32, connection)
    assert congestion_control(connection) == "bbr"


def test_peers_are_bounded_and_the_least_used_goes(paths: Paths) -> None:
    for number in range(PEERS_MAX + 10):
        paths.counts(f"{number:032x}", 1)
    peers = [report.peer_id for report in paths.report()]
    assert len(peers) == PEERS_MAX
    assert peers[-1] == f"{PEERS_MAX + 9:032x}" and f"{0:032x}" not in peers


def test_a_gone_connection_is_no_refusal(paths: Paths, clock: Clock, connection: socket.socket) -> None:
    watch = paths.watch("a" * 32, connection)
    see_loss(paths, clock, "a" * 32)
    connection.close()
    clock.now += 0.1
    watch.look()
    assert paths._facts.has_bbr == can_use("bbr")


def test_the_default_is_the_hosts_own() -> None:
    paths = Paths()
    paths.counts("a" * 32, 1)
    assert paths.report()[0].choice.congestion_control == default_congestion_control()


def test_that_no_probe_comes_back_is_said_once(paths: Paths, clock: Clock) -> None:
    clean = Sent(segments=100, retransmitted_segments=0, rtt_s=0.001, min_rtt_s=None, delivery_rate_bytes_per_s=None)
    for _ in range(20):
        paths.sent("a" * 32, clean)
        paths.sent("b" * 32, clean)
        paths.probed("b" * 32, 0.001)
        clock.now += PROBES_WITHIN_S / 10
    (decision,) = paths.decisions()
    assert (decision.peer_id, decision.what, decision.after) == ("a" * 32, "probes", "none")
