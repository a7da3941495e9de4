"""What training loops report, run by run: rates, losses and the share of time spent waiting for data. Pure: times are
passed in, by the monitor's clock.

A rank reports totals, so that a report that gets lost costs nothing; rates are made of them here, as those of nodes.
"""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from raylog.errors import UsageError

RATE_WINDOW_S = 5.0  # that figures are means of; longer where steps are
REPORTS_PER_S = 500.0  # of all ranks of a run together, at most: large runs report more rarely
PERIOD_S = 1.0
SILENT_AFTER_S = 15.0  # at least: of long steps and of large runs some may be missing
SILENT_STEPS = 5
SILENT_PERIODS = 3
FORGET_AFTER_S = 3600.0
RUNS_MAX = 200
RANKS_MAX = 20_000  # of all runs together; a rank's last seconds take about 3 KiB
RUN_LENGTH_MAX = 200

RunKey = tuple[str, str]


class RankReport(msgspec.Struct, frozen=True, kw_only=True):
    """What one rank says after a step.

    `run` is the name of the Ray Train run, else the Ray job's id. `steps`, `samples`, `tokens` and `waited_s` (in
    `next()` of its datasets) are totals of the process, which `incarnation` names; `monotonic_s` is its clock.
    `samples` and `tokens` are None where nobody says them, `loss` is that of the last step, NaN included.
    """

    run: str
    job_id: str
    rank: int
    world_size: int
    hostname: str
    incarnation: str
    monotonic_s: float
    step: int
    steps: int
    samples: int | None = None
    tokens: int | None = None
    loss: float | None = None
    waited_s: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size <= RANKS_MAX or len(self.run) > RUN_LENGTH_MAX:
            raise UsageError(
                f"expected a rank of at most {RANKS_MAX} and a run's name of at most {RUN_LENGTH_MAX} letters, got "
                f"rank {self.rank} of {self.world_size} and {self.run[:RUN_LENGTH_MAX]!r}"
            )


class RankRow(msgspec.Struct, frozen=True, kw_only=True):
    """A rank over the last seconds; figures are None until two reports have come."""

    rank: int
    hostname: str
    step: int
    loss: float | None
    step_s: float | None
    samples_per_s: float | None
    tokens_per_s: float | None
    data_wait_share: float | None


class RunRow(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `raylog status`: a training run.

    `ranks` of `world_size` have reported lately; sums and means are over those, and None where none has the figure or
    the run is silent. `step` is that of the rank furthest behind, `loss` the mean of all ranks' last ones, of which
    `losses_not_finite` are NaN or infinite: JSON has no number for such a mean. Of `slowest` a step takes longest,
    `waiting` waits for data most.
    """

    run: str
    job_id: str
    state: Literal["fresh", "silent"]
    age_s: float
    ranks: int
    world_size: int
    step: int
    loss: float | None
    losses_not_finite: int
    step_s: float | None
    samples_per_s: float | None
    tokens_per_s: float | None
    data_wait_share: float | None
    slowest: RankRow | None
    waiting: RankRow | None


@dataclass(slots=True)
class _Rank:
    """The last reports of one process, oldest first, and when the last of them came in."""

    arrived_s: float
    reports: deque[RankReport] = field(default_factory=deque)


@dataclass(slots=True)
class _Run:
    arrived_s: float
    world_size: int
    ranks: dict[int, _Rank] = field(default_factory=dict)


class Training:
    """The runs that report. Not thread-safe."""

    def __init__(self) -> None:
        self._runs: dict[RunKey, _Run] = {}  # the one heard of longest ago first

    def add(self, time_s: float, report: RankReport) -> None:
        """Takes a report that came in at `time_s`; one that is older than the rank's last is left out. A run that goes
        on with fewer ranks loses the others."""
        key = (report.run, report.job_id)
        run = self._runs.pop(key, None) or _Run(time_s, report.world_size)
        self._make_room(len(run.ranks) + 1)
        self._runs[key] = run
        run.arrived_s = time_s
        if run.world_size != report.world_size:
            run.world_size = report.world_size
            run.ranks = {rank: known for rank, known in run.ranks.items() if rank < report.world_size}
        _note(run.ranks.setdefault(report.rank, _Rank(time_s)), time_s, report)

    def prune(self, time_s: float) -> None:
        """Forgets the runs that have been silent for `FORGET_AFTER_S`, and sooner those that another job resumed."""
        last = {key[0]: key for key in self._runs}
        for key, run in list(self._runs.items()):
            limit_s = FORGET_AFTER_S if last[key[0]] == key else SILENT_AFTER_S
            if time_s - run.arrived_s > limit_s:
                del self._runs[key]

    def rows(self, time_s: float) -> list[RunRow]:
        """Every known run as it is at `time_s`, the one heard of last first."""
        return [_run_row(time_s, key, run) for key, run in reversed(self._runs.items())]

    def _make_room(self, ranks: int) -> None:
        while self._runs and (
            len(self._runs) >= RUNS_MAX or sum(len(run.ranks) for run in self._runs.values()) + ranks > RANKS_MAX
        ):
            del self._runs[next(iter(self._runs))]


def report_period_s(world_size: int) -> float:
    """How long a rank of so many waits between two reports."""
    return max(PERIOD_S, world_size / REPORTS_PER_S)


def _note(known: _Rank, time_s: float, report: RankReport) -> None:
    reports = known.reports
    if reports and reports[-1].incarnation != report.incarnation:
        reports.clear()
    if reports and report.monotonic_s <= reports[-1].monotonic_s:
        return
    known.arrived_s = time_s
    reports.append(report)
    while len(reports) > 2 and report.monotonic_s - reports[0].monotonic_s > RATE_WINDOW_S:
        reports.popleft()


def _run_row(time_s: float, key: RunKey, run: _Run) -> RunRow:
    rows = [(known, _rank_row(known.reports)) for _, known in sorted(run.ranks.items())]
    fresh = [row for known, row in rows if time_s - known.arrived_s <= _silent_after_s(run.world_size, row.step_s)]
    losses = [row.loss for _, row in rows if row.loss is not None]
    return RunRow(
        run=key[0],
        job_id=key[1],
        state="fresh" if fresh else "silent",
        age_s=max(time_s - run.arrived_s, 0.0),
        ranks=len(fresh),
        world_size=run.world_size,
        step=min(row.step for _, row in rows),
        loss=_mean(losses),
        losses_not_finite=sum(not math.isfinite(loss) for loss in losses),
        step_s=_mean(row.step_s for row in fresh),
        samples_per_s=_sum(row.samples_per_s for row in fresh),
        tokens_per_s=_sum(row.tokens_per_s for row in fresh),
        data_wait_share=_mean(row.data_wait_share for row in fresh),
        slowest=max((row for row in fresh if row.step_s), key=lambda row: row.step_s or 0.0, default=None),
        waiting=max((row for row in fresh if row.data_wait_share), key=lambda row: row.data_wait_share or 0.0,
                    default=None),
    )  # fmt: skip


def _rank_row(reports: Sequence[RankReport]) -> RankRow:
    first, last = reports[0], reports[-1]
    span_s = last.monotonic_s - first.monotonic_s
    steps = last.steps - first.steps
    return RankRow(
        rank=last.rank,
        hostname=last.hostname,
        step=last.step,
        loss=last.loss,
        step_s=span_s / steps if steps else None,
        samples_per_s=_rate_per_s(first.samples, last.samples, span_s),
        tokens_per_s=_rate_per_s(first.tokens, last.tokens, span_s),
        data_wait_share=min((last.waited_s - first.waited_s) / span_s, 1.0) if span_s else None,
    )


def _rate_per_s(before: int | None, now: int | None, span_s: float) -> float | None:
    return (now - (before or 0)) / span_s if now is not None and span_s else None


def _silent_after_s(world_size: int, step_s: float | None) -> float:
    return max(SILENT_AFTER_S, SILENT_PERIODS * report_period_s(world_size), SILENT_STEPS * (step_s or 0.0))


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
