"""Nodes and jobs of one shape as one group each, in whole units, so that a solve's size follows the number of shapes.

Cores and devices are counted in billionths, so that sums are exact: ten tenths, and three thirds, fill one device.
"""

from dataclasses import dataclass

from raylog.placement.model import Each, Gpu, Node, Problem, Quota, Resource

_NodeKey = tuple[float, int, tuple[Gpu, ...], str, tuple[tuple[int, int], ...], str]

UNIT = 10**9  # of one core or device
NO_RACK = "no rack label"


@dataclass(frozen=True, slots=True, order=True)
class Device:
    """One GPU; `share` is the free part of it in units."""

    type: str
    memory_bytes: int
    share: int

    @property
    def is_whole(self) -> bool:
        return self.share == UNIT


@dataclass(frozen=True, slots=True)
class Worker:
    """What one worker takes, in units and bytes. `gpu` below UNIT is a part of one device."""

    cpu: int
    memory_bytes: int
    gpu: int
    gpu_types: tuple[str, ...]
    gpu_memory_bytes: int

    @property
    def is_fraction(self) -> bool:
        return 0 < self.gpu < UNIT

    @property
    def devices(self) -> int:
        """How many whole devices it takes; 0 for a fraction."""
        return self.gpu // UNIT

    def accepts(self, device: Device) -> bool:
        """Whether the device's type, memory and free share do for this worker (for one of its whole devices)."""
        if self.gpu_types and device.type not in self.gpu_types:
            return False
        return device.share >= min(self.gpu, UNIT) and device.memory_bytes >= self.gpu_memory_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class JobGroup:
    """Jobs that differ in their ids only."""

    worker: Worker
    priority: float
    tenant: str
    spread: str
    workers_each: int
    ids: tuple[str, ...]

    @property
    def workers(self) -> int:
        return self.workers_each * len(self.ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeGroup:
    """Nodes alike, also in their rack (where a job spreads over racks) and in what of these jobs runs on them now.

    `first` is the number of the group's first node: nodes are numbered group by group. `current` maps job groups to
    the workers that run on each node.
    """

    cpu: int
    memory_bytes: int
    devices: tuple[Device, ...]
    rack: str
    current: tuple[tuple[int, int], ...]
    ids: tuple[str, ...]
    first: int

    @property
    def count(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """A problem in groups. `totals` (at least 1) are the cluster's capacity by resource, or the demand where there is
    no capacity; `quotas` by tenant and resource, in units. `current` maps (job, worker) to a node's number."""

    jobs: tuple[JobGroup, ...]
    nodes: tuple[NodeGroup, ...]
    totals: dict[Resource, int]
    quotas: dict[tuple[str, Resource], int]
    current: dict[tuple[str, int], int]
    node_ids: tuple[str, ...]
    group_of: tuple[int, ...]

    def size(self, job: int) -> float:
        """A worker's size: its share of the cluster, summed over resources."""
        return sum(need(self.jobs[job].worker, resource) / total for resource, total in self.totals.items())

    def node_size(self, group: int) -> float:
        """A node's share of the cluster, summed over resources."""
        return sum(capacity(self.nodes[group], resource) / total for resource, total in self.totals.items())

    def is_grouped(self) -> bool:
        """Whether some group has several nodes, or several devices that workers share."""
        has_fractions = any(job.worker.is_fraction for job in self.jobs)
        return any(node.count > 1 or (has_fractions and len(node.devices) > 1) for node in self.nodes)


def need(worker: Worker, resource: Resource) -> int:
    """What a worker takes of a resource, in units or bytes."""
    return int(getattr(worker, resource))


def capacity(node: NodeGroup, resource: Resource) -> int:
    """What one node of the group has of a resource, in units or bytes."""
    if resource == "gpu":
        return sum(device.share for device in node.devices)
    return node.cpu if resource == "cpu" else node.memory_bytes


def amount(units: float, resource: Resource) -> float:
    """Units as cores, devices or bytes."""
    return units if resource == "memory_bytes" else units / UNIT


def group(problem: Problem, *, single_nodes: bool = False) -> Shapes:
    """The problem's groups, in the order in which the file names their first member; `single_nodes`: each node by
    itself. Jobs of higher priority come first."""
    jobs = _group_jobs(problem)
    job_of = {name: index for index, job in enumerate(jobs) for name in job.ids}
    running: dict[str, dict[int, int]] = {}
    for worker in problem.current:
        counts = running.setdefault(worker.node, {})
        counts[job_of[worker.job]] = counts.get(job_of[worker.job], 0) + 1
    nodes = _group_nodes(problem, running, single_nodes)
    node_ids = tuple(name for node in nodes for name in node.ids)
    number_of = {name: number for number, name in enumerate(node_ids)}
    return Shapes(
        jobs=jobs,
        nodes=nodes,
        totals=_totals(jobs, nodes),
        quotas=_quotas(problem.quotas),
        current={(run.job, run.worker): number_of[run.node] for run in problem.current if run.node in number_of},
        node_ids=node_ids,
        group_of=tuple(index for index, node in enumerate(nodes) for _ in node.ids),
    )


def _group_jobs(problem: Problem) -> tuple[JobGroup, ...]:
    groups: dict[tuple[Worker, float, str, str, int], list[str]] = {}
    for job in sorted(problem.jobs, key=lambda job: -job.priority):
        key = (_worker(job.each), job.priority, job.tenant, job.spread, job.workers)
        groups.setdefault(key, []).extend(job.ids())
    return tuple(
        JobGroup(worker=key[0], priority=key[1], tenant=key[2], spread=key[3], workers_each=key[4], ids=tuple(ids))
        for key, ids in groups.items()
    )


def _group_nodes(problem: Problem, running: dict[str, dict[int, int]], single: bool) -> tuple[NodeGroup, ...]:
    by_rack = any(job.spread == "rack" for job in problem.jobs)
    groups: dict[_NodeKey, tuple[Node, list[str]]] = {}
    for node in problem.nodes:
        rack = node.labels.get("rack", NO_RACK) if by_rack else ""
        for name in node.ids():
            here = tuple(sorted(running.get(name, {}).items()))
            key = (node.cpu, node.memory_bytes, node.gpus, rack, here, name if single else "")
            groups.setdefault(key, (node, []))[1].append(name)
    made: list[NodeGroup] = []
    first = 0
    for key, (node, ids) in groups.items():
        made.append(
            NodeGroup(
                cpu=_units(node.cpu),
                memory_bytes=node.memory_bytes,
                devices=tuple(_device(gpu) for gpu in node.gpus),
                rack=key[3],
                current=key[4],
                ids=tuple(ids),
                first=first,
            )
        )
        first += len(ids)
    return tuple(made)


def _totals(jobs: tuple[JobGroup, ...], nodes: tuple[NodeGroup, ...]) -> dict[Resource, int]:
    totals: dict[Resource, int] = {}
    resources: tuple[Resource, ...] = ("cpu", "memory_bytes", "gpu")
    for resource in resources:
        there = sum(capacity(node, resource) * node.count for node in nodes)
        asked = sum(need(job.worker, resource) * job.workers for job in jobs)
        if there or asked:
            totals[resource] = there or asked
    return totals


def _quotas(quotas: dict[str, Quota]) -> dict[tuple[str, Resource], int]:
    made: dict[tuple[str, Resource], int] = {}
    for tenant, quota in quotas.items():
        if quota.cpu is not None:
            made[tenant, "cpu"] = _units(quota.cpu)
        if quota.gpu is not None:
            made[tenant, "gpu"] = _units(quota.gpu)
        if quota.memory_bytes is not None:
            made[tenant, "memory_bytes"] = quota.memory_bytes
    return made


def _worker(each: Each) -> Worker:
    return Worker(
        _units(each.cpu), each.memory_bytes, _units(each.gpu), tuple(sorted(each.gpu_types)), each.gpu_memory_bytes
    )


def _device(gpu: Gpu) -> Device:
    return Device(gpu.type, gpu.memory_bytes, _units(gpu.share))


def _units(value: float) -> int:
    return max(round(value * UNIT), 1) if value else 0
