"""The cluster's picture: silence, restarts, rates, totals, bounds. Times are written down, nothing waits."""

from collections.abc import Callable

import pytest

from raylog.monitor import aggregate
from raylog.monitor.aggregate import FORGET_AFTER_S, HISTORY_PER_NODE, Aggregate
from raylog.monitor.rows import STALE_AFTER_S
from raylog.monitor.samples import GpuSample, NicCounters, NodeSample, TierSample, TransferCounters
from raylog.spec import TierKind

Make = Callable[..., NodeSample]


def test_a_node_falls_silent_and_comes_back(make_sample: Make) -> None:
    nodes = Aggregate()
    nodes.add(100.0, make_sample(0, time_s=99.5))
    [row] = nodes.rows(100.0 + STALE_AFTER_S)
    assert (row.state, row.detail, row.age_s, row.clock_offset_s) == ("fresh", "", 4.0, 0.5)
    [row] = nodes.rows(107.0)
    assert (row.state, row.detail) == ("stale", "no sample for 7 s")
    assert row.memory_available_bytes == 600  # the last that is known
    assert nodes.fresh(107.0) == []
    totals = nodes.totals(107.0)
    assert (totals.nodes, totals.nodes_stale, totals.memory_total_bytes, totals.cpu_share) == (0, 1, 0, None)
    nodes.add(108.0, make_sample(8))
    assert nodes.rows(108.0)[0].state == "fresh"


def test_rates_are_means_of_the_last_seconds(make_sample: Make) -> None:
    nodes = Aggregate()
    for second in range(10):
        # 10 bytes/s in the first four seconds, 100 after; the window of 5 s covers the second part only
        sent = 10 * min(second, 4) + 100 * max(second - 4, 0)
        nics = {
            "eth0": NicCounters(sent_bytes=sent, received_bytes=7),
            "eth1": NicCounters(sent_bytes=sent, received_bytes=0),
        }
        nodes.add(second, make_sample(second, transfer=TransferCounters(sent_bytes=sent), host={"nics": nics}))
        if second == 0:
            assert nodes.rows(0.0)[0].sent_bytes_per_s is None
    [row] = nodes.rows(9.0)
    assert (row.sent_bytes_per_s, row.received_bytes_per_s) == (100.0, 0.0)
    assert (row.nic_sent_bytes_per_s, row.nic_received_bytes_per_s) == (200.0, 0.0)
    assert nodes.rows(20.0)[0].sent_bytes_per_s is None  # silent: unknown, not 100


def test_a_restarted_node_actor_starts_its_rates_anew(make_sample: Make) -> None:
    nodes = Aggregate()
    nodes.add(1.0, make_sample(1, transfer=TransferCounters(sent_bytes=500)))
    nodes.add(2.0, make_sample(2, transfer=TransferCounters(sent_bytes=600)))
    # More than before in the first second after a restart: only the incarnation tells that it is no growth of 900.
    nodes.add(3.0, make_sample(3, incarnation="second", transfer=TransferCounters(sent_bytes=1500)))
    assert nodes.rows(3.0)[0].sent_bytes_per_s is None
    nodes.add(4.0, make_sample(4, incarnation="second", transfer=TransferCounters(sent_bytes=1530)))
    assert nodes.rows(4.0)[0].sent_bytes_per_s == 30.0


def test_copies_and_late_samples_are_refused(make_sample: Make) -> None:
    nodes = Aggregate()
    assert nodes.add(1.0, make_sample(5))
    assert not nodes.add(2.0, make_sample(5))
    assert not nodes.add(3.0, make_sample(4))
    assert nodes.rows(6.0)[0].age_s == 5.0
    # A machine that was started again counts from zero; its clock may stand anywhere.
    assert nodes.add(6.0, make_sample(0, incarnation="second"))
    assert nodes.rows(6.0)[0].age_s == 0.0


def test_totals_over_nodes_tiers_and_gpus(make_sample: Make) -> None:
    gpu = GpuSample(
        uuid="1", name="H200", index=0, utilisation=0.9, memory_used_bytes=5, memory_total_bytes=10,
        temperature_c=70.0, power_w=300.0, throttle_reasons=("sw_power_cap",), xids={31: 2},
    )  # fmt: skip
    idle = GpuSample(uuid="2", name="H200", index=1, utilisation=0.1, temperature_c=30.0, power_w=100.0)
    third = GpuSample(uuid="3", name="H200", index=0, utilisation=0.2)
    lost = GpuSample(uuid="4", name="H200", index=1, is_lost=True, problem="GPU is lost")
    memory = TierSample(kind=TierKind.MEMORY, path="/arena", capacity_bytes=100, free_bytes=40, shards=2)
    disk = TierSample(kind=TierKind.SSD, path="/ssd", capacity_bytes=1000, free_bytes=900, shards=7)
    nodes = Aggregate()
    nodes.add(1.0, make_sample(gpus=(gpu, idle), tiers=(disk, memory), transfer=TransferCounters(damaged_chunks=1)))
    nodes.add(
        1.0,
        make_sample(
            node_id="b", hostname="host-b", host={"cpus": 12, "cpu_share": 0.1}, gpus=(third, lost), tiers=(memory,),
            gpu_problem="GPU 1: GPU is lost", transfer=TransferCounters(pulls_failed=2),
        ),
    )  # fmt: skip
    totals = nodes.totals(1.0)
    assert (totals.nodes, totals.nodes_stale, totals.cpus) == (2, 0, 16)
    assert totals.cpu_share == pytest.approx((4 * 0.5 + 12 * 0.1) / 16)
    assert (totals.memory_total_bytes, totals.memory_available_bytes) == (2000, 1200)
    assert (totals.gpus.count, totals.gpus.lost, totals.gpus.throttled, totals.gpus.xids) == (4, 1, 1, 2)
    assert totals.gpus.utilisation == pytest.approx(0.4)  # of the three that report, not the mean of nodes' means
    assert (totals.gpus.temperature_max_c, totals.gpus.power_w, totals.gpus.memory_total_bytes) == (70.0, 400.0, 10)
    assert [(t.kind, t.capacity_bytes, t.free_bytes, t.shards) for t in totals.tiers] == [
        (TierKind.MEMORY, 200, 80, 4),
        (TierKind.SSD, 1000, 900, 7),
    ]
    assert (totals.damaged_chunks, totals.pulls_failed) == (1, 2)
    assert [row.hostname for row in nodes.rows(1.0)] == ["host-a", "host-b"]
    assert nodes.rows(1.0)[1].gpus.problem == "GPU 1: GPU is lost"


def test_history_is_bounded_per_node(make_sample: Make) -> None:
    nodes = Aggregate()
    for second in range(HISTORY_PER_NODE + 30):
        nodes.add(second, make_sample(second))
    history = nodes.history("a")
    assert len(history) == HISTORY_PER_NODE
    assert [history[0].monotonic_s, history[-1].monotonic_s] == [30, HISTORY_PER_NODE + 29]
    assert nodes.history("never heard of") == ()


def test_history_is_bounded_over_all_nodes(make_sample: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aggregate, "HISTORY_TOTAL", 30)
    nodes = Aggregate()
    for second in range(40):
        for number in range(5):
            nodes.add(second, make_sample(second, node_id=str(number)))
    assert [len(nodes.history(str(number))) for number in range(5)] == [6] * 5


def test_nodes_are_bounded_and_the_one_silent_for_longest_goes(
    make_sample: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aggregate, "NODES_MAX", 3)
    nodes = Aggregate()
    for second, node_id in enumerate("abca"):
        nodes.add(second, make_sample(second, node_id=node_id))
    nodes.add(4.0, make_sample(4, node_id="c"))
    assert {row.node_id for row in nodes.rows(5.0)} == {"a", "b", "c"}  # full, and nobody had to go for one known
    nodes.add(5.0, make_sample(5, node_id="d"))
    assert {row.node_id for row in nodes.rows(5.0)} == {"a", "c", "d"}


def test_nodes_silent_for_long_are_forgotten(make_sample: Make) -> None:
    nodes = Aggregate()
    nodes.add(0.0, make_sample())
    nodes.add(10.0, make_sample(node_id="b"))
    assert nodes.prune(FORGET_AFTER_S) == []
    assert nodes.prune(FORGET_AFTER_S + 5) == ["a"]
    assert [row.node_id for row in nodes.rows(FORGET_AFTER_S)] == ["b"]
    nodes.forget("b")
    nodes.forget("b")
    assert nodes.rows(FORGET_AFTER_S) == []
