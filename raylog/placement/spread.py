"""Whether the pieces of an erasure-coded shard lie so that the loss of one failure domain is survived. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence

DOMAINS = ("zone", "rack")


def spread_problem(nodes: Sequence[str], labels: Mapping[str, Mapping[str, str]], data: int, parity: int) -> str:
    """Why pieces on `nodes`, one each, would not survive the loss of a zone or rack; "" where they would. A kind of
    domain counts where every node of the cluster (`labels`: node id -> its labels) is labelled with it, and more than
    one of it exists: where all share one, nothing can be done about it.
    """
    for kind in DOMAINS:
        known = {node_id: own.get(kind, "") for node_id, own in labels.items()}
        there = sorted(set(known.values()))
        if "" in there or len(there) < 2:
            continue
        held = Counter(known[node_id] for node_id in nodes)
        for domain, count in held.most_common(1):
            if count > parity:
                return (
                    f"{kind} {domain} would hold {count} of the {data + parity} pieces of a shard, of which {parity} "
                    f"may be lost; the {kind}s are {', '.join(there)}: add nodes in others than {domain}, or take more "
                    "parity"
                )
    return ""
