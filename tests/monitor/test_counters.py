"""Growth, rates and increments of counters that may start again."""

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylog.monitor.counters import CounterIncrements, growth_of, rate_per_s
from raylog.monitor.metrics import readings
from raylog.monitor.samples import NodeSample, TransferCounters

Make = Callable[..., NodeSample]


def test_growth() -> None:
    assert growth_of(5, 8) == 3
    assert growth_of(5, 5) == 0
    assert growth_of(5, 2) == 2  # reset, then 2


def test_rate() -> None:
    assert rate_per_s([]) is None
    assert rate_per_s([(1.0, 5.0)]) is None
    assert rate_per_s([(1.0, 5.0), (1.0, 9.0)]) is None
    assert rate_per_s([(1.0, 5.0), (3.0, 9.0)]) == 2.0
    assert rate_per_s([(0.0, 100.0), (1.0, 110.0), (2.0, 4.0)]) == 7.0


@given(
    steps=st.lists(st.tuples(st.floats(0.01, 10), st.integers(0, 1000), st.booleans()), min_size=1, max_size=30),
)
def test_rate_is_what_was_counted_over_the_time_however_often_the_counter_restarts(
    steps: list[tuple[float, int, bool]],
) -> None:
    """A restart is invisible only where the counter has already passed its old total, so restarts here come first in
    their interval and the old total is never reached again."""
    time_s, total, counted = 0.0, 0.0, 0
    points = [(time_s, total)]
    for duration_s, count, restarts in steps:
        total = float(count) if restarts and count < total else total + count
        counted += count
        time_s += duration_s
        points.append((time_s, total))
    rate = rate_per_s(points)
    assert rate is not None
    assert rate * time_s == pytest.approx(counted)


@given(st.lists(st.integers(0, 100), min_size=1, max_size=20))
def test_increments_add_up_to_all_growth(make_sample: Make, totals: list[int]) -> None:
    increments = CounterIncrements()
    added = 0.0
    for total in totals:
        grown = increments.take(readings(make_sample(transfer=TransferCounters(sent_bytes=total))))
        assert all(reading.value > 0 and reading.metric.kind == "counter" for reading in grown)
        added += sum(r.value for r in grown if r.metric.name == "raylog_transfer_sent_bytes_total")
    assert added == totals[0] + sum(growth_of(before, now) for before, now in itertools.pairwise(totals))


def test_nodes_are_told_apart_and_forgotten(make_sample: Make) -> None:
    increments = CounterIncrements()
    sample_a = make_sample(transfer=TransferCounters(sent_bytes=10))
    sample_b = make_sample(node_id="b", transfer=TransferCounters(sent_bytes=20))
    assert [r.value for r in increments.take(readings(sample_a))] == [10]
    assert [r.value for r in increments.take(readings(sample_b))] == [20]
    assert increments.take(readings(sample_a)) == []
    increments.forget("a")
    assert [r.value for r in increments.take(readings(sample_a))] == [10]
    assert increments.take(readings(sample_b)) == []
