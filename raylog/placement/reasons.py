"""Why a plan is as it is: what is missing and what stops it, what binds, at which price, and what would make it fit.

Every statement is read off the packing: "fits" means that the ledger took it.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from raylog.placement.counterfactual import changes
from raylog.placement.formulate import Limit
from raylog.placement.linear import Vector
from raylog.placement.model import RESOURCES, Problem, Resource
from raylog.placement.packing import Packing
from raylog.placement.plan import Binding, Cause, Counterfactual, Placement, Price, Shortfall
from raylog.placement.room import devices_lacking, left, nodes_of, possible_groups
from raylog.placement.shapes import UNIT, Device, Shapes, Worker, amount, capacity, need
from raylog.placement.words import resource_text, worker_text

PRICE_LEAST = 1e-9
EXPLAINED_MAX = 100  # shapes of jobs that get counterfactuals


@dataclass(frozen=True, slots=True)
class Duals:
    """Rows of the relaxed program and their dual values."""

    rows: Sequence[Hashable]
    values: Vector


@dataclass(frozen=True, slots=True, kw_only=True)
class Reasons:
    """The parts of a plan that explain the others."""

    shortfall: tuple[Shortfall, ...]
    binding: tuple[Binding, ...]
    prices: tuple[Price, ...]
    counterfactuals: tuple[Counterfactual, ...]
    moves: int
    notes: tuple[str, ...]


def explain_packing(
    problem: Problem, packing: Packing, placements: Sequence[Placement], duals: Duals | None
) -> Reasons:
    """Reads the reasons off a packing and the placements made of it."""
    shapes = packing.shapes
    placed = Counter(placement.job for placement in placements)
    shortfall: list[Shortfall] = []
    counterfactuals: list[Counterfactual] = []
    binding: dict[str, Binding] = {}
    explained = 0
    is_short = any(packing.missing(job) for job in range(len(shapes.jobs)))
    possible = [possible_groups(shapes, job) for job in range(len(shapes.jobs))] if is_short else []
    for job, group in enumerate(shapes.jobs):
        short = {name: group.workers_each - placed[name] for name in group.ids if placed[name] < group.workers_each}
        if not short:
            continue
        stop = _stop(packing, job, possible)
        limit = _binding(packing, job, stop)
        binding.setdefault(limit.text, limit)
        reasons = {workers: _reason(packing, job, stop, workers) for workers in set(short.values())}
        shortfall += [
            Shortfall(
                job=name,
                workers=workers,
                resource=stop.resource,
                amount=amount(need(group.worker, stop.resource) * workers, stop.resource),
                cause=stop.cause,
                reason=reasons[workers],
            )
            for name, workers in short.items()
        ]
        name, workers = next(iter(short.items()))
        explained += 1
        if explained <= EXPLAINED_MAX:
            texts = changes(packing, job, possible[job], name, workers)
            counterfactuals += [Counterfactual(job=name, change=text) for text in texts]
    notes = _moves(problem, placements)
    moves = len(notes)
    if explained > EXPLAINED_MAX:
        notes.append(f"counterfactuals are given for the first {EXPLAINED_MAX} of {explained} shapes of jobs cut short")
    return Reasons(
        shortfall=tuple(shortfall),
        binding=tuple(binding.values()) or (_fullest(packing),),
        prices=tuple(_prices(shapes, duals)) if duals else (),
        counterfactuals=tuple(counterfactuals),
        moves=moves,
        notes=tuple(notes),
    )


@dataclass(frozen=True, slots=True)
class _Stop:
    """What stops the next worker of a job group: a resource on the nodes that would take one when empty, of which they
    have `there` and all jobs that could stand on them ask for `asked`."""

    cause: Cause
    resource: Resource
    nodes: list[int]
    there: int = 0
    asked: int = 0


def _stop(packing: Packing, job: int, possible: Sequence[Sequence[int]]) -> _Stop:
    shapes = packing.shapes
    worker = shapes.jobs[job].worker
    nodes = nodes_of(shapes, possible[job])
    if not nodes:
        return _Stop("no node fits", _scarcest_on_one_node(shapes, worker), nodes)
    main = max(shapes.totals, key=lambda resource: need(worker, resource) / shapes.totals[resource])
    if packing.quota_room(job) <= 0:
        return _Stop("quota", _quota_resource(packing, job) or main, nodes)
    blocked = _blocked(packing, worker, nodes)
    if not blocked:  # there is room, and still nobody was placed
        return _Stop("spread", main, nodes)
    here = set(possible[job])
    others = [other for index, other in enumerate(shapes.jobs) if not here.isdisjoint(possible[index])]
    there = {r: sum(capacity(shapes.nodes[shapes.group_of[node]], r) for node in nodes) for r in blocked}
    asked = {r: sum(need(other.worker, r) * other.workers for other in others) for r in blocked}
    often = max(blocked.values()) / 2  # of what stops the worker on many nodes, the most asked for is what is scarce
    resource = max((r for r in blocked if blocked[r] >= often), key=lambda r: asked[r] / max(there[r], 1))
    cause: Cause = "capacity" if asked[resource] > there[resource] else "fragments"
    return _Stop(cause, resource, nodes, there[resource], asked[resource])


def _blocked(packing: Packing, worker: Worker, nodes: Sequence[int]) -> dict[Resource, int]:
    """On how many of the nodes which resource does not suffice for one more worker; empty if some node has room."""
    numbers = np.asarray(nodes)
    lacks = {resource: left(packing, resource)[numbers] < need(worker, resource) for resource in packing.shapes.totals}
    for index in np.flatnonzero(~np.any(list(lacks.values()), axis=0)):
        if not worker.gpu or not devices_lacking(packing.devices[numbers[index]], worker, 1):
            return {}
        lacks["gpu"][index] = True  # the sum of shares would do, no device does
    return {resource: int(count.sum()) for resource, count in lacks.items() if count.any()}


def _reason(packing: Packing, job: int, stop: _Stop, workers: int) -> str:
    shapes = packing.shapes
    group = shapes.jobs[job]
    resource = stop.resource
    each = need(group.worker, resource)
    if stop.cause == "no node fits":
        return _no_node_reason(shapes, group.worker, resource)
    if stop.cause == "quota":
        return f"{_binding(packing, job, stop).text}; a worker takes {resource_text(each, resource)}"
    if stop.cause == "spread":
        count = len({node if group.spread == "node" else packing.rack(node) for node in stop.nodes})
        return (
            f"spread {group.spread} binds: one worker per {group.spread}, {group.workers_each} workers, "
            f"{count} {group.spread}s that have what a worker takes"
        )
    missing, there, asked = (
        resource_text(value, resource, unit=False) for value in (each * workers, stop.there, stop.asked)
    )
    text = f"short by {missing}: capacity {there}, demand {asked} ({resource.removesuffix('_bytes')})"
    free = int(left(packing, resource)[stop.nodes].sum())
    if free >= each:
        text += f"; {resource_text(free, resource)} are free, but no node has all that a worker takes: "
        text += worker_text(group.worker)
    ahead = sum(
        need(other.worker, resource) * packing.placed(index)
        for index, other in enumerate(shapes.jobs)
        if other.priority > group.priority
    )
    return text + (f"; {resource_text(ahead, resource)} go to jobs of higher priority" if ahead else "")


def _no_node_reason(shapes: Shapes, worker: Worker, resource: Resource) -> str:
    if resource == "gpu":
        types = sorted({device.type for node in shapes.nodes for device in node.devices})
        has = f"; GPUs there are: {', '.join(types)}" if types else "; no node has a GPU"
        return f"no node has what one worker takes: {worker_text(worker)}{has}"
    largest = max((capacity(node, resource) for node in shapes.nodes), default=0)
    return (
        f"no node has what one worker takes: {worker_text(worker)}; "
        f"the largest node has {resource_text(largest, resource)}"
    )


def _scarcest_on_one_node(shapes: Shapes, worker: Worker) -> Resource:
    """The resource of which the best node has the least part of what a worker takes."""
    best: dict[Resource, float] = {}
    for resource in RESOURCES:
        if need(worker, resource):
            there = [
                _usable(node.devices, worker) if resource == "gpu" else capacity(node, resource)
                for node in shapes.nodes
            ]
            best[resource] = max(there, default=0) / need(worker, resource)
    return min(best, key=lambda resource: best[resource])


def _usable(devices: Sequence[Device], worker: Worker) -> int:
    """Units of the devices of one type that the worker accepts, of the type with the most."""
    counts = Counter(device.type for device in devices if worker.accepts(device))
    return max(counts.values(), default=0) * UNIT


def _quota_resource(packing: Packing, job: int) -> Resource | None:
    group = packing.shapes.jobs[job]
    for resource in RESOURCES:
        limit = packing.shapes.quotas.get((group.tenant, resource))
        each = need(group.worker, resource)
        if limit is not None and each and packing.tenant_used.get((group.tenant, resource), 0) + each > limit:
            return resource
    return None


def _binding(packing: Packing, job: int, stop: _Stop) -> Binding:
    """The limit that stops a job, as used and as it is."""
    shapes, resource = packing.shapes, stop.resource
    group = shapes.jobs[job]
    if stop.cause == "spread":
        text = f"spread {group.spread} of job {group.ids[0]}: one worker per {group.spread}"
        return _limit("spread", group.ids[0], packing.placed(job), group.workers, text)
    if stop.cause == "no node fits":
        text = f"the size of a node: job {group.ids[0]} takes {worker_text(group.worker)}"
        return _limit("node size", group.ids[0], 0.0, float(group.workers), text)
    if stop.cause == "quota":
        limit, used = shapes.quotas[group.tenant, resource], packing.tenant_used.get((group.tenant, resource), 0)
        figures = f"{resource_text(used, resource)} of {resource_text(limit, resource)} used"
        text = f"the quota of tenant {group.tenant} binds: {figures}"
        return _limit("quota", group.tenant, amount(used, resource), amount(limit, resource), text)
    used = stop.there - int(left(packing, resource)[stop.nodes].sum())
    where = (
        "all nodes"
        if len(stop.nodes) == len(shapes.node_ids)
        else f"the {len(stop.nodes)} nodes that take {group.ids[0]}"
    )
    figures = f"{resource_text(used, resource, unit=False)} of {resource_text(stop.there, resource, unit=False)} used"
    text = f"{resource.removesuffix('_bytes')} on {where}: {figures}"
    return _limit(resource, where, amount(used, resource), amount(stop.there, resource), text)


def _limit(constraint: str, where: str, used: float, limit: float, text: str) -> Binding:
    return Binding(constraint=constraint, where=where, used=float(used), limit=float(limit), text=text)


def _fullest(packing: Packing) -> Binding:
    """Nothing is short: what would be used up first."""
    shapes = packing.shapes
    shares: dict[Resource, float] = {}
    for resource in shapes.totals:
        there = sum(capacity(node, resource) * node.count for node in shapes.nodes)
        free = int(left(packing, resource).sum())
        shares[resource] = (there - free) / max(there, 1)
    if not shares:
        return _limit("none", "", 0.0, 0.0, "nothing binds; there is neither capacity nor demand")
    fullest = max(shares, key=lambda resource: shares[resource])
    text = f"nothing binds; the fullest is {fullest.removesuffix('_bytes')}, {shares[fullest]:.0%} used"
    return _limit("none", fullest, shares[fullest], 1.0, text)


def _prices(shapes: Shapes, duals: Duals) -> list[Price]:
    """The positive duals of capacities by resource and group of nodes, and of quotas, per share of the cluster."""
    prices: list[Price] = []
    for row, dual in zip(duals.rows, duals.values, strict=True):
        if not isinstance(row, Limit) or row.resource is None or row.kind not in ("capacity", "quota"):
            continue
        price = float(dual) / row.unit_of_row * shapes.totals[row.resource]
        if price > PRICE_LEAST:
            where = f"quota of {row.tenant}" if row.node is None else _group_text(shapes.nodes[row.node].ids)
            prices.append(Price(resource=row.resource, nodes=where, price=round(price, 9)))
    return sorted(prices, key=lambda price: -price.price)


def _group_text(ids: tuple[str, ...]) -> str:
    return ids[0] if len(ids) == 1 else f"{ids[0]} … {ids[-1]} ({len(ids)} nodes)"


def _moves(problem: Problem, placements: Sequence[Placement]) -> list[str]:
    """A sentence per worker that does not stay where it runs."""
    now = {(placement.job, placement.worker): placement.node for placement in placements}
    nodes = {name for node in problem.nodes for name in node.ids()}
    moved: list[str] = []
    for run in problem.current:
        there = now.get((run.job, run.worker))
        if there != run.node:
            gone = "" if run.node in nodes else " (which is not among the nodes)"
            to = f"moves to {there}" if there else "stops"
            moved.append(f"worker {run.worker} of {run.job} on {run.node}{gone} {to}")
    return moved
