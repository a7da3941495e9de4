"""Paths over real sockets: live streams are switched, decisions kept, peers bounded."""

import socket

import pytest

from raylog.wire import paths as paths_module
from raylog.wire.path import Sent
from raylog.wire.paths import PEERS_MAX, Paths
from raylog.wire.tcp_info import can_use, congestion_control, default_congestion_control, set_congestion_control

LOSSY = Sent(segments=10_000, retransmitted_segments=200, rtt_s=0.001, min_rtt_s=0.001, delivery_rate_bytes_per_s=1)


@pytest.fixture
def connection():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        left = socket.create_connection(listener.getsockname())
        right, _ = listener.accept()
    with left, right:
        yield left


@pytest.fixture
def paths(monkeypatch: pytest.MonkeyPatch) -> Paths:
    """Of a host whose default is one that minds loss, whatever it is here."""
    monkeypatch.setattr(paths_module, "default_congestion_control", lambda: "reno")
    return Paths()


def see_loss(paths: Paths, peer_id: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for now in (1.0, 1.1, 1.2, 1.3):
            patch.setattr(paths_module.time, "monotonic", lambda now=now: now)
            paths.sent(peer_id, LOSSY)


@pytest.mark.skipif(not can_use("bbr"), reason="this kernel gives this process no bbr")
def test_a_live_stream_is_switched_and_the_decision_says_why(paths: Paths, connection: socket.socket, caplog) -> None:
    set_congestion_control(connection, "reno")
    caplog.set_level("INFO")
    watch = paths.watch("a" * 32, connection)
    assert congestion_control(connection) == "reno"
    see_loss(paths, "a" * 32)
    connection.sendall(bytes(1000))
    watch._looked = 0.0
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
def test_the_next_stream_to_a_lossy_peer_begins_with_bbr(paths: Paths, connection: socket.socket) -> None:
    see_loss(paths, "a" * 32)
    set_congestion_control(connection, "reno")
    paths.watch("a" * 32, connection)
    assert congestion_control(connection) == "bbr"


def test_peers_are_bounded_and_the_least_used_goes(paths: Paths) -> None:
    for number in range(PEERS_MAX + 10):
        paths.counts(f"{number:032x}", 1)
    peers = [report.peer_id for report in paths.report()]
    assert len(peers) == PEERS_MAX
    assert peers[-1] == f"{PEERS_MAX + 9:032x}" and f"{0:032x}" not in peers


def test_a_gone_connection_is_no_refusal(paths: Paths, connection: socket.socket) -> None:
    watch = paths.watch("a" * 32, connection)
    see_loss(paths, "a" * 32)
    connection.close()
    watch._looked = 0.0
    watch.look()
    assert paths._facts.has_bbr == can_use("bbr")


def test_the_default_is_the_hosts_own() -> None:
    paths = Paths()
    paths.counts("a" * 32, 1)
    assert paths.report()[0].choice.congestion_control == default_congestion_control()
