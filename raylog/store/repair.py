"""Which copies to make so that every shard has its replicas again. Pure: what stands in, an explained plan out.

The same input gives the same plan, whatever its order. Copies that are more than were promised are left alone.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

from blake3 import blake3

from raylog.errors import UsageError
from raylog.spec import ShardRef, ShardStanding
from raylog.units import format_bytes

STEPS_PER_NODE_MAX = 4  # copies that one node receives, and that it is the first source of, in one plan


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairNode:
    """A living node: the failure domain it would be lost with (a zone, a rack, or itself) and its free bytes. What one
    holds that is drained does not count, though others may be given it from there, and it is given nothing."""

    node_id: str
    domain: str
    free_bytes: int
    is_draining: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairStep:
    """One copy to make: `target` pulls the shard from `sources`, the least busy first, or `elsewhere`: from a backup,
    or made anew from other pieces of the shard `piece_of` that it is a piece of. Where the target is the only source,
    it makes its own copy (in memory) one that counts (on disk)."""

    shard: ShardRef
    sources: tuple[str, ...]
    target: str
    reason: str
    elsewhere: bool = False
    piece_of: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unrepairable:
    """A shard that stays short of replicas, and why. `lost`: no living node holds a copy."""

    shard: ShardRef
    reason: str
    lost: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairPlan:
    """Steps in the order to begin them, what cannot be repaired, and how many copies wait for the next plan because
    the nodes have their hands full."""

    steps: tuple[RepairStep, ...]
    unrepairable: tuple[Unrepairable, ...]
    deferred: int


def plan_repair(
    standings: Iterable[ShardStanding],
    nodes: Sequence[RepairNode],
    steps_per_node_max: int = STEPS_PER_NODE_MAX,
) -> RepairPlan:
    """The copies that bring every shard back to its wanted replicas, or as near as the living `nodes` allow.

    Shards nearest to loss come first. A target has no copy yet, room for the shard, and if possible a failure domain
    that holds none; among those the one with the fewest bytes to receive, so that repair spreads over all survivors.
    Node ids in `standings` that are not in `nodes` are taken to be gone. Raises `UsageError` when one is named twice.
    """
    if len({node.node_id for node in nodes}) < len(nodes):
        raise UsageError("expected every node once")
    planner = _Planner(nodes, steps_per_node_max)
    short = [_Need.of(standing, planner.nodes) for standing in standings]
    for need in sorted((need for need in short if need.missing > 0), key=_urgency):
        planner.restore(need)
    return RepairPlan(steps=tuple(planner.steps), unrepairable=tuple(planner.unrepairable), deferred=planner.deferred)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Need:
    """A shard, who has it for good, who can send it, who has it and leaves, who gone had it, its backups, what it is a
    piece of, who holds other pieces of that, and whether these are enough to make it anew."""

    shard: ShardRef
    wanted: int
    living: tuple[str, ...]
    sources: tuple[str, ...]
    leaving: tuple[str, ...]
    gone: tuple[str, ...]
    backups: tuple[str, ...]
    piece_of: str
    apart: frozenset[str]
    siblings: int
    siblings_needed: int

    @classmethod
    def of(cls, standing: ShardStanding, nodes: Mapping[str, RepairNode]) -> "_Need":
        holders = sorted(set(standing.nodes))
        present = [node_id for node_id in holders if node_id in nodes]
        living = tuple(node_id for node_id in present if not nodes[node_id].is_draining)
        leaving = tuple(node_id for node_id in present if nodes[node_id].is_draining)
        others = tuple(node_id for node_id in sorted(set(standing.other_nodes)) if node_id in nodes)
        siblings = [{node_id for node_id in held if node_id in nodes} for held in standing.siblings]
        return cls(
            shard=standing.shard,
            wanted=standing.wanted,
            living=living,
            sources=living + leaving + others,
            leaving=leaving,
            gone=tuple(node_id for node_id in holders if node_id not in nodes),
            backups=standing.backups,
            piece_of=standing.piece_of,
            apart=frozenset().union(*siblings),
            siblings=sum(bool(held) for held in siblings),
            siblings_needed=standing.pieces_needed,
        )

    @property
    def missing(self) -> int:
        return self.wanted - len(self.living)

    @property
    def origin(self) -> str:
        """Where it may be had besides from nodes that hold it; "" where nowhere."""
        if 0 < self.siblings_needed <= self.siblings:
            return f"anew from {self.siblings_needed} of {self.siblings} other pieces"
        return f"from {self.backups[0]}" if self.backups else ""

    def why(self) -> str:
        since = f" since {_named(self.gone)} gone" if self.gone else ""
        since += f" since {_named(self.leaving)} being drained" if self.leaving else ""
        return f"shard {self.shard.shard_id} has {len(self.living)} of {self.wanted} replicas{since}"


def _urgency(need: _Need) -> tuple[int, int, str]:
    """Nearest to loss first: fewest living copies (of a piece: pieces that may still be lost), then most missing."""
    spare = need.siblings - need.siblings_needed if need.siblings_needed else 0
    return len(need.sources) + max(spare, 0), -need.missing, need.shard.shard_id


class _Planner:
    """A plan in the making: what each node has room and hands for."""

    def __init__(self, nodes: Sequence[RepairNode], steps_per_node_max: int) -> None:
        self.nodes = {node.node_id: node for node in nodes}
        self.steps: list[RepairStep] = []
        self.unrepairable: list[Unrepairable] = []
        self.deferred = 0
        self._steps_max = steps_per_node_max
        self._domains = {node.domain for node in nodes if not node.is_draining}
        self._free = {node.node_id: node.free_bytes for node in nodes}
        self._receives = dict.fromkeys(self.nodes, 0)
        self._sends = dict.fromkeys(self.nodes, 0)
        self._gets_pieces: dict[str, set[str]] = {}  # erasure-coded shard -> nodes that this plan gives a piece of it
        # Nodes that may receive: least to receive first, then most room; the id only makes the order whole.
        self._queue = [(0, -node.free_bytes, node.node_id) for node in nodes if not node.is_draining]
        heapq.heapify(self._queue)

    def restore(self, need: _Need) -> None:
        """Plans the copies that a shard lacks."""
        if not need.sources and need.origin:
            self._restore_from_elsewhere(need)
            return
        if not need.sources:
            pieces = f" and {need.siblings} of {need.siblings_needed} other pieces" if need.siblings_needed else ""
            self.unrepairable.append(
                Unrepairable(
                    shard=need.shard,
                    reason=f"{need.why()}: no living node holds a copy{pieces}; bring one back, or restore it from a "
                    "backup",
                    lost=True,
                )
            )
            return
        holders = set(need.living)
        for done in range(need.missing):
            sources = self._sources(need)
            if not sources:
                self.deferred += need.missing - done
                return
            target = self._target(need, holders)
            if target is None:
                self._give_up(need, holders, need.missing - done)
                return
            self._add(need, sources, target, holders)
            holders.add(target.node_id)

    def _restore_from_elsewhere(self, need: _Need) -> None:
        """One copy; the others are made from it by the next plan."""
        target = self._target(need, set())
        if target is None:
            self._give_up(need, set(), need.missing)
        else:
            self._add(need, (), target, set())
            self.deferred += need.missing - 1

    def _sources(self, need: _Need) -> tuple[str, ...]:
        """Who can send, the least busy first; none when the best of them has its hands full."""
        order = sorted(need.sources, key=lambda node_id: (self._sends[node_id], _spread(need.shard, node_id)))
        return tuple(order) if self._sends[order[0]] < self._steps_max else ()

    def _target(self, need: _Need, holders: set[str]) -> RepairNode | None:
        """The best node to receive the shard, out of the queue; it goes back by `_add`."""
        held = {self.nodes[node_id].domain for node_id in holders | self._apart(need)}
        fresh_domain_exists = bool(self._domains - held)
        passed: list[tuple[int, int, str]] = []
        best: tuple[int, int, str] | None = None
        while self._queue:
            item = heapq.heappop(self._queue)
            node = self.nodes[item[2]]
            if not self._can_take(need, node, holders):
                passed.append(item)
            elif node.domain not in held or not fresh_domain_exists:
                passed.extend([best] if best else [])
                best = item
                break
            elif best is None:
                best = item  # in a domain that holds a copy already: only if nothing better comes
            else:
                passed.append(item)
        for item in passed:
            heapq.heappush(self._queue, item)
        return self.nodes[best[2]] if best else None

    def _can_take(self, need: _Need, node: RepairNode, holders: set[str]) -> bool:
        has_room = self._free[node.node_id] >= need.shard.stored_bytes
        return has_room and node.node_id not in holders and node.node_id not in self._apart(need)

    def _apart(self, need: _Need) -> Set[str]:
        """Nodes that have, or are to get, another piece of the same shard."""
        return need.apart | self._gets_pieces.get(need.piece_of, set())

    def _has_hands(self, node_id: str) -> bool:
        return self._receives[node_id] < self._steps_max

    def _add(self, need: _Need, sources: tuple[str, ...], target: RepairNode, holders: set[str]) -> None:
        others = tuple(node_id for node_id in sources if node_id != target.node_id) or sources
        origin = "" if others else f" {need.origin}"
        self.steps.append(
            RepairStep(
                shard=need.shard,
                sources=others,
                target=target.node_id,
                reason=f"{need.why()};{origin} to node {target.node_id} because {self._because(target, holders)}",
                elsewhere=bool(need.origin),
                piece_of=need.piece_of,
            )
        )
        if need.piece_of:
            self._gets_pieces.setdefault(need.piece_of, set()).add(target.node_id)
        if others:
            self._sends[others[0]] += 1
        self._receives[target.node_id] += 1
        self._free[target.node_id] -= need.shard.stored_bytes
        if self._has_hands(target.node_id):
            planned_bytes = self.nodes[target.node_id].free_bytes - self._free[target.node_id]
            heapq.heappush(self._queue, (planned_bytes, -self._free[target.node_id], target.node_id))

    def _because(self, target: RepairNode, holders: set[str]) -> str:
        room = f"has {format_bytes(self._free[target.node_id])} free and the fewest bytes to receive"
        held = {self.nodes[node_id].domain for node_id in holders}
        if target.domain not in held:
            return f"its failure domain {target.domain} holds no copy, it {room}"
        return f"no node of a failure domain without a copy can take it; in {target.domain} it {room}"

    def _give_up(self, need: _Need, holders: set[str], missing: int) -> None:
        """Nobody can take a copy now: for good, or only until the plan's own copies are done?"""
        candidates = [
            node
            for node_id, node in sorted(self.nodes.items())
            if node_id not in holders | need.apart and not node.is_draining
        ]
        if any(self._free[node.node_id] >= need.shard.stored_bytes for node in candidates):
            self.deferred += missing
            return
        planned = len(holders) - len(need.living)
        if not candidates:
            staying = sum(1 for node in self.nodes.values() if not node.is_draining)
            what = f"{need.siblings + 1} pieces" if need.apart else f"{need.wanted} copies"
            why = f"{staying} living nodes cannot hold {what}; add {missing} more"
        else:
            why = (
                f"none of the {len(candidates)} other living nodes has {format_bytes(need.shard.stored_bytes)} free; "
                "make room or add a node"
            )
        so_far = f" ({planned} more planned)" if planned else ""
        self.unrepairable.append(Unrepairable(shard=need.shard, reason=f"{need.why()}{so_far}: {why}", lost=False))


def _spread(shard: ShardRef, node_id: str) -> bytes:
    """An order of nodes of its own for every shard, so that equals share the work."""
    return blake3(f"{shard.shard_id} {node_id}".encode()).digest(8)


def _named(node_ids: Sequence[str]) -> str:
    return f"node {node_ids[0]} is" if len(node_ids) == 1 else f"nodes {', '.join(node_ids)} are"
