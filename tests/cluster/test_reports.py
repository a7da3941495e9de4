"""`raylog.report` from this process and from a Ray worker, while the monitor lives and while it does not."""

import logging
import time
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
import ray
from three_nodes import wait_until

import raylog
from raylog.actors import calls
from raylog.api import report
from raylog.monitor.training import RunRow

torch = pytest.importorskip("torch")
WORLD_SIZE = 2
STEP_S = 0.02


@pytest.fixture(autouse=True)
def fresh_reporter() -> Iterator[None]:
    """Each test begins as a process of its own would."""
    report.end_reports()
    yield
    report.end_reports()


def runs() -> list[RunRow]:
    found: list[RunRow] = calls.call("monitor", "status").training
    return found


def test_two_ranks_one_in_a_ray_worker(client: raylog.Client) -> None:
    job_id = ray.get_runtime_context().get_job_id()

    @ray.remote(num_cpus=0)
    def other_rank() -> None:
        for step in range(150):
            raylog.report(step=step, samples=10, tokens=640, loss=float("nan"), rank=1, world_size=WORLD_SIZE)
            time.sleep(STEP_S)

    client.put("report/rows", pa.table({"n": np.arange(100_000)}))
    running = other_rank.remote()
    with raylog.StreamingDataset("report/rows", batch_size=10, client=client) as dataset:
        for step, batch in zip(range(150), dataset, strict=False):
            raylog.report(
                step=100 + step,
                samples=len(batch["n"]),
                loss=torch.tensor(2.5, requires_grad=True) * 2,
                rank=0,
                world_size=WORLD_SIZE,
            )
            time.sleep(STEP_S)
            if step == 140:
                [row] = [one for one in runs() if one.job_id == job_id]
    ray.get(running, timeout=30)
    assert (row.run, row.state, row.ranks, row.world_size, row.losses_not_finite) == (job_id, "fresh", 2, 2, 1)
    assert row.loss is not None and row.loss != row.loss
    assert row.samples_per_s == pytest.approx(2 * 10 / STEP_S, rel=0.4)
    assert row.tokens_per_s == pytest.approx(640 / STEP_S, rel=0.4), "rank 0 does not count tokens"
    assert row.step_s == pytest.approx(STEP_S, rel=0.5)
    assert row.data_wait_share is not None and 0 < row.data_wait_share < 0.2
    assert row.waiting is not None and row.waiting.rank == 0, "rank 1 waits for no data"
    client.delete("report/rows")


def test_a_slow_source_is_seen(client: raylog.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch of one row is waited for about as long as it is used."""
    client.put("report/slow", pa.table({"n": np.arange(60)}))
    with raylog.StreamingDataset("report/slow", batch_size=1, client=client) as dataset:
        given = dataset._given

        def slowed(*arguments: object) -> Iterator[object]:
            for batch in given(*arguments):  # type: ignore[arg-type]
                time.sleep(STEP_S)
                yield batch

        monkeypatch.setattr(dataset, "_given", slowed)
        for step, _ in enumerate(dataset):
            raylog.report(step=step, rank=0, world_size=1)
            time.sleep(STEP_S)
    report.flush_reports()
    row = runs()[0]  # at once: nobody waits for the next period
    assert row.step == 59 and row.data_wait_share == pytest.approx(0.5, abs=0.15)
    client.delete("report/slow")


def test_a_monitor_that_is_gone_loses_reports_and_nothing_else(
    client: raylog.Client, caplog: pytest.LogCaptureFixture
) -> None:
    raylog.report(step=1, loss=1.0, rank=0, world_size=1)
    with caplog.at_level(logging.WARNING, "raylog.report"):
        ray.kill(calls.find("monitor"), no_restart=False)
        deadline = time.monotonic() + 2
        step, worst_s = 1, 0.0
        while time.monotonic() < deadline:
            step += 1
            began_s = time.monotonic()
            raylog.report(step=step, loss=1.0, rank=0, world_size=1)
            worst_s = max(worst_s, time.monotonic() - began_s)
            time.sleep(0.01)
        assert worst_s < 0.5, "the loop never waits for the monitor"
        wait_until(lambda: any(row.step == step for row in _answered()), 20, "it is back, and has the last report")
    assert len([one for one in caplog.records if one.name == "raylog.report"]) <= 1


def _answered() -> list[RunRow]:
    try:
        return runs()
    except raylog.Unavailable:
        return []


def test_losses_that_cannot_be_read_do_not_fail_the_loop(
    client: raylog.Client, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "raylog.report"):
        raylog.report(step=1, loss=torch.zeros(1, device="meta"), rank=0, world_size=1)
        wait_until(lambda: bool(caplog.records), 5, "the log says so")
        raylog.report(step=7, loss=3.0, rank=0, world_size=1)
        wait_until(lambda: runs()[0].step == 7, 5, "the next one arrives")
    assert "reports of training are lost" in caplog.text
