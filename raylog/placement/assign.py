"""Gives the workers of a group of jobs their names: which job's which worker stands on which node."""

from collections.abc import Iterable

from raylog.placement.packing import Devices, Packing
from raylog.placement.plan import Placement
from raylog.placement.shapes import UNIT, Shapes

Slot = tuple[int, Devices]  # a node's number and the devices taken there


def assign(packing: Packing) -> list[Placement]:
    """A placement per worker, by job and worker. Workers stay where they run if the packing has room for them there;
    of jobs alike the first ones are complete, so that not all of them wait for their last worker."""
    placements: list[Placement] = []
    shapes = packing.shapes
    for job, group in enumerate(shapes.jobs):
        slots = [(node, devices) for node in sorted(packing.slots[job]) for devices in packing.slots[job][node]]
        dealt = _fill_jobs(shapes, job, slots) if group.spread == "none" else _deal(packing, job, slots)
        for name, taken in dealt.items():
            for worker, (node, devices) in _number(shapes, name, group.workers_each, taken):
                placements.append(_placement(packing, job, name, worker, node, devices))
    return placements


def _fill_jobs(shapes: Shapes, job: int, slots: list[Slot]) -> dict[str, list[Slot]]:
    group = shapes.jobs[job]
    free = list(reversed(slots))
    at_node: dict[int, list[Slot]] = {}
    for slot in free if shapes.current else ():
        at_node.setdefault(slot[0], []).append(slot)
    dealt: dict[str, list[Slot]] = {name: [] for name in group.ids}
    for name in group.ids if shapes.current else ():
        for worker in range(group.workers_each):
            node = shapes.current.get((name, worker))
            if node is not None and at_node.get(node):
                dealt[name].append(at_node[node].pop())
    if shapes.current:
        free = [slot for node in sorted(at_node, reverse=True) for slot in at_node[node]]
    for name in group.ids:
        while free and len(dealt[name]) < group.workers_each:
            dealt[name].append(free.pop())
    return dealt


def _deal(packing: Packing, job: int, slots: list[Slot]) -> dict[str, list[Slot]]:
    """One slot of each domain at most to a job. Domains with many slots first, to the jobs with most to get, gives
    every job its even part (Gale and Ryser)."""
    shapes = packing.shapes
    group = shapes.jobs[job]
    domains: dict[object, list[Slot]] = {}
    for slot in slots:
        domains.setdefault(slot[0] if group.spread == "node" else packing.rack(slot[0]), []).append(slot)
    even, more = divmod(len(slots), len(group.ids))
    left = {name: even + (index < more) for index, name in enumerate(group.ids)}
    home = {name: _nodes_now(shapes, name, group.workers_each) for name in group.ids}
    dealt: dict[str, list[Slot]] = {name: [] for name in group.ids}
    for domain in sorted(domains.values(), key=len, reverse=True):
        here = {node for node, _ in domain}
        order = sorted(group.ids, key=lambda name: (-left[name], home[name].isdisjoint(here)))
        names = order[: len(domain)]
        for name in sorted(names, key=lambda name: home[name].isdisjoint(here)):
            at_home = [slot for slot in domain if slot[0] in home[name]]
            slot = at_home[0] if at_home else domain[0]
            domain.remove(slot)
            dealt[name].append(slot)
            left[name] -= 1
    return dealt


def _nodes_now(shapes: Shapes, name: str, workers: int) -> set[int]:
    return {shapes.current[name, worker] for worker in range(workers) if (name, worker) in shapes.current}


def _number(shapes: Shapes, name: str, workers: int, slots: list[Slot]) -> Iterable[tuple[int, Slot]]:
    """Numbers the slots of a job: the worker that runs on a node keeps it."""
    numbered: dict[int, Slot] = {}
    rest = list(slots)
    for worker in range(workers) if shapes.current else ():
        node = shapes.current.get((name, worker))
        found = next((slot for slot in rest if slot[0] == node), None)
        if found is not None:
            numbered[worker] = found
            rest.remove(found)
    free = (worker for worker in range(workers) if worker not in numbered)
    numbered.update(zip(free, rest, strict=False))
    return sorted(numbered.items())


def _placement(packing: Packing, job: int, name: str, worker: int, node: int, devices: Devices) -> Placement:
    share = min(packing.shapes.jobs[job].worker.gpu, UNIT) / UNIT
    return Placement(
        job=name,
        worker=worker,
        node=packing.shapes.node_ids[node],
        devices={str(index): share for index in devices},
    )
