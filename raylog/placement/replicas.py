"""Formulation E: which nodes hold which shard's replicas.

Distinct nodes always; then, most important first: as few missing replicas as possible, as few replicas that share a
failure domain, the least bytes moved (a replica that a node holds stays, the writer's own node costs nothing), and an
even fill that leaves busy nodes alone. Shards of one size class with the same holders are one group; a group's replicas
are dealt to its shards in a circle, domain by domain, so that no shard meets a node twice or a domain twice before it
has to.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from raylog.errors import UsageError
from raylog.placement.capacity import BUSY_LOAD, NodeState, left_out
from raylog.placement.linear import Builder, Linear, Stage, Vector
from raylog.placement.replica_case import Candidate, Case, Group, greedy
from raylog.placement.solve import lexicographic
from raylog.spec import Durability, TierKind
from raylog.units import format_bytes

FailureDomain = Literal["node", "rack", "zone"]
DISKS = (TierKind.SSD, TierKind.HDD)
COLUMNS_MAX = 20_000
EXCLUDED_NAMED_MAX = 4  # nodes left out that a shortfall names
NAMED_MOST = 8  # nodes, in one message
EVEN_GAP = 0.01  # a fill this close to the evenest will do
FILL_STEPS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)  # of the mean fill; further on a node's fill costs more
SIZE_CLASS = 1.25  # shards of one class differ in size by less than this factor


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaShortfall:
    """A shard that gets fewer replicas than asked; the caller decides whether that will do."""

    shard_id: str
    missing: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaPlan:
    """`targets`: shard -> nodes that shall hold it, those that already do first. `reasons`: why the plan is not the
    plain one, and per node why it is chosen or not. `moved_bytes`: what must be copied over the network."""

    targets: dict[str, list[str]]
    reasons: tuple[str, ...]
    shortfall: tuple[ReplicaShortfall, ...]
    moved_bytes: int
    status: Literal["optimal", "greedy", "time limit"]
    seconds: float


def replica_targets(
    shards: Sequence[tuple[str, int]],
    nodes: Sequence[NodeState],
    replicas: int,
    local_node_id: str | None = None,
    held: Mapping[str, Sequence[str]] | None = None,
    failure_domain: FailureDomain = "node",
    durability: Durability = Durability.DISK,
    time_limit_s: float = 1.0,
) -> ReplicaPlan:
    """Targets for `replicas` copies of each shard (id, stored bytes).

    `held` says which nodes hold a copy already: those stay targets, if the node is fit. `failure_domain` is a label of
    the nodes; those without it count as one domain. Deterministic. Too few nodes or too little room: `shortfall` names
    it, and the rest is still placed. Raises `UsageError` for less than one replica or a doubled id.
    """
    started_s = time.monotonic()
    if replicas < 1:
        raise UsageError(f"expected at least one replica, got {replicas}")
    for what, ids in (("shard", [name for name, _ in shards]), ("node", [node.node_id for node in nodes])):
        if len(set(ids)) < len(ids):
            raise UsageError(f"expected {what} ids that differ, got one twice among {len(ids)}")
    fit = sorted((node for node in nodes if not left_out(node)), key=lambda node: node.node_id)
    case = _case(shards, fit, replicas, local_node_id, held or {}, failure_domain, durability)
    counts, status = _solve(case, started_s + time_limit_s)
    chosen = _deal(case, counts)
    return ReplicaPlan(
        targets={name: [case.nodes[node].node_id for node in chosen[name]] for name, _ in shards},
        reasons=tuple(_reasons(case, nodes, counts, local_node_id, failure_domain)),
        shortfall=tuple(_shortfall(case, chosen, replicas, _excluded(nodes))),
        moved_bytes=_moved_bytes(case, chosen, dict(shards)),
        status=status,
        seconds=time.monotonic() - started_s,
    )


def _case(
    shards: Sequence[tuple[str, int]],
    fit: Sequence[NodeState],
    replicas: int,
    local_node_id: str | None,
    held: Mapping[str, Sequence[str]],
    failure_domain: FailureDomain,
    durability: Durability,
) -> Case:
    numbers = {node.node_id: number for number, node in enumerate(fit)}
    largest = max((size for _, size in shards), default=0)
    groups: dict[tuple[int, tuple[int, ...]], list[tuple[str, int]]] = {}
    for name, size in shards:
        holders = tuple(sorted(numbers[node] for node in set(held.get(name, ())) if node in numbers))
        size_class = int(np.log(max(size, 1)) / np.log(SIZE_CLASS))
        groups.setdefault((size_class, holders), []).append((name, size))
    return Case(
        groups=tuple(
            Group(tuple(name for name, _ in members), max(size for _, size in members), holders)
            for (_, holders), members in groups.items()
        ),
        nodes=tuple(
            Candidate(
                node_id=node.node_id,
                domain=node.node_id if failure_domain == "node" else node.labels.get(failure_domain, ""),
                free_bytes=_room_bytes(node, durability, largest),
                weight=1.0 + node.busy,
                is_local=node.node_id == local_node_id,
            )
            for node in fit
        ),
        replicas=replicas,
    )


def _room_bytes(node: NodeState, durability: Durability, shard_bytes: int) -> int:
    """In the arena for durability memory; on disk, where the node puts it instead, when the arena has no room."""
    memory_bytes = node.free_bytes.get(TierKind.MEMORY, 0)
    if durability is Durability.MEMORY and memory_bytes >= shard_bytes:
        return memory_bytes
    return max(node.free_bytes.get(tier, 0) for tier in DISKS)


def _solve(case: Case, deadline_s: float) -> tuple[list[list[int]], Literal["optimal", "greedy", "time limit"]]:
    """Replicas per group and node: `counts[group][node]`, held ones included."""
    if not case.nodes or not case.groups:
        return [[0] * len(case.nodes) for _ in case.groups], "optimal"
    if (staying := _stay(case)) is not None:
        return staying, "optimal"
    if len(case.groups) * len(case.nodes) > COLUMNS_MAX:
        return greedy(case), "greedy"
    linear, stages, tie_break = _formulate(case)
    answer = lexicographic(linear, stages, tie_break, _reached(case, linear, stages), deadline_s)
    if answer.x is None:
        return greedy(case), "greedy" if answer.problem else "time limit"
    numbers = linear.column_numbers()
    counts = [
        [round(answer.x[numbers["put", group, node]]) for node in range(len(case.nodes))]
        for group in range(len(case.groups))
    ]
    return counts, "optimal" if answer.is_optimal else "time limit"


def _stay(case: Case) -> list[list[int]] | None:
    """One replica of each shard on the writer's own node, where that has room for all: no plan leaves less missing,
    doubled, moved or uneven, so that nothing has to be solved. Else None."""
    asked_bytes = sum(group.count * group.bytes_each for group in case.groups)
    here = [n for n, node in enumerate(case.nodes) if node.is_local and node.free_bytes >= asked_bytes]
    if case.replicas != 1 or not here or any(group.held for group in case.groups):
        return None
    return [[group.count if n in here else 0 for n in range(len(case.nodes))] for group in case.groups]


def _kept(group: Group, node: int, replicas: int) -> int | None:
    """Replicas of the group that stay on the node; None where that is still to be chosen."""
    if node in group.held:
        return group.count if len(group.held) <= replicas else None
    return 0 if len(group.held) >= replicas else None


def _formulate(case: Case) -> tuple[Linear, list[Stage], Vector]:
    builder = Builder()
    put: dict[tuple[int, int], int] = {}
    for g, group in enumerate(case.groups):
        for n in range(len(case.nodes)):
            kept = _kept(group, n, case.replicas)
            put[g, n] = builder.column(("put", g, n), group.count if kept is None else kept)
            if kept:
                builder.row(("kept", g, n), [(put[g, n], -1.0)], -float(kept))
        total = [(put[g, n], 1.0) for n in range(len(case.nodes))]
        builder.row(("asked", g), total, float(group.count * case.replicas))
    for n, node in enumerate(case.nodes):
        added = [(put[g, n], float(group.bytes_each)) for g, group in enumerate(case.groups) if n not in group.held]
        scale = float(max(node.free_bytes, *(group.bytes_each for group in case.groups), 1))
        builder.row(("room", n), [(column, size / scale) for column, size in added], node.free_bytes / scale)
    uneven = _fill_rows(builder, case, put)
    doubled = _domain_rows(builder, case, put)
    linear = builder.build()
    return linear, _stages(case, linear, put, doubled, uneven), _tie_break(case, linear, put)


def _fill_rows(builder: Builder, case: Case, put: dict[tuple[int, int], int]) -> list[int]:
    """Columns whose sum is least when every node fills up alike: what a node's fill exceeds steps of the mean fill by.

    The fill is the part of a node's free bytes that is taken, a busy node's counted more. The writer's own node is left
    out: it takes what it is given, and what it has would hide the others.
    """
    uneven: list[int] = []
    asked = sum(group.count * group.bytes_each for group in case.groups) * case.replicas
    mean = asked / max(sum(node.free_bytes for node in case.nodes), asked, 1)
    for n, node in enumerate(case.nodes):
        if node.is_local or not node.free_bytes:
            continue
        per_replica = node.weight / node.free_bytes / mean
        fill = [
            (put[g, n], group.bytes_each * per_replica) for g, group in enumerate(case.groups) if n not in group.held
        ]
        for step in FILL_STEPS if fill else ():
            uneven.append(builder.column(("uneven", n, step), np.inf, whole=False))
            builder.row(("fill", n, step), [*fill, (uneven[-1], -1.0)], step)
    return uneven


def _domain_rows(builder: Builder, case: Case, put: dict[tuple[int, int], int]) -> list[int]:
    """A column per group and domain of several nodes: replicas beyond one of each shard there."""
    doubled: list[int] = []
    for domain, members in case.domains.items():
        for g, group in enumerate(case.groups if len(members) > 1 else ()):
            more = builder.column(("doubled", g, domain), np.inf, whole=False)
            doubled.append(more)
            builder.row(("domain", g, domain), [*((put[g, n], 1.0) for n in members), (more, -1.0)], float(group.count))
    return doubled


def _stages(
    case: Case, linear: Linear, put: dict[tuple[int, int], int], doubled: list[int], uneven: list[int]
) -> list[Stage]:
    """A missing replica outweighs a doubled domain; then bytes moved; then the evenness of the fill."""
    asked = sum(group.count for group in case.groups) * case.replicas
    safe, moved, even = (np.zeros(len(linear.columns)) for _ in range(3))
    for (g, n), column in put.items():
        safe[column] = -float(case.replicas + 1)
        if n not in case.groups[g].held and not case.nodes[n].is_local:
            moved[column] = float(case.groups[g].bytes_each)
    safe[doubled] = 1.0
    even[uneven] = 1.0
    return [
        Stage(name="missing and doubled", cost=safe, constant=asked * float(case.replicas + 1)),
        Stage(name="moved", cost=moved),
        Stage(name="uneven", cost=even, gap=EVEN_GAP),
    ]


def _reached(case: Case, linear: Linear, stages: Sequence[Stage]) -> tuple[float, ...]:
    """Values of the first stages that the greedy plan has and no plan can go below: the solver need not look for them.

    Nothing missing or doubled is 0; a replica that is neither held nor on the writer's own node has to be moved.
    """
    counts = greedy(case)
    local = {n for n, node in enumerate(case.nodes) if node.is_local}
    moved = sum(
        float(group.count * group.bytes_each * max(case.replicas - len(local.union(group.held)), 0))
        for group in case.groups
    )
    x = np.zeros(len(linear.columns))
    for column, name in enumerate(linear.columns):
        match name:
            case ("put", int(g), int(n)):
                x[column] = counts[g][n]
            case ("doubled", int(g), str(domain)):
                held = sum(counts[g][n] for n in case.domains[domain])
                x[column] = max(held - case.groups[g].count, 0)
    reached: list[float] = []
    for stage, least in zip(stages, (0.0, moved), strict=False):
        if stage.value(x) > least:
            break
        reached.append(least)
    return tuple(reached)


def _tie_break(case: Case, linear: Linear, put: dict[tuple[int, int], int]) -> Vector:
    """Idle nodes first, then by id."""
    cost = np.zeros(len(linear.columns))
    asked = sum(group.count for group in case.groups) * case.replicas
    ranks = sorted(range(len(case.nodes)), key=lambda n: (round(case.nodes[n].weight, 2), n))
    for (_, n), column in put.items():
        cost[column] = 1e-3 * (ranks.index(n) + 1) / (len(ranks) * asked)
    return cost


def _deal(case: Case, counts: list[list[int]]) -> dict[str, list[int]]:
    """Shard -> nodes. Held ones first; the others' slots, ordered by domain, go round the group's shards."""
    chosen: dict[str, list[int]] = {}
    order = [n for members in case.domains.values() for n in members]
    for g, group in enumerate(case.groups):
        nodes: list[list[int]] = [[] for _ in group.shard_ids]
        position = 0
        for n in order:
            for _ in range(counts[g][n]):
                nodes[position % group.count].append(n)
                position += 1
        for shard_id, mine in zip(group.shard_ids, nodes, strict=True):
            chosen[shard_id] = sorted(mine, key=lambda n: (n not in group.held, not case.nodes[n].is_local, n))
    return chosen


def _excluded(nodes: Sequence[NodeState]) -> list[str]:
    return [reason for node in sorted(nodes, key=lambda node: node.node_id) if (reason := left_out(node))]


def _shortfall(case: Case, chosen: dict[str, list[int]], replicas: int, excluded: list[str]) -> list[ReplicaShortfall]:
    found: list[ReplicaShortfall] = []
    others = f" ({'; '.join(excluded[:EXCLUDED_NAMED_MAX])})" if excluded else ""
    for group in case.groups:
        roomless = [node for node in case.nodes if node.free_bytes < group.bytes_each]
        for shard_id in group.shard_ids:
            missing = replicas - len(chosen[shard_id])
            if missing > 0:
                size = format_bytes(group.bytes_each)
                roomy = len(case.nodes) - len(roomless)
                reason = f"{replicas} replicas of {size} asked, {roomy} of {len(case.nodes)} nodes have room for one"
                if len(case.nodes) < replicas:
                    reason = f"{replicas} replicas on different nodes asked, {len(case.nodes)} nodes are fit"
                if roomless:
                    reason += f" (full: {', '.join(node.node_id[:12] for node in roomless[:NAMED_MOST])})"
                found.append(ReplicaShortfall(shard_id=shard_id, missing=missing, reason=reason + others))
    return found


def _moved_bytes(case: Case, chosen: dict[str, list[int]], sizes: dict[str, int]) -> int:
    return sum(
        sizes[shard_id]
        for group in case.groups
        for shard_id in group.shard_ids
        for n in chosen[shard_id]
        if n not in group.held and not case.nodes[n].is_local
    )


def _reasons(
    case: Case, nodes: Sequence[NodeState], counts: list[list[int]], local: str | None, domain: FailureDomain
) -> list[str]:
    found = _excluded(nodes)
    load = {node.node_id: node.busy for node in nodes}
    largest = max((group.bytes_each for group in case.groups), default=0)
    chosen = [node for n, node in enumerate(case.nodes) if any(row[n] for row in counts)]
    busiest = max((load[node.node_id] for node in chosen), default=0.0)
    for n, node in enumerate(case.nodes):
        held = sum(counts[g][n] for g, group in enumerate(case.groups) if n in group.held)
        new = sum(counts[g][n] for g, group in enumerate(case.groups) if n not in group.held)
        text = f"node {node.node_id}: {new} new replica{'' if new == 1 else 's'}" + (f", {held} kept" if held else "")
        why = [f"{format_bytes(node.free_bytes)} free"]
        if node.free_bytes < largest:
            why = [f"full: {format_bytes(node.free_bytes)} free, a shard takes {format_bytes(largest)}"]
        if load[node.node_id] >= BUSY_LOAD:
            why.append(f"busy: load {load[node.node_id]:.1f} per core")
        if node.node_id == local:
            why.append("the writer's own node")
        if not new and not held and node.free_bytes >= largest and load[node.node_id] <= busiest:
            why.append("not needed")
        found.append(f"{text} ({', '.join(why)})")
    doubled = sum(
        max(sum(counts[g][n] for n in members) - group.count, 0)
        for members in case.domains.values()
        for g, group in enumerate(case.groups)
    )
    if doubled and domain != "node":
        found.append(
            f"{doubled} replicas share a {domain} with another of their shard: {len(case.domains)} {domain}s are fit"
        )
    return found
