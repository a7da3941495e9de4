"""Traffic classes in simulated time: shares by weight, work conservation, no starvation, caps."""

import itertools
import random
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slices_simulation import Sender, Simulation

from raylog.errors import UsageError
from raylog.settings import Settings, from_mapping
from raylog.spec import QosClass, parse_qos
from raylog.units import MIB, parse_rate
from raylog.wire.bucket import BURST_S
from raylog.wire.classes import Slices
from raylog.wire.slices import PEER_BUCKETS_MAX, FairQueue

READ, CHECKPOINT, SHIP, REPAIR = QosClass
GBIT = 125e6
DEFAULT = Slices()


def senders(qos: QosClass, count: int, chunk_bytes: int = 2 * MIB, **rest: object) -> list[Sender]:
    return [Sender(qos, lambda: chunk_bytes, **rest) for _ in range(count)]  # type: ignore[arg-type]


def mixed(seed: int, least: int = MIB, most: int = 4 * MIB) -> Callable[[], int]:
    draw = random.Random(seed)
    return lambda: draw.randint(least, most)


def used(simulation: Simulation) -> float:
    return sum(simulation.bytes(qos) for qos in QosClass) / simulation.now / simulation.link_bytes_per_s


@given(
    classes=st.dictionaries(
        st.sampled_from(list(QosClass)), st.tuples(st.integers(1, 6), st.sampled_from([1, 2, 8, 16])), min_size=2
    ),
    seed=st.integers(0, 1000),
    kernel_bytes=st.sampled_from([0, MIB // 4, MIB]),
)
@settings(max_examples=8, deadline=None)
def test_classes_share_a_busy_link_by_weight(
    classes: dict[QosClass, tuple[int, int]], seed: int, kernel_bytes: int
) -> None:
    """However many streams each has, whatever the sizes of its chunks; nobody knows the link's rate."""
    slices = Slices(weights={qos: weight for qos, (_, weight) in classes.items()})
    streams = [Sender(qos, mixed(seed + number)) for qos, (count, _) in classes.items() for number in range(count)]
    simulation = Simulation(slices, GBIT, streams, kernel_bytes=kernel_bytes).run(11)
    whole = sum(weight for _, weight in classes.values())
    total = sum(simulation.bytes(qos, 1.0) for qos in classes)
    for qos, (_, weight) in classes.items():
        chunk = 4 * MIB * (1 + weight) / total  # the last ones may just have begun
        assert simulation.share(qos, 1.0) == pytest.approx(weight / whole, rel=0.1, abs=0.02 + chunk)
    assert used(simulation) > 0.95


def test_a_class_runs_ahead_of_another_by_a_chunk_over_its_weight() -> None:
    slices = Slices(node_cap_bytes_per_s=10**8)
    simulation = Simulation(slices, GBIT, senders(READ, 3) + senders(SHIP, 3) + senders(REPAIR, 1)).run(10)
    service = dict.fromkeys((READ, SHIP, REPAIR), 0.0)
    for _, sender, count in simulation.admitted:
        service[sender.qos] += count / slices.weight(sender.qos)
        lead = max(service.values()) - min(service.values())
        assert lead <= 2 * MIB / slices.weight(REPAIR) + 2 * MIB / slices.weight(SHIP)


@pytest.mark.parametrize(("rate", "least"), [(1e6, 0.9), (10e6, 0.8), (30e6, 0.6), (60e6, 0.5)])
def test_slow_receivers_of_an_urgent_class_do_not_hold_up_the_others(rate: float, least: float) -> None:
    streams = senders(READ, 1, receiver_bytes_per_s=rate) + senders(REPAIR, 4)
    simulation = Simulation(DEFAULT, GBIT, streams).run(8)
    assert used(simulation) > least
    assert simulation.bytes(READ) > 0.9 * rate * 7  # and it gets what it can take


def test_what_a_fast_link_can_carry_is_found_out() -> None:
    """60 MB/s take a 10 Gbit/s link's whole time by the nominal 1 Gbit/s: only a probe shows that there is more."""
    streams = senders(READ, 1, receiver_bytes_per_s=60e6) + senders(SHIP, 4)
    simulation = Simulation(DEFAULT, 10 * GBIT, streams, now=19.0).run(22.0)
    assert sum(count for at, _, count in simulation.admitted if at < 20) < 0.2 * 10 * GBIT
    assert sum(count for at, _, count in simulation.admitted if at >= 21) > 0.8 * 10 * GBIT


def test_an_idle_class_saves_nothing_up_and_holds_nobody_up() -> None:
    streams = senders(SHIP, 2) + senders(READ, 2, begins_s=4.0, ends_s=6.0) + senders(REPAIR, 1, begins_s=9.0)
    simulation = Simulation(DEFAULT, GBIT, streams).run(12)
    assert used(simulation) > 0.97
    began = [at for at, sender, _ in simulation.admitted if sender.qos is SHIP]
    assert max(after - before for before, after in itertools.pairwise(began)) < 0.3
    since_9 = [count for at, sender, count in simulation.admitted if at >= 9 and sender.qos is REPAIR]
    assert sum(since_9) == pytest.approx(3 * GBIT / 3, rel=0.15)  # its third from the start, no more


def test_nobody_starves() -> None:
    slices = Slices(weights={READ: 1000, REPAIR: 1})
    simulation = Simulation(slices, GBIT, senders(READ, 8, MIB) + senders(REPAIR, 1, MIB)).run(18)
    assert simulation.bytes(REPAIR) >= 2 * MIB


@given(
    cap=st.sampled_from([20_000_000, 40_000_000, 90_000_000]),
    chunk_bytes=st.integers(MIB // 4, MIB),
    counts=st.tuples(st.integers(1, 4), st.integers(0, 4)),
    of=st.sampled_from(["node", "peer", "class"]),
)
@settings(max_examples=8, deadline=None)
def test_a_cap_holds_over_every_window(cap: int, chunk_bytes: int, counts: tuple[int, int], of: str) -> None:
    slices = {
        "node": Slices(node_cap_bytes_per_s=cap),
        "peer": Slices(peer_cap_bytes_per_s=cap),
        "class": Slices(class_caps_bytes_per_s={SHIP: cap}),
    }[of]
    streams = senders(SHIP, counts[0], chunk_bytes) + (senders(READ, counts[1], chunk_bytes) if of == "node" else [])
    simulation = Simulation(slices, 2 * GBIT, streams).run(8)
    for begin in range(1, 6):
        moved = sum(count for at, _, count in simulation.admitted if begin <= at < begin + 2)
        assert 0.95 * 2 * cap - chunk_bytes <= moved <= 1.02 * 2 * cap + chunk_bytes


def test_a_capped_class_leaves_the_rest_to_the_others() -> None:
    slices = Slices(class_caps_bytes_per_s={READ: 20_000_000, REPAIR: 10_000_000})
    simulation = Simulation(slices, GBIT, senders(READ, 2) + senders(SHIP, 2) + senders(REPAIR, 2)).run(10)
    assert used(simulation) > 0.95
    for qos, cap in slices.class_caps_bytes_per_s.items():
        assert simulation.bytes(qos) <= cap * (10 + BURST_S) + 2 * MIB
        assert simulation.bytes(qos) > 0.9 * cap * 10


def test_a_capped_peer_does_not_hold_up_another() -> None:
    streams = senders(READ, 2, peer="a") + senders(READ, 2, peer="b") + senders(REPAIR, 2, peer="c")
    simulation = Simulation(Slices(peer_cap_bytes_per_s=20_000_000), GBIT, streams).run(10)
    sent = {peer: sum(n for _, one, n in simulation.admitted if one.peer == peer) / 10 for peer in "abc"}
    assert sent == pytest.approx(dict.fromkeys("abc", 20e6), rel=0.05)


def test_a_cap_below_a_chunk_per_second_makes_progress() -> None:
    simulation = Simulation(Slices(node_cap_bytes_per_s=1_000_000), GBIT, senders(SHIP, 2, 4 * MIB)).run(60)
    assert sum(count for _, _, count in simulation.admitted) == pytest.approx(60e6, abs=4.2 * MIB)


def test_buckets_of_peers_are_bounded() -> None:
    queue = FairQueue(Slices(peer_cap_bytes_per_s=1_000_000))
    for number in range(3 * PEER_BUCKETS_MAX):
        ticket = queue.arrive(SHIP, f"peer-{number}", 100, float(number))
        assert queue.decide(float(number)) == [ticket]
        queue.finish(ticket, 100, float(number))
    assert len(queue._peers) <= PEER_BUCKETS_MAX


def test_a_chunk_that_is_no_longer_wanted_is_gone() -> None:
    queue = FairQueue(Slices(node_cap_bytes_per_s=1_000_000))
    first, second, third = (queue.arrive(SHIP, "peer", MIB, 0.0) for _ in range(3))
    assert queue.decide(0.0) == [first]
    assert "node's cap of 1.00 MB/s" in queue.why(second, 0.0)
    queue.withdraw(second)
    assert queue.decide(queue.wake_at) == [third]


# Settings.


def errors_of(make: Iterable[Callable[[], object]]) -> list[str]:
    found = []
    for one in make:
        with pytest.raises(UsageError) as caught:
            one()
        found.append(str(caught.value))
    return found


def test_what_cannot_be_is_named() -> None:
    unknown, weight, cap, setting, slow = errors_of(
        (
            lambda: parse_qos("urgent"),
            lambda: Slices(weights={READ: 0}),
            lambda: Slices(class_caps_bytes_per_s={SHIP: 1000}),
            lambda: from_mapping({"repair_weight": 0}),
            lambda: from_mapping({"ship_cap_bytes_per_s": "1kB"}),
        )
    )
    assert unknown == "expected a traffic class of read, checkpoint, ship, repair, got 'urgent'"
    assert "weight above 0" in weight and "for read, got 0" in weight
    assert "class ship of at least 1000000 bytes/s, or 0 for none, got 1000" in cap
    assert "expected repair_weight from 1 to" in setting
    assert "expected ship_cap_bytes_per_s from 1000000 to" in slow


def test_slices_of_settings() -> None:
    assert [Slices.of(Settings()).weight(qos) for qos in QosClass] == [DEFAULT.weight(qos) for qos in QosClass]
    slices = Slices.of(from_mapping({"node_cap_bytes_per_s": "1gbit", "ship_cap_bytes_per_s": "50MB/s"}))
    assert slices.least_cap_bytes_per_s(SHIP) == 50_000_000 and slices.least_cap_bytes_per_s(READ) == 125_000_000
    assert parse_rate("1.5 MiB/s") == 1.5 * MIB
