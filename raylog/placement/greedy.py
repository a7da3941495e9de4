"""A valid plan without a solver: jobs of high priority and large workers first, each where it leaves least over."""

import numpy as np

from raylog.placement.packing import Packing
from raylog.placement.shapes import Shapes


def greedy(shapes: Shapes) -> Packing:
    """The plan that stands when the solver has none in time."""
    packing = Packing(shapes)
    complete(packing)
    return packing


def complete(packing: Packing, priority: float | None = None) -> None:
    """Places what still has no place (of one priority, or all), where there is room; moves nothing."""
    for job in job_order(packing.shapes):
        if priority is None or packing.shapes.jobs[job].priority == priority:
            fill(packing, job)


def job_order(shapes: Shapes) -> list[int]:
    """Job groups: highest priority first, then the largest worker, then the file's order."""
    return sorted(range(len(shapes.jobs)), key=lambda job: (-shapes.jobs[job].priority, -shapes.size(job), job))


def fill(packing: Packing, job: int) -> None:
    """Places workers of one group: first where they run now, then on nodes already in use, the fullest first."""
    shapes = packing.shapes
    missing = packing.missing(job)
    if missing <= 0:
        return
    stay: dict[int, int] = {}
    for name in shapes.jobs[job].ids if shapes.current else ():
        for worker in range(shapes.jobs[job].workers_each):
            if (name, worker) in shapes.current:
                node = shapes.current[name, worker]
                stay[node] = stay.get(node, 0) + 1
    for node, workers in stay.items():
        missing -= packing.place(job, node, min(workers, missing))
    for node in best_fit(packing, job):
        if missing <= 0:
            return
        missing -= packing.place(job, int(node), missing)


def best_fit(packing: Packing, job: int) -> list[int]:
    """Nodes with room for the group: those in use first, then by the size of what is free, then by number."""
    nodes = packing.nodes_with_room(job)
    totals = packing.shapes.totals
    free = np.zeros(len(nodes))
    for resource, left in (("cpu", packing.cpu), ("memory_bytes", packing.memory_bytes), ("gpu", packing.gpu)):
        if resource in totals:
            free += left[nodes] / totals[resource]
    order = np.lexsort((nodes, np.round(free, 12), packing.workers[nodes] == 0))
    return [int(node) for node in nodes[order]]
