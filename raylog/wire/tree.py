"""Who passes a shard on to whom when many nodes want it. Pure.

Two trees over the same nodes, each for every second chunk (a *stripe*), so built that a node which passes on in one
tree is a leaf in the other: every node then sends about as much as it receives, all links are busy at once, and the
last node has the shard after one hop's time plus a chunk per level (SplitStream, Castro et al., SOSP 2003). A few nodes
form a chain instead, which has the same bound with fewer connections. Nodes on slow links come last: they pass nothing
on, and so hold nobody up.

Each receiver also gets all others to fall back to, in ranks: whom its parent has the shard from, then the holders.
"""

import itertools
from collections.abc import Sequence, Set
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


def plan_broadcast(
    holders: Sequence[str], receivers: Sequence[str], slow: Set[str] = frozenset()
) -> dict[str, list[Step]]:
    """The sources of each receiver. `receivers` come in the order in which to fill the trees, neighbours side by side;
    those that are `slow` pass on only where they are more than half. A receiver among the holders is left out.

    Holders share the receivers; where there are more holders than receivers, a receiver has several at once.
    """
    wanting = [node for node in dict.fromkeys(receivers) if node not in set(holders)]
    wanting.sort(key=lambda node: node in slow)
    count = min(len(holders), len(wanting))
    plan: dict[str, list[Step]] = {}
    for start in range(count):
        group, roots = wanting[start::count], holders[start::count]
        first = _chain(roots, group) if len(group) <= CHAIN_MAX else _trees(roots, group, slow)
        plan |= {node: _with_fallbacks(steps, holders) for node, steps in first.items()}
    return plan


def _chain(roots: Sequence[str], group: Sequence[str]) -> dict[str, list[Step]]:
    plan = {group[0]: [Step(root, 0, WHOLE, False) for root in roots]}
    for before, node in itertools.pairwise(group):
        plan[node] = [Step(before, 0, WHOLE, True)]
    return plan


def _trees(roots: Sequence[str], group: Sequence[str], slow: Set[str]) -> dict[str, list[Step]]:
    """Binary trees in heap order: the first half of the nodes passes on, the others are leaves. The second tree takes
    the nodes the other way round, but for the slow ones, which are last in both."""
    quick = [node for node in group if node not in slow]
    last = group[len(quick) :]
    plan: dict[str, list[Step]] = {node: [] for node in group}
    for index, order in enumerate(([*quick, *last], [*reversed(quick), *last])):
        stripe = Stripe(index, STRIPES)
        plan[order[0]] += [Step(root, 0, stripe, False) for root in roots]
        for place, node in enumerate(order[1:], 1):
            plan[node].append(Step(order[(place - 1) // 2], 0, stripe, True))
    return plan


def _with_fallbacks(first: Sequence[Step], holders: Sequence[str]) -> list[Step]:
    """`first`, then the other holders. A node that is a parent in both trees is named once, for everything."""
    named: dict[str, Step] = {}
    for step in first:
        twice = step.node_id in named
        named[step.node_id] = Step(step.node_id, 0, WHOLE, step.is_relay) if twice else step
    rest = [node for node in holders if node not in named]
    return [*named.values(), *(Step(node, rank, WHOLE, False) for rank, node in enumerate(rest, 1))]
