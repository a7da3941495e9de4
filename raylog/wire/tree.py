"""Who passes a shard on to whom when many nodes want it. Pure.

Two trees over the same nodes, each for every second chunk (a *stripe*), so built that a node which passes on in one
tree is a leaf in the other: every node then sends about as much as it receives, all links are busy at once, and the
last node has the shard after one hop's time plus a chunk per level (SplitStream, Castro et al., SOSP 2003). A few nodes
form a chain instead, which has the same bound with fewer connections.

Each receiver also gets all others to fall back to, in ranks: whom its parent has the shard from, then the holders.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from raylog.wire.schedule import WHOLE, Stripe

CHAIN_MAX = 3  # receivers of one holder that form a chain
STRIPES = 2


@dataclass(frozen=True, slots=True)
class Step:
    """A source of one receiver: the node, when to turn to it, for which chunks first, and whether it only gets the
    shard itself now."""

    node_id: str
    rank: int
    stripe: Stripe
    is_relay: bool


def plan_broadcast(holders: Sequence[str], receivers: Sequence[str]) -> dict[str, list[Step]]:
    """The sources of each receiver. `receivers` come in the order in which to fill the trees: those with the best links
    first, neighbours side by side. A receiver among the holders is left out."""
    wanting = [node for node in receivers if node not in set(holders)]
    groups = [wanting[start :: len(holders)] for start in range(len(holders))]
    plan: dict[str, list[Step]] = {}
    for holder, group in zip(holders, groups, strict=True):
        spare = [other for other in holders if other != holder]
        plan |= _chain(holder, spare, group) if len(group) <= CHAIN_MAX else _trees(holder, spare, group)
    return plan


def _chain(holder: str, spare: Sequence[str], group: Sequence[str]) -> dict[str, list[Step]]:
    plan = {}
    for place, node in enumerate(group):
        before = group[place - 1] if place else holder
        plan[node] = _with_fallbacks([Step(before, 0, WHOLE, bool(place))], [holder, *spare])
    return plan


def _trees(holder: str, spare: Sequence[str], group: Sequence[str]) -> dict[str, list[Step]]:
    """Binary trees in heap order. The second tree takes the nodes the other way round: the first half of the nodes pass
    on in the first tree, the second half in the second."""
    parents = [_parents(holder, order) for order in (list(group), list(reversed(group)))]
    plan = {}
    for node in group:
        first = [
            Step(tree[node], 0, Stripe(index, STRIPES), tree[node] != holder) for index, tree in enumerate(parents)
        ]
        plan[node] = _with_fallbacks(first, [holder, *spare])
    return plan


def _parents(holder: str, order: Sequence[str]) -> dict[str, str]:
    return {node: order[(place - 1) // 2] if place else holder for place, node in enumerate(order)}


def _with_fallbacks(first: list[Step], holders: Sequence[str]) -> list[Step]:
    """`first`, then the holders. A node that is both parents at once is named once, for everything."""
    if len({step.node_id for step in first}) == 1:
        first = [Step(first[0].node_id, 0, WHOLE, first[0].is_relay)]
    named = {step.node_id for step in first}
    rest = [node for node in holders if node not in named]
    return [*first, *(Step(node, rank, WHOLE, False) for rank, node in enumerate(rest, 1))]
