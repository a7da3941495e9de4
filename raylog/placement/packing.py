"""Whole workers on single nodes and single devices: the ledger that every plan is built in. It refuses what does not
fit, so nothing built in it exceeds a capacity, a quota or a spread."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from raylog.placement.model import Resource
from raylog.placement.shapes import UNIT, Device, Shapes, Worker, capacity, need

Devices = tuple[int, ...]  # indices on the node


@dataclass(slots=True)
class DeviceRoom:
    """What is left of one device. `users` counts the workers on it."""

    device: Device
    share: int
    memory_bytes: int
    users: int = 0

    @property
    def is_shared(self) -> bool:
        """Whether fractions are on it."""
        return self.users > 1 or 0 < self.device.share - self.share < UNIT


@dataclass(slots=True)
class Packing:
    """Workers of job groups on numbered nodes, and the room that is left. Workers of a group are interchangeable;
    `assign.py` names them.

    `slots[job][node]` lists the devices of each worker of that group there.
    """

    shapes: Shapes
    cpu: npt.NDArray[np.int64] = field(init=False)
    memory_bytes: npt.NDArray[np.int64] = field(init=False)
    gpu: npt.NDArray[np.int64] = field(init=False)
    workers: npt.NDArray[np.int64] = field(init=False)
    devices: list[list[DeviceRoom]] = field(init=False)
    slots: list[dict[int, list[Devices]]] = field(init=False)
    in_rack: dict[tuple[int, str], int] = field(init=False)
    tenant_used: dict[tuple[str, Resource], int] = field(init=False)
    placed_by_job: list[int] = field(init=False)

    def __post_init__(self) -> None:
        groups = [self.shapes.nodes[index] for index in self.shapes.group_of]
        self.cpu = np.array([node.cpu for node in groups], dtype=np.int64)
        self.memory_bytes = np.array([node.memory_bytes for node in groups], dtype=np.int64)
        self.gpu = np.array([capacity(node, "gpu") for node in groups], dtype=np.int64)
        self.workers = np.zeros(len(groups), dtype=np.int64)
        self.devices = [[DeviceRoom(d, d.share, d.memory_bytes) for d in node.devices] for node in groups]
        self.slots = [{} for _ in self.shapes.jobs]
        self.in_rack = {}
        self.tenant_used = {}
        self.placed_by_job = [0] * len(self.shapes.jobs)

    def placed(self, job: int) -> int:
        """How many workers of the group have a place."""
        return self.placed_by_job[job]

    def missing(self, job: int) -> int:
        """How many have none."""
        return self.shapes.jobs[job].workers - self.placed(job)

    def place(self, job: int, node: int, workers: int, prefer: Devices = ()) -> int:
        """Places up to `workers` of the group on the node; returns how many found room. `prefer`: devices to use if
        they do, and no others."""
        workers = min(workers, self.missing(job), self.quota_room(job), self.spread_room(job, node))
        for count in range(workers):
            devices = self.find_devices(self.shapes.jobs[job].worker, node, prefer)
            if devices is None or not self.has_scalars(self.shapes.jobs[job].worker, node):
                return count
            self._take(job, node, devices)
        return max(workers, 0)

    def has_scalars(self, worker: Worker, node: int) -> bool:
        """Whether the node's cores and memory suffice for one worker."""
        return bool(self.cpu[node] >= worker.cpu and self.memory_bytes[node] >= worker.memory_bytes)

    def nodes_with_room(self, job: int) -> npt.NDArray[np.intp]:
        """Numbers of the nodes whose cores, memory and sum of GPU shares suffice for one worker of the group."""
        worker = self.shapes.jobs[job].worker
        fits = (self.cpu >= worker.cpu) & (self.memory_bytes >= worker.memory_bytes) & (self.gpu >= worker.gpu)
        return np.flatnonzero(fits)

    def quota_room(self, job: int) -> int:
        """How many more workers of the group its tenant's quota allows."""
        group = self.shapes.jobs[job]
        room = group.workers
        for (tenant, resource), limit in self.shapes.quotas.items():
            if tenant == group.tenant and need(group.worker, resource):
                used = self.tenant_used.get((tenant, resource), 0)
                room = min(room, (limit - used) // need(group.worker, resource))
        return room

    def spread_room(self, job: int, node: int) -> int:
        """How many more workers of the group its spread allows on the node: one of each job on a node, or in a rack."""
        group = self.shapes.jobs[job]
        if group.spread == "none":
            return group.workers
        if group.spread == "node":
            return len(group.ids) - len(self.slots[job].get(node, ()))
        return len(group.ids) - self.in_rack.get((job, self.rack(node)), 0)

    def rack(self, node: int) -> str:
        """The rack of a node by number."""
        return self.shapes.nodes[self.shapes.group_of[node]].rack

    def find_devices(self, worker: Worker, node: int, prefer: Devices = ()) -> Devices | None:
        """Devices for one worker, () if it needs none, None if there is no room.

        A fraction goes to the fullest device that takes it; whole devices are of one type, those with the least memory
        that do.
        """
        if not worker.gpu:
            return ()
        rooms = self.devices[node]
        allowed = [index for index in (prefer or range(len(rooms))) if worker.accepts(rooms[index].device)]
        if worker.is_fraction:
            fits = [
                index
                for index in allowed
                if rooms[index].share >= worker.gpu and rooms[index].memory_bytes >= worker.gpu_memory_bytes
            ]
            return (min(fits, key=lambda i: (rooms[i].share, rooms[i].memory_bytes, i)),) if fits else None
        free: dict[str, list[int]] = {}
        for index in allowed:
            if rooms[index].share == UNIT:
                free.setdefault(rooms[index].device.type, []).append(index)
        types = [kind for kind, indices in free.items() if len(indices) >= worker.devices]
        if not types:
            return None
        memory = {kind: sorted((rooms[index].memory_bytes, index) for index in free[kind]) for kind in types}
        best = min(types, key=lambda kind: (memory[kind][worker.devices - 1], kind))
        return tuple(index for _, index in memory[best][: worker.devices])

    def _take(self, job: int, node: int, devices: Devices) -> None:
        group = self.shapes.jobs[job]
        worker = group.worker
        self.cpu[node] -= worker.cpu
        self.memory_bytes[node] -= worker.memory_bytes
        self.gpu[node] -= worker.gpu
        self.workers[node] += 1
        for index in devices:
            room = self.devices[node][index]
            room.share -= min(worker.gpu, UNIT)
            room.memory_bytes -= worker.gpu_memory_bytes if worker.is_fraction else room.memory_bytes
            room.users += 1
        self.slots[job].setdefault(node, []).append(devices)
        self.placed_by_job[job] += 1
        if group.spread == "rack":
            key = (job, self.rack(node))
            self.in_rack[key] = self.in_rack.get(key, 0) + 1
        for resource in self.shapes.totals:
            taken = (group.tenant, resource)
            self.tenant_used[taken] = self.tenant_used.get(taken, 0) + need(worker, resource)
