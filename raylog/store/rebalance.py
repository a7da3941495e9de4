"""Which copies to move so that nodes are filled alike. Pure: what stands in, an explained plan out.

A copy moves from the fullest node to the emptiest one that may hold it: that has no copy of the shard, no other piece
of what it is a piece of, and no neighbour in its failure domain that the copy did not have before.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from raylog.spec import ShardRef, ShardStanding
from raylog.units import format_bytes

FILL_GAP = 0.05  # nodes whose fills differ from the mean by less are left alone


@dataclass(frozen=True, slots=True, kw_only=True)
class BalanceNode:
    """A living node that is not drained: its failure domain, what it stores, and its free bytes."""

    node_id: str
    domain: str
    stored_bytes: int
    free_bytes: int

    @property
    def room_bytes(self) -> int:
        return max(self.stored_bytes + self.free_bytes, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class BalanceMove:
    """A copy that goes from one node to another."""

    shard: ShardRef
    source: str
    target: str
    reason: str


def plan_rebalance(
    nodes: Sequence[BalanceNode], standings: Iterable[ShardStanding], moves_max: int
) -> list[BalanceMove]:
    """The next moves, at most `moves_max`, largest shards first; none when all nodes are filled alike, or no copy may
    move.

    `standings` are of shards that have all their replicas: what is short is for repair, and left alone here.
    """
    planner = _Planner(nodes)
    shards = sorted(standings, key=lambda one: (-one.shard.stored_bytes, one.shard.shard_id))
    for standing in shards:
        if len(planner.moves) == moves_max:
            break
        planner.consider(standing)
    return planner.moves


class _Planner:
    """A plan in the making: what each node stores after it."""

    def __init__(self, nodes: Sequence[BalanceNode]) -> None:
        self.moves: list[BalanceMove] = []
        self._nodes = {node.node_id: node for node in nodes}
        self._stored = {node.node_id: node.stored_bytes for node in nodes}
        self._gets_pieces: dict[str, set[str]] = {}  # erasure-coded shard -> nodes that this plan gives a piece of it
        self._mean = sum(self._stored.values()) / max(sum(node.room_bytes for node in nodes), 1)

    def consider(self, standing: ShardStanding) -> None:
        """Moves one of the shard's copies, if that brings two nodes nearer to each other."""
        holders = [node_id for node_id in standing.nodes if node_id in self._nodes]
        full = [node_id for node_id in holders if self._fill(node_id) > self._mean]
        if not full:
            return
        source = max(full, key=lambda node_id: (self._fill(node_id), node_id))
        target = self._target(standing, source)
        if target is None:
            return
        if self._fill(source) <= self._mean + FILL_GAP and self._fill(target) >= self._mean - FILL_GAP:
            return
        size = standing.shard.stored_bytes
        reason = (
            f"node {source} is {self._fill(source):.0%} full and node {target} {self._fill(target):.0%}, the mean is "
            f"{self._mean:.0%}: {format_bytes(size)} move"
        )
        self._stored[source] -= size
        self._stored[target] += size
        self.moves.append(BalanceMove(shard=standing.shard, source=source, target=target, reason=reason))
        if standing.piece_of:
            self._gets_pieces.setdefault(standing.piece_of, set()).add(target)

    def _target(self, standing: ShardStanding, source: str) -> str | None:
        size = standing.shard.stored_bytes
        siblings = {node_id for held in standing.siblings for node_id in held}
        coming = self._gets_pieces.get(standing.piece_of, set())
        kept_apart = {*standing.nodes, *standing.other_nodes, *siblings, *coming}
        neighbours = {self._nodes[one].domain for one in kept_apart - {source} if one in self._nodes}
        own_domain = self._nodes[source].domain
        able = [
            node_id
            for node_id, node in self._nodes.items()
            if node_id not in kept_apart
            and (node.domain == own_domain or node.domain not in neighbours)
            and self._fill(node_id, size) < self._fill(source, -size)
            and self._stored[node_id] + size <= node.room_bytes
        ]
        return min(able, key=lambda node_id: (self._fill(node_id), node_id), default=None)

    def _fill(self, node_id: str, more_bytes: int = 0) -> float:
        return (self._stored[node_id] + more_bytes) / self._nodes[node_id].room_bytes
