"""The rows that every objective shares: which workers may stand where, in groups of nodes alike.

For a group of several nodes the rows speak of the nodes' sum: necessary, not sufficient (a worker does not stand on two
halves of nodes). Dual feasible functions (Fekete and Schepers, "New classes of fast lower bounds for bin packing
problems", 2001) tighten them; `round.py` settles the rest. For single nodes and devices the rows are exact.
"""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from raylog.placement.linear import Builder, Linear, Vector
from raylog.placement.model import Resource
from raylog.placement.packing import Packing
from raylog.placement.shapes import UNIT, Device, JobGroup, NodeGroup, Shapes, Worker, capacity, need

SCALARS: tuple[Resource, ...] = ("cpu", "memory_bytes")


@dataclass(frozen=True, slots=True)
class Site:
    """Devices of one type on the nodes of a group, by index: for fractions alike in memory and free share too, or one
    alone; for whole devices all that are free and have the memory (`device` is then the least of them)."""

    node: int
    device: Device
    indices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Column: workers of a job group on a group of nodes, on devices of a site if they need any."""

    job: int
    node: int
    site: Site | None


@dataclass(frozen=True, slots=True)
class Open:
    """Column: how many nodes of the group are in use."""

    node: int


@dataclass(frozen=True, slots=True)
class Shared:
    """Column: how many devices of the site carry fractions."""

    site: Site


@dataclass(frozen=True, slots=True)
class Leave:
    """Column: how many workers of the job group leave the nodes of this group, on which they run now."""

    job: int
    node: int


@dataclass(frozen=True, slots=True)
class Limit:
    """Row: a resource at a group of nodes, a tenant's quota, a spread or a demand. `unit_of_row`: how much of the
    resource (units or bytes) one unit of the row's right side is."""

    kind: str
    node: int | None = None
    resource: Resource | None = None
    job: int | None = None
    tenant: str = ""
    rack: str = ""
    unit_of_row: float = 1.0


def formulate(shapes: Shapes, *, single_devices: bool = False) -> Linear:
    """The program of a problem. Deterministic: columns and rows follow the groups' order.

    `single_devices`: fractions choose a device of their own (whole devices of one kind are alike, and stay together);
    with single nodes this makes the program exact.
    """
    builder = Builder()
    places = _places(builder, shapes, single_devices)
    by_node: dict[int, dict[Place, int]] = {}
    for place, column in places.items():
        by_node.setdefault(place.node, {})[place] = column
    for number, here in sorted(by_node.items()):
        opened = builder.column(Open(number), shapes.nodes[number].count)
        _node_rows(builder, shapes, number, here, opened)
        _device_rows(builder, shapes, number, here, opened)
    _demand_rows(builder, shapes, places)
    _quota_rows(builder, shapes, places)
    _spread_rows(builder, shapes, places)
    _leave_rows(builder, shapes, places)
    return builder.build()


def vector(linear: Linear, packing: Packing) -> Vector:
    """A packing as a point of the program over the same groups of nodes: every objective measures plans through it."""
    numbers = linear.column_numbers()
    x = np.zeros(len(linear.columns))
    shapes = packing.shapes
    places: dict[tuple[int, int, int], int] = {}
    shared: dict[tuple[int, int], int] = {}
    for name, number in numbers.items():
        if isinstance(name, Place):
            for index in name.site.indices if name.site else (-1,):
                places[name.job, name.node, index] = number
        elif isinstance(name, Shared):
            shared.update({(name.site.node, index): number for index in name.site.indices})
    for job, by_node in enumerate(packing.slots):
        for node, slots in by_node.items():
            for devices in slots:
                x[places[job, shapes.group_of[node], devices[0] if devices else -1]] += 1
    for used in np.flatnonzero(packing.workers):
        group = shapes.group_of[int(used)]
        x[numbers[Open(group)]] += 1
        for index, room in enumerate(packing.devices[int(used)]):
            if room.is_shared:
                x[shared[group, index]] += 1
    for name, number in numbers.items():
        if isinstance(name, Leave):
            x[number] = _leaving(packing, name)
    return x


def _leaving(packing: Packing, leave: Leave) -> int:
    group = packing.shapes.nodes[leave.node]
    there = dict(group.current)[leave.job]
    return sum(
        max(there - len(packing.slots[leave.job].get(group.first + number, ())), 0) for number in range(group.count)
    )


def sites_of(worker: Worker, node: NodeGroup, number: int, *, single_devices: bool = False) -> list[Site]:
    """The sites on a group of nodes that a worker's GPUs may be of."""
    sets: dict[Hashable, list[int]] = {}
    for index, device in enumerate(node.devices):
        if worker.accepts(device):
            kind = (device, index if single_devices else -1) if worker.is_fraction else device.type
            sets.setdefault(kind, []).append(index)
    return [Site(number, min(node.devices[index] for index in indices), tuple(indices)) for indices in sets.values()]


def _places(builder: Builder, shapes: Shapes, single_devices: bool) -> dict[Place, int]:
    places: dict[Place, int] = {}
    for job, group in enumerate(shapes.jobs):
        for number, node in enumerate(shapes.nodes):
            sites = sites_of(group.worker, node, number, single_devices=single_devices)
            for site in sites if group.worker.gpu else (None,):
                place = Place(job, number, site)
                most = min(fit_one(group, node, site) * node.count, group.workers)
                if most:
                    places[place] = builder.column(place, most)
    return places


def fit_one(group: JobGroup, node: NodeGroup, site: Site | None) -> int:
    """How many workers of a job group one empty node of the group takes on this site."""
    worker = group.worker
    most = len(group.ids) if group.spread != "none" else group.workers
    for resource in SCALARS:
        if need(worker, resource):
            most = min(most, capacity(node, resource) // need(worker, resource))
    if site is not None and worker.is_fraction:
        on_device = site.device.share // worker.gpu
        if worker.gpu_memory_bytes:
            on_device = min(on_device, site.device.memory_bytes // worker.gpu_memory_bytes)
        most = min(most, on_device * len(site.indices))
    elif site is not None:
        most = min(most, len(site.indices) // worker.devices)
    return most


def _node_rows(builder: Builder, shapes: Shapes, number: int, here: dict[Place, int], opened: int) -> None:
    node = shapes.nodes[number]
    for resource in SCALARS:
        there = capacity(node, resource)
        takes = [
            (column, Fraction(need(shapes.jobs[place.job].worker, resource), there or 1))
            for place, column in here.items()
        ]
        if not any(share for _, share in takes):
            continue
        limit = Limit("capacity", node=number, resource=resource, unit_of_row=there)
        builder.row(limit, [*((c, float(share)) for c, share in takes), (opened, -1.0)], 0.0)
        for terms in _tighter(takes):
            builder.row(Limit("packing", node=number, resource=resource), [*terms, (opened, -1.0)], 0.0)
    builder.row(Limit("nodes", node=number), [(opened, 1.0)], node.count)


def _device_rows(builder: Builder, shapes: Shapes, number: int, here: dict[Place, int], opened: int) -> None:
    """Per site the fractions on it fit; per type and least memory, whole devices and those that carry fractions are at
    most those that there are. (Who needs more memory has a subset of the devices: these rows suffice, by Hall.)"""
    node = shapes.nodes[number]
    sites: dict[Site, list[tuple[int, Worker]]] = {}
    taken: list[tuple[Device, int, float]] = []
    for place, column in here.items():
        worker = shapes.jobs[place.job].worker
        if place.site and worker.is_fraction:
            sites.setdefault(place.site, []).append((column, worker))
        elif place.site:
            taken.append((place.site.device, column, float(worker.devices)))
    for site, users in sites.items():
        shared = builder.column(Shared(site), len(site.indices) * node.count)
        _share_rows(builder, site, users, shared)
        if site.device.is_whole:
            taken.append((site.device, shared, 1.0))
        if not site.device.is_whole or len(site.indices) == 1:
            limit = Limit("capacity", node=number, resource="gpu", unit_of_row=site.device.share)
            builder.row(limit, [(shared, 1.0), (opened, -float(len(site.indices)))], 0.0)
    for least in sorted({device for device in node.devices if device.is_whole}):
        terms = [(column, factor) for device, column, factor in taken if _is_among(device, least)]
        if terms:
            count = sum(_is_among(device, least) for device in node.devices if device.is_whole)
            limit = Limit("capacity", node=number, resource="gpu", unit_of_row=UNIT)
            builder.row(limit, [*terms, (opened, -float(count))], 0.0)


def _is_among(device: Device, least: Device) -> bool:
    return device.type == least.type and device.memory_bytes >= least.memory_bytes


def _share_rows(builder: Builder, site: Site, users: list[tuple[int, Worker]], shared: int) -> None:
    shares = [(column, Fraction(worker.gpu, site.device.share)) for column, worker in users]
    memory = [(column, Fraction(worker.gpu_memory_bytes, site.device.memory_bytes or 1)) for column, worker in users]
    for takes in (shares, memory):
        if any(share for _, share in takes):
            builder.row(Limit("device", node=site.node), [*((c, float(s)) for c, s in takes), (shared, -1.0)], 0.0)
            for terms in _tighter(takes):
                builder.row(Limit("packing", node=site.node), [*terms, (shared, -1.0)], 0.0)


def _tighter(takes: list[tuple[int, Fraction]]) -> Iterator[list[tuple[int, float]]]:
    """Further rows that hold for whatever shares stand together in one bin: the dual feasible functions u_1 to u_3."""
    for k in (1, 2, 3):
        rounded = [
            (column, share if ((k + 1) * share).denominator == 1 else Fraction(int((k + 1) * share), k))
            for column, share in takes
        ]
        if any(new > old for (_, new), (_, old) in zip(rounded, takes, strict=True)):
            yield [(column, float(share)) for column, share in rounded]


def _demand_rows(builder: Builder, shapes: Shapes, places: dict[Place, int]) -> None:
    for job, group in enumerate(shapes.jobs):
        terms = [(column, 1.0) for place, column in places.items() if place.job == job]
        if terms:
            builder.row(Limit("demand", job=job), terms, group.workers)


def _quota_rows(builder: Builder, shapes: Shapes, places: dict[Place, int]) -> None:
    for (tenant, resource), limit in shapes.quotas.items():
        scale = float(max(limit, 1, *(need(job.worker, resource) for job in shapes.jobs)))
        terms = [
            (column, need(shapes.jobs[place.job].worker, resource) / scale)
            for place, column in places.items()
            if shapes.jobs[place.job].tenant == tenant
        ]
        if any(factor for _, factor in terms):
            name = Limit("quota", resource=resource, tenant=tenant, unit_of_row=scale)
            builder.row(name, terms, limit / scale)


def _spread_rows(builder: Builder, shapes: Shapes, places: dict[Place, int]) -> None:
    """Each job of the group stands once per node, or once per rack: so the group at most as often as it has jobs."""
    for job, group in enumerate(shapes.jobs):
        domains: dict[tuple[int, str], list[tuple[int, float]]] = {}
        for place, column in places.items():
            if place.job == job and group.spread != "none":
                domain = (place.node, "") if group.spread == "node" else (-1, shapes.nodes[place.node].rack)
                domains.setdefault(domain, []).append((column, 1.0))
        for (node, rack), terms in domains.items():
            nodes = shapes.nodes[node].count if node >= 0 else 1
            limit = Limit("spread", job=job, node=node if node >= 0 else None, rack=rack)
            builder.row(limit, terms, float(len(group.ids) * nodes))


def _leave_rows(builder: Builder, shapes: Shapes, places: dict[Place, int]) -> None:
    for number, node in enumerate(shapes.nodes):
        for job, there in node.current:
            leave = builder.column(Leave(job, number), there * node.count, whole=False)
            terms = [(column, -1.0) for place, column in places.items() if (place.job, place.node) == (job, number)]
            builder.row(Limit("leave", node=number, job=job), [*terms, (leave, -1.0)], -float(there * node.count))
