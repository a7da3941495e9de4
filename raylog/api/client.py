"""The Python API: what a training script, a job and the command line call."""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from weakref import WeakSet

import pyarrow as pa

from raylog.actors.node_info import NodeInfo
from raylog.api import export
from raylog.api.backup import BackupReport, back_up
from raylog.api.drain import DrainReport, drain_node
from raylog.api.events import ask_events
from raylog.api.follow import Follower
from raylog.api.get import Inspection, Reading
from raylog.api.materialise import read_bytes, read_table, read_tensors
from raylog.api.paths import NodePaths, ask_paths
from raylog.api.progress import OnProgress
from raylog.api.put import Put
from raylog.api.put_options import PutOptions
from raylog.api.rebalance import RebalanceReport, rebalance
from raylog.api.session import Session
from raylog.api.ship import Shipment, start_shipment, unpin
from raylog.api.source import open_source
from raylog.api.verify import ScrubReport, verify_version
from raylog.api.weights.publications import PUBLISH_TIMEOUT_S, Publications
from raylog.api.weights.subscribe import Subscription
from raylog.catalog.lineage import Lineage
from raylog.catalog.retention import Retention
from raylog.errors import UsageError
from raylog.monitor.events import Event
from raylog.monitor.samples import NodeSample
from raylog.placement.plan import Plan
from raylog.placement.reading import read_document
from raylog.placement.replicas import ReplicaPlan
from raylog.settings import Settings, load_settings
from raylog.spec import (
    Kind,
    Reference,
    StorageStanding,
    TenantUsage,
    Version,
    parse_backup,
    parse_name,
    parse_qos,
    parse_reference,
)

PLACE_TIME_LIMIT_S = 10.0
Array = Any


def connect(address: str | None = None, *, settings: Settings | None = None) -> "Client":
    """Connects to raylog, starting what is missing: with `address` (or `$RAY_ADDRESS`, or a cluster on this machine)
    the actors there, with no cluster at all Ray and raylog in this process, with their state in `~/.raylog`.

    Use it as a context manager. Raises `Unavailable` when the address does not answer, `NotPermitted` without a join
    token of that cluster on this machine.
    """
    return Client(Session.open(address, settings or load_settings()))


class Client:
    """A connection to raylog. Threads may share it."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._publications = Publications(session)
        self._subscriptions: WeakSet[Subscription] = WeakSet()  # each is kept by its thread until it is closed

    @property
    def session(self) -> Session:
        """What the connection consists of, for raylog's own modules."""
        return self._session

    def close(self) -> None:
        """Ends the connection, its subscriptions and what it delivers, and Ray when `connect` started Ray."""
        for one in list(self._subscriptions):
            one.close()
        self._publications.close()
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def put(
        self,
        name: str,
        source: Any,
        *,
        replicas: int = 1,
        erasure: str | None = None,
        backup: str | None = None,
        durability: str = "disk",
        codec: str = "auto",
        labels: Mapping[str, str] | None = None,
        parents: Sequence[str] = (),
        as_files: bool = False,
        on_progress: OnProgress | None = None,
    ) -> Version:
        """Seals `source` and commits it as the next version of `name`; returns when `replicas` nodes hold every shard
        with the promise of `durability`: "memory", "disk", or "remote", which waits for the copies in `backup` as well
        and may have no replicas at all (0): the cold copy. Otherwise what is to lie in `backup` (a URL such as
        s3://bucket/path or file:///mnt/backup) is written there after the commit. `erasure="4+2"` keeps each shard in 4
        pieces and 2 of parity on 6 nodes instead of replicas: any two may be lost, at one and a half times the bytes.

        `source`: a pa.Table, reader or dataset, a ray.data.Dataset, a DataFrame, a path or URL (Parquet, Arrow, CSV,
        JSONL, any file or folder), bytes, or a mapping of names to arrays or tensors. `on_progress(done, total)` gets
        sealed content bytes chunk by chunk, total 0 while unknown. `parents`: versions that this one was made from,
        for `lineage`; a plain name is its latest. Atomic: after an error nothing of it is visible or left behind.

        Raises `UsageError` and `SourceError` (the caller's mistakes), `Conflict` (another writer of this name was
        first), `NoSpace`, `Unsatisfiable` (fewer fit nodes than replicas), `Unavailable`.
        """
        checked = parse_name(name)
        options = PutOptions.parse(
            replicas=replicas,
            durability=durability,
            codec=codec,
            labels=labels,
            parents=parents,
            backup=backup,
            erasure=erasure,
        )
        content = open_source(source, as_files=as_files)
        return Put(self._session, checked, options, on_progress).run(content)

    def follow(
        self,
        name: str,
        source: str | Path,
        *,
        settle_s: float = 5.0,
        replicas: int = 1,
        erasure: str | None = None,
        backup: str | None = None,
        codec: str = "auto",
        labels: Mapping[str, str] | None = None,
        as_files: bool = False,
    ) -> Follower:
        """Collects files as they arrive in the folder, or below the URL, `source`: each `.step()` of what is returned
        puts those that have kept their length for `settle_s` as the next version, each file exactly once, also across
        restarts. Raises `UsageError`; `.step()` raises as `put`."""
        options = PutOptions.parse(
            replicas=replicas, durability="disk", codec=codec, labels=labels, backup=backup, erasure=erasure
        )
        return Follower(self._session, parse_name(name), str(source), options, settle_s=settle_s, as_files=as_files)

    def get(
        self, name: str, columns: Sequence[str] | None = None, *, on_progress: OnProgress | None = None
    ) -> pa.Table | dict[str, Array] | bytes:
        """A version's content: a `pa.Table` (of `columns`, all for None), a dict of arrays, or the bytes of a single
        file. `name` is `"name"` (the latest) or `"name@3"`; `on_progress(done, total)` gets content bytes.

        Raises `NotFound`, `UsageError` for several files (use `download`), `DamagedData` when no replica is whole.
        """
        reading = self.open(name)
        with closing(reading.openers(on_progress)) as openers:
            if reading.kind is Kind.ARROW:
                return read_table(openers, columns)
            return read_tensors(openers, columns) if reading.kind is Kind.TENSORS else read_bytes(openers)

    def reader(self, name: str, columns: Sequence[str] | None = None) -> pa.RecordBatchReader:
        """A table's batches as a stream of bounded memory; close the reader when done. Raises as `get` does."""
        return export.batch_reader(self.open(name), columns)

    def download(self, name: str, path: str | Path, *, on_progress: OnProgress | None = None) -> list[Path]:
        """Writes a version below `path` and returns what was written: a table to the file `path` (Parquet, or by its
        ending .arrow, .csv, .jsonl), tensors to `path` as .npz, files into the folder `path`. Nothing is overwritten.
        """
        return export.download(self.open(name), Path(path), on_progress)

    def open(self, name: str) -> Reading:
        """A version to be read in parts: its kind and manifest, and its shards with the keys that they need, granted to
        this process. Raises `NotFound`."""
        return Reading(self._session, parse_reference(name))

    def ls(self, prefix: str = "", *, labels: Mapping[str, str] | None = None) -> list[Version]:
        """The latest version of every artifact whose name begins with `prefix`, by name; only those with all
        `labels`."""
        found: list[Version] = self._session.retried("catalog", "ls", prefix, dict(labels or {}))
        return found

    def stat(self, name: str) -> Version:
        """One version; the latest for a plain name. Raises `NotFound`."""
        version: Version = self._session.retried("catalog", "stat", parse_reference(name))
        return version

    def versions(self, name: str) -> list[Version]:
        """All versions of an artifact, oldest first. Raises `NotFound`."""
        found: list[Version] = self._session.retried("catalog", "versions", parse_name(name))
        return found

    def delete(self, name: str) -> list[Version]:
        """Deletes a version, or all of an artifact for a plain name; returns what was deleted. Their shards are removed
        from the nodes, their numbers are never used again. Raises `NotFound`."""
        return self._session.delete(parse_reference(name))

    def ship(
        self,
        name: str,
        to: str | Sequence[str] = "all",
        *,
        deadline_s: float | None = None,
        qos: str = "ship",
        pin: bool = False,
        on_progress: OnProgress | None = None,
    ) -> Shipment:
        """Copies a version to nodes (`"all"`, or node ids) straight from the nodes that hold it; returns at once.

        `.result(timeout_s)` waits, `.progress()` and `.eta_s` tell, `.forecast` says whether the deadline can be met,
        `.cancel()` stops; `on_progress(done, total)` gets sealed bytes twice a second, in a thread of the shipment.
        Shipped copies are cache: they do not count as replicas and give way when room is needed, unless with `pin`,
        which holds them there, in memory where they fit, until `unpin`, after a node's restart too. `qos` is the
        traffic class by which the sending nodes share out their links: "read", "checkpoint", "ship" or "repair". Raises
        `NotFound` for a version or node that is not there, `UsageError` for an unknown class.
        """
        reference = parse_reference(name)
        return start_shipment(self._session, reference, to, parse_qos(qos), deadline_s, on_progress, is_pinned=pin)

    def unpin(self, name: str, nodes: str | Sequence[str] = "all") -> None:
        """Lets copies of a version that were shipped with `pin` give way again. Raises `NotFound`, `UsageError`, and
        `Unavailable` or `DeadlineExceeded` when a node did not answer, after all were asked."""
        unpin(self._session, parse_reference(name), nodes)

    def publish(
        self,
        name: str,
        state: Any,
        *,
        replicas: int = 1,
        durability: str = "memory",
        keep: int = 2,
        wait: bool = True,
        timeout_s: float = PUBLISH_TIMEOUT_S,
        on_progress: OnProgress | None = None,
    ) -> Version:
        """Commits `state`, a tensor or array or what is nested of them (see `CheckpointManager`), as the next version
        of `name`, and brings it to all nodes by relay; only what changed since the version before travels. Returns when
        all living nodes have it: one that does not get it within about `timeout_s` is named in a warning. With
        `wait=False` it returns once it is committed, and a thread does the rest. What a node was brought before is
        not sent again: if it gave way there meanwhile, the subscriber fetches it.

        The newest `keep` versions are kept. The client keeps a copy of the last state of each name, in this process's
        memory. `on_progress(done, total)` gets sealed bytes that reached nodes. Atomic as `put`; after an error the
        next version is stored whole. Raises `UsageError` for a state with a NaN, or what no checkpoint may hold, and
        as `put`; what is raised once it is committed leaves it committed.
        """
        return self._publications.publish(
            parse_name(name),
            state,
            replicas=replicas,
            durability=durability,
            keep=keep,
            wait=wait,
            timeout_s=timeout_s,
            on_progress=on_progress,
        )

    def subscribe(self, name: str, *, into: Any = None, key: str = "") -> Subscription:
        """The versions of what is published as `name`, from the newest on, read by a thread as they come; the name may
        not be there yet. `poll` and `wait` of what is returned give a whole version each, one after another.

        Without `into` each comes as new tensors. Those of `into`, a state of the same build such as
        `model.state_dict()`, are filled in `poll` or `wait`, by the thread that calls them and at no other time: call
        them between two steps, and no step sees half of a version. `key`: a JSON pointer such as "/model", for that
        part alone. Close it when done. Raises `UsageError`.
        """
        subscription = Subscription(self._session, parse_name(name), key, into)
        self._subscriptions.add(subscription)
        return subscription

    def verify(self, name: str, *, backups: bool = False, on_progress: OnProgress | None = None) -> ScrubReport:
        """Reads and checks every chunk of every replica, and with `backups` of every copy there; replaces damaged ones
        from another. `on_progress(done, total)` counts copies: a shard on a node."""
        return verify_version(self._session, parse_reference(name), on_progress, with_backups=backups)

    def back_up(
        self, name: str, url: str, timeout_s: float = 3600.0, *, on_progress: OnProgress | None = None
    ) -> BackupReport:
        """Has a version, or for a plain name all that exist, copied below `url` as well, for good: new copies are made
        where some get lost. Returns once they and the catalog's records are there; `on_progress(done, total)` counts
        shards. Raises `NotFound`, `UsageError`, `NotPermitted`, `Unavailable`, `DeadlineExceeded` after `timeout_s`,
        when it goes on by itself."""
        return back_up(self._session, parse_reference(name), parse_backup(url), timeout_s, on_progress)

    def hold(self, name: str, reason: str) -> Retention:
        """Holds a version, or for a plain name all that it has or will have: nobody can delete it, nor does it expire,
        until `release`. Raises `NotFound`, `UsageError`."""
        return self._session.govern("hold", parse_reference(name), {"reason": reason})

    def release(self, name: str) -> Retention:
        """Ends the hold of a version, or of a plain name. Raises `NotFound`."""
        return self._session.govern("release", parse_reference(name), {})

    def expire(self, name: str, after_s: float | None) -> Retention:
        """Has one version (`name@3`) deleted once `after_s` seconds from now have passed; None: never. Raises
        `NotFound`, `UsageError`."""
        reference = parse_reference(name)
        if reference.number is None:
            raise UsageError(f"expected one version such as {name}@3 to expire, got {name!r}")
        at_us = 0 if after_s is None else int((time.time() + after_s) * 1e6)
        return self._session.govern("expire", reference, {"at_us": str(at_us)})

    def keep(self, name: str, versions: int | None) -> Retention:
        """Keeps the latest version of a name and the newest others, `versions` together, and deletes the rest, now and
        from now on; None: keeps all. Raises `NotFound`, `UsageError`."""
        if versions is not None and versions < 1:
            raise UsageError(f"expected at least one version to keep, got {versions}")
        return self._session.govern("keep", Reference(parse_name(name)), {"versions": str(versions or 0)})

    def retention(self, name: str) -> Retention:
        """What is set for a name: holds, expiry, how many versions are kept. Raises `NotFound`."""
        found: Retention = self._session.retried("catalog", "retention", parse_name(name))
        return found

    def usage(self) -> list[TenantUsage]:
        """What each tenant has stored."""
        found: list[TenantUsage] = self._session.retried("catalog", "usage")
        return found

    def storage_standing(self) -> StorageStanding:
        """What of all that is stored is not as it was promised: short of replicas, lost, not yet in its backup."""
        standing: StorageStanding = self._session.retried("catalog", "storage_standing")
        return standing

    def lineage(self, name: str) -> Lineage:
        """What a version was made from, over any number of steps, and what was made from it; deleted ones too. Raises
        `NotFound`."""
        found: Lineage = self._session.retried("catalog", "lineage", parse_reference(name))
        return found

    def drain(self, node_id: str, timeout_s: float = 3600.0, *, on_progress: OnProgress | None = None) -> DrainReport:
        """Takes a node out of use: Ray and raylog place nothing new on it, and this returns once all that it holds has
        its promised replicas on other nodes; then it may be switched off. `node_id` may be the beginning of one;
        `on_progress(done, total)` counts shards. It cannot be taken back.

        Raises `NotFound`, `UsageError` for the head, `Unavailable`, `DeadlineExceeded` after `timeout_s`.
        """
        return drain_node(self._session, node_id, timeout_s, on_progress)

    def rebalance(self, timeout_s: float = 86400.0) -> RebalanceReport:
        """Moves replicas and pieces from fuller nodes to emptier ones until all are filled alike, as far as copies stay
        apart; each is made before the one it replaces goes. Raises `DeadlineExceeded` after `timeout_s`, when it goes
        on by itself."""
        return rebalance(self._session, timeout_s)

    def place(
        self,
        demands: str | Path | Mapping[str, Any],
        objective: str = "waste",
        *,
        dry_run: bool = True,
        time_limit_s: float = PLACE_TIME_LIMIT_S,
    ) -> Plan:
        """Allocates jobs over nodes and explains it. `demands` is a placement file or mapping (see `raylog place
        --help`); without `nodes` in it the cluster's live capacity is used, and the plan's `notes` say which node gives
        less than it has, and why. Only `dry_run=True` exists: the plan is returned, nothing is reserved."""
        mapping = read_document(Path(demands).expanduser()) if isinstance(demands, (str, Path)) else demands
        if not dry_run:
            raise UsageError("expected dry_run=True: a plan is returned, nothing is reserved")
        limit_s = time_limit_s + self._session.settings.call_deadline_s
        plan: Plan = self._session.call("placement", "place", mapping, objective, time_limit_s, timeout_s=limit_s)
        return plan

    def inspect(self, name: str) -> Inspection:
        """Opens every chunk of a version in this process: its content's digest, and which codec how many chunks got.
        Equal content sealed twice has one digest. Raises as `get`."""
        return self.open(name).inspect()

    def nodes(self) -> list[NodeInfo]:
        """The nodes whose actor answers."""
        return self._session.nodes()

    @property
    def settings(self) -> Settings:
        """The cluster's settings."""
        return self._session.settings

    def local_node(self) -> NodeInfo:
        """The node that this process is on, through whose store it puts and gets."""
        return self._session.local

    def telemetry(self) -> list[NodeSample]:
        """The last sample of every node that is not silent."""
        samples: list[NodeSample] = self._session.call("monitor", "samples")
        return samples

    def measure_disks(self) -> list[NodeSample]:
        """Has every node try what its disks can do (seconds on a hard disk), and returns their samples then."""
        nodes = self._session.nodes()
        with ThreadPoolExecutor(max(len(nodes), 1), thread_name_prefix="measure") as executor:
            list(executor.map(self._session.measure_disks, nodes))
        return [self._session.on_node(info, "sample") for info in nodes]

    def paths(self) -> list[NodePaths]:
        """By node: the ways to its peers (round trip, loss, rate, congestion control), and what was decided and why."""
        return ask_paths(self.nodes())

    def events(self, since: float = 0.0) -> list[Event]:
        """What happened and was decided on all nodes after `since` (seconds, as `time.time()` gives them), oldest
        first: peers refused, bytes damaged, paths switched, repairs, each with its reason. Every actor keeps its last
        2048 since its start; one that does not answer is an event of level "error"."""
        return ask_events(self.nodes(), since)

    def replicas(self, name: str) -> dict[str, list[str]]:
        """Shard id (of an erasure-coded version, id of a piece) -> ids of the nodes that hold an acknowledged
        replica."""
        manifest = self._session.manifest(parse_reference(name))
        ids = sorted(manifest.kept_shards().keys() - manifest.erasures().keys())
        found: dict[str, list[str]] = self._session.retried("catalog", "replicas", ids)
        return found

    def replica_plans(self, name: str) -> dict[str, ReplicaPlan]:
        """Shard id -> the plan that chose the nodes of its replicas, with a reason for each node of the cluster, chosen
        or not. Plans are advice that was followed, not records: those of long ago, or from before a restart of the
        placement actor, are left out. What `verify` or a repair did since is in `replicas`. Raises `NotFound`."""
        manifest = self._session.manifest(parse_reference(name))
        ids = [entry.shard.shard_id for entry in manifest.shards]
        plans: dict[str, ReplicaPlan] = self._session.retried("placement", "replica_plans", ids)
        return plans
