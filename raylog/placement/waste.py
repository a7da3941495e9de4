"""Objective "waste" (formulation A): least shortfall by priority, then least waste, fragmentation and moves."""

import numpy as np

from raylog.placement.formulate import Leave, Open, Place, Shared
from raylog.placement.linear import Linear, Stage, Vector
from raylog.placement.model import Resource
from raylog.placement.shapes import UNIT, Shapes

NAME = "waste"
SHORTFALL = (
    "first the least shortfall, priority by priority, the highest first: the sum of what the missing workers would "
    "take, each resource as a share of the cluster's capacity of it"
)
SECONDARY = (
    "then the least sum of waste (what the nodes in use have and no worker takes), fragmentation (the free rest of "
    "GPUs that carry fractions) and moves (what the workers that leave their node take), each as a share of the "
    "cluster; of equal sums the one with fewer moves, then the job and the node that the file names first"
)
_TIE = 1e-3  # of the smallest cost, for all workers together: orders equal plans, outweighs no difference


def stages(shapes: Shapes, linear: Linear) -> tuple[Stage, ...]:
    """What is minimised, most important first: one shortfall per priority, then the secondary sum."""
    priorities = sorted({job.priority for job in shapes.jobs}, reverse=True)
    levels = [_shortfall(shapes, linear, priority, len(priorities) > 1) for priority in priorities]
    return (*levels, _secondary(shapes, linear))


def tie_break(shapes: Shapes, linear: Linear) -> Vector:
    """A small cost for moves and by place in the file: joins the last stage when it is solved, not when measured."""
    cost = np.zeros(len(linear.columns))
    jobs, nodes = len(shapes.jobs), len(shapes.nodes)
    for number, column in enumerate(linear.columns):
        if isinstance(column, Place):
            rank = (column.job + column.node / nodes) / jobs
            cost[number] = rank - 1
        elif isinstance(column, Leave):
            cost[number] = 2.0
    costs = np.abs(_secondary(shapes, linear).cost)
    smallest = float(costs[costs > 0].min()) if costs.any() else 0.0
    workers = sum(job.workers for job in shapes.jobs)
    return _TIE * smallest / workers * cost


def _shortfall(shapes: Shapes, linear: Linear, priority: float, is_one_of_many: bool) -> Stage:
    cost = np.zeros(len(linear.columns))
    for number, column in enumerate(linear.columns):
        if isinstance(column, Place) and shapes.jobs[column.job].priority == priority:
            cost[number] = -shapes.size(column.job)
    asked = sum(shapes.size(job) * group.workers for job, group in enumerate(shapes.jobs) if group.priority == priority)
    name = f"shortfall of priority {priority:g}" if is_one_of_many else "shortfall"
    return Stage(name=name, cost=cost, constant=asked)


def _secondary(shapes: Shapes, linear: Linear) -> Stage:
    cost = np.zeros(len(linear.columns))
    gpu: Resource = "gpu"
    devices = shapes.totals.get(gpu, UNIT) / UNIT
    for number, column in enumerate(linear.columns):
        match column:
            case Open(node):
                cost[number] += shapes.node_size(node)
            case Shared(site):
                cost[number] += site.device.share / UNIT / devices
            case Place(job, _, _):
                worker = shapes.jobs[job].worker
                cost[number] -= shapes.size(job)
                if worker.is_fraction:
                    cost[number] -= worker.gpu / UNIT / devices
            case Leave(job, _):
                cost[number] += shapes.size(job)
    return Stage(name="waste + fragmentation + moves", cost=cost)
