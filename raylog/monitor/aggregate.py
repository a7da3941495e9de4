"""The latest samples of all nodes, and a bounded history of each. Pure: times are passed in, by the monitor's clock.

A node that falls silent is shown as such with its last figures; only fresh nodes enter the cluster's totals.
"""

from collections import deque
from dataclasses import dataclass, field

from raylog.monitor.rows import STALE_AFTER_S, ClusterTotals, NodeRow, cluster_totals, node_row
from raylog.monitor.samples import NodeSample

FORGET_AFTER_S = 3600.0
HISTORY_PER_NODE = 120
HISTORY_TOTAL = (
    60_000  # samples of all nodes together; each node keeps two at least. With 8 GPUs 6 KiB each, 350 MiB in all
)
NODES_MAX = 20_000


@dataclass(slots=True)
class _Known:
    """What is known of one node: its last samples, oldest first, and when the last of them came in."""

    arrived_s: float
    samples: deque[NodeSample] = field(default_factory=deque)


class Aggregate:
    """The latest samples of all nodes, and a bounded history of each. Not thread-safe."""

    def __init__(self) -> None:
        self._nodes: dict[str, _Known] = {}  # the one heard of longest ago first

    def add(self, time_s: float, sample: NodeSample) -> bool:
        """Takes a sample that came in at `time_s`. False when it is a copy of, or older than, the node's last one."""
        known = self._nodes.get(sample.node_id) or _Known(arrived_s=time_s)
        if known.samples and _is_late(sample, known.samples[-1]):
            return False
        self._nodes.pop(sample.node_id, None)
        while len(self._nodes) >= NODES_MAX:
            self.forget(next(iter(self._nodes)))
        self._nodes[sample.node_id] = known
        known.arrived_s = time_s
        known.samples.append(sample)
        room = max(2, min(HISTORY_PER_NODE, HISTORY_TOTAL // len(self._nodes)))
        while len(known.samples) > room:
            known.samples.popleft()
        return True

    def prune(self, time_s: float) -> list[str]:
        """Forgets the nodes that have been silent for `FORGET_AFTER_S`, and names them."""
        gone = [node_id for node_id, known in self._nodes.items() if time_s - known.arrived_s > FORGET_AFTER_S]
        for node_id in gone:
            self.forget(node_id)
        return gone

    def forget(self, node_id: str) -> None:
        """Drops a node that was taken out of the cluster."""
        self._nodes.pop(node_id, None)

    def history(self, node_id: str) -> tuple[NodeSample, ...]:
        """The node's last samples, oldest first; empty for a node never heard of."""
        known = self._nodes.get(node_id)
        return tuple(known.samples) if known else ()

    def fresh(self, time_s: float) -> list[NodeSample]:
        """The last sample of every node that is not silent."""
        return [known.samples[-1] for known in self._nodes.values() if time_s - known.arrived_s <= STALE_AFTER_S]

    def rows(self, time_s: float) -> list[NodeRow]:
        """Every known node as it is at `time_s`, by hostname."""
        rows = (node_row(time_s, known.arrived_s, known.samples) for known in self._nodes.values())
        return sorted(rows, key=lambda row: (row.hostname, row.node_id))

    def totals(self, time_s: float) -> ClusterTotals:
        """The cluster as it is at `time_s`."""
        return cluster_totals(self.rows(time_s))


def _is_late(sample: NodeSample, last: NodeSample) -> bool:
    return sample.incarnation == last.incarnation and sample.monotonic_s <= last.monotonic_s
