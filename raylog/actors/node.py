"""The node actor: holds a node's sealed shards, serves them to other nodes and to processes beside it, and pulls what
it is told to. It never sees a data key."""

import logging
import os
import shutil
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import ray

from raylog import __version__
from raylog.actors.backup_copies import BackupCopies
from raylog.actors.membership import Membership
from raylog.actors.node_info import NodeInfo
from raylog.actors.pull import Outcome, Puller, PullProgress
from raylog.actors.requests import (
    BackUpShard,
    CancelPull,
    CheckBackup,
    CloseNode,
    DeleteShards,
    EvictShard,
    MeasureDisks,
    PinShards,
    ProbeBackup,
    PullShard,
    ReadFrame,
    RepairShard,
    RestartRecords,
)
from raylog.actors.scrub import BackgroundScrub
from raylog.actors.slot import claim_slot
from raylog.actors.tiering import Tiering, open_disks
from raylog.addresses import everywhere, is_everywhere, machine_addresses, own_address, own_bind_address
from raylog.catalog.copy import RecordCopy
from raylog.catalog.journal import Entry
from raylog.catalog.receipt import Receipt, make_receipt
from raylog.catalog.record import Tail
from raylog.errors import DamagedData, NoSpace, NotFound, NotPermitted
from raylog.monitor.events import Event, EventLog
from raylog.monitor.meter import TransferMeter
from raylog.monitor.sampler import NodeSampler
from raylog.monitor.samples import NodeSample
from raylog.security.requests import CLUSTER
from raylog.settings import Settings
from raylog.spec import ShardRef, TierKind
from raylog.store.memory import MemoryTier
from raylog.store.objects import Limit
from raylog.store.scrub import check_shard
from raylog.store.tiered import TieredStore
from raylog.units import GIB, MIB
from raylog.wire.classes import Slices
from raylog.wire.local import LocalServer
from raylog.wire.path import Decision
from raylog.wire.paths import PathReport
from raylog.wire.relay import Relay
from raylog.wire.same_machine import machine_id
from raylog.wire.server import WireServer
from raylog.wire.sessions import Sessions

log = logging.getLogger("raylog.node")

CONTROL = "control"  # calls that answer at once have threads of their own, however many pulls and scrubs go on
CONTROL_THREADS = 8
ARENA_SHARE_OF_SHM = 4  # of what /dev/shm leaves, the part that an arena takes by default
ARENA_BYTES_DEFAULT_MAX = 4 * GIB
ARENA_BYTES_MIN = 8 * MIB


class ChunkReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a scrub of one shard on one node found. `mended_frames`: copies without an intact frame that another one on
    the node has made good."""

    chunks_read: int
    damaged: list[int]
    mended_frames: int = 0


class NodeActor:
    """One per Ray node. A restart claims the same slot: its identity, its disk tier and what was acknowledged are there
    again, its arena begins empty.

    What changes or moves something is asked for by signed requests (requests.py) and raises `NotPermitted` for any
    others; reading is for whoever can call.
    """

    def __init__(self, ray_node_id: str, host: str, labels: dict[str, str], settings: Settings) -> None:
        self._settings = settings
        bind, advertised = listening_addresses(settings, host)
        self._slot = claim_slot(settings.nodes_path, ray_node_id)
        self._event_log = EventLog.of_process()
        self._membership = Membership.of_node(settings, self._slot.node_id(), self._slot.path / "identity")
        self._requests = self._membership.receiver(self._slot.node_id())
        self._store = self._open_store()
        self._meter = TransferMeter()
        self._sampler = NodeSampler(self._slot.node_id(), self._meter, [self._slot.path])
        relay = Relay(self._store.open)
        machine = machine_id() if settings.shared_memory else ""
        self._wire = WireServer(
            self._membership.credentials,
            self._store,
            bind_host=bind,
            port_range=(settings.port_first, settings.port_last),
            slices=Slices.of(settings),
            on_sent=self._meter.sent,
            relay=relay,
            records=settings.cargo_records,
        )
        self._local = LocalServer(self._slot.socket_path, self._store)
        sessions = Sessions(
            self._membership.credentials,
            streams=settings.streams,
            records=settings.cargo_records,
            machine=machine,
            on_shared_memory=self._wire.paths.shares_memory,
        )
        cluster_id = self._membership.cluster_id
        self._backups = BackupCopies(self._store, cluster_id, self._slot.node_id(), settings.backup_urls)
        self._puller = Puller(self._store, sessions, self._meter, relay, self._backups)
        self._scrub = BackgroundScrub(self._store, self._meter, settings.scrub_bytes_per_s, settings.scrub_period_s)
        self._tiering = Tiering(self._store)
        self._records = RecordCopy(
            self._slot.path / "records", self._membership.cluster_id, self._membership.verify_cluster
        )
        self._info = NodeInfo(
            node_id=self._slot.node_id(),
            ray_node_id=ray_node_id,
            hostname=socket.gethostname(),
            host=advertised[0],
            more_hosts=advertised[1:],
            control_port=self._wire.control_port,
            machine=machine,
            socket_path=str(self._slot.socket_path),
            directory=str(self._slot.path),
            arena_path=str(self._slot.arena_path),
            software=__version__,
            pid=os.getpid(),
            labels=labels,
        )
        log.info(
            "node %s serves at %s:%d from %s", self._info.node_id, advertised, self._info.control_port, self._slot.path
        )

    @ray.method(concurrency_group=CONTROL)
    def describe(self) -> NodeInfo:
        return self._info

    @ray.method(concurrency_group=CONTROL)
    def sample(self) -> NodeSample:
        return self._sampler.sample(self._tiering.samples() + self._backups.samples(), self._scrub.sample())

    def measure(self, signed_request: bytes) -> None:
        """Measures the disks anew; `sample` tells what came of it."""
        self._requests.open(signed_request, MeasureDisks)
        self._tiering.measure()

    @ray.method(concurrency_group=CONTROL)
    def paths(self) -> tuple[list[PathReport], list[Decision]]:
        """The ways to the peers that this node sent to, and what was decided about them last."""
        return self._wire.paths.report(), self._wire.paths.decisions()

    @ray.method(concurrency_group=CONTROL)
    def events(self, since_s: float) -> list[Event]:
        """What happened here after `since_s` (seconds of the wall clock), oldest first; as many as are kept."""
        return self._event_log.since(since_s, self._slot.node_id())

    def pull(self, signed_request: bytes) -> Outcome:
        """Makes a shard present here (pull.py)."""
        asked, _ = self._requests.open(signed_request, PullShard)
        return self._puller.pull(
            asked.shard,
            asked.sources,
            asked.durability,
            asked.qos,
            asked.deadline_s,
            use=asked.use,
            pull_id=asked.pull_id,
            elsewhere=asked.elsewhere,
        )

    def frame(self, signed_request: bytes) -> bytes:
        """A shard's frame, header and index, without the shard (pull.py)."""
        asked, _ = self._requests.open(signed_request, ReadFrame)
        return self._puller.frame(asked.shard, asked.sources, asked.deadline_s, asked.elsewhere).metadata

    @ray.method(concurrency_group=CONTROL)
    def pulls(self) -> dict[str, PullProgress]:
        """How far the running pulls are, by shard id."""
        return self._puller.running()

    @ray.method(concurrency_group=CONTROL)
    def cancel_pull(self, signed_request: bytes) -> None:
        """Ends the pull that was given this id, be it under way or still to come."""
        asked, _ = self._requests.open(signed_request, CancelPull)
        self._puller.cancel(asked.pull_id)

    @ray.method(concurrency_group=CONTROL)
    def receipts(self, refs: Sequence[ShardRef]) -> list[bytes]:
        """Signed: this node holds a verified copy of each shard that stays until it is deleted. Shards of which
        there is none, or only a copy that may be evicted, are left out; so are those with a damaged frame."""
        found = []
        for ref in refs:
            try:
                found.append(self._receipt(ref))
            except NotFound:
                continue
            except DamagedData as error:
                self._put_aside(ref.shard_id, error)
        return found

    def _put_aside(self, shard_id: str, error: DamagedData) -> None:
        """A shard whose frame is damaged cannot be repaired chunk by chunk: out of sight, so that it is pulled anew."""
        log.warning("shard %s is taken out of sight: %s", shard_id, error)
        self._meter.damaged()
        with suppress(NotFound):
            self._store.quarantine(shard_id)

    def _receipt(self, ref: ShardRef) -> bytes:
        tier = self._store.kept_on(ref.shard_id)
        if self._store.look(ref.shard_id).digest != ref.frame_digest:
            raise DamagedData(f"shard {ref.shard_id} on node {self._info.node_id} has another frame")
        return self._signed_receipt(ref, tier)

    def _signed_receipt(self, ref: ShardRef, tier: TierKind, url: str = "") -> bytes:
        credentials = self._membership.credentials()
        receipt = Receipt(
            cluster_id=credentials.identity.cluster_id,
            node_id=self._info.node_id,
            shard_id=ref.shard_id,
            frame_digest=ref.frame_digest,
            tier=tier,
            url=url,
            epoch=self._records.highest_epoch(),
        )
        return make_receipt(receipt, credentials.certificate_der, credentials.sign)

    def scrub(self, ref: ShardRef) -> ChunkReport | None:
        """Reads and checks every chunk of every copy of a shard here; None when there is none."""
        found = check_shard(self._store, ref.shard_id)
        if found is None:
            return None
        if found.is_gone:
            self._meter.damaged(ref.chunks)
            return ChunkReport(chunks_read=ref.chunks, damaged=list(range(ref.chunks)))
        self._meter.damaged(len(found.damaged) + found.lost_frames)
        self._meter.repaired(found.lost_frames)
        return ChunkReport(chunks_read=found.chunks_read, damaged=list(found.damaged), mended_frames=found.lost_frames)

    @ray.method(concurrency_group=CONTROL)
    def damage(self) -> dict[str, list[int]]:
        """What this node has found damaged and nobody has repaired yet: shard id -> damaged chunks, empty for a shard
        of which no copy with an intact frame is left."""
        return {one: [] for one in self._store.put_aside()} | self._scrub.damage()

    def repair(self, signed_request: bytes) -> int:
        """Replaces damaged chunks in every copy here (pull.py); how many."""
        asked, _ = self._requests.open(signed_request, RepairShard)
        replaced = self._puller.repair(asked.shard, asked.numbers, asked.sources, asked.deadline_s, asked.elsewhere)
        self._scrub.mended(asked.shard.shard_id, asked.numbers)
        return replaced

    def probe_backup(self, signed_request: bytes) -> None:
        """Tries whether this node can write below a URL (backup_copies.py)."""
        asked, _ = self._requests.open(signed_request, ProbeBackup)
        self._backups.probe(asked.url)

    def back_up(self, signed_request: bytes) -> bytes:
        """Makes a shard lie in a backup (backup_copies.py); the receipt for that copy."""
        asked, asker = self._requests.open(signed_request, BackUpShard)
        deadline = time.monotonic() + asked.deadline_s
        with self._puller.cancels.watched(asked.pull_id) as cancel:
            limit = Limit(deadline=deadline, cancel=cancel)
            other = next(self._puller.ways(asked.shard, asked.elsewhere, limit), None)
            may_replace = asker.role == CLUSTER
            self._backups.write(
                asked.shard, asked.url, limit, is_anew=asked.is_anew, may_replace=may_replace, otherwise=other
            )
        return self._signed_receipt(asked.shard, TierKind.REMOTE, asked.url)

    def check_backup(self, signed_request: bytes) -> None:
        """Reads a shard's copy in a backup; raises `NotFound` or `DamagedData` when it is not the shard."""
        asked, _ = self._requests.open(signed_request, CheckBackup)
        self._backups.check(asked.shard, asked.url, Limit.within(asked.deadline_s))

    @ray.method(concurrency_group=CONTROL)
    def append_records(self, entries: Sequence[Entry]) -> Tail:
        """Copies of the catalog's records; where the copy ends, once that is on this disk. Raises
        `NotPermitted` for a catalog that was superseded, `DamagedData` for a gap or a forged record."""
        return self._records.append(entries)

    def restart_records(self, signed_request: bytes) -> None:
        """Drops the copies of the catalog's records, which are of another chain than the catalog's that asks."""
        asked, _ = self._requests.open(signed_request, RestartRecords)
        self._records.restart(asked.epoch)

    @ray.method(concurrency_group=CONTROL)
    def records_tail(self) -> Tail:
        """Where the copy of the catalog's records ends."""
        return self._records.tail

    def records(self, since_sequence: int, count_max: int) -> list[Entry]:
        """Records after `since_sequence` with their manifests, as they were copied here: what a catalog that lost its
        journal is made anew from."""
        return self._records.page(since_sequence, count_max)

    def inventory(self) -> list[ShardRef]:
        """Every shard that lies here."""
        return self._store.shards()

    def origins(self, shard_ids: Sequence[str]) -> dict[str, str]:
        """Shard id -> version id of the put that sealed it, by its header; without those that cannot be opened."""
        found = {}
        for shard_id in shard_ids:
            with suppress(NotFound, DamagedData):
                found[shard_id] = self._store.look(shard_id).header.version_id
        return found

    def delete(self, signed_request: bytes) -> int:
        """Takes shards away, from here or from a backup; how many were here. Those that a version named, as far as the
        records here tell, only the catalog may take away, and knowing it: all are kept when a client asks for one."""
        asked, asker = self._requests.open(signed_request, DeleteShards)
        is_checked = asker.role != CLUSTER or asked.is_never_named
        named = self._records.named(asked.shard_ids) if is_checked else []
        if named:
            log.warning("refused %s, who asked to delete shards of versions: %s", asker, ", ".join(named))
            raise NotPermitted(
                f"{asker} may not have shard {named[0]} deleted from node {self._info.node_id}, since a version names "
                "it: delete the version"
            )
        if asked.backup:
            if asker.role != CLUSTER:
                raise NotPermitted(f"{asker} may not have copies deleted from a backup: the catalog does that")
            return self._backups.delete(asked.shard_ids, asked.backup, self._settings.call_deadline_s)
        found = []
        for shard_id in asked.shard_ids:
            with suppress(NotFound):
                self._store.delete(shard_id)
                found.append(shard_id)
        if found:  # a warning, since it is the audit: Ray shows nothing below
            log.warning("deleted for %s: %s", asker, ", ".join(found))
        return len(found)

    def pin(self, signed_request: bytes) -> None:
        """Copies here do not give way, or may again."""
        asked, asker = self._requests.open(signed_request, PinShards)
        for shard_id in asked.shard_ids:
            if asked.is_pinned:
                self._store.pin_copy(shard_id)
            else:
                self._store.unpin_copy(shard_id)
        log.info("%d shards were %s for %s", len(asked.shard_ids), "pinned" if asked.is_pinned else "unpinned", asker)

    def evict(self, signed_request: bytes) -> None:
        """Drops the copy in the arena of a shard that is on disk; nothing to do where there is none."""
        asked, _ = self._requests.open(signed_request, EvictShard)
        shard_id, memory = asked.shard_id, self._store.memory
        if memory is not None and self._store.disk.holds(shard_id):
            with suppress(NotFound):
                memory.delete(shard_id)

    @ray.method(concurrency_group=CONTROL)
    def close(self, signed_request: bytes) -> None:
        """Lets go of everything on this machine but what is stored."""
        self._requests.open(signed_request, CloseNode)
        self._scrub.close()
        self._tiering.close()
        self._membership.close()
        self._local.close()
        self._puller.close()
        self._wire.close()
        self._sampler.close()
        self._store.close()
        self._records.close()
        self._slot.release()

    def _open_store(self) -> TieredStore:
        disk = open_disks(self._slot, self._membership.cluster_id, self._settings)
        path = self._slot.arena_path
        capacity_bytes = self._settings.arena_bytes or default_arena_bytes(path.parent)
        if capacity_bytes < ARENA_BYTES_MIN:
            log.warning(
                "no memory tier: /dev/shm leaves %d bytes, at least %d are needed", capacity_bytes, ARENA_BYTES_MIN
            )
            return TieredStore(None, disk)
        try:
            return TieredStore(MemoryTier(path, capacity_bytes), disk)
        except NoSpace as error:  # what is put with durability memory goes to disk, which promises more
            log.warning("no memory tier: %s; or set a smaller arena_bytes", error)
            return TieredStore(None, disk)


def listening_addresses(settings: Settings, host: str) -> tuple[str, tuple[str, ...]]:
    """Where this node listens, and where others find it, one address for each of its networks that are to carry
    shards; `host` is the address that Ray knows it by. Raises `UsageError` naming this machine's addresses when the
    settings name none of them."""
    addresses = machine_addresses()
    advertised = tuple(own_address(choice, addresses, host) for choice in settings.advertised)
    if settings.bind:
        bind = own_bind_address(settings.bind, addresses, host)
    else:
        bind = host if len(advertised) < 2 else everywhere(advertised)
    return bind, advertised or (host if is_everywhere(bind) else bind,)


def default_arena_bytes(shm: Path) -> int:
    """A quarter of what /dev/shm leaves after Ray's object store, at most 4 GiB, whole MiB."""
    free_bytes = shutil.disk_usage(shm).free
    return min(free_bytes // ARENA_SHARE_OF_SHM, ARENA_BYTES_DEFAULT_MAX) // MIB * MIB
