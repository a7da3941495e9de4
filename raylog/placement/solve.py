"""A problem to a plan: group, solve by HiGHS through cvxpy, round, check, explain. All of raylog's use of cvxpy."""

import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np

from raylog.errors import UsageError
from raylog.placement import waste
from raylog.placement.assign import assign
from raylog.placement.check import violations
from raylog.placement.formulate import Limit, Open, formulate, vector
from raylog.placement.greedy import greedy
from raylog.placement.linear import Builder, Linear, Stage, Vector
from raylog.placement.model import Problem
from raylog.placement.packing import Packing
from raylog.placement.plan import Measure, Plan
from raylog.placement.reasons import Duals, explain_packing
from raylog.placement.round import MANNERS, round_to_nodes
from raylog.placement.shapes import Shapes, group

__all__ = ["OBJECTIVES", "Plan", "lexicographic", "load_solver", "minimise", "solve"]

OBJECTIVES = {waste.NAME: waste}
PAIRS_MAX = 20_000  # shapes of jobs times shapes of nodes; beyond, the plan is the greedy one and says so
WHOLE_COLUMNS_MAX = 3_000  # beyond, the solver leaves integers out, and rounding makes them
STAGE_TIME_SHARE = 0.5  # of the time left, for every stage but the last
EXACT_COLUMNS_MAX = 3_000  # of single nodes and devices, when rounding groups of them lost something
_FEASIBLE = 2  # HiGHS's kSolutionStatusFeasible
_TOLERANCE = 1e-6  # relative: what two plans' measures may differ by and count as equal


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the solver says of one stage, or of several. `x` is None without any solution in time; `bounds[i]` is what
    stage i cannot go below while the earlier ones keep their values; `duals` are those of the rows, if relaxed."""

    x: Vector | None
    bounds: tuple[float, ...]
    is_optimal: bool
    duals: Vector | None = None
    problem: str = ""


def solve(problem: Problem, objective: str = "waste", time_limit_s: float = 10.0) -> Plan:
    """The best plan found within `time_limit_s`, with its reasons.

    Shortfall comes first, strictly by priority; `Plan.secondary` says what decides then. The greedy plan is there from
    the start, so a timeout returns the best valid plan with status "time limit" and the gap. Deterministic, but for
    what a timeout cuts off. Raises `UsageError` for an unknown objective or a time limit that is none.
    """
    if objective not in OBJECTIVES:
        raise UsageError(f"expected an objective of {', '.join(OBJECTIVES)}, got {objective!r}")
    if not 0 < time_limit_s < 1e6:
        raise UsageError(f"expected a time limit above 0 s, got {time_limit_s}")
    problem.check()
    started_s = time.monotonic()
    search = _Search(problem, objective, started_s + time_limit_s)
    search.run()
    placements = assign(search.packing)
    broken = violations(problem, placements)
    assert not broken, f"a plan that breaks its own rules: {broken[:3]}"
    reasons = explain_packing(problem, search.packing, placements, search.prices())
    return Plan(
        placements=tuple(placements),
        shortfall=reasons.shortfall,
        binding=reasons.binding,
        prices=reasons.prices,
        counterfactuals=reasons.counterfactuals,
        objective=objective,
        secondary=OBJECTIVES[objective].SECONDARY,
        measures=search.measures(),
        moves=reasons.moves,
        gap=search.gap(),
        seconds=time.monotonic() - started_s,
        status=search.status(),
        notes=(*problem.notes, *search.notes, *reasons.notes),
    )


class _Search:
    """The best packing so far, and the bounds that say how good it is."""

    def __init__(self, problem: Problem, objective: str, deadline_s: float) -> None:
        self.problem = problem
        self.objective = OBJECTIVES[objective]
        self.deadline_s = deadline_s
        self.shapes = group(problem)
        self.packing = greedy(self.shapes)
        self.is_too_large = len(self.shapes.jobs) * len(self.shapes.nodes) > PAIRS_MAX
        self.linear = formulate(self.shapes) if not self.is_too_large else Builder().build()
        self.stages = () if self.is_too_large else self.objective.stages(self.shapes, self.linear)
        self.values = self._measure(self.linear, self.stages, self.packing)
        self.bounds: tuple[float, ...] = ()
        self.is_out_of_time = False
        self.notes: list[str] = []

    def run(self) -> None:
        """Solves the groups; then, if rounding them lost something and it is small enough, single nodes."""
        if self.is_too_large:
            pairs = f"{len(self.shapes.jobs)} shapes of jobs on {len(self.shapes.nodes)} shapes of nodes"
            self.notes.append(f"this is the greedy plan, without a bound: {pairs} are too many for the solver")
            return
        if not self.linear.columns:
            self.bounds = self.values  # no worker fits on any node
            return
        self._solve(self.shapes, self.linear, self.stages)
        if self._is_proven() or self.is_out_of_time or not self.shapes.is_grouped():
            return
        if len(self.shapes.node_ids) * len(self.shapes.jobs) > EXACT_COLUMNS_MAX:
            return
        shapes = group(self.problem, single_nodes=True)
        linear = formulate(shapes, single_devices=True)
        if len(linear.columns) <= EXACT_COLUMNS_MAX:
            self._solve(shapes, linear, self.objective.stages(shapes, linear))

    def _solve(self, shapes: Shapes, linear: Linear, stages: Sequence[Stage]) -> None:
        reached = self.values[:-1] if _none_missing(self.values[:-1]) else ()
        tie_break = self.objective.tie_break(shapes, linear)
        answer = lexicographic(linear, stages, tie_break, reached, self.deadline_s)
        self.is_out_of_time |= not answer.is_optimal and not answer.problem
        if answer.problem:
            self.notes.append(answer.problem)
        self.bounds = max(self.bounds, answer.bounds)
        for manner in MANNERS if answer.x is not None else ():
            assert answer.x is not None
            packing = round_to_nodes(shapes, linear, answer.x, manner, is_exact=shapes is not self.shapes)
            values = self._measure(linear, stages, packing)
            # of plans that measure the same the solver's own goes first: it alone knows the tie-break
            is_better = _is_less(values, self.values)
            if is_better or (manner == MANNERS[0] and not _is_less(self.values, values)):
                self.packing, self.values = packing, values

    def _measure(self, linear: Linear, stages: Sequence[Stage], packing: Packing) -> tuple[float, ...]:
        x = vector(linear, packing) if stages else np.zeros(0)
        return tuple(stage.value(x) for stage in stages)

    def _is_proven(self) -> bool:
        return not self.is_too_large and len(self.bounds) == len(self.values) and not _is_less(self.bounds, self.values)

    def status(self) -> Literal["optimal", "feasible", "time limit"]:
        """See `Plan`."""
        if self._is_proven():
            return "optimal"
        return "time limit" if self.is_out_of_time else "feasible"

    def gap(self) -> float | None:
        """See `Plan`."""
        for stage, value, bound in zip(self.stages, self.values, self.bounds, strict=False):
            if value > bound + _slack(value):
                return (value - bound) / (stage.constant or value)
        return 0.0 if self._is_proven() else None

    def measures(self) -> tuple[Measure, ...]:
        """Values with their bounds, up to the first that is not reached: what follows it depends on it."""
        made: list[Measure] = []
        is_bound = True
        for index, (stage, value) in enumerate(zip(self.stages, self.values, strict=True)):
            bound = self.bounds[index] if is_bound and index < len(self.bounds) else None
            made.append(Measure(name=stage.name, value=abs(round(value, 9)), bound=bound))
            is_bound = bound is not None and value <= bound + _slack(value)
        return tuple(made)

    def prices(self) -> Duals | None:
        """Duals of the relaxed problem's whole shortfall; None if nothing is short or no time is left."""
        short = [stage for stage, value in zip(self.stages[:-1], self.values, strict=False) if value > _slack(value)]
        if not short or not self.linear.columns:
            return None
        cost = np.sum([stage.cost for stage in self.stages[:-1]], axis=0)
        left_s = self.deadline_s - time.monotonic()
        relaxed = _resources_only(self.linear)
        answer = minimise(relaxed, cost, (), left_s, is_relaxed=True)
        if answer.duals is None:
            self.notes.append("no prices: the time was over before the relaxed problem was solved")
            return None
        return Duals(rows=relaxed.rows, values=answer.duals)


def lexicographic(
    linear: Linear, stages: Sequence[Stage], tie_break: Vector, reached: Sequence[float], deadline_s: float
) -> Answer:
    """Minimises the stages one after the other, each while the earlier ones keep what they reached.

    A large program is relaxed: its bounds hold, its `x` is not whole. `reached`: values of the first stages that are
    known to be the least; they are not solved for. The tie-break joins the last stage. `deadline_s` is of
    `time.monotonic`.
    """
    kept: list[tuple[Vector, float]] = []
    bounds: list[float] = []
    x: Vector | None = None
    is_optimal = True
    is_relaxed = len(linear.columns) > WHOLE_COLUMNS_MAX
    for index, stage in enumerate(stages):
        if index < len(reached):
            bounds.append(reached[index])
            kept.append((stage.cost, reached[index] - stage.constant))
            continue
        is_last = index == len(stages) - 1
        left_s = deadline_s - time.monotonic()
        answer = minimise(
            linear,
            stage.cost + tie_break if is_last else stage.cost,
            kept,
            left_s if is_last else left_s * STAGE_TIME_SHARE,
            gap=stage.gap,
            is_relaxed=is_relaxed,
        )
        is_optimal &= answer.is_optimal
        if answer.x is None:
            return Answer(x=x, bounds=tuple(bounds), is_optimal=False, problem=answer.problem)
        x = answer.x
        # the tie-break weighs less than any difference between plans: an optimum with it is one without it
        proven = stage.value(x) if is_last and answer.is_optimal else answer.bounds[0] + stage.constant
        bounds.append(max(proven, 0.0))
        kept.append((stage.cost, float(stage.cost @ x)))
    return Answer(x=x, bounds=tuple(bounds), is_optimal=is_optimal)


def minimise(
    linear: Linear,
    cost: Vector,
    kept: Sequence[tuple[Vector, float]],
    time_limit_s: float,
    *,
    gap: float = 0.0,
    is_relaxed: bool = False,
) -> Answer:
    """Least `cost @ x` over the program's `x` with `c @ x <= value` for each kept (c, value), by HiGHS.

    One cvxpy variable and one block of rows, costs as vectors: compiling stays at milliseconds. Costs are scaled by
    their smallest entry so that HiGHS's absolute tolerances mean something. Relaxed: without integers, with duals.
    """
    if time_limit_s <= 0:
        return Answer(x=None, bounds=(), is_optimal=False)
    cvxpy = load_solver()
    from scipy import sparse

    size = len(linear.columns)
    scale = _scale(cost)
    whole = {} if is_relaxed else {"integer": [np.flatnonzero(linear.is_whole)]}
    x = cvxpy.Variable(size, bounds=[np.zeros(size), linear.most], **whole)
    shape = (len(linear.rows), size)
    rows = sparse.csr_array((linear.factors, (linear.at_row, linear.at_column)), shape=shape) @ x <= linear.upper
    keep = [(c / _scale(c)) @ x <= value / _scale(c) + _TOLERANCE for c, value in kept]
    program = cvxpy.Problem(cvxpy.Minimize((cost / scale) @ x), [rows, *keep])
    options = {"time_limit": time_limit_s, "threads": 1, "random_seed": 0, "mip_rel_gap": gap, "output_flag": False}
    # what `program.solve` does, without its warning at a time limit: an answer cut short is no surprise here
    data, chain, inverse = program.get_problem_data(cvxpy.HIGHS)
    solution = chain.invert(chain.solve_via_data(program, data, solver_opts=options), inverse)
    info = solution.attr.get(cvxpy.settings.EXTRA_STATS)
    if solution.status not in ("optimal", "user_limit"):
        return Answer(x=None, bounds=(), is_optimal=False, problem=f"the solver stopped with status {solution.status}")
    if info.primal_solution_status != _FEASIBLE:
        return Answer(x=None, bounds=(), is_optimal=False)
    program.unpack(solution)
    bound = program.value if is_relaxed else info.mip_dual_bound
    found = np.asarray(x.value)
    if not is_relaxed:  # integers come within a tolerance, which the next stage would be held to
        found = np.where(linear.is_whole, np.round(found), found)
    return Answer(
        x=found,
        bounds=(float(bound) * scale,),
        is_optimal=solution.status == "optimal",
        duals=np.asarray(rows.dual_value) * scale if is_relaxed else None,
    )


@cache
def load_solver() -> Any:
    """cvxpy, imported at the first solve (it takes a second): call it early where the first answer must be quick.

    HiGHS prints its name to standard output once per process and has no setting against it; there it would stand
    among a command's JSON, so it is printed into /dev/null here.
    """
    import cvxpy
    import highspy

    with _BANNER:
        sys.stdout.flush()
        stdout, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 1)
            highspy.Highs()
        finally:
            os.dup2(stdout, 1)
            os.close(stdout)
            os.close(nowhere)
    return cvxpy


_BANNER = threading.Lock()


def _resources_only(linear: Linear) -> Linear:
    """The same without rows and bounds that only tighten it: they would take the duals of the resources."""
    keep = np.array([not (isinstance(row, Limit) and row.kind == "packing") for row in linear.rows], dtype=bool)
    number = np.cumsum(keep) - 1
    entries = keep[linear.at_row]
    return Linear(
        columns=linear.columns,
        rows=tuple(row for row, is_kept in zip(linear.rows, keep, strict=True) if is_kept),
        at_row=number[linear.at_row[entries]],
        at_column=linear.at_column[entries],
        factors=linear.factors[entries],
        upper=linear.upper[keep],
        most=np.where([isinstance(column, Open) for column in linear.columns], linear.most, np.inf),
        is_whole=linear.is_whole,
    )


def _scale(cost: Vector) -> float:
    entries = np.abs(cost[cost != 0])
    return float(entries.min()) if len(entries) else 1.0


def _slack(value: float) -> float:
    return _TOLERANCE * max(abs(value), 1e-3)


def _is_less(left: Sequence[float], right: Sequence[float]) -> bool:
    """Whether `left` comes before `right`, most important first; differences of rounding are none."""
    for a, b in zip(left, right, strict=False):
        if abs(a - b) > _slack(b):
            return a < b
    return False


def _none_missing(values: Sequence[float]) -> bool:
    return all(abs(value) <= _slack(value) for value in values)
