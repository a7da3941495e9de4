"""A shard that was just sealed, brought to the nodes that are to keep it."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from raylog.actors.elsewhere import Elsewhere
from raylog.actors.node_info import NodeInfo, sources_for
from raylog.api.broadcast import Broadcast
from raylog.api.pulls import Pulls
from raylog.api.put_options import PutOptions
from raylog.api.session import Session
from raylog.codec.pieces import Erasure
from raylog.spec import QosClass, ShardRef


class Replicas:
    """Makes what `options` promise of shards that this machine's node holds. `rates`: bytes per second at which nodes
    received lately, of those of which it is known. Threads may share it."""

    def __init__(self, session: Session, options: PutOptions, pulls: Pulls, rates: Mapping[str, float]) -> None:
        self._session, self._options = session, options
        self._pulls, self._rates = pulls, rates

    def spread(self, erasure: Erasure) -> list[bytes]:
        """Brings each piece to a node of its own; their receipts."""
        session, refs = self._session, erasure.refs()
        targets = session.piece_targets(erasure)
        with ThreadPoolExecutor(len(refs), thread_name_prefix="piece") as executor:
            pulling = [
                executor.submit(
                    self._pulls.pull,
                    info,
                    ref,
                    QosClass.CHECKPOINT,
                    self._options.kept_as,
                    use=self._options.use,
                    sources=sources_for(info, [session.local]),
                )
                for info, ref in zip(targets, refs, strict=True)
            ]
            for one in pulling:
                one.result()
        receipts = [
            receipt for info, ref in zip(targets, refs, strict=True) for receipt in session.receipts(info, [ref])
        ]
        if self._options.waits_for_backup:
            held = tuple(sources_for(session.local, [info]) for info in targets)
            elsewhere = Elsewhere(erasure=erasure, sources=held)
            receipts.append(self._pulls.back_up(session.local, erasure.shard, self._options.backup, elsewhere))
        here = session.local.node_id
        session.delete_shards(
            session.local, [ref.shard_id for info, ref in zip(targets, refs, strict=True) if info.node_id != here]
        )
        return receipts

    def replicate(self, ref: ShardRef) -> list[bytes]:
        """Brings a shard to the nodes that the placement actor chooses, and to the backup where that is waited for;
        their receipts."""
        session, options = self._session, self._options
        targets = session.replica_targets(ref, options.replicas, options.kept_as) if options.replicas else []
        others = [info for info in targets if info.node_id != session.local.node_id]
        plan = Broadcast({ref.shard_id: [session.local]}, others, self._rates)
        with ThreadPoolExecutor(max(len(others), 1), thread_name_prefix="replica") as executor:
            pulling = [
                executor.submit(
                    self._pulls.pull,
                    info,
                    ref,
                    QosClass.CHECKPOINT,
                    options.kept_as,
                    use=options.use,
                    sources=plan.sources(info, ref),
                )
                for info in others
            ]
            for one in pulling:
                one.result()
        receipts = [receipt for info in targets for receipt in session.receipts(info, [ref])]
        if options.waits_for_backup:
            receipts += self.back_up(ref, session.local)
        if session.local.node_id not in {info.node_id for info in targets}:
            session.delete_shards(session.local, [ref.shard_id])
        return receipts

    def back_up(self, ref: ShardRef, holder: NodeInfo) -> list[bytes]:
        return [self._pulls.back_up(holder, ref, self._options.backup)]
