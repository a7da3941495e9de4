"""Small problems at random, and the least shortfall of one by trying everything. Shares no code with the solver but
the checker."""

import itertools
from typing import Any

from hypothesis import strategies as st

from raylog.placement.check import violations
from raylog.placement.model import RESOURCES, Job, Node, Problem
from raylog.placement.plan import Placement

_devices = st.lists(
    st.fixed_dictionaries({"type": st.sampled_from("AB"), "memory_bytes": st.sampled_from([8, 16])}), max_size=2
)
_nodes = st.fixed_dictionaries(
    {
        "cpu": st.integers(0, 5),
        "memory_bytes": st.sampled_from([0, 8, 16]),
        "gpus": _devices,
        "labels": st.sampled_from([{}, {"rack": "r1"}, {"rack": "r2"}]),
        "count": st.sampled_from([1, 1, 2]),
    }
)
_each = st.one_of(
    st.fixed_dictionaries({"cpu": st.sampled_from([0.5, 1, 2, 3])}, optional={"memory_bytes": st.sampled_from([4, 8])}),
    st.fixed_dictionaries(
        {"gpu": st.sampled_from([0.3, 0.5, 0.6, 1, 2])},
        optional={
            "cpu": st.sampled_from([1, 2]),
            "gpu_types": st.just(["A"]),
            "gpu_memory_bytes": st.sampled_from([4, 8, 10]),
        },
    ),
)
_jobs = st.fixed_dictionaries(
    {
        "workers": st.integers(1, 2),
        "each": _each,
        "priority": st.sampled_from([0, 0, 1]),
        "tenant": st.sampled_from(["t", "u"]),
        "spread": st.sampled_from(["none", "none", "node", "rack"]),
    }
)
_quotas = st.dictionaries(
    st.just("t"), st.dictionaries(st.sampled_from(["cpu", "gpu"]), st.integers(0, 3), max_size=1), max_size=1
)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Up to three shapes of nodes and of jobs, with GPUs, fractions, spreads and quotas."""
    nodes = [{"id": f"n{i}", **node} for i, node in enumerate(draw(st.lists(_nodes, min_size=1, max_size=3)))]
    jobs = [{"id": f"j{i}", **job} for i, job in enumerate(draw(st.lists(_jobs, min_size=1, max_size=3)))]
    return Problem.from_mapping({"nodes": nodes, "jobs": jobs, "quotas": draw(_quotas)})


def least_shortfall(problem: Problem) -> tuple[float, ...]:
    """Per priority, the highest first: what the missing workers would take, as a share of the cluster."""
    nodes = {name: node for node in problem.nodes for name in node.ids()}
    workers = [(name, number, job) for job in problem.jobs for name in job.ids() for number in range(job.workers)]
    priorities = sorted({job.priority for job in problem.jobs}, reverse=True)
    totals = _totals(problem)
    best: list[tuple[float, ...]] = []

    def search(index: int, placed: list[Placement], missing: tuple[float, ...]) -> None:
        if best and missing >= best[0]:
            return  # what is missing only grows
        if index == len(workers):
            best[:] = [missing]
            return
        name, number, job = workers[index]
        for node_name, node in nodes.items():
            for devices in _choices(job, node):
                more = [*placed, Placement(job=name, worker=number, node=node_name, devices=devices)]
                if not violations(problem, more):
                    search(index + 1, more, missing)
        size = sum(getattr(job.each, resource) / total for resource, total in totals.items())
        level = priorities.index(job.priority)
        search(index + 1, placed, tuple(m + size * (i == level) for i, m in enumerate(missing)))

    search(0, [], (0.0,) * len(priorities))
    return best[0]


def _choices(job: Job, node: Node) -> list[dict[str, float]]:
    if not job.each.gpu:
        return [{}]
    if job.each.gpu < 1:
        return [{str(index): job.each.gpu} for index in range(len(node.gpus))]
    sets = itertools.combinations(range(len(node.gpus)), int(job.each.gpu))
    return [{str(index): 1.0 for index in indices} for indices in sets]


def _totals(problem: Problem) -> dict[str, float]:
    totals: dict[str, float] = {}
    for resource in RESOURCES:
        there: Any = 0.0
        for node in problem.nodes:
            there += node.count * (len(node.gpus) if resource == "gpu" else getattr(node, resource))
        asked = sum(job.count * job.workers * getattr(job.each, resource) for job in problem.jobs)
        if there or asked:
            totals[resource] = there or asked
    return totals
