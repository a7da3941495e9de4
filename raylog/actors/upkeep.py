"""What the catalog actor does between calls: gives up nodes that are gone, restores replicas, removes shards that
nothing names. Plans come from pure code; here they are carried out."""

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import msgspec

from raylog.actors.cluster_nodes import Nodes, tolerated
from raylog.actors.elsewhere import NOWHERE, Elsewhere
from raylog.actors.node_info import NodeInfo, elsewhere_for, sources_for
from raylog.actors.record_copies import RecordCopies
from raylog.actors.requests import SHARDS_MAX, DeleteShards, PullShard, RepairShard
from raylog.catalog.catalog import STANDINGS_MAX, Catalog
from raylog.catalog.leases import Leases, Orphans
from raylog.errors import RaylogError, Unavailable
from raylog.security.requests import Request
from raylog.settings import Settings
from raylog.spec import Durability, QosClass, ShardRef, ShardStanding, new_id
from raylog.store.rebalance import BalanceMove, BalanceNode, plan_rebalance
from raylog.store.repair import RepairNode, RepairStep, plan_repair

log = logging.getLogger("raylog.upkeep")
RECONCILE_PERIOD_S = 600.0
ANSWER_GRACE_S = 5.0
MOVES_PER_ROUND = 8  # of a rebalancing
MEND_AGAIN_S = 60.0  # after a try that failed: nobody else held it
ELSEWHERE_AGAIN_S = 30.0


class Upkeep:
    """A thread of the catalog actor. Every step is repeated until it is done, so a restart loses nothing."""

    def __init__(
        self,
        catalog: Catalog,
        nodes: Nodes,
        settings: Settings,
        cluster_id: str,
        records: RecordCopies,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._catalog, self._nodes, self._settings, self._records = catalog, nodes, settings, records
        self._clock, self._wall_clock = clock, wall_clock
        self._by = f"raylog://{cluster_id}/catalog/upkeep"
        self._reconcile_every_s = min(RECONCILE_PERIOD_S, settings.orphan_grace_s)
        self._leases_lock = threading.Lock()
        self._absent_since_s: dict[str, float] = {}
        self._reconciled: dict[str, tuple[int, float]] = {}  # node id -> process id of its actor, when
        self._leases = Leases(settings.orphan_grace_s, clock())
        self._orphans: dict[str, Orphans] = {}  # node id -> what was seen on it
        self._mend_after_s: dict[tuple[str, str], float] = {}  # node and shard whose mending failed -> not before
        self._elsewhere_after_s: dict[str, float] = {}  # shard that pieces and backups did not give -> not before
        self._hopeless: dict[str, str] = {}  # shard that cannot be repaired -> why, as it was told
        self._is_rebalancing = False  # asked for; a restart forgets it, and whoever waits asks again
        self._has_asked = False  # the nodes for what they hold

    def start(self) -> None:
        """From here on, in a thread of its own, again and again."""
        threading.Thread(target=self._run, name="upkeep", daemon=True).start()

    @property
    def has_asked(self) -> bool:
        """Whether every living node was asked what it holds, once at least: a journal made anew does not know it."""
        return self._has_asked

    def renew_lease(self, version_id: str) -> None:
        """A put is under way: what it sealed is no leftover."""
        with self._leases_lock:
            self._leases.renew(version_id, self._clock())

    def _run(self) -> None:
        while True:
            started_s = time.monotonic()
            try:
                self.step()
            except RaylogError as error:
                log.warning("upkeep goes on in a moment: %s", error)
            except Exception:
                log.exception("upkeep failed, trying again")
            time.sleep(max(0.1, self._settings.reconcile_period_s - (time.monotonic() - started_s)))

    def step(self) -> None:
        """One round of everything."""
        nodes = self._nodes.living()
        self._records.copy_to_all(nodes)
        self._delete_due()
        self._notice(nodes)
        self._remove_unreferenced(nodes)
        self._mend(nodes)
        self._restore(nodes)
        self._rebalance(nodes)

    def _delete_due(self) -> None:
        """Versions that have expired, or of which newer ones are kept instead."""
        now_us = int(self._wall_clock() * 1e6)
        for reference, why in self._catalog.due(now_us).items():
            with tolerated(f"deleting {reference}"):
                if self._catalog.delete_due(reference, now_us, self._by):
                    log.warning("%s was deleted, since %s", reference, why)

    def rebalance(self) -> int:
        """From the next round on copies move until all nodes are filled alike; how many are planned at first."""
        self._is_rebalancing = True
        return len(self._planned_moves(self._nodes.living(), STANDINGS_MAX))

    @property
    def is_rebalancing(self) -> bool:
        return self._is_rebalancing

    def _planned_moves(self, nodes: Sequence[NodeInfo], moves_max: int) -> list[BalanceMove]:
        stored, free, leaving = self._catalog.stored_on_nodes(), self._nodes.free_bytes(), self._nodes.draining()
        balance = [
            BalanceNode(
                node_id=info.node_id,
                domain=failure_domain(info),
                stored_bytes=stored.get(info.node_id, 0),
                free_bytes=free[info.node_id],
            )
            for info in nodes
            if info.node_id in free and info.node_id not in leaving
        ]
        return plan_rebalance(balance, self._catalog.settled_standings(), moves_max)

    def _rebalance(self, nodes: Sequence[NodeInfo]) -> None:
        """A few moves; what is short of replicas comes first."""
        if not self._is_rebalancing or self._catalog.short_shards():
            return
        moves = self._planned_moves(nodes, MOVES_PER_ROUND)
        by_id = {info.node_id: info for info in nodes}
        self._nodes.together([partial(self._try_move, move, by_id) for move in moves])
        self._is_rebalancing = bool(moves)

    def _try_move(self, move: BalanceMove, by_id: dict[str, NodeInfo]) -> None:
        with tolerated(f"moving shard {move.shard.shard_id} to node {move.target}"):
            step = RepairStep(shard=move.shard, sources=(move.source,), target=move.target, reason=move.reason)
            self._carry_out(step, by_id)
            standing = self._catalog.standing(move.shard.shard_id)
            if standing is None or len(set(standing.nodes) - {move.source}) < standing.wanted:
                return  # the new copy does not count: then the old one stays
            self._ask(by_id[move.source], DeleteShards(shard_ids=(move.shard.shard_id,)))
            self._catalog.remove_replica(move.shard.shard_id, move.source)

    def _notice(self, nodes: Sequence[NodeInfo]) -> None:
        """What living nodes hold counts by their receipts; nodes that stay silent are given up."""
        now_s = self._clock()
        for info in nodes:
            incarnation, reconciled_s = self._reconciled.get(info.node_id, (0, 0.0))
            if info.pid != incarnation or now_s - reconciled_s > self._reconcile_every_s:
                with tolerated(f"reconciling node {info.node_id}"):
                    self._reconcile(info)
                    self._reconciled[info.node_id] = (info.pid, now_s)
        present = {info.node_id for info in nodes}
        self._has_asked = self._has_asked or bool(present)
        for node_id in self._catalog.holding_nodes() - present:
            if now_s - self._absent_since_s.setdefault(node_id, now_s) > self._settings.lost_after_s:
                self._catalog.forget_node(node_id)
                self._reconciled.pop(node_id, None)
                self._orphans.pop(node_id, None)
        self._absent_since_s = {
            node_id: since_s for node_id, since_s in self._absent_since_s.items() if node_id not in present
        }

    def _reconcile(self, info: NodeInfo) -> None:
        """Asks a node what it really holds, cached copies included, and collects leftovers there."""
        inventory: list[ShardRef] = self._on(info, "inventory")
        self._catalog.reconcile(info.node_id, self._on(info, "receipts", inventory))
        unnamed = self._catalog.unnamed([ref.shard_id for ref in inventory])
        origins: dict[str, str] = self._on(info, "origins", unnamed) if unnamed else {}
        seen = self._orphans.setdefault(info.node_id, Orphans(self._settings.orphan_grace_s))
        with self._leases_lock:
            due = seen.look(origins, self._leases, self._clock())
        for version_id, shard_ids in due.items():
            self._collect(info, version_id, shard_ids)

    def _collect(self, info: NodeInfo, version_id: str, shard_ids: Sequence[str]) -> None:
        """Deletes leftovers. Where this catalog knows of no commit, the node looks into its own records as well."""
        is_never_named = self._catalog.revoke(version_id, self._by)
        doomed = self._catalog.unnamed(shard_ids)
        # Whatever becomes of this catalog: the put cannot commit, and a version that named them does not come back.
        self._records.copy_to_another_node()
        for first in range(0, len(doomed), SHARDS_MAX):
            some = tuple(doomed[first : first + SHARDS_MAX])
            self._ask(info, DeleteShards(shard_ids=some, is_never_named=is_never_named))
        silent = f"its put was silent for more than {self._settings.orphan_grace_s:.0f} s"
        log.warning(
            "Node %s: deleted %d shards of version id %s, which no version names: %s",
            info.node_id,
            len(doomed),
            version_id,
            silent if is_never_named else "copies that a version left behind",
        )

    def _remove_unreferenced(self, nodes: Sequence[NodeInfo]) -> None:
        """Deletes the copies of shards that no version names any more, once another machine knows that too: the
        catalog that takes this one's place would have versions without shards."""
        by_id = {info.node_id: info for info in nodes}
        unreferenced = self._catalog.unreferenced_shards()
        if not unreferenced:
            return
        try:
            self._records.copy_to_another_node()
        except Unavailable as error:
            log.warning("shards that no version names stay for now: %s", error)
            return
        for standing in unreferenced:
            for node_id in (*standing.nodes, *standing.other_nodes):
                if node_id in by_id:
                    with tolerated(f"removing shard {standing.shard.shard_id} from node {node_id}"):
                        self._ask(by_id[node_id], DeleteShards(shard_ids=(standing.shard.shard_id,)))
                        self._catalog.remove_replica(standing.shard.shard_id, node_id)

    def _mend(self, nodes: Sequence[NodeInfo]) -> None:
        """Has what nodes found damaged replaced from whoever else holds it."""
        for info in nodes:
            with tolerated(f"asking node {info.node_id} for damage"):
                damage: dict[str, list[int]] = self._on(info, "damage")
                for shard_id, numbers in damage.items():
                    if self._clock() < self._mend_after_s.get((info.node_id, shard_id), 0.0):
                        continue
                    self._mend_after_s[info.node_id, shard_id] = self._clock() + MEND_AGAIN_S
                    with tolerated(f"mending shard {shard_id} on node {info.node_id}"):
                        self._mend_shard(info, shard_id, numbers, nodes)
                        del self._mend_after_s[info.node_id, shard_id]

    def _mend_shard(self, info: NodeInfo, shard_id: str, numbers: list[int], nodes: Sequence[NodeInfo]) -> None:
        standing = self._catalog.standing(shard_id)
        if standing is None:
            return  # of a put that is under way, or a leftover: nothing was promised of it
        holding = {*standing.nodes, *standing.other_nodes}
        if not numbers and info.node_id not in holding:
            return  # a cached copy, or one that is made up for elsewhere already
        sources = sources_for(info, [other for other in nodes if other.node_id in holding])
        limit_s = self._settings.pull_deadline_s
        chunks = tuple(numbers) or tuple(range(standing.shard.chunks))
        repair = RepairShard(
            shard=standing.shard,
            numbers=chunks,
            sources=sources,
            deadline_s=limit_s,
            elsewhere=self._elsewhere(info, shard_id, nodes),
        )
        replaced: int = self._ask(info, repair, timeout_s=limit_s + ANSWER_GRACE_S)
        log.warning("Node %s: %d damaged chunks of shard %s were replaced", info.node_id, replaced, shard_id)

    def _restore(self, nodes: Sequence[NodeInfo]) -> None:
        """One round of repairs, nodes that Ray drains being relieved of what they hold; the rest comes in the next."""
        leaving = self._nodes.draining()
        short = {standing.shard.shard_id: standing for standing in self._catalog.short_shards()}
        for node_id in leaving:
            short |= {standing.shard.shard_id: standing for standing in self._catalog.short_without(node_id)}
        if not short:
            return
        by_id = {info.node_id: info for info in nodes}
        plan = plan_repair(map(self._without_failed_ways, short.values()), self._repair_nodes(nodes, leaving))
        hopeless = {one.shard.shard_id: one.reason for one in plan.unrepairable}
        for reason in set(hopeless.values()) - set(self._hopeless.values()):
            log.warning("%s", reason)
        self._hopeless = hopeless
        self._nodes.together([partial(self._try_steps, steps, by_id) for steps in _by_pieces(plan.steps)])

    def _try_steps(self, steps: Sequence[RepairStep], by_id: dict[str, NodeInfo]) -> None:
        """Several, when they are of pieces of one shard that have to be made anew: the first node makes them all, and
        the others get theirs from it."""
        first, *others = steps
        self._try_step(first, by_id, beside=[step.shard.shard_id for step in others])
        for step in others:
            self._try_step(dataclasses.replace(step, sources=(first.target,)), by_id)

    def _try_step(self, step: RepairStep, by_id: dict[str, NodeInfo], beside: Sequence[str] = ()) -> None:
        try:
            self._carry_out(step, by_id, beside)
        except RaylogError as error:
            log.warning("a repair failed, it is planned again: %s", error)
            if step.elsewhere:
                self._elsewhere_after_s[step.shard.shard_id] = self._clock() + ELSEWHERE_AGAIN_S

    def _without_failed_ways(self, standing: ShardStanding) -> ShardStanding:
        """For a while after they failed: they are asked over and over by nobody."""
        if self._clock() < self._elsewhere_after_s.get(standing.shard.shard_id, 0.0):
            return msgspec.structs.replace(standing, backups=(), pieces_needed=0)
        return standing

    def _repair_nodes(self, nodes: Sequence[NodeInfo], leaving: Collection[str]) -> list[RepairNode]:
        """The nodes as the plan needs them: free bytes of their disk tiers, and what they would be lost with."""
        free = self._nodes.free_bytes()
        return [
            RepairNode(
                node_id=info.node_id,
                domain=failure_domain(info),
                free_bytes=free[info.node_id],
                is_draining=info.node_id in leaving,
            )
            for info in nodes
            if info.node_id in free
        ]

    def _carry_out(self, step: RepairStep, by_id: dict[str, NodeInfo], beside: Sequence[str] = ()) -> None:
        log.info("Repairing: %s", step.reason)
        target, limit_s = by_id[step.target], self._settings.pull_deadline_s
        peers = sources_for(target, [by_id[node_id] for node_id in step.sources])  # none: its own copy goes to disk
        pull = PullShard(
            pull_id=new_id(),
            shard=step.shard,
            sources=peers,
            durability=Durability.DISK,
            qos=QosClass.REPAIR,
            deadline_s=limit_s,
            elsewhere=self._elsewhere(target, step.shard.shard_id, list(by_id.values()), beside)
            if step.elsewhere
            else NOWHERE,
        )
        self._ask(target, pull, timeout_s=limit_s + ANSWER_GRACE_S)
        for receipt in self._on(target, "receipts", [step.shard]):
            self._catalog.add_replica(receipt)

    def _elsewhere(
        self, target: NodeInfo, shard_id: str, nodes: Sequence[NodeInfo], beside: Sequence[str] = ()
    ) -> Elsewhere:
        found = self._catalog.whereabouts([shard_id, *beside])
        numbers = tuple(one.number for one in (found[other] for other in beside) if one.number is not None)
        return msgspec.structs.replace(elsewhere_for(target, found[shard_id], nodes), beside=numbers)

    def _on(self, info: NodeInfo, method: str, *arguments: Any, timeout_s: float | None = None) -> Any:
        return self._nodes.call(info, method, *arguments, timeout_s=timeout_s or self._settings.call_deadline_s)

    def _ask(self, info: NodeInfo, about: Request, timeout_s: float | None = None) -> Any:
        """Has a node do what it does only for who may ask."""
        return self._nodes.ask(info, about, timeout_s or self._settings.call_deadline_s)


def _by_pieces(steps: Sequence[RepairStep]) -> list[list[RepairStep]]:
    """Steps that are done together: those that make pieces of one shard anew; each other one by itself."""
    together: dict[str, list[RepairStep]] = {}
    for step in steps:
        is_anew = step.piece_of and not step.sources
        together.setdefault(step.piece_of if is_anew else f"{step.shard.shard_id} {step.target}", []).append(step)
    return list(together.values())


def failure_domain(info: NodeInfo) -> str:
    """What a node would be lost with: its zone or rack where Ray's labels name one, else itself."""
    for label in ("zone", "rack"):
        if info.labels.get(label):
            return f"{label} {info.labels[label]}"
    return info.node_id
