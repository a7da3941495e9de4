"""Probes: what opens, what is lost, and both shells over real sockets."""

import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_parts import leak_check, wait_until

from raylog.wire.path import PathEstimate
from raylog.wire.paths import Paths
from raylog.wire.probe import (
    DATAGRAM_BYTES,
    LOST_AFTER_S,
    OUTSTANDING_MAX,
    Outstanding,
    Probe,
    ProbeKind,
    ProbeOpener,
    ProbeSealer,
    Rate,
    derive_probe_keys,
    session_of,
)
from raylog.wire.prober import Caller, Responder
from raylog.wire.record import StreamContext, derive_keys

IDS = ("c" * 32, "a" * 32, "b" * 32)
KEYS = derive_probe_keys(b"p" * 32, b"s" * 32, *IDS)
PEER = "a" * 32

nothing_is_left = pytest.fixture(autouse=True)(leak_check)


def test_the_keys_are_of_probes_alone_and_differ_by_direction() -> None:
    stream = derive_keys(StreamContext(b"p" * 32, b"s" * 32, *IDS, b"i" * 16, b"n" * 32, b"m" * 32))
    keys = {KEYS.from_puller, KEYS.from_source, stream.from_puller, stream.from_source}
    assert len(keys) == 4 and KEYS.id not in keys
    assert KEYS.from_puller.hex() not in repr(KEYS)
    assert derive_probe_keys(b"q" * 32, b"s" * 32, *IDS).from_puller != KEYS.from_puller


def test_a_known_datagram() -> None:
    datagram = ProbeSealer(bytes(16), bytes(32)).seal(Probe(ProbeKind.ECHO, 7))
    assert len(datagram) == DATAGRAM_BYTES == 56
    assert datagram[:24] == bytes(24) and datagram != ProbeSealer(bytes(16), bytes(32)).seal(Probe(ProbeKind.CALL, 7))


def test_each_opens_once_and_none_after_a_newer_one() -> None:
    sealer, opener = ProbeSealer(KEYS.id, KEYS.from_puller), ProbeOpener(KEYS.id, KEYS.from_puller)
    first, second, third = (sealer.seal(Probe(ProbeKind.CALL, number)) for number in range(3))
    assert opener.open(first) == Probe(ProbeKind.CALL, 0)
    assert opener.open(first) is None
    assert opener.open(third) == Probe(ProbeKind.CALL, 2)
    assert opener.open(second) is None
    assert ProbeOpener(KEYS.id, KEYS.from_source).open(first) is None


@given(st.integers(0, DATAGRAM_BYTES - 1), st.integers(1, 255))
def test_a_changed_byte_never_opens(position: int, change: int) -> None:
    datagram = bytearray(ProbeSealer(KEYS.id, KEYS.from_puller).seal(Probe(ProbeKind.CALL, 1)))
    datagram[position] ^= change
    opener = ProbeOpener(KEYS.id, KEYS.from_puller)
    assert opener.open(bytes(datagram)) is None
    datagram[position] ^= change
    assert opener.open(bytes(datagram)) is not None, "a forgery must not use up a counter"


@given(st.binary(max_size=200))
def test_garbage_is_of_no_session_or_does_not_open(data: bytes) -> None:
    assert (session_of(data) is None) == (len(data) != DATAGRAM_BYTES)
    assert ProbeOpener(KEYS.id, KEYS.from_puller).open(data) is None


def test_round_trips_and_losses() -> None:
    outstanding = Outstanding()
    first, second = outstanding.send(0.0), outstanding.send(0.1)
    assert outstanding.echo(first, 0.25) == 0.25
    assert outstanding.echo(first, 0.3) is None
    assert outstanding.overdue(0.5) == 0
    assert outstanding.overdue(0.1 + LOST_AFTER_S) == 1
    assert outstanding.echo(second, 1.2) is None


def test_what_is_outstanding_is_bounded() -> None:
    outstanding, lost = Outstanding(), 0
    for _ in range(3 * OUTSTANDING_MAX):
        lost += outstanding.overdue(0.0)
        outstanding.send(0.0)
    assert lost == 2 * OUTSTANDING_MAX


def test_a_rate_lets_so_many_pass_a_second() -> None:
    rate = Rate(10.0)
    assert sum(rate.take(5.0) for _ in range(50)) == 10
    assert sum(rate.take(5.5) for _ in range(50)) == 5


def estimate(paths: Paths) -> PathEstimate:
    found = [report.estimate for report in paths.report() if report.peer_id == PEER]
    return found[0] if found else PathEstimate()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_source_learns_the_round_trip(host: str) -> None:
    paths = Paths()
    responder = Responder(host, (0, 0), paths)
    responder.expect(PEER, KEYS)
    caller = Caller(KEYS, lambda: True)
    thread = threading.Thread(target=caller.run, args=(host, responder.port))
    thread.start()
    wait_until(lambda: estimate(paths).probe_rtt_s is not None, "no probe came back")
    caller.close()
    thread.join(1.0)
    responder.close()
    assert not thread.is_alive()
    assert 0 < (estimate(paths).probe_rtt_s or 0) < 1
    assert estimate(paths).probe_loss_share == 0
    assert responder.dropped() == {}


def test_a_caller_whom_nobody_answers_ends_when_it_is_told() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        caller = Caller(KEYS, lambda: True)
        thread = threading.Thread(target=caller.run, args=silent.getsockname())
        thread.start()
        assert len(silent.recv(1000)) == DATAGRAM_BYTES
        caller.close()
        thread.join(5.0)
        assert not thread.is_alive()


def test_strangers_forgeries_and_floods_are_dropped_counted_and_said(caplog: pytest.LogCaptureFixture) -> None:
    responder = Responder("127.0.0.1", (0, 0), Paths())
    responder.expect(PEER, KEYS)
    sealer = ProbeSealer(KEYS.id, KEYS.from_puller)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as attacker:
        attacker.connect(("127.0.0.1", responder.port))
        attacker.send(b"")
        attacker.send(b"x" * DATAGRAM_BYTES)
        attacker.send(KEYS.id + b"x" * (DATAGRAM_BYTES - 16))
        for _ in range(100):
            attacker.send(sealer.seal(Probe(ProbeKind.CALL, 0)))
        wait_until(lambda: sum(responder.dropped().values()) >= 80, "nothing was dropped")
    responder.forget(KEYS.id)
    responder.close()
    dropped = responder.dropped()
    assert dropped["unknown"] == 2 and dropped["sealed"] == 1 and dropped["flood"] >= 75
    assert sum("flood port" in record.getMessage() for record in caplog.records) == 1
