"""jobs/train.py: killed in the middle, and resumed exactly."""

import json
import os
import runpy
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
from three_nodes import Machine, wait_until

import raylog
from raylog.actors import calls

pytest.importorskip("torch")
JOB = Path(__file__).parents[2] / "jobs" / "train.py"
ROWS, LENGTH, WORKERS, BATCH, EVERY = 320, 17, 2, 4, 8
EPOCH = ROWS // (WORKERS * BATCH)  # in steps
STEPS = EPOCH + 16
KILL_AT = 30  # the save at step 24 has waited for that at step 16: one or the other is resumed from
START_TIMEOUT_S = 90.0


@pytest.fixture(scope="module")
def data(client: raylog.Client) -> Iterator[str]:
    """Random bytes, of which the first two of a row are its number."""
    values = np.random.default_rng(1).integers(0, 256, (ROWS, LENGTH), np.uint8)
    values[:, 0], values[:, 1] = np.divmod(np.arange(ROWS), 256)
    tokens = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), LENGTH)
    client.put("train/bytes", pa.table({"tokens": tokens}), replicas=3)
    yield "train/bytes"
    client.delete("train/bytes")


class Job:
    """One start of the job; what rank 0 appends to `losses` stays from earlier starts."""

    def __init__(self, machine: Machine, data: str, checkpoint: str, losses: Path) -> None:
        self._losses = losses
        options = {"--data": data, "--checkpoint": checkpoint, "--steps": STEPS, "--workers": WORKERS}
        options |= {"--batch": BATCH, "--every": EVERY, "--losses": losses}
        command = [sys.executable, str(JOB), *(str(word) for pair in options.items() for word in pair)]
        environment = os.environ | {"RAY_ADDRESS": machine.cluster.address}
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    def losses(self) -> list[tuple[int, float]]:
        """Step and loss, as they were appended."""
        lines = self._losses.read_text().splitlines() if self._losses.exists() else []
        return [(one["step"], one["loss"]) for one in map(json.loads, lines)]

    def wait_for_step(self, step: int) -> None:
        def is_there() -> bool:
            assert self.process.poll() is None, self.process.communicate()[0]
            return any(done >= step for done, _ in self.losses())

        wait_until(is_there, START_TIMEOUT_S, f"step {step}", 0.01)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=10)

    def result(self) -> dict[str, Any]:
        output, _ = self.process.communicate(timeout=START_TIMEOUT_S)
        assert self.process.returncode == 0, output
        found: dict[str, Any] = json.loads(output.splitlines()[-1])["trained"]
        return found


@pytest.fixture
def start(machine: Machine, client: raylog.Client, data: str, tmp_path: Path) -> Iterator[Any]:
    """`start(checkpoint)`: a job that ends with the test."""
    jobs: list[Job] = []
    names: set[str] = set()

    def begin(name: str) -> Job:
        jobs.append(Job(machine, data, f"ckpt/{name}", tmp_path / name))
        names.add(f"ckpt/{name}")
        return jobs[-1]

    yield begin
    for job in jobs:
        job.kill()
    for name in names:
        client.delete(name)


def resumed(losses: list[tuple[int, float]], began: int) -> dict[int, float]:
    """All losses by step, once it is sure that what was done twice came out the same, to the last bit."""
    steps = [step for step, _ in losses]
    cut = steps.index(began + 1, began + 1)  # where it goes on
    assert steps[:cut] == list(range(1, cut + 1)) and steps[cut:] == list(range(began + 1, STEPS + 1))
    assert cut >= KILL_AT and len(set(losses)) == len(dict(losses)) == STEPS
    return dict(losses)


def numbers(dataset: raylog.StreamingDataset, batches: int) -> list[int]:
    """Of the rows in so many batches, or in those that are left of the epoch."""
    return [int(row[0]) * 256 + int(row[1]) for batch in islice(dataset, batches) for row in batch["tokens"]]


def test_a_worker_killed_in_the_middle_is_replaced_and_goes_on_exactly(
    client: raylog.Client, data: str, start: Any
) -> None:
    job = start("worker")
    job.wait_for_step(KILL_AT)
    workers = [one for one in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(one.cmdline())]
    assert len(workers) == WORKERS
    workers[1].send_signal(signal.SIGKILL)
    found = job.result()
    assert found["step"] == STEPS and found["began_at_step"] in (16, 24)
    losses = resumed(job.losses(), found["began_at_step"])
    assert found["loss"] == losses[STEPS]

    row = calls.call("monitor", "status").training[0]
    assert (row.run, row.ranks, row.world_size, row.losses_not_finite) == ("ckpt-worker", WORKERS, WORKERS, 0)

    with raylog.CheckpointManager("ckpt/worker", client=client) as checkpoints:
        assert checkpoints.steps()[-1] == STEPS
        state = checkpoints.load(rank=1)
    epochs: list[list[int]] = [[], []]
    for rank in range(WORKERS):
        options = {"rank": rank, "world_size": WORKERS, "batch_size": BATCH, "drop_last": True, "client": client}
        with raylog.StreamingDataset(data, **options) as dataset:
            epochs[0] += numbers(dataset, EPOCH)
            dataset.set_epoch(1)
            epochs[1] += numbers(dataset, STEPS - EPOCH)
            dataset.load_state_dict(state["stream"])
            epochs[1] += numbers(dataset, EPOCH)
    for epoch in epochs:
        assert Counter(epoch) == Counter(range(ROWS)), "each sample once: the job's place in the data is where it says"


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [("--batch", "161", "a batch on each worker in train/bytes@1, got 320"), ("--every", "0", "got less for --every")],
)
def test_mistakes_are_told_before_anything_starts(data: str, option: str, value: str, message: str) -> None:
    job = runpy.run_path(str(JOB))
    with pytest.raises(raylog.UsageError, match=message):
        job["main"](job["parser"].parse_args(["--data", data, "--checkpoint", "ckpt/none", option, value]))


@pytest.mark.slow
def test_a_job_killed_and_started_again_is_the_run_that_was_never_killed(start: Any) -> None:
    whole = start("whole")
    assert whole.result() == {"began_at_step": 0, "step": STEPS, "loss": dict(whole.losses())[STEPS]}
    first = start("killed")
    first.wait_for_step(KILL_AT)
    first.kill()
    second = start("killed")
    found = second.result()
    assert resumed(second.losses(), found["began_at_step"]) == dict(whole.losses())
