"""The placement actor: live capacity (Ray's resources, the monitor's samples) into the placement model, plans out."""

import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import ray
from ray._private.state import available_resources_per_node
from ray._private.state import state as ray_state

from raylog.actors import calls
from raylog.actors.eventful import Eventful
from raylog.actors.node_info import NodeInfo
from raylog.errors import Unavailable
from raylog.monitor.samples import NodeSample
from raylog.placement.capacity import GpuState, NodeState, capacity
from raylog.placement.memory import PlanMemory
from raylog.placement.model import Problem, is_complete
from raylog.placement.plan import Plan
from raylog.placement.replicas import FailureDomain, ReplicaPlan, replica_targets
from raylog.placement.solve import load_solver, solve
from raylog.settings import Settings
from raylog.spec import Durability, ShardRef, TierKind

log = logging.getLogger("raylog.placement")
FAILURE_DOMAINS: tuple[FailureDomain, ...] = ("zone", "rack", "node")  # the largest that the nodes are labelled with
STATES_KEPT_S = 0.25


class PlacementActor(Eventful):
    """Runs on the head. A restart loses only the reasons of earlier plans."""

    def __init__(self, settings: Settings) -> None:
        super().__init__("placement")
        self._settings = settings
        self._memory = PlanMemory()
        self._lock = threading.Lock()
        self._seen: tuple[float, list[NodeState]] = -math.inf, []  # when, and what
        threading.Thread(target=load_solver, name="solver", daemon=True).start()  # seconds, once

    def ready(self) -> None:
        """Answers once the actor is up; what kept it from starting is raised to whoever asks."""

    def replica_targets(
        self, shards: Sequence[ShardRef], replicas: int, local_node_id: str, durability: Durability
    ) -> ReplicaPlan:
        """Which nodes shall hold the replicas of shards that `local_node_id` has sealed."""
        sizes = [(ref.shard_id, ref.stored_bytes) for ref in shards]
        plan = _targets(sizes, self._recent_states(), replicas, local_node_id, durability)
        if plan.shortfall:
            plan = _targets(sizes, self._states(), replicas, local_node_id, durability)
        log.info("Placing %d shard(s) on %d node(s) each: %s", len(shards), replicas, "; ".join(plan.reasons))
        with self._lock:
            self._memory.remember(plan)
        return plan

    def replica_plans(self, shard_ids: Sequence[str]) -> dict[str, ReplicaPlan]:
        """The last plan of each shard, as far as it is still known."""
        with self._lock:
            return self._memory.recall(shard_ids)

    def place(self, demands: Mapping[str, Any], objective: str, time_limit_s: float) -> Plan:
        """Allocates the jobs of a placement mapping; without `nodes` in it, over the cluster's live capacity, whose
        reductions are among the plan's notes."""
        if is_complete(demands):
            return solve(Problem.from_mapping(demands), objective, time_limit_s)
        problem = Problem.without_nodes(demands)
        live = capacity(self._states())
        if not live.nodes:
            raise Unavailable(f"no node of the cluster can take anything now: {'; '.join(live.reasons)}")
        filled = msgspec.structs.replace(problem, nodes=live.nodes, notes=(*problem.notes, *live.reasons))
        filled.check()
        return solve(filled, objective, time_limit_s)

    def _recent_states(self) -> list[NodeState]:
        """As they were a moment ago: a put asks for shard after shard, and the samples come once a second."""
        seen_s, states = self._seen
        if time.monotonic() - seen_s > STATES_KEPT_S:
            states = self._states()
            self._seen = time.monotonic(), states
        return states

    def _states(self) -> list[NodeState]:
        """Every living node, joined from Ray's figures and its last sample."""
        limit_s = self._settings.call_deadline_s
        infos: list[NodeInfo] = calls.call("launch", "nodes", timeout_s=limit_s)
        samples: list[NodeSample] = calls.call("monitor", "samples", timeout_s=limit_s)
        by_id = {sample.node_id: sample for sample in samples}
        totals = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
        available = available_resources_per_node()
        draining = ray_state.get_draining_nodes()
        return [
            node_state(
                info,
                by_id[info.node_id],
                totals[info.ray_node_id],
                available.get(info.ray_node_id, {}),
                is_draining=info.ray_node_id in draining,
            )
            for info in infos
            if info.node_id in by_id and info.ray_node_id in totals
        ]


def _targets(
    sizes: Sequence[tuple[str, int]],
    states: Sequence[NodeState],
    replicas: int,
    local_node_id: str,
    durability: Durability,
) -> ReplicaPlan:
    domain = next(one for one in FAILURE_DOMAINS if one == "node" or all(one in state.labels for state in states))
    return replica_targets(sizes, states, replicas, local_node_id, failure_domain=domain, durability=durability)


def _free_by_kind(sample: NodeSample) -> dict[TierKind, int]:
    free: dict[TierKind, int] = {}
    for tier in sample.tiers:
        free[tier.kind] = free.get(tier.kind, 0) + (tier.free_bytes or 0)
    return free


def node_state(
    info: NodeInfo,
    sample: NodeSample,
    total: Mapping[str, float],
    available: Mapping[str, float],
    *,
    is_draining: bool,
) -> NodeState:
    """One node as the model sees it. `total` and `available` are Ray's resources of it; `is_draining` says that Ray
    was asked to drain it (by its autoscaler, or 'ray drain-node')."""
    host = sample.host
    return NodeState(
        node_id=info.node_id,
        cpu_total=total.get("CPU", 0.0),
        cpu_available=available.get("CPU", 0.0),
        memory_total_bytes=int(total.get("memory", 0)),
        memory_available_bytes=int(min(available.get("memory", 0), host.memory_available_bytes)),
        gpu_total=total.get("GPU", 0.0),
        gpu_available=available.get("GPU", 0.0),
        gpus=tuple(
            GpuState(
                type=gpu.name,
                memory_total_bytes=gpu.memory_total_bytes or 0,
                memory_free_bytes=(gpu.memory_total_bytes or 0) - (gpu.memory_used_bytes or 0),
            )
            for gpu in sample.gpus
            if gpu.problem is None
        ),
        load=host.load[0],
        free_bytes=_free_by_kind(sample),
        labels=info.labels,
        is_draining=is_draining,
        last_seen_s=max(time.time() - sample.time_s, 0.0),
    )
