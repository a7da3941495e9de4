"""What the nodes of a living cluster have to give now, and why some give less or nothing. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from raylog.placement.model import Gpu, Node
from raylog.spec import TierKind
from raylog.units import GIB, format_bytes

STALE_AFTER_S = 10.0
BUSY_LOAD = 1.0  # run queue per core from which on a node counts as busy


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuState:
    """One GPU of a node as NVML sees it."""

    type: str
    memory_total_bytes: int
    memory_free_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeState:
    """A node now, joined from Ray's resources and the node's last sample.

    `cpu_*` and `gpu_*` are Ray's figures (cores, devices), `load` the run queue's mean over a minute, `free_bytes` by
    tier, `last_seen_s` the seconds since its last sample came in. `gpus` may be empty where NVML has no figure.
    """

    node_id: str
    cpu_total: float = 0.0
    cpu_available: float = 0.0
    memory_total_bytes: int = 0
    memory_available_bytes: int = 0
    gpu_total: float = 0.0
    gpu_available: float = 0.0
    gpus: tuple[GpuState, ...] = ()
    load: float = 0.0
    free_bytes: dict[TierKind, int] = field(default_factory=dict)
    nic_bytes_per_s: int = 0
    labels: dict[str, str] = field(default_factory=dict)
    is_draining: bool = False
    last_seen_s: float = 0.0

    @property
    def busy(self) -> float:
        """Run queue per core, 0 for an idle node."""
        return self.load / max(self.cpu_total, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """Nodes for a `Problem`, and a reason for each that is left out or gives less than it has."""

    nodes: tuple[Node, ...]
    reasons: tuple[str, ...]


def left_out(state: NodeState) -> str | None:
    """Why a node takes nothing new, if so."""
    if state.is_draining:
        return f"node {state.node_id} left out: it is being drained"
    if state.last_seen_s > STALE_AFTER_S:
        return f"node {state.node_id} left out: last sample {state.last_seen_s:.0f} s old"
    return None


def capacity(states: Sequence[NodeState]) -> Capacity:
    """What may be placed on the nodes now, by node id.

    Cores: what Ray has not given away, but no more than the run queue leaves idle (total - load). Memory: the lesser of
    Ray's figure and what the machine has available, which is how `NodeState` is filled. GPUs: Ray says how many devices
    are free in sum and packs fractions onto as few as it can, so whole ones and at most one part are taken as free, the
    ones with the most free memory first, each with the whole GiB that NVML sees free
    (so that devices alike stay alike).
    """
    nodes: list[Node] = []
    reasons: list[str] = []
    for state in sorted(states, key=lambda state: state.node_id):
        excluded = left_out(state)
        if excluded:
            reasons.append(excluded)
            continue
        cpu = max(min(state.cpu_available, state.cpu_total - state.load), 0.0)
        reasons += _reductions(state, cpu)
        nodes.append(
            Node(
                id=state.node_id,
                cpu=round(cpu, 4),
                memory_bytes=max(min(state.memory_available_bytes, state.memory_total_bytes), 0),
                gpus=_gpus(state),
                nic_bytes_per_s=state.nic_bytes_per_s,
                labels=state.labels,
            )
        )
    return Capacity(nodes=tuple(nodes), reasons=tuple(reasons))


def _reductions(state: NodeState, cpu: float) -> list[str]:
    """A sentence per resource of which the node gives less than it has."""
    name = state.node_id
    found: list[str] = []
    if cpu < state.cpu_available:
        found.append(f"node {name} gives {cpu:g} of {state.cpu_total:g} cpu: its load is {state.load:g}")
    elif cpu < state.cpu_total:
        found.append(f"node {name} gives {cpu:g} of {state.cpu_total:g} cpu: the rest is taken in Ray")
    if state.memory_available_bytes < state.memory_total_bytes:
        free, total = format_bytes(state.memory_available_bytes), format_bytes(state.memory_total_bytes)
        found.append(f"node {name} gives {free} of {total} memory: the rest is in use")
    if state.gpu_available < state.gpu_total:
        found.append(f"node {name} gives {state.gpu_available:g} of {state.gpu_total:g} gpu: the rest is taken in Ray")
    return found


def _gpus(state: NodeState) -> tuple[Gpu, ...]:
    """The devices that are free, in whole or in part."""
    known = sorted(state.gpus, key=lambda gpu: (-gpu.memory_free_bytes, gpu.type))
    whole, part = divmod(round(state.gpu_available, 4), 1)
    shares = [1.0] * int(whole) + ([round(part, 4)] if part > 0 else [])
    unknown = GpuState(type="unknown", memory_total_bytes=0, memory_free_bytes=0)
    known += [unknown] * (len(shares) - len(known))
    return tuple(
        Gpu(type=gpu.type, memory_bytes=max(gpu.memory_free_bytes, 0) // GIB * GIB, share=share)
        for gpu, share in zip(known, shares, strict=False)
    )
