"""A node that has records which the catalog lacks: they end it, unless it was made of all that was acknowledged then.
One that lacks records of the catalog: nothing is removed for which nobody else knows the reason."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from raylog.actors.node_info import NodeInfo
from raylog.actors.record_copies import RecordCopies
from raylog.actors.requests import DeleteShards, RestartRecords
from raylog.actors.standbys import Standbys
from raylog.actors.upkeep import Upkeep
from raylog.catalog.catalog import Catalog
from raylog.catalog.copy import RecordCopy
from raylog.catalog.manifest import Manifest
from raylog.errors import Unavailable
from raylog.security.requests import Request
from raylog.settings import Settings
from raylog.spec import Reference
from raylog.testing.catalog_cluster import Cluster
from raylog.testing.register import MemoryRegister


class OneNode:
    """The cluster as upkeep sees it: another machine, which has a copy of the records."""

    def __init__(self, copy: RecordCopy) -> None:
        self.copy = copy

    def here(self) -> str:
        return "head"

    def living(self) -> list[NodeInfo]:
        return [
            NodeInfo(
                node_id="n" * 32, ray_node_id="other", hostname="", host="", control_port=1, socket_path="",
                directory="", arena_path="", software="", pid=1, labels={},
            )
        ]  # fmt: skip

    def draining(self) -> set[str]:
        return set()

    def free_bytes(self) -> dict[str, int]:
        return {}

    def call(self, info: NodeInfo, method: str, *arguments: Any, timeout_s: float) -> Any:
        return self.copy.tail if method == "records_tail" else self.copy.append(*arguments)

    def ask(self, info: NodeInfo, about: Request, timeout_s: float) -> Any:
        assert isinstance(about, RestartRecords)
        self.copy.restart(about.epoch)

    def call_standby(self, standby: str, method: str, *arguments: Any, timeout_s: float) -> Any:
        raise Unavailable("there are none")

    def ask_standby(self, standby: str, about: Request, timeout_s: float) -> Any:
        raise Unavailable("there are none")

    def together(self, actions: Sequence[Callable[[], None]]) -> None:
        assert not actions, "nothing is repaired here"


class HoldingNode(OneNode):
    """It holds the shards of a version as well, and takes no records unless `is_taking`."""

    def __init__(self, copy: RecordCopy, cluster: Cluster, manifest: Manifest) -> None:
        super().__init__(copy)
        self.is_taking = True
        self.deleted: list[str] = []
        self._node_id = cluster.nodes[0].id
        self._shards = list(manifest.distinct_shards().values())
        self._receipts = [cluster.receipt(shard, cluster.nodes[0]) for shard in self._shards]

    def living(self) -> list[NodeInfo]:
        return [msgspec.structs.replace(info, node_id=self._node_id) for info in super().living()]

    def call(self, info: NodeInfo, method: str, *arguments: Any, timeout_s: float) -> Any:
        if method == "append_records" and not self.is_taking:
            raise Unavailable("its disk takes nothing now")
        answers = {"inventory": self._shards, "receipts": self._receipts, "origins": {}, "damage": {}}
        return answers[method] if method in answers else super().call(info, method, *arguments, timeout_s=timeout_s)

    def ask(self, info: NodeInfo, about: Request, timeout_s: float) -> Any:
        if isinstance(about, DeleteShards):
            self.deleted += about.shard_ids
        else:
            super().ask(info, about, timeout_s)


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def copy(cluster: Cluster, tmp_path: Path) -> Iterator[RecordCopy]:
    """Of a catalog of epoch 2 that was lost."""
    found = RecordCopy(tmp_path / "copy", cluster.cluster_id, cluster.trust.verify)
    lost = cluster.open(tmp_path / "lost", epoch=2)
    cluster.put(lost, "a")
    found.append(lost.records(0))
    lost.close()
    yield found
    found.close()


@pytest.fixture
def catalog(cluster: Cluster, tmp_path: Path) -> Iterator[Catalog]:
    """Another one, of epoch 4."""
    found = cluster.open(tmp_path / "catalog", epoch=4)
    cluster.put(found, "b")
    yield found
    found.close()


def copies_of(catalog: Catalog, node: OneNode, overrules_below: int) -> RecordCopies:
    standbys = Standbys("catalog", MemoryRegister(), machine="head", state_id="head", when_superseded=lambda: None)
    return RecordCopies(catalog, node, standbys, 30.0, overrules_below=overrules_below)


def test_what_was_never_acknowledged_is_overruled(catalog: Catalog, copy: RecordCopy) -> None:
    records = copies_of(catalog, OneNode(copy), overrules_below=3)
    records.copy_to_another_node()
    assert catalog.contains(copy.tail) and copy.tail.sequence == catalog.sequence
    records.check_not_outdated()


@pytest.mark.parametrize("overrules_below", [0, 2])
def test_what_may_be_newer_ends_the_catalog(catalog: Catalog, copy: RecordCopy, overrules_below: int) -> None:
    before = copy.tail
    records = copies_of(catalog, OneNode(copy), overrules_below)
    with pytest.raises(Unavailable, match="no other node has copied"):
        records.copy_to_another_node()
    with pytest.raises(Unavailable, match="this catalog does not have"):
        records.check_not_outdated()
    assert copy.tail == before, "nothing was dropped there"


def test_shards_stay_until_another_machine_knows_of_the_deletion(
    cluster: Cluster, catalog: Catalog, copy: RecordCopy, tmp_path: Path
) -> None:
    manifest, _ = cluster.put(catalog, "c")
    node = HoldingNode(copy, cluster, manifest)
    records = copies_of(catalog, node, overrules_below=3)
    upkeep = Upkeep(catalog, node, Settings(state=tmp_path), cluster.cluster_id, records)
    upkeep.step()
    catalog.delete(Reference("c"), cluster.writer.identity)
    node.is_taking = False
    upkeep.step()
    assert node.deleted == [], "a catalog made of that copy would have the version, and no shard of it"
    node.is_taking = True
    upkeep.step()
    assert sorted(node.deleted) == sorted(manifest.distinct_shards())
