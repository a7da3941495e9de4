"""Who gets each shard of a shipment from whom: the plan of wire/tree.py over the nodes that there are."""

from collections.abc import Sequence

from raylog.actors.node import NodeInfo, address_of
from raylog.api.session import Session
from raylog.errors import Unavailable
from raylog.spec import ShardRef
from raylog.wire.fetcher import Source
from raylog.wire.tree import Step, plan_broadcast


class Broadcast:
    """Sources for every target of every shard, from the replicas that the catalog knows of."""

    def __init__(self, session: Session, shards: Sequence[ShardRef], targets: Sequence[NodeInfo]) -> None:
        held: dict[str, list[str]] = session.retried("catalog", "replicas", [shard.shard_id for shard in shards])
        self._nodes = {info.node_id: info for info in session.nodes()} | {info.node_id: info for info in targets}
        self._holders = {
            shard_id: [node_id for node_id in node_ids if node_id in self._nodes] for shard_id, node_ids in held.items()
        }
        receivers = [info.node_id for info in sorted(targets, key=_neighbourhood)]
        self._plans = {shard_id: plan_broadcast(found, receivers) for shard_id, found in self._holders.items()}

    def sources(self, target: NodeInfo, shard: ShardRef) -> tuple[Source, ...]:
        """Where `target` gets the shard; none when it holds a replica itself. Raises `Unavailable` when nobody does."""
        if not self._holders[shard.shard_id]:
            raise Unavailable(
                f"shard {shard.shard_id}: no living node holds it; bring one back that does", shard_id=shard.shard_id
            )
        return tuple(self._source(step) for step in self._plans[shard.shard_id].get(target.node_id, []))

    def _source(self, step: Step) -> Source:
        peer = address_of(self._nodes[step.node_id])
        return Source(peer=peer, rank=step.rank, stripe=step.stripe, is_relay=step.is_relay)


def _neighbourhood(info: NodeInfo) -> tuple[str, str, str]:
    """Nodes that are near each other come one after another."""
    return info.labels.get("zone", ""), info.labels.get("rack", ""), info.node_id
