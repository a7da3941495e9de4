"""Training runs as the monitor sees them: rates, sums over ranks, silence, resumes, bounds. Times are written down."""

import math
from typing import Any

import pytest

from raylog.errors import UsageError
from raylog.monitor import training
from raylog.monitor.metrics import RUN_METRICS, run_readings
from raylog.monitor.training import FORGET_AFTER_S, SILENT_AFTER_S, RankReport, Training, report_period_s


def said(steps: int, *, at_s: float, rank: int = 0, **fields: Any) -> RankReport:
    """After so many steps, each of 8 samples of 64 tokens."""
    plain = {
        "run": "run-7",
        "job_id": "01",
        "world_size": 2,
        "hostname": f"host-{rank}",
        "incarnation": f"first-{rank}",
    }
    counts = {"step": steps, "steps": steps, "samples": steps * 8, "tokens": steps * 512, "monotonic_s": at_s}
    return RankReport(**{**plain, **counts, "rank": rank, **fields})


def test_rates_are_summed_over_ranks_and_the_slowest_is_named() -> None:
    runs = Training()
    for second in range(20):
        for rank, steps_per_s in ((0, 10), (1, 8)):
            waited_s = second * (0.1 if rank == 0 else 0.3)
            report = said(second * steps_per_s, at_s=500.0 + second, rank=rank, loss=2.0 + rank, waited_s=waited_s)
            runs.add(100.0 + second, report)
    [row] = runs.rows(119.5)
    assert (row.run, row.job_id, row.state, row.ranks, row.world_size) == ("run-7", "01", "fresh", 2, 2)
    assert (row.step, row.loss, row.losses_not_finite, row.age_s) == (152, 2.5, 0, 0.5)
    assert row.samples_per_s == pytest.approx(18 * 8) and row.tokens_per_s == pytest.approx(18 * 512)
    assert row.step_s == pytest.approx((0.1 + 0.125) / 2)
    assert row.slowest is not None and (row.slowest.rank, row.slowest.hostname) == (1, "host-1")
    assert row.slowest.step_s == pytest.approx(0.125)
    assert row.data_wait_share == pytest.approx(0.2)
    assert row.waiting is not None and row.waiting.rank == 1
    assert row.waiting.data_wait_share == pytest.approx(0.3)
    found = {reading.metric.name: reading for reading in run_readings(row)}
    assert found.keys() == {metric.name for metric in RUN_METRICS}
    assert all(reading.labels == {"run": "run-7", "job_id": "01"} for reading in found.values())
    assert found["raylog_training_worst_data_wait_ratio"].value == pytest.approx(0.3)


def test_one_report_is_not_enough_for_a_rate_and_a_copy_of_it_neither() -> None:
    runs = Training()
    for time_s in (100.0, 101.0):
        runs.add(time_s, said(3, at_s=7.0))
    [row] = runs.rows(101.0)
    assert (row.ranks, row.world_size, row.step) == (1, 2, 3)
    assert row.step_s is row.samples_per_s is row.tokens_per_s is row.data_wait_share is row.loss is row.slowest is None
    assert {reading.metric.name for reading in run_readings(row)} == {
        "raylog_training_ranks",
        "raylog_training_step",
        "raylog_training_losses_not_finite",
    }


def test_what_nobody_counts_has_no_rate() -> None:
    runs = Training()
    for second in range(2):
        runs.add(100.0 + second, said(second, at_s=second, samples=None, tokens=None))
    [row] = runs.rows(101.0)
    assert (row.samples_per_s, row.tokens_per_s, row.step_s) == (None, None, 1.0)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_passed_on(loss: float) -> None:
    runs = Training()
    runs.add(100.0, said(1, at_s=1.0, loss=1.0))
    runs.add(100.0, said(1, at_s=1.0, rank=1, loss=loss))
    [row] = runs.rows(100.0)
    assert row.loss is not None and not math.isfinite(row.loss) and row.losses_not_finite == 1
    [reading] = [one for one in run_readings(row) if one.metric.name == "raylog_training_loss"]
    assert not math.isfinite(reading.value)


def test_a_rank_and_then_the_run_fall_silent_and_are_forgotten() -> None:
    runs = Training()
    for second in range(3):
        runs.add(100.0 + second, said(second, at_s=second))
        runs.add(100.0 + second, said(second, at_s=second, rank=1))
    runs.add(103.0, said(3, at_s=3.0))
    [row] = runs.rows(102.5 + SILENT_AFTER_S)
    assert (row.state, row.ranks, row.samples_per_s) == ("fresh", 1, 8.0)
    [row] = runs.rows(104.0 + SILENT_AFTER_S)
    assert (row.state, row.ranks, row.samples_per_s, row.step) == ("silent", 0, None, 2)
    assert run_readings(row) == []
    runs.prune(103.0 + FORGET_AFTER_S)
    assert len(runs.rows(0.0)) == 1
    runs.prune(104.0 + FORGET_AFTER_S)
    assert runs.rows(0.0) == []


def test_long_steps_and_large_runs_are_not_silent_between_reports() -> None:
    assert report_period_s(2) == 1.0 and report_period_s(10_000) == 20.0
    runs = Training()
    for step in range(2):
        runs.add(100.0 + step * 60, said(step, at_s=step * 60.0))
    assert runs.rows(160.0 + 4 * 60)[0].state == "fresh"
    assert runs.rows(160.0 + 6 * 60)[0].state == "silent"
    runs = Training()
    runs.add(100.0, said(1, at_s=1.0, world_size=10_000))
    assert runs.rows(155.0)[0].state == "fresh"


def test_a_process_that_starts_again_counts_anew() -> None:
    runs = Training()
    for second in range(5):
        runs.add(100.0 + second, said(100 + second, at_s=second))
    runs.add(105.0, said(1, at_s=2.0, step=90, incarnation="second"))
    [row] = runs.rows(105.0)
    assert (row.step, row.samples_per_s) == (90, None), "of one report there is no rate, and a step may go back"
    runs.add(106.0, said(3, at_s=3.0, step=92, incarnation="second"))
    assert runs.rows(106.0)[0].samples_per_s == 16.0


def test_a_run_that_goes_on_with_fewer_ranks_loses_the_others() -> None:
    runs = Training()
    for rank in range(4):
        runs.add(100.0, said(1, at_s=1.0, rank=rank, world_size=4))
    runs.add(101.0, said(1, at_s=1.0, rank=1, world_size=2, incarnation="second"))
    [row] = runs.rows(101.0)
    assert (row.ranks, row.world_size) == (2, 2)


def test_another_job_takes_the_place_of_the_run_that_it_resumes() -> None:
    runs = Training()
    runs.add(100.0, said(1, at_s=1.0))
    runs.add(110.0, said(1, at_s=1.0, job_id="02"))
    runs.prune(101.0 + SILENT_AFTER_S)
    assert [row.job_id for row in runs.rows(116.0)] == ["02"]


def test_runs_and_ranks_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "RUNS_MAX", 3)
    monkeypatch.setattr(training, "RANKS_MAX", 10)
    runs = Training()
    for number in range(5):
        runs.add(100.0 + number, said(1, at_s=1.0, run=f"run-{number}"))
    assert [row.run for row in runs.rows(105.0)] == ["run-4", "run-3", "run-2"]
    for rank in range(9):
        runs.add(105.0, said(1, at_s=1.0, run="large", rank=rank, world_size=9))
    assert [(row.run, row.ranks) for row in runs.rows(105.0)] == [("large", 9), ("run-4", 1)]


@pytest.mark.parametrize("fields", [{"rank": 2}, {"rank": -1}, {"world_size": 10**9}, {"run": "x" * 201}])
def test_reports_are_checked(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="expected a rank"):
        said(1, at_s=1.0, **fields)
