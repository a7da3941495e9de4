"""Who gets each shard from whom when several nodes are to have it: wire/tree.py over the nodes that there are."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Self

from raylog.actors.node_info import NodeInfo, address_of, sources_for
from raylog.api.session import Session
from raylog.spec import ShardRef
from raylog.wire.fetcher import Source
from raylog.wire.tree import Step, plan_broadcast

SLOW_SHARE = 0.5  # of the median rate; a slower node passes nothing on


class Broadcast:
    """Sources for every target of every shard. `holders`: the living nodes that have a shard, by its id. `rates`: at
    how many bytes per second a node received lately; None where that is not known."""

    def __init__(
        self,
        holders: Mapping[str, Sequence[NodeInfo]],
        targets: Sequence[NodeInfo],
        rates: Mapping[str, float | None],
    ) -> None:
        self._holders = dict(holders)
        self._nodes = {info.node_id: info for info in targets}
        self._nodes |= {info.node_id: info for infos in holders.values() for info in infos}
        self._receivers = [info.node_id for info in sorted(targets, key=_neighbourhood)]
        self._slow = slow_nodes({node_id: rates.get(node_id) for node_id in self._receivers})
        self._plans = {shard_id: self._plan(infos) for shard_id, infos in holders.items()}

    def _plan(self, holders: Sequence[NodeInfo]) -> dict[str, list[Step]]:
        return plan_broadcast([info.node_id for info in holders], self._receivers, self._slow)

    @classmethod
    def of_replicas(
        cls,
        session: Session,
        shards: Sequence[ShardRef],
        targets: Sequence[NodeInfo],
        rates: Mapping[str, float | None],
    ) -> Self:
        """From the replicas that the catalog knows of."""
        held: dict[str, list[str]] = session.retried("catalog", "replicas", [shard.shard_id for shard in shards])
        nodes = session.nodes()
        return cls(
            {shard_id: [info for info in nodes if info.node_id in node_ids] for shard_id, node_ids in held.items()},
            targets,
            rates,
        )

    @property
    def holders(self) -> int:
        """How many living nodes hold something of it."""
        return len({info.node_id for infos in self._holders.values() for info in infos})

    def holds_all(self, target: NodeInfo) -> bool:
        """Whether a node holds a replica of every shard."""
        return all(target.node_id in {info.node_id for info in infos} for infos in self._holders.values())

    def is_nowhere(self, shard: ShardRef) -> bool:
        """Whether no living node holds a replica of it."""
        return not self._holders[shard.shard_id]

    def came_to(self, target: NodeInfo, shard: ShardRef) -> None:
        """From here on the others get it from `target`, which had it from elsewhere."""
        self._holders[shard.shard_id] = [target]
        self._plans[shard.shard_id] = self._plan([target])

    def sources(self, target: NodeInfo, shard: ShardRef) -> tuple[Source, ...]:
        """Where `target` gets the shard; for one that holds it, the others that do; none when no living node does."""
        holders = self._holders[shard.shard_id]
        steps = self._plans[shard.shard_id].get(target.node_id)
        return sources_for(target, holders) if steps is None else tuple(self._source(step) for step in steps)

    def _source(self, step: Step) -> Source:
        peer = address_of(self._nodes[step.node_id])
        return Source(peer=peer, rank=step.rank, stripe=step.stripe, is_relay=step.is_relay)


def slow_nodes(rates: Mapping[str, float | None]) -> set[str]:
    """Those that received at less than half of what the median node did; a node of which nothing is known is none."""
    known = {node_id: rate for node_id, rate in rates.items() if rate}
    if not known:
        return set()
    limit = SLOW_SHARE * statistics.median(known.values())
    return {node_id for node_id, rate in known.items() if rate < limit}


def _neighbourhood(info: NodeInfo) -> tuple[str, str, str]:
    """Nodes that are near each other come one after another."""
    return info.labels.get("zone", ""), info.labels.get("rack", ""), info.node_id
