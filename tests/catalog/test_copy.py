"""A node's copy of the chain: takes the next record of the newest catalog, and nothing else."""

from collections.abc import Generator
from pathlib import Path

import msgspec
import pytest

from raylog.catalog.catalog import Catalog
from raylog.catalog.copy import FILE_NAME, RecordCopy
from raylog.catalog.record import Tail
from raylog.catalog.replay import replay
from raylog.errors import DamagedData, NotPermitted, Unavailable
from raylog.spec import Reference
from raylog.testing.catalog_cluster import Cluster

BY = "raylog://x/client/y"


@pytest.fixture
def copy(cluster: Cluster, tmp_path: Path) -> Generator[RecordCopy]:
    copy = open_copy(cluster, tmp_path / "copy")
    yield copy
    copy.close()


def open_copy(cluster: Cluster, directory: Path) -> RecordCopy:
    return RecordCopy(directory, cluster.cluster_id, cluster.trust.verify)


def test_it_follows_the_catalog(cluster: Cluster, catalog: Catalog, copy: RecordCopy, tmp_path: Path) -> None:
    cluster.put(catalog, "a")
    copy.append(catalog.records(copy.tail.sequence))
    cluster.put(catalog, "a")
    cluster.put(catalog, "b")
    catalog.delete(Reference("a", 1), BY)
    tail = copy.append(catalog.records(copy.tail.sequence))
    assert (tail.sequence, tail.epoch, copy.highest_epoch()) == (5, 1, 1)
    assert copy.append(catalog.records(2)) == tail  # sent again after an answer that was lost
    catalog.copied(cluster.nodes[0].id, tail.sequence)
    assert catalog.replicated_to(5) == [cluster.nodes[0].id]
    assert catalog.replicated_to(6) == []
    copy.close()
    copy = open_copy(cluster, tmp_path / "copy")
    assert copy.tail == tail
    found = list(copy.entries())
    listing = replay(record for record, _ in found)
    assert {name: sorted(one.existing) for name, one in listing.names.items()} == {"a": [2], "b": [1]}
    assert [bool(manifest) for _, manifest in found] == [False, True, True, True, False]
    copy.close()


def test_a_late_copy_lacks_only_what_was_deleted(cluster: Cluster, catalog: Catalog, copy: RecordCopy) -> None:
    cluster.put(catalog, "a")
    cluster.put(catalog, "a")
    catalog.delete(Reference("a", 1), BY)
    copy.append(catalog.records(0))
    assert [bool(manifest) for _, manifest in copy.entries()] == [False, False, True, False]


def test_gaps_and_forks_are_refused_and_nothing_is_kept(
    cluster: Cluster, catalog: Catalog, copy: RecordCopy, tmp_path: Path
) -> None:
    for _ in range(4):
        cluster.put(catalog, "a")
    entries = catalog.records(0)
    tail = copy.append(entries[:2])
    with pytest.raises(DamagedData, match="records are missing"):
        copy.append(entries[3:])
    with pytest.raises(DamagedData):
        copy.append([entries[2], entries[4]])
    with pytest.raises(DamagedData, match="manifest with it is of a@1"):
        copy.append([msgspec.structs.replace(entries[2], manifest=entries[1].manifest)])
    with pytest.raises(DamagedData, match="comes with a manifest"):
        copy.append([msgspec.structs.replace(entries[0], manifest=entries[1].manifest)])
    fork = cluster.open(tmp_path / "fork", epoch=1)
    cluster.put(fork, "a")
    cluster.put(fork, "a")
    with pytest.raises(DamagedData, match="forked"):
        copy.append(fork.records(0))
    with pytest.raises(DamagedData, match="does not follow"):
        copy.append(fork.records(2))
    assert catalog.contains(copy.tail) and catalog.contains(Tail())
    assert not fork.contains(copy.tail)
    assert not catalog.contains(Tail(sequence=99, epoch=1, digest=tail.digest))
    fork.close()
    assert copy.tail == tail and len(list(copy.entries())) == 2
    assert copy.append(entries).sequence == 5


def test_a_superseded_catalog_finds_no_copy(
    cluster: Cluster, catalog: Catalog, copy: RecordCopy, tmp_path: Path
) -> None:
    """A partition: the old catalog goes on with its directory, a newer one with what it had then."""
    cluster.put(catalog, "a")
    catalog.close()
    folder = tmp_path / "catalog"
    (tmp_path / "new").mkdir()
    for file in folder.iterdir():
        (tmp_path / "new" / file.name).write_bytes(file.read_bytes())
    old, new = cluster.open(folder, epoch=2), cluster.open(tmp_path / "new", epoch=3)
    copy.append(new.records(0))
    cluster.put(old, "a")
    with pytest.raises(NotPermitted, match="superseded"):
        copy.append(old.records(0))
    with pytest.raises(NotPermitted, match="superseded") as refused:
        copy.append(old.records(copy.tail.sequence))
    assert refused.value.epoch == copy.highest_epoch() == 3  # type: ignore[attr-defined]
    old.observe_epoch(copy.highest_epoch())
    with pytest.raises(Unavailable, match="newer catalog"):
        cluster.put(old, "a")
    cluster.put(new, "a")
    assert copy.append(new.records(copy.tail.sequence)).sequence == 4
    old.close()
    new.close()


def test_a_newer_epoch_ends_the_older_one_also_where_its_records_do_not_fit(
    cluster: Cluster, catalog: Catalog, copy: RecordCopy, tmp_path: Path
) -> None:
    cluster.put(catalog, "a")
    tail = copy.append(catalog.records(0))
    newer = cluster.open(tmp_path / "newer", epoch=4)
    with pytest.raises(DamagedData, match="forked"):
        copy.append(newer.records(0))
    newer.close()
    cluster.put(catalog, "a")
    for _ in range(2):
        with pytest.raises(NotPermitted, match="epoch 4 has begun"):
            copy.append(catalog.records(tail.sequence))
        copy.close()
        copy = open_copy(cluster, tmp_path / "copy")
    assert (copy.highest_epoch(), copy.tail) == (4, tail)
    copy.close()


def test_forged_and_foreign_records_are_refused(
    cluster: Cluster, other_cluster: Cluster, catalog: Catalog, copy: RecordCopy, tmp_path: Path
) -> None:
    cluster.put(catalog, "a")
    foreign = other_cluster.open(tmp_path / "foreign")
    with pytest.raises(NotPermitted):
        copy.append(foreign.records(0))
    foreign.close()
    first, second = catalog.records(0)
    for bad in (
        msgspec.structs.replace(first, record=first.record[:-1] + b"x"),
        msgspec.structs.replace(first, record=b""),
    ):
        with pytest.raises((NotPermitted, DamagedData)):
            copy.append([bad, second])
    assert copy.tail.sequence == 0


def test_it_is_refused_to_another_cluster_and_to_a_second_process(
    cluster: Cluster, other_cluster: Cluster, copy: RecordCopy, tmp_path: Path
) -> None:
    with pytest.raises(Unavailable, match="open in another process"):
        open_copy(cluster, tmp_path / "copy")
    copy.close()
    with pytest.raises(NotPermitted):
        open_copy(other_cluster, tmp_path / "copy")
    with pytest.raises(NotPermitted):  # opened as the cluster's own, but with another key
        catalog = cluster.open(tmp_path / "catalog")
        copy = open_copy(cluster, tmp_path / "copy")
        try:
            copy.append(catalog.records(0))
        finally:
            copy.close()
            catalog.close()
        RecordCopy(tmp_path / "copy", cluster.cluster_id, other_cluster.trust.verify)
    assert (tmp_path / "copy" / FILE_NAME).exists()


def test_what_versions_named_stays_known(cluster: Cluster, catalog: Catalog, copy: RecordCopy, tmp_path: Path) -> None:
    first, _ = cluster.put(catalog, "a")
    copy.append(catalog.records(0))
    catalog.delete(Reference("a"), BY)
    second, _ = cluster.put(catalog, "b")
    here, later = list(first.distinct_shards()), list(second.distinct_shards())
    assert copy.named([*here, *later, "0" * 32]) == here
    copy.append(catalog.records(copy.tail.sequence))
    copy.close()
    copy = open_copy(cluster, tmp_path / "copy")
    assert copy.named(["0" * 32, *later, *here]) == [*later, *here], "those of a deleted version are the catalog's too"
    copy.close()


def test_a_copy_of_another_chain_begins_anew_for_a_later_epoch(
    cluster: Cluster, catalog: Catalog, copy: RecordCopy, tmp_path: Path
) -> None:
    manifest, _ = cluster.put(catalog, "a")
    copy.append(catalog.records(0))
    newer = cluster.open(tmp_path / "newer", epoch=4)
    with pytest.raises(NotPermitted, match="cannot replace"):
        copy.restart(1)
    assert copy.tail.sequence == 2
    copy.restart(newer.epoch)
    assert copy.tail == Tail() and copy.named(list(manifest.distinct_shards())) == []
    with pytest.raises(NotPermitted, match="epoch 4 has begun"):
        copy.append(catalog.records(0))
    assert copy.append(newer.records(0)).epoch == 4
    newer.close()


def test_an_epoch_that_was_observed_ends_those_before_after_a_restart_too(
    cluster: Cluster, catalog: Catalog, copy: RecordCopy, tmp_path: Path
) -> None:
    cluster.put(catalog, "a")
    copy.append(catalog.records(0))
    copy.observe(7)
    copy.observe(3)
    copy.close()
    copy = open_copy(cluster, tmp_path / "copy")
    cluster.put(catalog, "a")
    with pytest.raises(NotPermitted, match="epoch 7 has begun"):
        copy.append(catalog.records(copy.tail.sequence))
    copy.close()
