"""How much a node lacks for further workers."""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from raylog.placement.formulate import fit_one, sites_of
from raylog.placement.model import Resource
from raylog.placement.packing import DeviceRoom, Packing
from raylog.placement.shapes import UNIT, Device, JobGroup, NodeGroup, Shapes, Worker


def possible_groups(shapes: Shapes, job: int) -> list[int]:
    """Numbers of the groups of nodes that, empty, take a worker of the job group."""
    worker = shapes.jobs[job].worker
    return [
        number
        for number, node in enumerate(shapes.nodes)
        if node.cpu >= worker.cpu
        and node.memory_bytes >= worker.memory_bytes
        and (not worker.gpu or _has_devices(worker, node.devices))
    ]


@lru_cache(maxsize=10_000)
def _has_devices(worker: Worker, devices: tuple[Device, ...]) -> bool:
    counts = Counter(device.type for device in devices if worker.accepts(device))
    return max(counts.values(), default=0) >= max(worker.devices, 1)


def nodes_of(shapes: Shapes, groups: Sequence[int]) -> list[int]:
    """Numbers of all nodes of some groups."""
    return [
        node for g in groups for node in range(shapes.nodes[g].first, shapes.nodes[g].first + shapes.nodes[g].count)
    ]


def nearest_nodes(packing: Packing, nodes: Sequence[int], most: int) -> list[int]:
    """At most `most` of the nodes, those with the most free, summed over resources."""
    if len(nodes) <= most:
        return list(nodes)
    numbers = np.asarray(nodes)
    free = np.zeros(len(numbers))
    for resource, total in packing.shapes.totals.items():
        free += left(packing, resource)[numbers] / total
    return [int(node) for node in numbers[np.argsort(-free, kind="stable")[:most]]]


def left(packing: Packing, resource: Resource) -> npt.NDArray[np.int64]:
    """What is left of a resource by node, in units or bytes (of GPUs: the sum of free shares)."""
    return {"cpu": packing.cpu, "memory_bytes": packing.memory_bytes, "gpu": packing.gpu}[resource]


def fit_node(group: JobGroup, node: NodeGroup, number: int) -> int:
    """How many workers of a job group one empty node of a shape takes, at most."""
    if not group.worker.gpu:
        return fit_one(group, node, None)
    on_sites = sum(fit_one(group, node, site) for site in sites_of(group.worker, node, number))
    return min(on_sites, fit_one(group, node, None))


def lacking(packing: Packing, worker: Worker, node: int, workers: int) -> dict[Resource, int]:
    """What must be added to a node so that `workers` more find room on it, in units or bytes; GPUs as whole devices of
    a type that the worker accepts. Empty: there is room. Quotas and spreads are not looked at."""
    lacks: dict[Resource, int] = {}
    cpu = worker.cpu * workers - int(packing.cpu[node])
    memory_bytes = worker.memory_bytes * workers - int(packing.memory_bytes[node])
    if worker.cpu and cpu > 0:
        lacks["cpu"] = cpu
    if worker.memory_bytes and memory_bytes > 0:
        lacks["memory_bytes"] = memory_bytes
    devices = devices_lacking(packing.devices[node], worker, workers) if worker.gpu else 0
    if devices:
        lacks["gpu"] = devices * UNIT
    return lacks


def devices_lacking(rooms: list[DeviceRoom], worker: Worker, workers: int) -> int:
    """How many more devices, whole and empty, the node needs for `workers` more."""
    accepted = [room for room in rooms if worker.accepts(room.device)]
    if worker.is_fraction:
        fitting = sum(_fractions(room.share, room.memory_bytes, worker) for room in accepted)
        whole = [room.device for room in accepted if room.device.is_whole]
        per_device = max(
            (_fractions(UNIT, device.memory_bytes, worker) for device in whole), default=UNIT // worker.gpu
        )
        return -(-max(workers - fitting, 0) // max(per_device, 1))
    free: dict[str, int] = {}
    for room in accepted:
        free[room.device.type] = free.get(room.device.type, 0) + (room.share == UNIT)
    fitting = sum(count // worker.devices for count in free.values())
    if fitting >= workers:
        return 0
    # the type with the most left over needs the fewest more
    left = max((count % worker.devices for count in free.values()), default=0)
    return (workers - fitting) * worker.devices - left


def _fractions(share: int, memory_bytes: int, worker: Worker) -> int:
    count = share // worker.gpu
    return min(count, memory_bytes // worker.gpu_memory_bytes) if worker.gpu_memory_bytes else count
