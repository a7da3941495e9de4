"""What node actors, standbys and the launch actor are asked to do, who may ask, and how it is sent
(security/requests.py)."""

import time
from typing import Any, ClassVar

import msgspec

from raylog.actors.elsewhere import NOWHERE, Elsewhere
from raylog.errors import UsageError
from raylog.security.replicated import Row
from raylog.security.requests import CLUSTER, Request, Signer, sign_request
from raylog.spec import Durability, QosClass, ShardRef, Use, parse_backup, parse_id
from raylog.wire.fetcher import Source

LAUNCH = "launch"  # to whom `StopRaylog` is; the others are to a node's id
SHARDS_MAX = 8192  # that one request deletes
CLIENTS_AND_CLUSTER = frozenset({"client", CLUSTER})  # no node asks another one by Ray: they speak the wire


class PullShard(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """That the node gets a shard from `sources`, or where none of them gives it from `elsewhere`, and keeps it as
    `durability` promises; None: as cache."""

    action: ClassVar[str] = "node.pull"
    askers: ClassVar[frozenset[str]] = CLIENTS_AND_CLUSTER

    pull_id: str
    shard: ShardRef
    sources: tuple[Source, ...]
    durability: Durability | None
    qos: QosClass
    deadline_s: float
    use: Use = Use.DATASET
    elsewhere: Elsewhere = NOWHERE

    def __post_init__(self) -> None:
        parse_id(self.pull_id, "pull id")
        parse_id(self.shard.shard_id, "shard id")


class ReadFrame(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The frame of a shard that need not be on the node: it asks `sources`, or where none of them gives it looks
    `elsewhere`."""

    action: ClassVar[str] = "node.frame"
    askers: ClassVar[frozenset[str]] = CLIENTS_AND_CLUSTER

    shard: ShardRef
    sources: tuple[Source, ...]
    deadline_s: float
    elsewhere: Elsewhere = NOWHERE

    def __post_init__(self) -> None:
        parse_id(self.shard.shard_id, "shard id")


class CancelPull(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """That the pull or upload of this id ends; whoever knows the id asked for it."""

    action: ClassVar[str] = "node.cancel_pull"
    askers: ClassVar[frozenset[str]] = CLIENTS_AND_CLUSTER

    pull_id: str

    def __post_init__(self) -> None:
        parse_id(self.pull_id, "pull id")


class RepairShard(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """That the node replaces the chunks `numbers` of its copies by those of one of `sources`, or had `elsewhere`."""

    action: ClassVar[str] = "node.repair"
    askers: ClassVar[frozenset[str]] = CLIENTS_AND_CLUSTER

    shard: ShardRef
    numbers: tuple[int, ...]
    sources: tuple[Source, ...]
    deadline_s: float
    elsewhere: Elsewhere = NOWHERE

    def __post_init__(self) -> None:
        parse_id(self.shard.shard_id, "shard id")


class ProbeBackup(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """That the node tries whether it can write below this URL."""

    action: ClassVar[str] = "node.probe_backup"
    askers: ClassVar[frozenset[str]] = CLIENTS_AND_CLUSTER

    url: str

    def __post_init__(self) -> None:
        parse_backup(self.url)


class BackUpShard(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """That the shard lies below `url` afterwards: it is there already, or the node writes its copy there; with
    `is_anew` it writes it in any case. `CancelPull` with this id ends it."""

    action: ClassVar[str] = "node.back_up"
    askers: ClassVar[frozenset[str]] = CLIENTS_AND_CLUSTER

    pull_id: str
    shard: ShardRef
    url: str
    is_anew: bool
    deadline_s: float
    elsewhere: Elsewhere = NOWHERE  # where the node has no copy: the pieces of the shard

    def __post_init__(self) -> None:
        parse_id(self.pull_id, "pull id")
        parse_id(self.shard.shard_id, "shard id")
        parse_backup(self.url)


class CheckBackup(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """That the node reads and checks every chunk of a shard's copy below `url`."""

    action: ClassVar[str] = "node.check_backup"
    askers: ClassVar[frozenset[str]] = CLIENTS_AND_CLUSTER

    shard: ShardRef
    url: str
    deadline_s: float

    def __post_init__(self) -> None:
        parse_id(self.shard.shard_id, "shard id")
        parse_backup(self.url)


class MeasureDisks(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """That the node tries what its disks can do."""

    action: ClassVar[str] = "node.measure"
    askers: ClassVar[frozenset[str]] = CLIENTS_AND_CLUSTER


class EvictShard(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """That the node drops its copy in memory of a shard that it has on disk."""

    action: ClassVar[str] = "node.evict"
    askers: ClassVar[frozenset[str]] = CLIENTS_AND_CLUSTER

    shard_id: str

    def __post_init__(self) -> None:
        parse_id(self.shard_id, "shard id")


class PinShards(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """That the node's copies of these shards do not give way, or may again."""

    action: ClassVar[str] = "node.pin"
    askers: ClassVar[frozenset[str]] = CLIENTS_AND_CLUSTER

    shard_ids: tuple[str, ...]
    is_pinned: bool

    def __post_init__(self) -> None:
        for shard_id in self.shard_ids:
            parse_id(shard_id, "shard id")


class DeleteShards(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """That the node takes shards away, or with `backup` their copies below that URL. A client may ask for those of a
    put that failed; what a version named once is for the catalog to delete, and the node checks that. `is_never_named`:
    the catalog itself knows of no version that named them, and the node shall check it too."""

    action: ClassVar[str] = "node.delete"
    askers: ClassVar[frozenset[str]] = CLIENTS_AND_CLUSTER

    shard_ids: tuple[str, ...]
    is_never_named: bool = False
    backup: str = ""

    def __post_init__(self) -> None:
        if len(self.shard_ids) > SHARDS_MAX:
            raise UsageError(f"expected at most {SHARDS_MAX} shards to delete at a time, got {len(self.shard_ids)}")
        for shard_id in self.shard_ids:
            parse_id(shard_id, "shard id")


class RestartRecords(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """That the node, or standby, drops its copy of the catalog's records and takes those of the catalog of `epoch` from
    the first on: what its copy has beyond those was never acknowledged."""

    action: ClassVar[str] = "node.restart_records"
    askers: ClassVar[frozenset[str]] = frozenset({CLUSTER})

    epoch: int


class Position(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Up to which change of the authority and of the envelopes a stream of rows has come. A run of the key actor
    (standbys.py, `term`) begins a new `stream` from the first change on whenever it begins anew with a standby."""

    term: int
    stream: int
    authority: int = 0
    envelopes: int = 0

    @property
    def is_start(self) -> bool:
        return not self.authority and not self.envelopes


class KeepKeys(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """That the standby has these rows of the key actor's files (security/replicated.py), which lead from `after` to
    `reached`."""

    action: ClassVar[str] = "standby.keep_keys"
    askers: ClassVar[frozenset[str]] = frozenset({CLUSTER})

    authority: tuple[Row, ...]
    envelopes: tuple[Row, ...]
    after: Position
    reached: Position


class CloseNode(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """That the node lets go of its machine."""

    action: ClassVar[str] = "node.close"
    askers: ClassVar[frozenset[str]] = frozenset({CLUSTER})


class StopRaylog(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """That the launch actor ends every node actor: it signs their `CloseNode` for nobody but the cluster."""

    action: ClassVar[str] = "launch.stop"
    askers: ClassVar[frozenset[str]] = frozenset({CLUSTER})


def ask(handle: Any, to: str, about: Request, signer: Signer) -> Any:
    """Sends a request that is signed now to an actor, and returns Ray's reference of the answer."""
    method = about.action.partition(".")[2]
    return getattr(handle, method).remote(sign_request(about, to, signer, time.time()))
