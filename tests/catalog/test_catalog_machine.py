"""The catalog against a plain model of it, over random histories with reopenings."""

import tempfile
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, precondition, rule

from raylog.catalog.encoding import digest_of, encode
from raylog.catalog.manifest import Manifest
from raylog.catalog.state import Pending
from raylog.errors import Conflict, NotFound, RaylogError, Unavailable, UsageError
from raylog.spec import Reference, ShardRef
from raylog.testing.catalog_cluster import TENANT, Cluster

BY = "raylog://x/client/y"
CLUSTER = Cluster()
NAMES = st.sampled_from(["a", "a/b", "b"])


class Name:
    """What the model knows of a name: number -> manifest."""

    def __init__(self) -> None:
        self.existing: dict[int, Manifest] = {}
        self.deleted: set[int] = set()
        self.latest = 0

    def drop(self, numbers: list[int]) -> None:
        for number in numbers:
            del self.existing[number]
            self.deleted.add(number)
        if self.latest in numbers:
            older = [number for number in self.existing if number < self.latest]
            self.latest = max(older) if older else min(self.existing, default=0)


class CatalogMachine(RuleBasedStateMachine):
    puts = Bundle("puts")

    @initialize()
    def begin_empty(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.catalog = CLUSTER.open(Path(self.folder.name))
        self.names: dict[str, Name] = {}
        self.answers: dict[str, tuple[str, int]] = {}
        self.replicas: dict[str, set[str]] = {}
        self.gone: set[str] = set()

    def teardown(self) -> None:
        if hasattr(self, "catalog"):
            self.catalog.verify()
            self.catalog.close()
            self.folder.cleanup()

    @rule(target=puts, name=NAMES)
    def begin_later(self, name: str) -> object:
        return multiple(self.begin(name, 1, 2))

    def begin(self, name: str, shards: int, replicas: int) -> tuple[Pending, Manifest]:
        pending = self.catalog.begin(name, TENANT)
        entries = tuple(CLUSTER.entry() for _ in range(shards))
        return pending, CLUSTER.manifest(name, pending.artifact_id, replicas=replicas, shards=entries)

    @rule(target=puts, name=NAMES)
    def begin_on_older_shards(self, name: str) -> object:
        known = self.names.get(name)
        if not known or not known.latest:
            return multiple()
        entries = (known.existing[known.latest].shards[0], CLUSTER.entry())
        pending = self.catalog.begin(name, TENANT)
        return multiple((pending, CLUSTER.manifest(name, pending.artifact_id, replicas=1, shards=entries)))

    @rule(name=NAMES, shards=st.integers(1, 3), replicas=st.integers(1, 2))
    def put(self, name: str, shards: int, replicas: int) -> None:
        self.commit(self.begin(name, shards, replicas))

    @rule(put=puts)
    def commit_later(self, put: tuple[Pending, Manifest]) -> None:
        self.commit(put)

    def commit(self, put: tuple[Pending, Manifest]) -> None:
        pending, manifest = put
        receipts = CLUSTER.receipts(manifest)
        try:
            version = self.catalog.commit(CLUSTER.sign(manifest), receipts, pending.base)
        except RaylogError as error:
            assert self.reason_to_refuse(pending, manifest) is type(error), error
            return
        assert self.reason_to_refuse(pending, manifest) is None
        known = self.names.setdefault(manifest.name, Name())
        if manifest.version_id not in self.answers:
            number = max([0, *known.existing, *known.deleted]) + 1
            self.answers[manifest.version_id] = (manifest.name, number)
            known.existing[number] = manifest
            known.latest = number
            for shard_id in manifest.distinct_shards():
                nodes = {node.id for node in CLUSTER.nodes[: manifest.replicas]} - self.gone
                self.replicas.setdefault(shard_id, set()).update(nodes)
        assert (version.name, version.number) == self.answers[manifest.version_id]
        assert version.digest == digest_of(encode(manifest)).hex()

    def reason_to_refuse(self, pending: Pending, manifest: Manifest) -> type[RaylogError] | None:
        """What `commit` must say, from the model alone."""
        known = self.names.get(manifest.name, Name())
        if manifest.version_id in self.answers:
            return Conflict if self.answers[manifest.version_id][1] in known.deleted else None
        if known.latest != pending.base:
            return Conflict
        for shard_id in manifest.distinct_shards():
            if shard_id in self.replicas and shard_id not in self.referenced():
                return UsageError
        for shard_id in manifest.distinct_shards():
            fresh = {node.id for node in CLUSTER.nodes[: manifest.replicas]} - self.gone
            if len(fresh | self.replicas.get(shard_id, set())) < manifest.replicas:
                return Unavailable
        return None

    @rule(choice=st.integers(0, 99), is_all=st.booleans())
    @precondition(lambda self: any(known.existing for known in self.names.values()))
    def delete(self, choice: int, is_all: bool) -> None:
        there = [(name, number) for name, known in sorted(self.names.items()) for number in known.existing]
        name, number = there[choice % len(there)]
        self.delete_or_not(name, 0 if is_all else number)

    @rule(name=NAMES, number=st.integers(0, 4))
    def delete_or_not(self, name: str, number: int) -> None:
        known = self.names.get(name, Name())
        numbers = [number] if number else sorted(known.existing)
        if not numbers or any(one not in known.existing for one in numbers):
            with pytest.raises(NotFound):
                self.catalog.delete(Reference(name, number or None), BY)
            return
        deleted = self.catalog.delete(Reference(name, number or None), BY)
        assert [one.number for one in deleted] == numbers
        known.drop(numbers)
        self.collect()

    @rule(name=NAMES, number=st.integers(1, 4))
    def set_latest(self, name: str, number: int) -> None:
        known = self.names.get(name, Name())
        if number in known.existing:
            self.catalog.set_latest(Reference(name, number), BY)
            known.latest = number
        else:
            with pytest.raises(NotFound):
                self.catalog.set_latest(Reference(name, number), BY)

    @rule(node=st.integers(0, 1))
    @precondition(lambda self: self.replicas)
    def lose_node(self, node: int) -> None:
        node_id = CLUSTER.nodes[node].id
        assert self.catalog.forget_node(node_id) == sum(node_id in nodes for nodes in self.replicas.values())
        self.gone.add(node_id)
        for nodes in self.replicas.values():
            nodes.discard(node_id)
        self.collect()

    @rule(node=st.integers(0, 1))
    @precondition(lambda self: self.gone)
    def admit_node(self, node: int) -> None:
        self.catalog.admit_node(CLUSTER.nodes[node].id)
        self.gone.discard(CLUSTER.nodes[node].id)

    @rule(node=st.integers(0, 3))
    @precondition(lambda self: self.catalog.short_shards())
    def repair(self, node: int) -> None:
        member = CLUSTER.nodes[node]
        for standing in self.catalog.short_shards():
            if member.id not in self.gone:
                self.catalog.add_replica(CLUSTER.receipt(standing.shard, member))
                self.replicas[standing.shard.shard_id].add(member.id)

    @rule()
    @precondition(lambda self: self.catalog.unreferenced_shards())
    def remove_what_nobody_needs(self) -> None:
        for standing in self.catalog.unreferenced_shards():
            for node_id in standing.nodes:
                self.catalog.remove_replica(standing.shard.shard_id, node_id)
                self.replicas[standing.shard.shard_id].discard(node_id)
        self.collect()

    @rule()
    def reopen(self) -> None:
        self.catalog.close()
        self.catalog = CLUSTER.open(Path(self.folder.name), create=False)

    def referenced(self) -> dict[str, tuple[ShardRef, int]]:
        """Shard id -> the shard and what was promised, over all versions that exist."""
        found: dict[str, tuple[ShardRef, int]] = {}
        for known in self.names.values():
            for manifest in known.existing.values():
                for shard_id, shard in manifest.distinct_shards().items():
                    found[shard_id] = (shard, max(manifest.replicas, found.get(shard_id, (shard, 0))[1]))
        return found

    def collect(self) -> None:
        referenced = self.referenced()
        for shard_id in [one for one, nodes in self.replicas.items() if not nodes and one not in referenced]:
            del self.replicas[shard_id]

    @invariant()
    def shows_what_the_model_shows(self) -> None:
        if not hasattr(self, "catalog"):
            return
        latest = {one.name: one.number for one in self.catalog.ls()}
        assert latest == {name: known.latest for name, known in sorted(self.names.items()) if known.latest}
        for name, known in self.names.items():
            if known.latest:
                assert [one.number for one in self.catalog.versions(name)] == sorted(known.existing)

    @invariant()
    def knows_where_copies_are(self) -> None:
        if not hasattr(self, "catalog"):
            return
        assert self.catalog.replicas(list(self.replicas)) == {one: sorted(ids) for one, ids in self.replicas.items()}
        referenced = self.referenced()
        free = {one.shard.shard_id for one in self.catalog.unreferenced_shards()}
        assert free == set(self.replicas) - set(referenced)
        # A promise once made for a shard outlives the version that made it, so the model gives a lower bound.
        short = {one.shard.shard_id for one in self.catalog.short_shards()}
        assert {one for one, (_, wanted) in referenced.items() if len(self.replicas[one]) < wanted} <= short
        assert all(len(one.nodes) < one.wanted for one in self.catalog.short_shards())


TestCatalogMachine = CatalogMachine.TestCase
TestCatalogMachine.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
