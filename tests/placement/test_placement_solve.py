"""Plans: the seed's examples, the least shortfall against trying everything, and each kind of constraint."""

import json
import re
import subprocess
import sys
import time
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from placement_brute import least_shortfall, problems

from raylog.errors import UsageError
from raylog.placement.check import violations
from raylog.placement.explain import explain
from raylog.placement.formulate import formulate, vector
from raylog.placement.greedy import greedy
from raylog.placement.model import Problem
from raylog.placement.plan import Plan
from raylog.placement.shapes import group
from raylog.placement.solve import load_solver, solve

GIB = 1 << 30


@pytest.fixture(scope="module", autouse=True)
def _solver_is_loaded() -> None:
    load_solver()  # cvxpy takes a second to import, which no example's time should hold


def place(nodes: list[dict[str, Any]], jobs: list[dict[str, Any]], **more: Any) -> Plan:
    problem = Problem.from_mapping({"nodes": nodes, "jobs": jobs, **more})
    plan = solve(problem)
    assert violations(problem, plan.placements) == []
    return plan


def seed(demand: int) -> Plan:
    nodes = [{"id": f"c{cpu}", "cpu": cpu} for cpu in (4, 6, 8)]
    return place(nodes, [{"id": "d", "workers": demand, "each": {"cpu": 1}}])


def changes(plan: Plan, job: str) -> list[str]:
    return [other.change for other in plan.counterfactuals if other.job == job]


def test_the_seed_short_by_two() -> None:
    plan = seed(20)
    [short] = plan.shortfall
    assert plan.by_node() == {"c4": 4, "c6": 6, "c8": 8}
    assert (short.job, short.resource, short.amount, short.workers) == ("d", "cpu", 2.0, 2)
    assert short.reason == "short by 2: capacity 18, demand 20 (cpu)"
    assert [(b.constraint, b.used, b.limit) for b in plan.binding] == [("cpu", 18.0, 18.0)]
    assert {price.nodes: price.price for price in plan.prices} == pytest.approx({"c4": 1.0, "c6": 1.0, "c8": 1.0})
    assert changes(plan, "d")[0] == "2 more cpu on any node"
    assert "job d with 18 workers instead of 20" in changes(plan, "d")
    assert (plan.status, plan.gap) == ("optimal", 0.0)


def test_the_seed_with_enough_is_split_by_the_secondary_objective() -> None:
    plan = seed(12)
    assert plan.by_node() == {"c4": 4, "c8": 8}  # nothing wasted; 6 + 8 would waste 2
    assert (plan.shortfall, plan.prices, plan.counterfactuals) == ((), (), ())
    assert "waste" in plan.secondary and "fragmentation" in plan.secondary and "moves" in plan.secondary
    assert plan.binding[0].text == "nothing binds; the fullest is cpu, 67% used"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(1, 3), st.integers(1, 30))
def test_the_first_change_named_does_make_it_fit(cpus: list[int], each: int, workers: int) -> None:
    nodes = [{"id": f"n{i}", "cpu": cpu} for i, cpu in enumerate(cpus)]
    jobs = [{"id": "d", "workers": workers, "each": {"cpu": each}}]
    plan = place(nodes, jobs)
    if plan.shortfall:
        more = re.fullmatch(r"(\d+) more cpu on (any node|node n(\d+)( or \d+ like it)?)", changes(plan, "d")[0])
        assert more
        nodes[int(more[3] or 0)]["cpu"] += int(more[1])
        assert place(nodes, jobs).shortfall == ()


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(problems())
def test_shortfall_is_the_least_there_is(problem: Problem) -> None:
    plan = solve(problem)
    assert violations(problem, plan.placements) == []
    values = [measure.value for measure in plan.measures[:-1]]
    assert values == pytest.approx(list(least_shortfall(problem)), abs=1e-6)
    assert plan.status == "optimal" and plan.gap == 0.0
    wanted = sum(job.workers * job.count for job in problem.jobs)
    assert len(plan.placements) + sum(short.workers for short in plan.shortfall) == wanted
    assert json.loads(msgspec.json.encode(plan))["status"] == "optimal"
    assert explain(plan)


@settings(max_examples=60, deadline=None)
@given(problems(), st.booleans())
def test_a_packing_is_a_point_of_its_program(problem: Problem, single: bool) -> None:
    """So the program leaves no valid plan out: its bounds hold for all of them."""
    shapes = group(problem, single_nodes=single)
    linear = formulate(shapes, single_devices=single)
    x = vector(linear, greedy(shapes))
    sides = np.zeros(len(linear.rows))
    np.add.at(sides, linear.at_row, linear.factors * x[linear.at_column])
    assert (sides <= linear.upper + 1e-9).all()
    assert (x <= linear.most + 1e-9).all() and (x >= 0).all()


def test_the_same_problem_gives_the_same_plan() -> None:
    nodes = [{"id": "a", "cpu": 7, "gpus": [{"type": "A"}] * 2, "count": 3}, {"id": "b", "cpu": 5, "count": 4}]
    jobs = [{"id": f"j{i}", "workers": 3, "each": {"cpu": 1 + i % 3, "gpu": 0.5 * (i % 2)}} for i in range(5)]
    first, second = place(nodes, jobs), place(nodes, jobs)
    assert first.placements == second.placements and first.shortfall == second.shortfall


def test_ties_go_to_the_job_and_node_named_first() -> None:
    nodes = [{"id": "x", "cpu": 2, "labels": {"rack": "1"}}, {"id": "y", "cpu": 2, "labels": {"rack": "2"}}]
    jobs = [{"id": name, "workers": 1, "each": {"cpu": 2, "memory_bytes": 0}} for name in ("p", "q", "r")]
    plan = place(nodes, jobs)
    assert [(p.job, p.node) for p in plan.placements] == [("p", "x"), ("q", "y")]


def test_a_higher_priority_goes_first_however_small() -> None:
    nodes = [{"id": "a", "cpu": 10}]
    jobs = [
        {"id": "low", "workers": 1, "each": {"cpu": 10}, "priority": 1},
        {"id": "high", "workers": 1, "each": {"cpu": 1}, "priority": 2},
    ]
    plan = place(nodes, jobs)
    assert [p.job for p in plan.placements] == ["high"]
    assert plan.shortfall[0].job == "low" and "1 cpu go to jobs of higher priority" in plan.shortfall[0].reason
    assert [measure.name for measure in plan.measures][:2] == ["shortfall of priority 2", "shortfall of priority 1"]


def test_halves_are_of_one_device() -> None:
    gpus = [{"type": "A"}, {"type": "A"}]
    plan = place([{"id": "a", "gpus": gpus}], [{"id": "j", "workers": 5, "each": {"gpu": 0.6}}])
    assert [p.devices for p in plan.placements] == [{"0": 0.6}, {"1": 0.6}]
    [short] = plan.shortfall
    assert (short.workers, short.cause) == (3, "capacity")
    assert "0.8 gpu are free, but no node has all that a worker takes: 0.6 gpu" in short.reason


def test_room_in_pieces_is_told_from_too_little_room() -> None:
    [short] = place([{"id": "a", "cpu": 3, "count": 2}], [{"id": "j", "workers": 3, "each": {"cpu": 2}}]).shortfall
    assert short.cause == "fragments"
    assert short.reason.startswith("short by 2: capacity 6, demand 6 (cpu); 2 cpu are free, but no node has all")


def test_thirds_fill_a_device() -> None:
    plan = place([{"id": "a", "gpus": [{"type": "A"}]}], [{"id": "j", "workers": 3, "each": {"gpu": 1 / 3}}])
    assert len(plan.placements) == 3


def test_fractions_share_so_that_whole_devices_stay_free() -> None:
    jobs = [
        {"id": "half", "workers": 2, "each": {"gpu": 0.5}},
        {"id": "whole", "workers": 1, "each": {"gpu": 1}},
    ]
    plan = place([{"id": "a", "gpus": [{"type": "A"}, {"type": "A"}]}], jobs)
    assert plan.shortfall == ()


def test_gpu_type_and_memory_are_kept() -> None:
    nodes = [
        {"id": "old", "cpu": 8, "gpus": [{"type": "T4", "memory_bytes": 16 * GIB}] * 2},
        {"id": "new", "cpu": 8, "gpus": [{"type": "H100", "memory_bytes": 80 * GIB}]},
    ]
    jobs = [
        {"id": "typed", "workers": 2, "each": {"gpu": 1, "gpu_types": ["H100"]}},
        {"id": "large", "workers": 1, "each": {"gpu": 0.1, "gpu_memory_bytes": "40GiB"}},
        {"id": "none", "workers": 1, "each": {"gpu": 1, "gpu_types": ["B200"]}},
    ]
    plan = place(nodes, jobs)
    assert {p.node for p in plan.placements} == {"new"}
    causes = {short.job: short for short in plan.shortfall}
    assert causes["none"].cause == "no node fits"
    assert causes["none"].reason.endswith("1 gpu of B200; GPUs there are: H100, T4")


def test_a_worker_too_large_for_any_node() -> None:
    plan = place([{"id": "a", "cpu": 4, "count": 3}], [{"id": "j", "workers": 2, "each": {"cpu": 6}}])
    [short] = plan.shortfall
    assert short.reason == "no node has what one worker takes: 6 cpu; the largest node has 4 cpu"
    assert changes(plan, "j") == ["8 more cpu on any node"]


def test_spread_over_nodes_and_racks() -> None:
    nodes = [{"id": f"n{i}", "cpu": 8, "labels": {"rack": f"r{i // 2}"}} for i in range(4)]
    on_nodes = place(nodes, [{"id": "j", "workers": 5, "each": {"cpu": 1}, "spread": "node"}])
    assert on_nodes.by_node() == {"n0": 1, "n1": 1, "n2": 1, "n3": 1}
    assert on_nodes.shortfall[0].reason.startswith("spread node binds: one worker per node, 5 workers, 4 nodes")
    assert changes(on_nodes, "j")[:2] == ["spread none instead of node", "1 more nodes with room for one worker each"]
    on_racks = place(nodes, [{"id": "j", "workers": 2, "each": {"cpu": 1}, "spread": "rack", "count": 2}])
    racks = {name: {p.node[1] in "01" for p in on_racks.placements if p.job == name} for name in ("j-0", "j-1")}
    assert racks == {"j-0": {True, False}, "j-1": {True, False}}


def test_nodes_without_a_rack_label_are_one_rack() -> None:
    plan = place([{"id": "a", "cpu": 4, "count": 3}], [{"id": "j", "workers": 2, "each": {"cpu": 1}, "spread": "rack"}])
    assert len(plan.placements) == 1


def test_a_quota_binds() -> None:
    plan = place(
        [{"id": "a", "cpu": 16}],
        [{"id": "j", "workers": 5, "each": {"cpu": 2}, "tenant": "t"}, {"id": "k", "workers": 3, "each": {"cpu": 2}}],
        quotas={"t": {"cpu": 5}},
    )
    assert sum(p.job == "j" for p in plan.placements) == 2 and sum(p.job == "k" for p in plan.placements) == 3
    [short] = plan.shortfall
    assert short.cause == "quota" and "the quota of tenant t binds: 4 cpu of 5 cpu used" in short.reason
    assert changes(plan, "j")[0] == "a quota of tenant t of 10 cpu instead of 5 cpu"
    assert [(b.constraint, b.where, b.used, b.limit) for b in plan.binding] == [("quota", "t", 4.0, 5.0)]


def test_a_quota_of_nothing() -> None:
    jobs = [{"id": "j", "workers": 1, "each": {"cpu": 2}, "tenant": "t"}]
    assert place([{"id": "a", "cpu": 4}], jobs, quotas={"t": {"cpu": 0}}).placements == ()


def test_workers_stay_where_they_run() -> None:
    nodes = [{"id": "a", "cpu": 4}, {"id": "b", "cpu": 4}, {"id": "c", "cpu": 4}]
    jobs = [{"id": "j", "workers": 4, "each": {"cpu": 1}}]
    current = [{"job": "j", "worker": i, "node": "c"} for i in range(4)]
    plan = place(nodes, jobs, current=current)
    assert plan.by_node() == {"c": 4} and plan.moves == 0
    again = place(nodes, jobs, current=msgspec.to_builtins(plan.placements))
    assert again.placements == plan.placements


def test_a_lost_node_moves_its_workers_and_says_so() -> None:
    jobs = [{"id": "j", "workers": 2, "each": {"cpu": 1}}]
    current = [{"job": "j", "worker": 0, "node": "gone"}, {"job": "j", "worker": 1, "node": "a"}]
    plan = place([{"id": "a", "cpu": 4}], jobs, current=current)
    assert plan.moves == 1
    assert plan.notes == ("worker 0 of j on gone (which is not among the nodes) moves to a",)


def test_a_move_is_made_only_where_it_saves_more_than_it_moves() -> None:
    jobs = [{"id": "j", "workers": 2, "each": {"cpu": 1}}]
    current = [{"job": "j", "worker": 0, "node": "a"}, {"job": "j", "worker": 1, "node": "b"}]
    kept = place([{"id": "a", "cpu": 2}, {"id": "b", "cpu": 1}], jobs, current=current)
    assert kept.moves == 0
    moved = place([{"id": "a", "cpu": 2}, {"id": "b", "cpu": 8}], jobs, current=current)
    assert moved.moves == 1 and moved.by_node() == {"a": 2}


def test_one_complete_job_rather_than_two_halves() -> None:
    plan = place([{"id": "a", "cpu": 3}], [{"id": "j", "workers": 2, "each": {"cpu": 1}, "count": 2}])
    assert [p.job for p in plan.placements] == ["j-0", "j-0", "j-1"]


def test_nothing_to_place_and_nowhere_to_place_it() -> None:
    assert place([{"id": "a", "cpu": 3}], []).placements == ()
    plan = place([], [{"id": "j", "workers": 2, "each": {"cpu": 1}}])
    assert plan.shortfall[0].workers == 2 and plan.status == "optimal"
    assert "0 of 2 workers placed" in explain(plan)


def large() -> Problem:
    """1,000 nodes of 4 shapes, 2,000 jobs of 6, more than fits."""
    a100, h100, t4 = ({"type": t, "memory_bytes": m * GIB} for t, m in (("A100", 80), ("H100", 80), ("T4", 16)))
    nodes = [
        {"id": "cpu", "cpu": 64, "memory_bytes": "256GiB", "count": 400},
        {"id": "a", "cpu": 96, "memory_bytes": "512GiB", "gpus": [a100] * 8, "count": 300},
        {"id": "h", "cpu": 192, "memory_bytes": "2TiB", "gpus": [h100] * 8, "count": 200},
        {"id": "t", "cpu": 32, "memory_bytes": "128GiB", "gpus": [t4] * 4, "count": 100},
    ]
    each = [
        (8, {"cpu": 8, "gpu": 1, "memory_bytes": "40GiB"}, 300, 1, "none"),
        (4, {"cpu": 16, "gpu": 4, "gpu_types": ["H100"], "memory_bytes": "100GiB"}, 150, 5, "none"),
        (2, {"cpu": 3, "gpu": 0.3, "memory_bytes": "9GiB"}, 400, 0, "none"),
        (16, {"cpu": 7, "memory_bytes": "30GiB"}, 350, 0, "none"),
        (1, {"cpu": 30, "memory_bytes": "200GiB"}, 500, 0, "none"),
        (3, {"cpu": 1, "gpu": 0.6, "memory_bytes": "4GiB"}, 300, 0, "node"),
    ]
    jobs = [
        {"id": f"j{i}", "workers": w, "each": e, "count": c, "priority": p, "spread": s}
        for i, (w, e, c, p, s) in enumerate(each)
    ]
    return Problem.from_mapping({"nodes": nodes, "jobs": jobs})


def test_a_large_problem_within_its_time() -> None:
    started_s = time.monotonic()
    plan = solve(large(), time_limit_s=4.0)
    assert time.monotonic() - started_s < 8.0  # twice what it is given: two cores are shared with other tests
    assert len(plan.placements) > 9000
    assert plan.gap is not None and plan.gap < 0.15


def test_a_timeout_gives_the_last_valid_plan() -> None:
    problem = large()
    plan = solve(problem, time_limit_s=0.05)
    assert plan.status == "time limit"
    assert violations(problem, plan.placements) == [] and len(plan.placements) > 5000
    assert plan.shortfall and plan.counterfactuals


def test_wrong_arguments() -> None:
    problem = Problem.from_mapping({"nodes": [], "jobs": []})
    with pytest.raises(UsageError, match="expected an objective of waste, got 'fairness'"):
        solve(problem, objective="fairness")
    for limit in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="expected a time limit above 0 s"):
            solve(problem, time_limit_s=limit)


def test_the_solver_writes_nothing_to_standard_output() -> None:
    code = (
        "from raylog.placement.model import Problem; from raylog.placement.solve import solve\n"
        "solve(Problem.from_mapping({'nodes': [{'id': 'a', 'cpu': 1}],"
        "'jobs': [{'id': 'j', 'workers': 2, 'each': {'cpu': 1}}]}))\nprint('mine')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("mine\n", "")
