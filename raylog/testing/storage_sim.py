"""Seeded histories of a cluster's storage: puts, replacements, deletions, shipments, scrubs and rot, while the catalog
and nodes are killed between any two steps of any call, and disks are lost.

The real parts run: catalog and journal, upkeep and its plans, stores on real directories, copies of the chain, pieces.
Only the calls between them, the clocks and the moment of death are simulated. A process that is killed stops between
two steps; what it had on its disk is there when it comes back.

    python -m raylog.testing.storage_sim --seeds 200
"""

# ruff: noqa: S311 - repeatable choices, no secrets

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from raylog.actors.backup_copies import BackupCopies
from raylog.actors.elsewhere import Elsewhere, ways
from raylog.actors.node_info import NodeInfo, elsewhere_for, sources_for
from raylog.actors.record_copies import RecordCopies
from raylog.actors.requests import DeleteShards, PullShard, RepairShard
from raylog.actors.standbys import Standbys
from raylog.actors.upkeep import Upkeep
from raylog.catalog.catalog import Catalog
from raylog.catalog.copy import RecordCopy
from raylog.catalog.journal import Entry, Journal
from raylog.catalog.manifest import ShardEntry
from raylog.catalog.rebuild import best_copy, rebuild
from raylog.catalog.record import Tail
from raylog.errors import DamagedData, NotFound, RaylogError, Unavailable
from raylog.security.requests import Request
from raylog.settings import Settings
from raylog.spec import Durability, Reference, ShardRef, Version
from raylog.store.disk import DiskTier
from raylog.store.objects import Limit
from raylog.store.scrub import check_shard
from raylog.store.tier import ShardWriter
from raylog.store.tiered import TieredStore
from raylog.testing.catalog_cluster import TENANT, Cluster, Member
from raylog.testing.register import MemoryRegister
from raylog.testing.shards import SampleShard, cut, sample_shard
from raylog.wire.fetcher import Source

NODES = 4
STEPS = 24
NAMES = ("sim/a", "sim/b", "sim/c")
KILL_SHARE = 0.03  # of all moments
LOST_AFTER_S = 10.0
GRACE_S = 60.0
SETTLE_ROUNDS = 60
FREE_BYTES = 100_000  # of every node: a few shards make one fuller than another


class Moments:
    """Between any two steps somebody may die."""

    def __init__(self, source: random.Random) -> None:
        self._source = source
        self.victims: Callable[[], list[Callable[[], None]]] = list
        self.are_quiet = True
        self.kills = 0

    def pass_one(self) -> None:
        if not self.are_quiet and self._source.random() < KILL_SHARE:
            victims = self.victims()
            if victims:
                self.kills += 1
                self._source.choice(victims)()


class SimNode:
    """A node: its store and its copy of the chain in a folder, while it lives."""

    def __init__(self, world: "World", member: Member, folder: Path) -> None:
        self._world, self.member, self._folder = world, member, folder
        self.incarnation = 0
        self.store: TieredStore
        self.records: RecordCopy
        self.is_alive = False
        self._damage: dict[str, list[int]] = {}
        self.start()

    @property
    def id(self) -> str:
        return self.member.id

    def start(self) -> None:
        cluster = self._world.cluster
        self.store = TieredStore(None, DiskTier(self._folder / "tier", cluster_id=cluster.cluster_id))
        self.records = RecordCopy(self._folder / "records", cluster.cluster_id, cluster.trust.verify)
        self.incarnation += 1
        self._damage = {}
        self.is_alive = True

    def kill(self) -> None:
        self.is_alive = False
        self.store.close()
        self.records.close()

    def lose(self) -> None:
        """With all that it had."""
        if self.is_alive:
            self.kill()
        shutil.rmtree(self._folder)

    def info(self) -> NodeInfo:
        return NodeInfo(
            node_id=self.id, ray_node_id=self.id, hostname=self.id[:6], host="", control_port=1, socket_path="",
            directory=str(self._folder), arena_path="", software="", pid=self.incarnation, labels={},
        )  # fmt: skip

    def check(self) -> None:
        if not self.is_alive:
            raise Unavailable(f"node {self.id[:6]} does not answer")

    # What upkeep calls.

    def inventory(self) -> list[ShardRef]:
        return self.store.shards()

    def receipts(self, refs: Sequence[ShardRef]) -> list[bytes]:
        found = []
        for ref in refs:
            with suppress(NotFound, DamagedData):
                tier = self.store.kept_on(ref.shard_id)
                with self.store.open(ref.shard_id) as reader:
                    if reader.frame.digest == ref.frame_digest:
                        found.append(self._world.cluster.receipt(ref, self.member, tier, self.records.highest_epoch()))
        return found

    def origins(self, shard_ids: Sequence[str]) -> dict[str, str]:
        found = {}
        for shard_id in shard_ids:
            with suppress(NotFound, DamagedData), self.store.open(shard_id) as reader:
                found[shard_id] = reader.frame.header.version_id
        return found

    def damage(self) -> dict[str, list[int]]:
        return {shard_id: [] for shard_id in self.store.put_aside()} | self._damage

    def records_tail(self) -> Tail:
        return self.records.tail

    def append_records(self, entries: Sequence[Entry]) -> Tail:
        return self.records.append(entries)

    def scrub(self) -> None:
        """A round over all that is here."""
        for ref in self.store.shards():
            found = check_shard(self.store, ref.shard_id)
            if found is not None and (found.damaged or found.is_gone):
                self._damage[ref.shard_id] = list(found.damaged)

    def obey(self, about: Request) -> Any:
        if isinstance(about, DeleteShards):
            return self._delete(about)
        if isinstance(about, RepairShard):
            return self._repair(about)
        assert isinstance(about, PullShard)
        return self.pull(about.shard, about.sources, about.durability, about.elsewhere)

    def _delete(self, about: DeleteShards) -> int:
        if about.is_never_named and (named := self.records.named(about.shard_ids)):
            raise NotFound(f"a version names {named}")
        done = 0
        for shard_id in about.shard_ids:
            with suppress(NotFound):
                self.store.delete(shard_id)
                done += 1
        return done

    def pull(
        self, ref: ShardRef, sources: Sequence[Source], durability: Durability | None, elsewhere: Elsewhere
    ) -> None:
        """As the node's puller: here already, from a node, or some other way."""
        try:
            with self.store.open(ref.shard_id) as here:
                if here.frame.digest == ref.frame_digest:
                    if durability is not None:
                        self.store.keep(ref.shard_id, durability)
                    return
        except NotFound:
            pass
        except DamagedData:
            self.store.quarantine(ref.shard_id)
        failures = []
        for chunks, frame in self._places(ref, sources, elsewhere):
            try:
                self._write(ref, frame(), chunks, durability)
            except (NotFound, DamagedData, Unavailable) as error:
                self.check()
                failures.append(str(error))
            else:
                return
        raise Unavailable(f"shard {ref.shard_id}: nobody gives it ({'; '.join(failures)})")

    def _places(self, ref: ShardRef, sources: Sequence[Source], elsewhere: Elsewhere) -> Iterator[tuple[Any, Any]]:
        limit = Limit.within(60)
        for source in sources:
            node = self._world.nodes.get(source.peer.node_id)
            if node is not None and node is not self:
                yield (lambda numbers, node=node: node.chunks(ref, numbers)), (lambda node=node: node.frame(ref))
        unused = cast(BackupCopies, None)  # no history has backups
        for way in ways(ref, elsewhere, self.store, unused, self._fetch, limit):
            opened: list[Any] = []
            yield (
                (lambda numbers, opened=opened: opened[0].chunks(numbers, limit)),
                (lambda way=way, opened=opened: opened.append(way()) or opened[0].frame),
            )

    def _write(self, ref: ShardRef, frame: Any, chunks: Any, durability: Durability | None) -> None:
        if frame.digest != ref.frame_digest:
            raise DamagedData("another frame")
        store = self.store
        writer: ShardWriter = store.create_cached(frame) if durability is None else store.create(frame, durability)
        with writer:
            lacking = [number for first, count in writer.missing() for number in range(first, first + count)]
            for number, sealed in chunks(lacking):
                self._world.moments.pass_one()
                self.check()
                writer.write_chunk(number, sealed)
            self._world.moments.pass_one()
            self.check()
            writer.commit()

    def frame(self, ref: ShardRef) -> Any:
        self.check()
        with self.store.open(ref.shard_id) as reader:
            return reader.frame

    def chunks(self, ref: ShardRef, numbers: Sequence[int]) -> Iterator[tuple[int, memoryview]]:
        for number in numbers:
            self.check()
            with self.store.open(ref.shard_id) as reader:
                yield number, reader.chunk(number)

    def _fetch(
        self, ref: ShardRef, numbers: Sequence[int], sources: Sequence[Source], limit: Limit
    ) -> dict[int, memoryview]:
        for source in sources:
            with suppress(RaylogError):
                return dict(self._world.nodes[source.peer.node_id].chunks(ref, numbers))
        raise Unavailable(f"no node gives shard {ref.shard_id}")

    def _repair(self, about: RepairShard) -> int:
        shard_id = about.shard.shard_id
        if not self.store.disk.holds(shard_id):
            self.pull(about.shard, about.sources, Durability.DISK, about.elsewhere)
        else:
            for number in self.store.mend(shard_id, about.numbers).missing:
                for chunks, frame in self._places(about.shard, about.sources, about.elsewhere):
                    with suppress(NotFound, DamagedData, Unavailable):
                        frame()
                        for one, sealed in chunks([number]):
                            self.store.replace_chunk(shard_id, one, sealed)
                        break
            if self.store.mend(shard_id, about.numbers).missing:
                raise Unavailable(f"shard {shard_id} was not mended")
        self._damage.pop(shard_id, None)
        return len(about.numbers)


class SimNodes:
    """The cluster as upkeep sees it; every call passes a moment before and after."""

    def __init__(self, world: "World") -> None:
        self._world = world

    def here(self) -> str:
        return self._world.home

    def living(self) -> list[NodeInfo]:
        return [node.info() for node in self._world.living()]

    def draining(self) -> set[str]:
        return set()

    def free_bytes(self) -> dict[str, int]:
        return {node.id: FREE_BYTES for node in self._world.living()}

    def call(self, info: NodeInfo, method: str, *arguments: Any, timeout_s: float) -> Any:
        return self._answered(info, lambda node: getattr(node, method)(*arguments))

    def ask(self, info: NodeInfo, about: Request, timeout_s: float) -> Any:
        return self._answered(info, lambda node: node.obey(about))

    def call_standby(self, standby: str, method: str, *arguments: Any, timeout_s: float) -> Any:
        raise Unavailable("there are no standbys")

    def ask_standby(self, standby: str, about: Request, timeout_s: float) -> Any:
        raise Unavailable("there are no standbys")

    def together(self, actions: Sequence[Callable[[], None]]) -> None:
        for action in actions:
            action()

    def _answered(self, info: NodeInfo, action: Callable[[SimNode], Any]) -> Any:
        self._world.moments.pass_one()
        node = self._world.nodes.get(info.node_id)
        if node is None:
            raise Unavailable("it is gone")
        node.check()
        answer = action(node)
        self._world.moments.pass_one()
        node.check()
        self._world.check_catalog()
        return answer


@dataclass
class World:
    """All of a cluster, in a folder."""

    folder: Path
    source: random.Random
    now_s: float = 1000.0
    nodes: dict[str, SimNode] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.cluster = Cluster(self.source.randrange(1 << 30))
        self.settings = Settings(
            state=self.folder, lost_after_s=LOST_AFTER_S, orphan_grace_s=GRACE_S, reconcile_period_s=1.0
        )
        self.moments = Moments(self.source)
        self.moments.victims = self._victims
        for _ in range(NODES):
            self.add_node()
        self.home = next(iter(self.nodes))
        self._open_catalog(create=True)

    def add_node(self) -> SimNode:
        member = self.cluster.member("node")
        node = SimNode(self, member, self.folder / f"node-{member.id[:8]}")
        self.nodes[node.id] = node
        return node

    def living(self) -> list[SimNode]:
        return [node for node in self.nodes.values() if node.is_alive]

    def close(self) -> None:
        self.catalog.close()
        for node in self.living():
            node.kill()

    # The catalog

    def _open_catalog(self, *, create: bool = False) -> None:
        journal = Journal(self.folder / "catalog", self.cluster.trust, time.time, create=create)
        self.catalog = Catalog(journal)
        self.catalog.begin_epoch(self.catalog.epoch_seen() + 1)
        self.is_catalog_alive = True
        nodes, cluster_id = SimNodes(self), self.cluster.cluster_id
        standbys = Standbys("catalog", MemoryRegister(), machine="head", state_id="head", when_superseded=lambda: None)
        self.records = RecordCopies(self.catalog, nodes, standbys, self.settings.call_deadline_s)
        self.upkeep = Upkeep(self.catalog, nodes, self.settings, cluster_id, self.records, clock=lambda: self.now_s)

    def kill_catalog(self) -> None:
        self.is_catalog_alive = False
        self.catalog.close()

    def check_catalog(self) -> None:
        if not self.is_catalog_alive:
            raise Unavailable("the catalog was killed")

    def lose_catalog(self) -> None:
        """Its disk is gone: it is made anew from the longest copy."""
        if self.is_catalog_alive:
            self.kill_catalog()
        shutil.rmtree(self.folder / "catalog")
        self.restart()
        best = best_copy({node.id: node.records.tail for node in self.nodes.values()})
        if best is None:
            self._open_catalog(create=True)
            return
        entries = self.nodes[best].records.page(0, 1 << 20)
        spare = {
            sequence: entry.manifest
            for node in self.nodes.values()
            for sequence, entry in enumerate(node.records.page(0, 1 << 20), 1)
            if entry.manifest
        }
        rebuild(self.folder / "catalog", self.cluster.trust, entries, spare)
        self._open_catalog()

    def restart(self) -> None:
        """Ray starts again what died."""
        for node in self.nodes.values():
            if not node.is_alive:
                node.start()
        if not self.is_catalog_alive and (self.folder / "catalog").exists():
            self._open_catalog()

    def _victims(self) -> list[Callable[[], None]]:
        found: list[Callable[[], None]] = [node.kill for node in self.living()]
        return [*found, self.kill_catalog] if self.is_catalog_alive else found


class History:
    """One seeded history, and what must hold at its end."""

    def __init__(self, world: World) -> None:
        self.world, self._source = world, world.source
        self.kept: dict[str, dict[str, bytes]] = {}  # name@number -> shard id -> the shard's file
        self.gone: set[str] = set()
        self.told: list[str] = []
        self.losses = 0
        self.acknowledged = 0

    def run(self) -> None:
        actions = (
            *(self.put, self.put, self.put, self.delete, self.ship, self.scrub, self.rot),
            *(self.upkeep, self.rebalance, self.lose),
        )
        for _ in range(STEPS):
            action = self._source.choice(actions)
            self.world.moments.are_quiet = action in (self.rot, self.lose)
            self.told.append(f"{action.__name__}: {self._tried(action)}")
            self.world.moments.are_quiet = True
            self.world.now_s += self._source.uniform(0, 5)
            if self._source.random() < 0.7:
                self.world.restart()
        self.settle()
        self.check()

    def _tried(self, action: Callable[[], str]) -> str:
        try:
            self.world.check_catalog()
            return action()
        except RaylogError as error:
            return f"{type(error).__name__}: {error}"

    # What is asked for

    def put(self) -> str:
        world, source = self.world, self._source
        name, version_id = source.choice(NAMES), world.cluster.random_id()
        is_coded = source.random() < 0.4
        nodes = source.sample(world.living(), min(3, len(world.living())))
        if len(nodes) < (3 if is_coded else 2):
            return "too few nodes"
        pending = world.catalog.begin(name, TENANT)
        world.upkeep.renew_lease(version_id)
        shards = [self._shard(pending.artifact_id, version_id) for _ in range(source.randrange(1, 4))]
        may_be_visible, entries, receipts = False, [], []
        try:
            for shard in shards:
                entry, signed = self._store(shard, nodes, is_coded)
                entries.append(entry)
                receipts += signed
            manifest = world.cluster.manifest(
                name, pending.artifact_id, version_id=version_id, replicas=1 if is_coded else 2, shards=tuple(entries)
            )
            world.moments.pass_one()
            world.check_catalog()
            may_be_visible = True
            version = world.catalog.commit(world.cluster.sign(manifest), receipts, pending.base)
            world.moments.pass_one()
            world.check_catalog()
            world.records.copy_to_another_node()
            world.check_catalog()
        except RaylogError:
            if not may_be_visible:
                self._discard(shards, is_coded)
            raise
        self.kept[str(version)] = {shard.shard_id: shard.file for shard in shards}
        self.acknowledged += 1
        return f"{version}, {len(shards)} {'coded ' if is_coded else ''}shards"

    def _shard(self, artifact_id: str, version_id: str) -> SampleShard:
        sizes = tuple(self._source.randrange(16, 3000) for _ in range(self._source.randrange(2, 6)))
        seed = self._source.randrange(1 << 40)
        return sample_shard(seed, sizes, artifact_id=artifact_id, version_id=version_id, tenant_id=TENANT)

    def _store(self, shard: SampleShard, nodes: Sequence[SimNode], is_coded: bool) -> tuple[ShardEntry, list[bytes]]:
        """On the first node, and from there on the second; of a coded one a piece on each."""
        dek_ids, tag = (shard.frame.header.dek_ids[0],), self._source.randbytes(32)
        if not is_coded:
            self._write(nodes[0], shard)
            self._copy(nodes[1], shard.frame.ref(), nodes[0])
            receipts = [receipt for node in nodes[:2] for receipt in node.receipts([shard.frame.ref()])]
            return ShardEntry.whole(shard.frame.ref(), dek_ids, tag), receipts
        erasure, pieces = cut(shard, 2, 1)
        receipts = []
        for node, piece in zip(nodes, pieces, strict=True):
            self._write(node, piece)
            receipts += node.receipts([piece.frame.ref()])
        return ShardEntry.whole(shard.frame.ref(), dek_ids, tag, parity=erasure.parity), receipts

    def _write(self, node: SimNode, shard: SampleShard) -> None:
        node.check()
        with node.store.create(shard.frame, Durability.DISK) as writer:
            for number in range(len(shard.chunks)):
                self.world.moments.pass_one()
                node.check()
                writer.write_chunk(number, shard.sealed(number))
            writer.commit()

    def _copy(
        self, target: SimNode, ref: ShardRef, source: SimNode, durability: Durability | None = Durability.DISK
    ) -> None:
        self.world.moments.pass_one()
        target.check()
        target.pull(ref, node_sources(target, [source]), durability, Elsewhere())
        target.check()

    def _discard(self, shards: Sequence[SampleShard], is_coded: bool) -> None:
        ids = [one.shard_id for shard in shards for one in (cut(shard, 2, 1)[1] if is_coded else [shard])]
        for node in self.world.living():
            for shard_id in ids:
                with suppress(RaylogError):
                    node.store.delete(shard_id)

    def delete(self) -> str:
        if not self.kept:
            return "nothing"
        doomed = self._source.choice(sorted(self.kept))
        del self.kept[doomed]  # from here on either is right
        name, _, number = doomed.partition("@")
        self.world.catalog.delete(Reference(name, int(number)), self.world.cluster.writer.identity)
        self.world.records.copy_to_another_node()
        self.world.check_catalog()
        self.gone.add(doomed)
        return doomed

    def ship(self) -> str:
        if not self.kept or not self.world.living():
            return "nothing"
        one = self._source.choice(sorted(self.kept))
        target = self._source.choice(self.world.living())
        nodes = [node.info() for node in self.world.living()]
        for shard_id in self.kept[one]:
            standing = self.world.catalog.standing(shard_id)
            assert standing is not None
            found = self.world.catalog.whereabouts([shard_id])[shard_id]
            holders = [self.world.nodes[node_id] for node_id in standing.nodes if node_id in self.world.nodes]
            target.check()
            target.pull(standing.shard, node_sources(target, holders), None, elsewhere_for(target.info(), found, nodes))
        return f"{one} to {target.id[:6]}"

    def scrub(self) -> str:
        for node in self.world.living():
            node.scrub()
        return "done"

    def rot(self) -> str:
        """A bit of a copy, once all is whole."""
        self.settle()
        files = sorted((self.world.folder).glob("node-*/tier/shards/*/*"))
        if not files:
            return "nothing"
        path = self._source.choice(files)
        data = bytearray(path.read_bytes())
        data[self._source.randrange(len(data))] ^= 1 << self._source.randrange(8)
        path.write_bytes(data)
        self.settle()  # a second damage before this one is found would be more than was promised
        return f"{path.name[:6]}"

    def upkeep(self) -> str:
        self.world.upkeep.step()
        return "done"

    def rebalance(self) -> str:
        planned = self.world.upkeep.rebalance()
        for _ in range(5):
            self.world.upkeep.step()
        return f"{planned} planned"

    def lose(self) -> str:
        """A node with its disk, or the catalog's, once all is whole: two losses at once are more than was promised."""
        self.settle()
        self.losses += 1
        if self._source.random() < 0.3:
            self.world.lose_catalog()
            return "the catalog"
        lost = self._source.choice([node for node in self.world.nodes.values() if node.id != self.world.home])
        lost.lose()
        del self.world.nodes[lost.id]
        self.world.add_node()
        return f"node {lost.id[:6]}"

    # What must hold

    def settle(self) -> None:
        """Nobody dies any more: without help, everything becomes whole again and leftovers go."""
        was_quiet, self.world.moments.are_quiet = self.world.moments.are_quiet, True
        try:
            self.world.restart()
            for _ in range(SETTLE_ROUNDS):
                for node in self.world.living():
                    node.scrub()
                with suppress(RaylogError):
                    self.world.upkeep.step()
                self.world.now_s += 5
                if not self._unsettled():
                    return
        finally:
            self.world.moments.are_quiet = was_quiet
        raise AssertionError(f"not whole again after {SETTLE_ROUNDS} rounds: {self._unsettled()}; {self.told}")

    def _unsettled(self) -> dict[str, object]:
        """What is not as it should be."""
        catalog = self.world.catalog
        held = [ref.shard_id for node in self.world.living() for ref in node.inventory()]
        found: dict[str, object] = {
            "short": [(one.shard.shard_id[:6], one.nodes, one.wanted) for one in catalog.short_shards()],
            "unreferenced": [
                (one.shard.shard_id[:6], one.nodes, one.other_nodes) for one in catalog.unreferenced_shards()
            ],
            "gone": sorted(catalog.holding_nodes() - {node.id for node in self.world.living()}),
            "unnamed": [shard_id[:6] for shard_id in catalog.unnamed(held)],
            "damaged": [
                (node.id[:6], shard_id[:6], numbers)
                for node in self.world.living()
                for shard_id, numbers in node.damage().items()
                if self._is_owed(node, shard_id, numbers)
            ],
        }
        return {what: value for what, value in found.items() if value}

    def _is_owed(self, node: SimNode, shard_id: str, numbers: Sequence[int]) -> bool:
        """Whether the damage is to be mended: not of a cached copy that is gone, nor of what no version names."""
        standing = self.world.catalog.standing(shard_id)
        return standing is not None and (bool(numbers) or node.id in standing.nodes)

    def check(self) -> None:
        catalog = self.world.catalog
        existing = {str(version) for name in NAMES for version in self._versions(name)}
        assert self.kept.keys() <= existing, f"lost: {self.kept.keys() - existing}; {self.told}"
        assert not self.gone & existing, f"deleted versions came back: {self.gone & existing}; {self.told}"
        for one, files in self.kept.items():
            for shard_id, file in files.items():
                assert self._read(shard_id) == file, f"{one}: shard {shard_id} has other bytes; {self.told}"
        assert catalog.verify() == catalog.sequence

    def _versions(self, name: str) -> list[Version]:
        try:
            return self.world.catalog.versions(name)
        except NotFound:
            return []

    def _read(self, shard_id: str) -> bytes:
        """As a reader on a node without it would."""
        standing = self.world.catalog.standing(shard_id)
        assert standing is not None
        if standing.nodes:
            with self.world.nodes[standing.nodes[0]].store.open(shard_id) as reader:
                chunks = [bytes(reader.chunk(number)) for number in range(len(reader.frame.chunks))]
                return bytes(reader.frame.header_bytes) + b"".join(chunks) + reader.frame.tail_bytes
        reader_node = self.world.living()[0]
        found = self.world.catalog.whereabouts([shard_id])[shard_id]
        nodes = [node.info() for node in self.world.living()]
        reader_node.pull(standing.shard, (), None, elsewhere_for(reader_node.info(), found, nodes))
        with reader_node.store.open(shard_id) as reader:
            chunks = [bytes(reader.chunk(number)) for number in range(len(reader.frame.chunks))]
            return bytes(reader.frame.header_bytes) + b"".join(chunks) + reader.frame.tail_bytes


def node_sources(target: SimNode, holders: Sequence[SimNode]) -> tuple[Source, ...]:
    """The holders as `target` asks them."""
    return sources_for(target.info(), [node.info() for node in holders])


@dataclass(frozen=True)
class Outcome:
    """What a history had in it."""

    seed: int
    acknowledged: int
    kept: int
    kills: int
    losses: int


@contextmanager
def _folder() -> Iterator[Path]:
    """In memory, where there is one: thousands of fsyncs are no part of what is tried."""
    parent = Path("/dev/shm")  # noqa: S108
    path = Path(tempfile.mkdtemp(prefix="raylog-sim-", dir=parent if parent.is_dir() else None))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def play(seed: int) -> Outcome:
    """One history. Raises `AssertionError` that tells its story."""
    with _folder() as folder:
        world = World(folder, random.Random(seed))
        history = History(world)
        try:
            history.run()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        finally:
            world.close()
        return Outcome(seed, history.acknowledged, len(history.kept), world.moments.kills, history.losses)


def summary(outcomes: Sequence[Outcome]) -> str:
    """What the histories had in them, in one line; they have all ended well."""
    return (
        f"{len(outcomes)} histories, seeds {outcomes[0].seed} to {outcomes[-1].seed}: "
        f"{sum(one.acknowledged for one in outcomes)} versions acknowledged, {sum(one.kept for one in outcomes)} kept "
        f"to the end, {sum(one.kills for one in outcomes)} processes killed, {sum(one.losses for one in outcomes)} "
        "disks lost; none lost, none torn, none short"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    arguments = parser.parse_args()
    began_s = time.perf_counter()
    outcomes = [play(seed) for seed in range(arguments.first, arguments.first + arguments.seeds)]
    sys.stdout.write(f"{summary(outcomes)}, in {time.perf_counter() - began_s:.0f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
