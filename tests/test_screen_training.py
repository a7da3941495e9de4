"""`raylog status` of training runs: what a person reads, and the JSON of the same."""

import json
import math

import msgspec
import pytest

from raylog import screen
from raylog.monitor.training import RankReport, RunRow, Training


def rows(loss: float | None) -> list[RunRow]:
    """Two ranks of a run that goes on, and one that fell silent 100 s ago."""
    runs = Training()
    for run, start_s, ranks in (("run-6", 0.0, 1), ("run-[7]", 100.0, 2)):
        for second in range(2):
            for rank in range(ranks):
                report = RankReport(
                    run=run, job_id="01", rank=rank, world_size=2, hostname=f"host-{rank}", incarnation=f"first-{rank}",
                    monotonic_s=float(second), step=40 + second * 10, steps=second * (10 - rank),
                    samples=second * 1000, tokens=None, loss=loss, waited_s=second * 0.1 * (1 + rank),
                )  # fmt: skip
                runs.add(start_s + second, report)
    return runs.rows(101.0)


def shown(loss: float | None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(screen.out, "width", 200)
    with screen.out.capture() as text:
        screen.show_training(rows(loss))
    return text.get().splitlines()


def test_a_line_per_run(monkeypatch: pytest.MonkeyPatch) -> None:
    _, running, silent = shown(2.3456789, monkeypatch)
    figures = "run-[7] fresh 2 of 2 50 2.346 2,000 106 ms 1 on host-1: 111 ms 15.0% 1 on host-1: 20.0%"
    assert " ".join(running.split()) == figures
    assert " ".join(silent.split()) == "run-6 no report for 100 s 0 of 2 50 2.346"


def test_a_loss_that_is_no_number_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "nan on 2" in shown(math.nan, monkeypatch)[1]
    assert "inf on 2" in shown(math.inf, monkeypatch)[1]
    assert "nan" not in shown(None, monkeypatch)[1]


def test_the_json_has_everything() -> None:
    found = json.loads(msgspec.json.encode(rows(math.nan)))
    assert (found[0]["run"], found[0]["loss"], found[0]["losses_not_finite"]) == ("run-[7]", None, 2)
    assert found[0]["waiting"]["data_wait_share"] == 0.2
    assert found[1]["state"] == "silent" and found[1]["slowest"] is None
