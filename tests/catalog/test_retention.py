"""Holds, expiry and how many versions are kept: what may go, what must not, and that a rebuilt catalog knows it too."""

from pathlib import Path

import pytest
from test_rebuild import opened

from raylog.catalog.catalog import Catalog
from raylog.catalog.rebuild import rebuild
from raylog.catalog.record import RecordKind
from raylog.errors import NotFound, NotPermitted, UsageError
from raylog.spec import Durability, Reference
from raylog.testing.catalog_cluster import TENANT, Cluster

BY = "raylog://x/client/y"


def put(cluster: Cluster, catalog: Catalog, name: str, count: int, **changes: object) -> None:
    for _ in range(count):
        cluster.put(catalog, name, **changes)


def due(catalog: Catalog, now_us: int = 0) -> list[str]:
    return sorted(str(one) for one in catalog.due(now_us))


def hold(catalog: Catalog, name: str, number: int | None, reason: str = "litigation 7") -> None:
    catalog.govern(RecordKind.HOLD, Reference(name, number), {"reason": reason}, BY)


def keep(catalog: Catalog, name: str, versions: int) -> None:
    catalog.govern(RecordKind.KEEP, Reference(name), {"versions": str(versions)}, BY)


def expire(catalog: Catalog, name: str, number: int, at_us: int) -> None:
    catalog.govern(RecordKind.EXPIRE, Reference(name, number), {"at_us": str(at_us)}, BY)


def test_a_held_version_is_deleted_by_nobody(cluster: Cluster, catalog: Catalog) -> None:
    put(cluster, catalog, "a", 3)
    hold(catalog, "a", 2)
    for doomed in (Reference("a", 2), Reference("a")):
        with pytest.raises(NotPermitted, match=r"a@2 is held \(litigation 7\).*'raylog release a@2'"):
            catalog.delete(doomed, BY)
    catalog.delete(Reference("a", 1), BY)
    assert [one.number for one in catalog.versions("a")] == [2, 3]
    catalog.govern(RecordKind.RELEASE, Reference("a", 2), {}, BY)
    catalog.delete(Reference("a"), BY)


def test_a_held_name_keeps_what_comes_later(cluster: Cluster, catalog: Catalog) -> None:
    put(cluster, catalog, "a", 1)
    hold(catalog, "a", None)
    put(cluster, catalog, "a", 1)
    with pytest.raises(NotPermitted, match="a is held"):
        catalog.delete(Reference("a", 2), BY)
    keep(catalog, "a", 1)
    expire(catalog, "a", 1, 5)
    assert due(catalog, 10) == [], "neither expires nor is one of too many"
    catalog.govern(RecordKind.RELEASE, Reference("a"), {}, BY)
    assert due(catalog, 10) == ["a@1"]


def test_so_many_versions_are_kept_and_the_latest_always(cluster: Cluster, catalog: Catalog) -> None:
    put(cluster, catalog, "a", 5)
    assert due(catalog) == []
    keep(catalog, "a", 2)
    assert due(catalog) == ["a@1", "a@2", "a@3"]
    catalog.set_latest(Reference("a", 1), BY)
    assert due(catalog) == ["a@2", "a@3", "a@4"], "the latest, and the newest other one"
    keep(catalog, "a", 0)
    assert due(catalog) == []
    assert catalog.retention("a").keep == 0


def test_a_version_expires_at_its_time(cluster: Cluster, catalog: Catalog) -> None:
    put(cluster, catalog, "a", 2)
    expire(catalog, "a", 2, 1_000)
    assert due(catalog, 999) == [] and due(catalog, 1_000) == ["a@2"]
    assert catalog.due(1_000) == {Reference("a", 2): "it has expired"}
    expire(catalog, "a", 2, 5_000)
    assert due(catalog, 1_000) == []
    expire(catalog, "a", 2, 0)
    assert due(catalog, 10**15) == []
    expire(catalog, "a", 2, 7)
    catalog.delete(Reference("a", 2), BY)
    assert due(catalog, 10) == [] and catalog.retention("a").expires_us == {}


def test_it_is_known_after_a_rebuild(cluster: Cluster, catalog: Catalog, tmp_path: Path) -> None:
    put(cluster, catalog, "a", 4, labels={"run": "7", "of": "x"})
    put(cluster, catalog, "b", 1, labels={"run": "8"})
    keep(catalog, "a", 2)
    hold(catalog, "a", 1)
    hold(catalog, "b", None)
    expire(catalog, "a", 3, 9)
    catalog.govern(RecordKind.RELEASE, Reference("b"), {}, BY)
    rebuild(tmp_path / "anew", cluster.trust, catalog.records(0), {})
    anew = opened(cluster, tmp_path / "anew")
    for one in (catalog, anew):
        assert one.retention("a").holds == {1: "litigation 7"} and one.retention("b").holds == {}
        assert one.retention("a").expires_us == {3: 9} and one.retention("a").keep == 2
        assert due(one, 10) == ["a@2", "a@3"]
        assert [str(version) for version in one.ls(labels={"run": "7"})] == ["a@4"]
        assert one.usage() == catalog.usage() or one is anew
    assert anew.verify() == catalog.sequence
    anew.close()


def test_what_makes_no_sense_is_refused(cluster: Cluster, catalog: Catalog) -> None:
    put(cluster, catalog, "a", 1)
    for kind, reference, details in (
        (RecordKind.HOLD, Reference("a"), {"reason": ""}),
        (RecordKind.HOLD, Reference("a"), {"reason": "x" * 1025}),
        (RecordKind.HOLD, Reference("a"), {}),
        (RecordKind.EXPIRE, Reference("a"), {"at_us": "5"}),
        (RecordKind.EXPIRE, Reference("a", 1), {"at_us": "-5"}),
        (RecordKind.KEEP, Reference("a"), {"versions": "many"}),
        (RecordKind.RELEASE, Reference("a"), {"reason": "x"}),
    ):
        with pytest.raises(UsageError):
            catalog.govern(kind, reference, details, BY)
    for missing in (Reference("b"), Reference("a", 2)):
        with pytest.raises(NotFound):
            catalog.govern(RecordKind.HOLD, missing, {"reason": "x"}, BY)


def test_labels_are_found_on_latest_versions(cluster: Cluster, catalog: Catalog) -> None:
    put(cluster, catalog, "a", 1, labels={"run": "7", "use": "checkpoint"})
    put(cluster, catalog, "a", 1, labels={"run": "8", "use": "checkpoint"})
    put(cluster, catalog, "b", 1, labels={"run": "8"})
    assert [str(one) for one in catalog.ls(labels={"run": "8"})] == ["a@2", "b@1"]
    assert [str(one) for one in catalog.ls(labels={"run": "8", "use": "checkpoint"})] == ["a@2"]
    assert catalog.ls(labels={"run": "7"}) == [], "an older version has it"
    assert [str(one) for one in catalog.ls("b", labels={"run": "8"})] == ["b@1"]
    catalog.delete(Reference("a", 2), BY)
    assert [str(one) for one in catalog.ls(labels={"run": "7"})] == ["a@1"]


def test_usage_counts_what_is_stored(cluster: Cluster, catalog: Catalog) -> None:
    assert catalog.usage() == []
    manifest, version = cluster.put(catalog, "a")
    (found,) = catalog.usage()
    assert (found.tenant, found.versions) == (TENANT, 1)
    assert (found.content_bytes, found.stored_bytes) == (version.content_bytes, version.stored_bytes)
    assert found.kept_bytes == manifest.replicas * version.stored_bytes
    assert manifest.durability is Durability.DISK
    catalog.delete(Reference("a"), BY)
    assert catalog.usage() == []
