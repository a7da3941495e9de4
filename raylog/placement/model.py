"""The placement file: nodes, jobs, quotas and what runs now, as frozen structs (DESIGN section 8).

Amounts: `cpu` in cores, `gpu` in devices (0.5 is half of one device, 2 are two whole ones), memory in bytes.
What a node does not state, it has none of.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import msgspec

from raylog.placement.reading import convert, read_document, refuse

COUNT_MAX = 100_000
WORKERS_MAX = 1_000_000  # of all jobs together: a plan lists each

Amount = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
Bytes = Annotated[int, msgspec.Meta(ge=0, le=1 << 60)]
Count = Annotated[int, msgspec.Meta(ge=1, le=COUNT_MAX)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Resource = Literal["cpu", "memory_bytes", "gpu"]
SPREADS = ("rack", "node", "none")
RESOURCES: tuple[Resource, ...] = ("cpu", "memory_bytes", "gpu")


class Gpu(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One device. `share` is the part of it that is free: less than 1 where something runs on it already."""

    type: Name
    memory_bytes: Bytes = 0
    share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0


class Node(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A node, or `count` alike, which are then called `id-0`, `id-1`, …"""

    id: Name
    cpu: Amount = 0.0
    memory_bytes: Bytes = 0
    gpus: tuple[Gpu, ...] = ()
    nic_bytes_per_s: Bytes = 0
    labels: dict[str, str] = {}
    count: Count = 1

    def ids(self) -> list[str]:
        """The id of every single node."""
        return [self.id] if self.count == 1 else [f"{self.id}-{number}" for number in range(self.count)]


class Each(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one worker takes. `gpu_types`: any if empty. `gpu_memory_bytes`: on each of its devices."""

    cpu: Amount = 0.0
    gpu: Amount = 0.0
    gpu_types: tuple[Name, ...] = ()
    memory_bytes: Bytes = 0
    gpu_memory_bytes: Bytes = 0

    def __post_init__(self) -> None:
        if self.gpu > 1 and self.gpu != int(self.gpu):
            raise ValueError(f"expected gpu as part of one device (up to 1) or a whole number of them, got {self.gpu}")
        if not (self.cpu or self.gpu or self.memory_bytes):
            raise ValueError("expected a worker that takes some cpu, gpu or memory_bytes, got one that takes none")
        if not self.gpu and (self.gpu_types or self.gpu_memory_bytes):
            raise ValueError("expected gpu above 0 beside gpu_types or gpu_memory_bytes, got none")


class Job(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A job of `workers` alike, or `count` such jobs, called `id-0`, `id-1`, …

    A higher `priority` goes first, strictly. `spread` node (rack): no two workers of the job on one node (one rack;
    nodes without a rack label count as one rack together). `reads` maps artifacts to bytes that each worker reads.
    """

    id: Name
    workers: Count
    each: Each
    priority: Annotated[float, msgspec.Meta(ge=0, le=1e9)] = 0.0
    tenant: Name = "default"
    spread: str = "none"
    reads: dict[str, Bytes] = {}
    count: Count = 1

    def __post_init__(self) -> None:
        if self.spread not in SPREADS:
            raise ValueError(f"expected spread of {', '.join(SPREADS)}, got {self.spread!r}")

    def ids(self) -> list[str]:
        """The id of every single job."""
        return [self.id] if self.count == 1 else [f"{self.id}-{number}" for number in range(self.count)]


class Quota(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The most that all workers of a tenant may take together; None: no limit."""

    cpu: Amount | None = None
    gpu: Amount | None = None
    memory_bytes: Bytes | None = None


class Running(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A worker that runs now. A plan's placement reads back as one (`devices` are not binding, only the node is)."""

    job: Name
    worker: Annotated[int, msgspec.Meta(ge=0)]
    node: Name
    devices: dict[str, float] = {}


class Problem(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be placed, and where. `notes` go into the plan as they are (why a node was left out)."""

    nodes: tuple[Node, ...]
    jobs: tuple[Job, ...]
    quotas: dict[str, Quota] = {}
    current: tuple[Running, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Reads YAML, or JSON where the name ends in .json. Bytes may be texts such as "64GiB".

        Raises `UsageError` that names the file, the path inside it, what was expected and what came: for a missing
        or unreadable file, an unknown or doubled key, a wrong type, a negative or infinite number, a doubled id.
        """
        return cls.from_mapping(read_document(Path(path).expanduser()), str(path))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str = "placement") -> Self:
        """The same from plain values; `where` names their source in errors."""
        problem = convert(values, cls, where)
        problem.check(where)
        return problem

    @classmethod
    def without_nodes(cls, values: Mapping[str, Any], where: str = "placement") -> Self:
        """The same from values that leave `nodes` to the cluster's live capacity."""
        return cls.from_mapping({**values, "nodes": []}, where)

    def check(self, where: str = "placement") -> None:
        """Raises `UsageError` for doubled ids, for `current` naming what is not there, for too many workers."""
        _refuse_doubles([(f".nodes[{i}]", node.ids()) for i, node in enumerate(self.nodes)], where)
        workers = {name: job.workers for job in self.jobs for name in job.ids()}
        _refuse_doubles([(f".jobs[{i}]", job.ids()) for i, job in enumerate(self.jobs)], where)
        if sum(workers.values()) > WORKERS_MAX:
            refuse(where, ".jobs", f"expected at most {WORKERS_MAX} workers in all, got {sum(workers.values())}")
        seen: set[tuple[str, int]] = set()
        for index, running in enumerate(self.current):
            if running.job not in workers:
                refuse(where, f".current[{index}].job", f"expected the id of a job above, got {running.job!r}")
            if running.worker >= workers[running.job]:
                expected = f"expected a worker below {workers[running.job]} of job {running.job}"
                refuse(where, f".current[{index}].worker", f"{expected}, got {running.worker}")
            if (running.job, running.worker) in seen:
                refuse(where, f".current[{index}]", f"worker {running.worker} of job {running.job} stands here twice")
            seen.add((running.job, running.worker))


def is_complete(values: Any) -> bool:
    """Whether `values` can be solved as they are; False for a mapping that leaves `nodes` to a cluster."""
    return not isinstance(values, Mapping) or "nodes" in values


def _refuse_doubles(named: list[tuple[str, list[str]]], where: str) -> None:
    first: dict[str, str] = {}
    for path, ids in named:
        for name in ids:
            if name in first:
                refuse(where, path, f"expected an id of its own, got {name!r}, which {first[name][1:]} has")
            first[name] = path
