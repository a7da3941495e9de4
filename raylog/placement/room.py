"""How much a node lacks for further workers."""

from raylog.placement.formulate import fit_one, sites_of
from raylog.placement.model import Resource
from raylog.placement.packing import DeviceRoom, Packing
from raylog.placement.shapes import UNIT, Device, Shapes, Worker


def possible_nodes(shapes: Shapes, job: int) -> list[int]:
    """Numbers of the nodes that, empty, take a worker of the group."""
    group = shapes.jobs[job]
    found: list[int] = []
    for number, node in enumerate(shapes.nodes):
        sites = sites_of(node, number, single_devices=False) if group.worker.gpu else [None]
        if any((site is None or group.worker.accepts(site.device)) and fit_one(group, node, site) for site in sites):
            found.extend(range(node.first, node.first + node.count))
    return found


def lacking(packing: Packing, worker: Worker, node: int, workers: int) -> dict[Resource, int]:
    """What must be added to a node so that `workers` more find room on it, in units or bytes; GPUs as whole devices of
    a kind that the worker accepts. Empty: there is room. Quotas and spreads are not looked at."""
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
    free: dict[Device, int] = {}
    for room in accepted:
        free[room.device] = free.get(room.device, 0) + (room.share == UNIT)
    per_kind = [count // worker.devices for count in free.values()]
    fitting = sum(per_kind)
    if fitting >= workers:
        return 0
    # the kind with the most left over needs the fewest more
    left = max((count % worker.devices for count in free.values()), default=0)
    return (workers - fitting) * worker.devices - left


def _fractions(share: int, memory_bytes: int, worker: Worker) -> int:
    count = share // worker.gpu
    return min(count, memory_bytes // worker.gpu_memory_bytes) if worker.gpu_memory_bytes else count
