"""How much a node lacks for further workers."""

from raylog.placement.formulate import fit_one, sites_of
from raylog.placement.model import Resource
from raylog.placement.packing import DeviceRoom, Packing
from raylog.placement.shapes import UNIT, JobGroup, NodeGroup, Shapes, Worker


def possible_groups(shapes: Shapes, job: int) -> list[int]:
    """Numbers of the groups of nodes that, empty, take a worker of the job group."""
    group = shapes.jobs[job]
    return [number for number, node in enumerate(shapes.nodes) if fit_node(group, node, number)]


def possible_nodes(shapes: Shapes, job: int) -> list[int]:
    """Numbers of the nodes that, empty, take a worker of the job group."""
    groups = (shapes.nodes[number] for number in possible_groups(shapes, job))
    return [node for group in groups for node in range(group.first, group.first + group.count)]


def fit_node(group: JobGroup, node: NodeGroup, number: int) -> int:
    """How many workers of a job group one empty node of a shape takes, at most."""
    if not group.worker.gpu:
        return fit_one(group, node, None)
    on_sites = sum(fit_one(group, node, site) for site in sites_of(group.worker, node, number))
    return min(on_sites, fit_one(group, node, None))


def free_on(packing: Packing, node: int, resource: Resource) -> int:
    """What is left of a resource on a node, in units or bytes (of GPUs: the sum of free shares)."""
    left = {"cpu": packing.cpu, "memory_bytes": packing.memory_bytes, "gpu": packing.gpu}[resource]
    return int(left[node])


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
