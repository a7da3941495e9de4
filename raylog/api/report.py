"""`raylog.report`: what a training loop does, told to the monitor beside it."""

import atexit
import logging
import numbers
import operator
import socket
import sys
import threading
import time
import uuid
from typing import Any, NamedTuple

import ray

from raylog.actors import calls
from raylog.api.ranks import find_rank
from raylog.api.streaming.waiting import WAITING
from raylog.errors import RaylogError, UsageError
from raylog.monitor.training import PERIOD_S, RUN_LENGTH_MAX, RankReport, report_period_s

log = logging.getLogger("raylog.report")
SEND_TIMEOUT_S = 5.0
FLUSH_TIMEOUT_S = 2.0


def report(
    *,
    step: int,
    samples: int | None = None,
    tokens: int | None = None,
    loss: Any = None,
    rank: int | None = None,
    world_size: int | None = None,
) -> None:
    """Says that this rank has done a step: rates, step time, loss and the share of time that it waited for batches of a
    `StreamingDataset` are then in `raylog status` and in Ray's metrics.

    `step`: its number; it may go back, as after a resume. `samples`, `tokens`: how many this rank used in this step.
    `loss`: a number, or a tensor of one; NaN and infinity are shown as such. `rank`, `world_size`: where neither
    torch.distributed nor Ray Train says them.

    For every step of every rank: it takes microseconds. A thread sends the last state about once a second and reads
    the tensor then, so that the loop waits for neither network nor GPU; what cannot be sent is lost, and the log says
    so once. Raises `UsageError` for wrong values, and where this process is not connected to a Ray cluster.
    """
    number, value = _checked_count("step", step), _checked_loss(loss)
    samples = None if samples is None else _checked_count("samples", samples)
    tokens = None if tokens is None else _checked_count("tokens", tokens)
    last = _Last(number, value, *find_rank(rank, world_size), time.monotonic(), WAITING.total_s)
    _running_reporter().add(last, samples, tokens)


def flush_reports() -> None:
    """Sends what was reported last, within `FLUSH_TIMEOUT_S`; for whoever lets go of raylog in this process."""
    reporter = _reporter
    if reporter is not None:
        reporter.flush()


def end_reports() -> None:
    """The same, and no more is sent; for whoever disconnects this process from Ray."""
    global _reporter
    with _starting:
        ended, _reporter = _reporter, None
    if ended is not None:
        ended.close()


class _Last(NamedTuple):
    """A step as it was reported."""

    step: int
    loss: Any
    rank: int
    world_size: int
    monotonic_s: float
    waited_s: float


class _Reporter:
    """The last state of this process's loop, and the thread that sends it."""

    def __init__(self) -> None:
        context = ray.get_runtime_context()
        self._job_id = context.get_job_id()
        self._run = (_ray_train_run() or self._job_id)[:RUN_LENGTH_MAX]
        self._incarnation = uuid.uuid4().hex
        self._hostname = socket.gethostname()
        self._lock = threading.Lock()
        self._tried = threading.Condition(self._lock)
        self._steps = self._sent_steps = self._tried_steps = 0
        self._samples: int | None = None
        self._tokens: int | None = None
        self._last: _Last | None = None
        self._is_failing = False
        self._is_ended = False
        self._woken = threading.Event()
        self._thread = threading.Thread(target=self._send_on, name="report", daemon=True)

    def add(self, last: _Last, samples: int | None, tokens: int | None) -> None:
        """Called by the loop: no wait, no call, nothing that grows."""
        with self._lock:
            self._last = last
            self._steps += 1
            if samples is not None:
                self._samples = (self._samples or 0) + samples
            if tokens is not None:
                self._tokens = (self._tokens or 0) + tokens
            if self._steps == 1:
                self._thread.start()

    def flush(self) -> None:
        """Has the thread send the last state now, and waits for that `FLUSH_TIMEOUT_S` at most."""
        self._woken.set()
        with self._tried:
            steps = self._steps
            self._tried.wait_for(lambda: self._tried_steps >= steps or not self._thread.is_alive(), FLUSH_TIMEOUT_S)

    def close(self) -> None:
        """The same, and ends the thread."""
        self._is_ended = True
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join(FLUSH_TIMEOUT_S)

    def _send_on(self) -> None:
        while not self._is_ended:
            period_s = self._send()
            self._woken.wait(period_s)
            self._woken.clear()
        self._send()

    def _send(self) -> float:
        """Sends the last state if it is new; how long to wait until the next time."""
        with self._lock:
            last, steps, samples, tokens = self._last, self._steps, self._samples, self._tokens
        if last is None or steps == self._sent_steps:
            return PERIOD_S
        try:
            told = RankReport(
                run=self._run,
                job_id=self._job_id,
                rank=last.rank,
                world_size=last.world_size,
                hostname=self._hostname,
                incarnation=self._incarnation,
                monotonic_s=last.monotonic_s,
                step=last.step,
                steps=steps,
                samples=samples,
                tokens=tokens,
                loss=None if last.loss is None else float(last.loss),
                waited_s=last.waited_s,
            )
            calls.call("monitor", "report", told, timeout_s=SEND_TIMEOUT_S)
        except Exception as error:  # noqa: BLE001 - the thread's edge: a loss that cannot be read, Ray that shuts down
            self._note_failure(error)
        else:
            self._sent_steps, self._is_failing = steps, False
        with self._tried:
            self._tried_steps = steps
            self._tried.notify_all()
        return report_period_s(last.world_size)

    def _note_failure(self, error: Exception) -> None:
        if not self._is_failing:
            what = str(error) if isinstance(error, RaylogError) else f"{type(error).__name__}: {error}"
            log.warning("reports of training are lost until the monitor answers again: %s", what)
        self._is_failing = True


_reporter: _Reporter | None = None
_starting = threading.Lock()
atexit.register(end_reports)  # before Ray's own, which was registered earlier


def _running_reporter() -> _Reporter:
    """This process's; made by its first report. A connection that is lost later does not fail the loop."""
    global _reporter
    found = _reporter
    if found is not None:
        return found
    with _starting:
        if _reporter is None:
            if not ray.is_initialized():
                raise UsageError(
                    "raylog.report needs a connection to a Ray cluster: call raylog.connect() first, or report inside "
                    "a Ray task, actor or Ray Train worker"
                )
            _reporter = _Reporter()
        return _reporter


def _checked_count(what: str, value: Any) -> int:
    try:
        count = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        count = -1
    if count < 0:
        raise UsageError(f"expected {what} to be an integer from 0, got {value!r}")
    return count


def _checked_loss(loss: Any) -> Any:
    """A float, or a tensor that keeps no graph alive; to be read later."""
    if loss is None or type(loss) is float:
        return loss
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(loss, torch.Tensor) and loss.numel() == 1 and not loss.is_complex():
        return loss.detach()
    if isinstance(loss, numbers.Real) and not isinstance(loss, bool):
        return float(loss)
    raise UsageError(f"expected loss to be a number or a tensor of one real number, got {type(loss).__name__}")


def _ray_train_run() -> str | None:
    """The name of the Ray Train run that this process is a worker of."""
    train = sys.modules.get("ray.train")
    if train is None:
        return None
    try:
        name: str = train.get_context().get_experiment_name()
    except RuntimeError:  # not in a worker of Ray Train
        return None
    return name
