"""Transfer counters: sums under threads, and a bound on peers."""

import threading

from hypothesis import given
from hypothesis import strategies as st

from raylog.monitor.meter import OTHER, PEERS_MAX, TransferMeter
from raylog.monitor.samples import PeerCounters, TransferCounters
from raylog.spec import QosClass
from raylog.wire.classes import ClassCounters


def test_every_counter() -> None:
    meter = TransferMeter()
    meter.sent("a", QosClass.SHIP, 10, 0.5)
    meter.received("a", 5, chunks=2)
    meter.received("b", 7)
    meter.damaged()
    meter.repaired(2)
    meter.pulled()
    meter.pull_failed()
    assert meter.counters() == TransferCounters(
        sent_bytes=10,
        received_bytes=12,
        sent_chunks=1,
        received_chunks=3,
        damaged_chunks=1,
        repaired_chunks=2,
        pulls_done=1,
        pulls_failed=1,
        by_peer={
            "a": PeerCounters(sent_bytes=10, received_bytes=5),
            "b": PeerCounters(sent_bytes=0, received_bytes=7),
        },
        by_class={
            **dict.fromkeys(QosClass, ClassCounters()),
            QosClass.SHIP: ClassCounters(sent_bytes=10, sent_chunks=1, waited_s=0.5),
        },
    )


def test_threads_lose_no_count() -> None:
    meter = TransferMeter()
    threads = [
        threading.Thread(target=lambda: [meter.sent("a", QosClass.READ, 3) for _ in range(2000)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counters = meter.counters()
    assert (counters.sent_bytes, counters.sent_chunks) == (48_000, 16_000)
    assert counters.by_peer["a"].sent_bytes == 48_000


@given(st.lists(st.tuples(st.integers(0, 2 * PEERS_MAX), st.integers(0, 100), st.booleans()), max_size=300))
def test_peers_are_bounded_and_their_sums_stay_right(moves: list[tuple[int, int, bool]]) -> None:
    meter = TransferMeter()
    for peer, count, is_sent in moves:
        if is_sent:
            meter.sent(f"peer-{peer}", QosClass.SHIP, count)
        else:
            meter.received(f"peer-{peer}", count)
    counters = meter.counters()
    assert len(counters.by_peer) <= PEERS_MAX + 1
    assert sum(peer.sent_bytes for peer in counters.by_peer.values()) == counters.sent_bytes
    assert sum(peer.received_bytes for peer in counters.by_peer.values()) == counters.received_bytes
    if moves:
        assert f"peer-{moves[-1][0]}" in counters.by_peer


def test_the_peer_silent_for_longest_goes_to_other() -> None:
    meter = TransferMeter()
    for number in range(PEERS_MAX):
        meter.sent(f"peer-{number}", QosClass.SHIP, 1)
    meter.sent("peer-0", QosClass.SHIP, 1)
    meter.sent("one more", QosClass.SHIP, 1)
    by_peer = meter.counters().by_peer
    assert "peer-1" not in by_peer
    assert by_peer["peer-0"].sent_bytes == 2
    assert by_peer[OTHER].sent_bytes == 1
