"""Why a plan is as it is: what is missing and what stops it, what binds, at which price, and what would make it fit.

Every statement is read off the packing: "fits" means that the ledger took it.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from raylog.placement.counterfactual import changes
from raylog.placement.formulate import Limit
from raylog.placement.linear import Vector
from raylog.placement.model import RESOURCES, Problem, Resource
from raylog.placement.packing import Packing
from raylog.placement.plan import Binding, Cause, Counterfactual, Placement, Price, Shortfall
from raylog.placement.room import lacking, possible_nodes
from raylog.placement.shapes import Shapes, Worker, amount, capacity, need
from raylog.placement.words import resource_text, worker_text

PRICE_LEAST = 1e-9


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
    for job, group in enumerate(shapes.jobs):
        short = {name: group.workers_each - placed[name] for name in group.ids if placed[name] < group.workers_each}
        if not short:
            continue
        cause, resource = _cause(packing, job)
        for name, workers in short.items():
            missing = need(group.worker, resource) * workers
            reason = _reason(packing, job, cause, resource, workers)
            shortfall.append(
                Shortfall(
                    job=name,
                    workers=workers,
                    resource=resource,
                    amount=amount(missing, resource),
                    cause=cause,
                    reason=reason,
                )
            )
        name, workers = next(iter(short.items()))
        counterfactuals += [Counterfactual(job=name, change=text) for text in changes(packing, job, name, workers)]
    moved = _moves(problem, placements)
    return Reasons(
        shortfall=tuple(shortfall),
        binding=tuple(_binding(packing, {short.resource for short in shortfall}, bool(shortfall))),
        prices=tuple(_prices(shapes, duals)) if duals else (),
        counterfactuals=tuple(counterfactuals),
        moves=len(moved),
        notes=tuple(moved),
    )


def _cause(packing: Packing, job: int) -> tuple[Cause, Resource]:
    """What stops the next worker of the group, and the resource that it is about."""
    worker = packing.shapes.jobs[job].worker
    nodes = possible_nodes(packing.shapes, job)
    if not nodes:
        return "no node fits", _scarcest_on_one_node(packing.shapes, worker)
    main = _main_resource(packing.shapes, worker)
    if packing.quota_room(job) <= 0:
        return "quota", _quota_resource(packing, job) or main
    blocked: Counter[Resource] = Counter()
    for node in nodes:
        lacks = lacking(packing, worker, node, 1)
        if not lacks:
            return "spread", main  # there is room, and still it was not placed
        blocked.update(lacks)
    resource = max(blocked, key=lambda r: (blocked[r], need(worker, r) / packing.shapes.totals[r]))
    free = sum(_free(packing, node, resource) for node in nodes)
    return ("fragments" if free >= need(worker, resource) else "capacity"), resource


def _reason(packing: Packing, job: int, cause: Cause, resource: Resource, workers: int) -> str:
    shapes = packing.shapes
    group = shapes.jobs[job]
    each = need(group.worker, resource)
    nodes = possible_nodes(shapes, job)
    missing = resource_text(each * workers, resource, unit=False)
    if cause == "no node fits":
        return _no_node_reason(shapes, group.worker, resource)
    if cause == "quota":
        limit = shapes.quotas[group.tenant, resource]
        used = packing.tenant_used.get((group.tenant, resource), 0)
        return (
            f"the quota of tenant {group.tenant} binds: {resource_text(used, resource)} of "
            f"{resource_text(limit, resource)} used, a worker takes {resource_text(each, resource)}"
        )
    if cause == "spread":
        domains = "nodes" if group.spread == "node" else "racks"
        count = len({node if group.spread == "node" else packing.rack(node) for node in nodes})
        return (
            f"spread {group.spread} binds: one worker per {group.spread}, {group.workers_each} workers, "
            f"{count} {domains} that have what a worker takes"
        )
    there = sum(capacity(shapes.nodes[shapes.group_of[node]], resource) for node in nodes)
    asked = sum(
        need(other.worker, resource) * other.workers
        for index, other in enumerate(shapes.jobs)
        if set(possible_nodes(shapes, index)) & set(nodes)
    )
    figures = (
        f"capacity {resource_text(there, resource, unit=False)}, demand {resource_text(asked, resource, unit=False)}"
    )
    text = f"short by {missing}: {figures} ({resource.removesuffix('_bytes')})"
    if cause == "fragments" or asked <= there:
        free = sum(_free(packing, node, resource) for node in nodes)
        text += (
            f"; {resource_text(free, resource)} are free, but no single node has all that a worker takes: "
            f"{worker_text(group.worker)}"
        )
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


def _usable(devices: Sequence[object], worker: Worker) -> int:
    from raylog.placement.shapes import UNIT, Device

    counts = Counter(d for d in devices if isinstance(d, Device) and worker.accepts(d))
    return max((count * UNIT for count in counts.values()), default=0)


def _main_resource(shapes: Shapes, worker: Worker) -> Resource:
    return max(shapes.totals, key=lambda resource: need(worker, resource) / shapes.totals[resource])


def _quota_resource(packing: Packing, job: int) -> Resource | None:
    group = packing.shapes.jobs[job]
    for resource in RESOURCES:
        limit = packing.shapes.quotas.get((group.tenant, resource))
        each = need(group.worker, resource)
        if limit is not None and each and packing.tenant_used.get((group.tenant, resource), 0) + each > limit:
            return resource
    return None


def _free(packing: Packing, node: int, resource: Resource) -> int:
    return int({"cpu": packing.cpu, "memory_bytes": packing.memory_bytes, "gpu": packing.gpu}[resource][node])


def _binding(packing: Packing, short: set[Resource], is_short: bool) -> list[Binding]:
    """What is used up; where nothing is short, what would be used up first."""
    shapes = packing.shapes
    found: list[Binding] = []
    shares: dict[Resource, float] = {}
    for resource in shapes.totals:
        limit = sum(capacity(node, resource) * node.count for node in shapes.nodes)
        used = limit - sum(_free(packing, node, resource) for node in range(len(shapes.node_ids)))
        if limit:
            shares[resource] = used / limit
        if resource in short or (limit and used == limit):
            found.append(_capacity_binding(resource, used, limit))
    for (tenant, resource), limit in shapes.quotas.items():
        used = packing.tenant_used.get((tenant, resource), 0)
        least = min(
            (need(j.worker, resource) for j in shapes.jobs if j.tenant == tenant and need(j.worker, resource)),
            default=0,
        )
        if least and used + least > limit:
            text = f"quota of tenant {tenant}: {resource_text(used, resource)} of {resource_text(limit, resource)}"
            found.append(
                Binding(
                    constraint="quota",
                    where=tenant,
                    used=amount(used, resource),
                    limit=amount(limit, resource),
                    text=text,
                )
            )
    for job, group in enumerate(shapes.jobs):
        if group.spread != "none" and packing.missing(job):
            text = f"spread {group.spread} of job {group.ids[0]}: one worker per {group.spread}"
            found.append(
                Binding(
                    constraint="spread",
                    where=group.ids[0],
                    used=float(packing.placed(job)),
                    limit=float(group.workers),
                    text=text,
                )
            )
    if not found and not is_short and shares:
        fullest = max(shares, key=lambda resource: shares[resource])
        text = f"nothing binds; the fullest is {fullest.removesuffix('_bytes')}, {shares[fullest]:.0%} used"
        found.append(Binding(constraint="none", where=fullest, used=shares[fullest], limit=1.0, text=text))
    return found


def _capacity_binding(resource: Resource, used: int, limit: int) -> Binding:
    text = (
        f"{resource.removesuffix('_bytes')}: {resource_text(used, resource)} of {resource_text(limit, resource)} used"
    )
    return Binding(
        constraint=resource, where="all nodes", used=amount(used, resource), limit=amount(limit, resource), text=text
    )


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
