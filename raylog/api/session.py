"""What a connected process holds: Ray, its certificate, its node's store. All that the client does goes through it."""

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

import msgspec
import ray

from raylog.actors import bootstrap, calls
from raylog.actors.backup_copies import PROBE_S
from raylog.actors.elsewhere import Elsewhere
from raylog.actors.membership import Membership
from raylog.actors.node_info import NodeInfo, elsewhere_for, sources_for
from raylog.actors.pull import ELSEWHERE, Outcome
from raylog.actors.requests import (
    SHARDS_MAX,
    BackUpShard,
    CancelPull,
    CheckBackup,
    DeleteShards,
    MeasureDisks,
    ProbeBackup,
    PullShard,
    ReadFrame,
    RepairShard,
    ask,
)
from raylog.api import ray_access
from raylog.api.ray_connection import RayConnection, connect_ray, disconnect
from raylog.catalog.manifest import Manifest, open_manifest
from raylog.catalog.pieces import Whereabouts
from raylog.catalog.requests import (
    CATALOG,
    BackUpVersions,
    DeleteVersions,
    DiscardCopies,
    DoubtCopies,
    GovernVersions,
    RebalanceCopies,
    WithdrawVersion,
)
from raylog.catalog.retention import Retention
from raylog.codec.frame import Frame
from raylog.codec.pieces import Erasure
from raylog.errors import (
    DeadlineExceeded,
    NoSpace,
    NotFound,
    NotPermitted,
    RaylogError,
    Unavailable,
    Unsatisfiable,
)
from raylog.monitor.samples import NodeSample
from raylog.placement.replicas import ReplicaPlan
from raylog.placement.spread import spread_problem
from raylog.security.credentials import Credentials
from raylog.security.grants import DEKS_MAX, ReadScope, WriteScope, open_grant, request_grant
from raylog.security.requests import Request, Signer, sign_request
from raylog.settings import Settings
from raylog.spec import Durability, QosClass, Reference, ShardRef, Use, Version
from raylog.wire.fetcher import Source
from raylog.wire.local_client import LocalClient

T = TypeVar("T")
NODE_TIMEOUT_S = 60.0
RESTART_TIMEOUT_S = 15.0  # of a node's actor
STALE_INFO_S = 6.0  # at most, that the launch actor still tells of the process before; pids of containers may differ
RESTART_POLL_S = 0.1
WITHDRAW_REASON_CHARACTERS = 1000
ANSWER_GRACE_S = 5.0  # a node ends by the deadline it was given; its answer travels a little longer


class Session:
    """One process's membership of a cluster: actors by name, a client certificate, the local node's store."""

    def __init__(self, settings: Settings, ray_connection: RayConnection) -> None:
        self.settings = settings
        self._ray = ray_connection
        self._lock = threading.Lock()
        bootstrap.wait_for_nodes(NODE_TIMEOUT_S, only=ray.get_runtime_context().get_node_id())
        self._local, self._store = self._connect_local()
        self._membership = Membership.of_client(settings)

    @classmethod
    def open(cls, address: str | None, settings: Settings) -> Self:
        """Connects. On this process's own Ray, or on the head of one that asks for a token, raylog is started if it
        does not run; anywhere else that is for 'raylog up'. What was begun is taken down again when this fails."""
        connection = connect_ray(address)
        try:
            running = bootstrap.wait_for_head(settings.head_wait_s)
            if running is None and not connection.is_started:
                ray_access.refuse_open(ray.get_runtime_context().gcs_address)
            return cls(running or bootstrap.start(settings), connection)
        except BaseException:
            disconnect(connection)
            raise

    def close(self) -> None:
        """Lets go of the node and of Ray; ends raylog and Ray if this process started them."""
        self._store.close()
        self._membership.close()
        disconnect(self._ray)

    @property
    def local(self) -> NodeInfo:
        """The node that this process is on; found again after its actor was restarted."""
        self._reconnect()
        return self._local

    @property
    def store(self) -> LocalClient:
        """The connection to that node's store, made anew after its actor was restarted."""
        self._reconnect()
        return self._store

    def _reconnect(self) -> None:
        with self._lock:
            if not self._store.is_alive:
                self._store.close()
                self._local, self._store = self._connect_local()

    def credentials(self) -> Credentials:
        return self._membership.credentials()

    def call(self, actor: str, method: str, *arguments: Any, timeout_s: float | None = None) -> Any:
        return calls.call(actor, method, *arguments, timeout_s=timeout_s or self.settings.call_deadline_s)

    def retried(self, actor: str, method: str, *arguments: Any) -> Any:
        """An idempotent call, asked again while the actor restarts."""
        return self._retried(actor, lambda left_s: self.call(actor, method, *arguments, timeout_s=left_s))

    def _retried(self, actor: str, attempt: Callable[[float], T]) -> T:
        """Within the deadline of one call; while the actor is gone, within `head_wait_s`."""
        gone_until = time.monotonic() + self.settings.head_wait_s
        while True:
            try:
                return calls.retried(attempt, self.settings.call_deadline_s)
            except RaylogError as error:
                if not error.is_retryable or time.monotonic() > gone_until or calls.answers(actor):
                    raise

    def on_node(self, info: NodeInfo, method: str, *arguments: Any, timeout_s: float | None = None) -> Any:
        """A call of one node's actor."""
        reference = getattr(calls.node(info.ray_node_id), method).remote(*arguments)
        return calls.wait(reference, timeout_s or self.settings.call_deadline_s, f"node {info.node_id[:12]}.{method}")

    def ask_node(self, info: NodeInfo, about: Request, timeout_s: float | None = None) -> Any:
        """Has a node do what it does only for who may ask; signed by this process, anew for each call."""
        reference = ask(calls.node(info.ray_node_id), info.node_id, about, Signer.of(self.credentials()))
        return calls.wait(reference, timeout_s or self.settings.call_deadline_s, f"{about.action} {info.node_id[:12]}")

    def nodes(self) -> list[NodeInfo]:
        nodes: list[NodeInfo] = self.retried("launch", "nodes")
        return nodes

    def pull_rates(self, timeout_s: float | None = None) -> dict[str, float | None]:
        """Node id -> at how many bytes per second it received its last shards; None while those were too few."""
        samples: list[NodeSample] = calls.retried(
            lambda left_s: self.call("monitor", "samples", timeout_s=left_s),
            self.settings.call_deadline_s if timeout_s is None else timeout_s,
        )
        return {sample.node_id: sample.transfer.pull_bytes_per_s for sample in samples}

    def node(self, node_id: str) -> NodeInfo:
        """The living node of that id, or of an id that begins so; raises `NotFound` listing the ones there are."""
        nodes = self.nodes()
        found = [info for info in nodes if info.node_id.startswith(node_id)]
        if len(found) != 1:
            present = ", ".join(f"{info.node_id[:12]} ({info.hostname})" for info in nodes)
            raise NotFound(f"expected the id of one living node, got {node_id!r}; there are: {present}")
        return found[0]

    def holders(self, shard_id: str) -> list[NodeInfo]:
        """The living nodes that hold an acknowledged replica of a shard."""
        holding: dict[str, list[str]] = self.retried("catalog", "replicas", [shard_id])
        return [info for info in self.nodes() if info.node_id in holding[shard_id]]

    def manifest(self, reference: Reference) -> Manifest:
        """A version's manifest, verified by the cluster's key, and that it is the version that was asked for."""
        committed: bytes = self.retried("catalog", "manifest", reference)
        manifest, statement = open_manifest(committed, self._membership.cluster_id, self._membership.verify_cluster)
        if manifest.name != reference.name or reference.number not in (None, statement.number):
            raise NotPermitted(f"asked for {reference}, the catalog gave {manifest.name}@{statement.number}")
        return manifest

    def delete(self, reference: Reference) -> list[Version]:
        """Has the catalog delete what `reference` names now, by a request that this process signs."""
        latest: Version = self.retried("catalog", "versions", reference.name)[-1]
        about = DeleteVersions(reference=str(reference), latest=latest.number)
        deleted: list[Version] = self._ask_catalog("delete", about)
        return deleted

    def doubt_copies(self, shard_ids: Sequence[str], url: str) -> None:
        """Has the catalog have these shards' copies below `url` written anew."""
        self._ask_catalog("doubt", DoubtCopies(shard_ids=tuple(shard_ids), url=url))

    def discard_copies(self, shard_ids: Sequence[str], url: str) -> None:
        """Has the catalog take away what a put that failed left below `url`."""
        self._ask_catalog("discard", DiscardCopies(shard_ids=tuple(shard_ids), url=url))

    def _ask_catalog(self, method: str, about: Request) -> Any:
        return self.call(CATALOG, method, sign_request(about, CATALOG, Signer.of(self.credentials()), time.time()))

    def withdraw(self, version_id: str, reason: str) -> bool:
        """Has the catalog never commit this version; False when it has."""
        about = WithdrawVersion(version_id=version_id, reason=reason[:WITHDRAW_REASON_CHARACTERS])

        def attempt(left_s: float) -> bool:  # each request is answered once: a new one for every try
            signed = sign_request(about, CATALOG, Signer.of(self.credentials()), time.time())
            done: bool = self.call(CATALOG, "withdraw", signed, timeout_s=left_s)
            return done

        return self._retried(CATALOG, attempt)

    def govern(self, kind: str, reference: Reference, details: dict[str, str]) -> Retention:
        """Has the catalog hold, release, expire or keep; what is set for the name then."""
        about = GovernVersions(reference=str(reference), kind=kind, details=details)
        found: Retention = self._ask_catalog("govern", about)
        return found

    def rebalance(self) -> int:
        """Has the catalog move copies until nodes are filled alike; how many moves are planned at first."""
        planned: int = self._ask_catalog("rebalance", RebalanceCopies())
        return planned

    def want_backup(self, reference: Reference, url: str) -> list[Version]:
        """Has the catalog note that what `reference` names is to have copies below `url`; which versions that are."""
        chosen: list[Version] = self._ask_catalog("back_up", BackUpVersions(reference=str(reference), url=url))
        return chosen

    def pull(
        self,
        target: NodeInfo,
        ref: ShardRef,
        qos: QosClass,
        durability: Durability | None,
        *,
        pull_id: str,
        use: Use = Use.DATASET,
        sources: Sequence[Source] | None = None,
        timeout_s: float | None = None,
    ) -> Outcome:
        """Has `target` pull a shard from `sources`, by default from all that hold a replica; where none of them gives
        it, from its pieces or a backup. By `pull_id` `cancel_pull` ends it."""
        limit_s = timeout_s or self.settings.pull_deadline_s
        pull = PullShard(
            pull_id=pull_id,
            shard=ref,
            sources=sources_for(target, self.holders(ref.shard_id)) if sources is None else tuple(sources),
            durability=durability,
            qos=qos,
            deadline_s=limit_s,
            use=use,
        )
        outcome: Outcome = self._ask_around(target, pull, limit_s)
        return outcome

    def frame(self, ref: ShardRef) -> Frame:
        """A shard's frame, which is the manifest's, without bringing the shard here. Raises as `pull`."""
        target, limit_s = self.local, self.settings.call_deadline_s
        sources = sources_for(target, self.holders(ref.shard_id))
        about = ReadFrame(shard=ref, sources=sources, deadline_s=limit_s)
        return Frame.decode(self._ask_around(target, about, limit_s), ref.frame_digest)

    def kept_here(self, shard_ids: Sequence[str]) -> set[str]:
        """Which of these shards have an acknowledged replica on the local node."""
        holding: dict[str, list[str]] = self.retried("catalog", "replicas", list(shard_ids))
        return {shard_id for shard_id, node_ids in holding.items() if self.local.node_id in node_ids}

    def _ask_around(self, target: NodeInfo, about: PullShard | RepairShard | ReadFrame, limit_s: float) -> Any:
        """Asks for the nodes that hold the shard first: most are on nodes, and where else one may be had, the catalog
        has to be asked."""
        try:
            if about.sources:
                return self.ask_node(target, about, limit_s + ANSWER_GRACE_S)
            reason: RaylogError | None = None
        except ELSEWHERE as error:
            if isinstance(error, (NoSpace, DeadlineExceeded)):
                raise
            reason = error
        elsewhere = self.elsewhere(target, about.shard.shard_id)
        if reason is not None and not elsewhere:
            raise reason
        again = msgspec.structs.replace(about, sources=(), elsewhere=elsewhere)
        return self.ask_node(target, again, limit_s + ANSWER_GRACE_S)

    def elsewhere(self, target: NodeInfo, shard_id: str) -> Elsewhere:
        """How `target` may have a shard that no node gives whole."""
        found: dict[str, Whereabouts] = self.retried("catalog", "whereabouts", [shard_id])
        return elsewhere_for(target, found[shard_id], self.nodes())

    def measure_disks(self, info: NodeInfo) -> None:
        """Has a node try what its disks can do."""
        self.ask_node(info, MeasureDisks(), self.settings.pull_deadline_s)

    def probe_backup(self, url: str) -> None:
        """Tries whether this machine's node can write below `url`. Raises `UsageError`, `NotFound`, `NotPermitted`,
        `Unavailable`."""
        self.ask_node(self.local, ProbeBackup(url=url), PROBE_S + ANSWER_GRACE_S)

    def check_backup(self, info: NodeInfo, ref: ShardRef, url: str) -> None:
        """Has a node read and check a shard's copy in a backup. Raises `NotFound`, `DamagedData`, `Unavailable`."""
        limit_s = self.settings.pull_deadline_s
        self.ask_node(info, CheckBackup(shard=ref, url=url, deadline_s=limit_s), limit_s + ANSWER_GRACE_S)

    def back_up(
        self,
        holder: NodeInfo,
        ref: ShardRef,
        url: str,
        elsewhere: Elsewhere,
        *,
        pull_id: str,
    ) -> bytes:
        """Has a node that holds a shard, or may have it `elsewhere`, write it below `url` if it is not there; its
        receipt for that copy."""
        limit_s = self.settings.pull_deadline_s
        about = BackUpShard(pull_id=pull_id, shard=ref, url=url, is_anew=False, deadline_s=limit_s, elsewhere=elsewhere)
        receipt: bytes = self.ask_node(holder, about, limit_s + ANSWER_GRACE_S)
        return receipt

    def cancel_pull(self, target: NodeInfo, pull_id: str, timeout_s: float) -> None:
        """Ends a pull that `target` was asked for, be it under way or still to come."""
        self.ask_node(target, CancelPull(pull_id=pull_id), timeout_s)

    def repair(self, target: NodeInfo, ref: ShardRef, numbers: Sequence[int]) -> int:
        """Has `target` replace damaged chunks from other replicas; how many it replaced."""
        limit_s = self.settings.pull_deadline_s
        peers = sources_for(target, self.holders(ref.shard_id))
        repair = RepairShard(shard=ref, numbers=tuple(numbers), sources=peers, deadline_s=limit_s)
        replaced: int = self._ask_around(target, repair, limit_s)
        return replaced

    def replica_targets(self, ref: ShardRef, replicas: int, durability: Durability) -> list[NodeInfo]:
        """The nodes on which the placement actor wants the replicas of a shard that this process sealed. Raises
        `Unsatisfiable` with its reason when there are fewer than asked for."""
        ask = partial(self.retried, "placement", "replica_targets", [ref], replicas, self.local.node_id, durability)
        plan: ReplicaPlan = ask()
        if plan.shortfall:
            silent = bootstrap.silent_nodes()
            if silent:  # a node that restarts is fit again in a moment
                raise Unavailable(f"{plan.shortfall[0].reason}, while {len(silent)} nodes do not answer: ask again")
            plan = ask()  # one that was silent for the first plan may answer since
        if plan.shortfall:
            raise Unsatisfiable(f"{plan.shortfall[0].reason}: add nodes or room, or ask for fewer replicas")
        chosen = plan.targets[ref.shard_id]
        if chosen == [self.local.node_id]:
            return [self.local]
        by_id = {info.node_id: info for info in self.nodes()}
        if not by_id.keys() >= set(chosen):
            raise Unavailable(f"a node that was chosen for shard {ref.shard_id} has left since: put again")
        return [by_id[node_id] for node_id in chosen]

    def piece_targets(self, erasure: Erasure) -> list[NodeInfo]:
        """A node for each piece of a shard that this process sealed. Raises `Unsatisfiable` that says which nodes or
        which failure domain are missing."""
        parity = erasure.parity
        largest = max(erasure.refs(), key=lambda ref: ref.stored_bytes)
        try:
            found = self.replica_targets(largest, erasure.pieces, Durability.DISK)
        except Unsatisfiable as error:
            raise Unsatisfiable(
                f"erasure {parity.data_pieces}+{parity.parity_pieces} keeps the {erasure.pieces} pieces of a shard on "
                f"as many nodes: {error}"
            ) from error
        labels = {info.node_id: info.labels for info in self.nodes()}
        problem = spread_problem([info.node_id for info in found], labels, parity.data_pieces, parity.parity_pieces)
        if problem:
            raise Unsatisfiable(problem)
        turn = int(erasure.shard.shard_id[:8], 16) % len(found)  # so that all nodes get data pieces
        return found[turn:] + found[:turn]

    def delete_shards(self, info: NodeInfo, shard_ids: Sequence[str]) -> None:
        """Takes shards that no version ever named away from a node."""
        for first in range(0, len(shard_ids), SHARDS_MAX):
            self.ask_node(info, DeleteShards(shard_ids=tuple(shard_ids[first : first + SHARDS_MAX])))

    def receipts(self, info: NodeInfo, refs: Sequence[ShardRef]) -> list[bytes]:
        """A node's signed word for each of the shards that it holds."""
        receipts: list[bytes] = self.on_node(info, "receipts", list(refs))
        return receipts

    def read_keys(self, dek_ids: Sequence[str], *, plaintext_blocks: bool = False) -> dict[str, bytes]:
        """Data keys by id, granted to this process alone; the audit log says if it is for `plaintext_blocks`. Raises
        `NotPermitted`, `NotFound` for destroyed ones."""
        keys: dict[str, bytes] = {}
        for first in range(0, len(dek_ids), DEKS_MAX):
            some = tuple(dek_ids[first : first + DEKS_MAX])
            keys |= self._granted(ReadScope(dek_ids=some, plaintext_blocks=plaintext_blocks))
        return keys

    def write_key(self, artifact_id: str, tenant: str) -> tuple[str, bytes]:
        """A fresh data key of an artifact: its id and the key, granted to this process alone."""
        ((dek_id, key),) = self._granted(WriteScope(artifact_id=artifact_id, tenant=tenant)).items()
        return dek_id, key

    def _granted(self, scope: ReadScope | WriteScope) -> dict[str, bytes]:
        def attempt(left_s: float) -> dict[str, bytes]:
            credentials = self.credentials()
            pending = request_grant(credentials, scope, time.time())  # each is answered once: a new one for every try
            grant = self.call("keys", "grant", pending.request, timeout_s=left_s)
            return open_grant(grant, pending, credentials.cluster_public_key, time.time())

        return self._retried("keys", attempt)

    def _connect_local(self) -> tuple[NodeInfo, LocalClient]:
        """This machine's node and its store. While the node restarts, what is known of it is a moment old: it is asked
        for again until it is of the process that serves the store."""
        began_s = time.monotonic()
        while True:
            try:
                info = self._local_node()
                store = LocalClient(Path(info.socket_path))
            except Unavailable:
                if time.monotonic() - began_s > RESTART_TIMEOUT_S:
                    raise
            else:
                if store.node_pid in (0, info.pid) or time.monotonic() - began_s > STALE_INFO_S:
                    return info, store
                store.close()
            time.sleep(RESTART_POLL_S)

    def _local_node(self) -> NodeInfo:
        here = ray.get_runtime_context().get_node_id()
        for info in self.nodes():
            if info.ray_node_id == here:
                return info
        raise Unavailable(
            "no node actor answers on this machine: 'raylog status' says why; connect on a cluster's node"
        )
