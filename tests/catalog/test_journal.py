"""The journal on disk: who may open it, epochs, and what happens when somebody changed the file."""

import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from raylog.catalog.catalog import Catalog
from raylog.catalog.journal import FILE_NAME, Journal
from raylog.errors import DamagedData, NoSpace, NotFound, NotPermitted, RaylogError, Unavailable, UsageError
from raylog.spec import Reference
from raylog.testing.catalog_cluster import TENANT, Cluster

BY = "raylog://x/client/y"


def test_one_writer_at_a_time(cluster: Cluster, tmp_path: Path) -> None:
    catalog = cluster.open(tmp_path)
    with pytest.raises(Unavailable, match="open in another process"):
        cluster.open(tmp_path)
    script = (
        "import sys; from pathlib import Path; from raylog.testing.catalog_cluster import Cluster; "
        "Cluster().open(Path(sys.argv[1]))"
    )
    second = subprocess.run(
        [sys.executable, "-c", script, tmp_path], cwd=Path(__file__).parent, capture_output=True, timeout=60
    )
    assert b"Unavailable" in second.stderr and b"one writer at a time" in second.stderr
    catalog.close()
    cluster.open(tmp_path).close()


def test_it_never_begins_empty_where_it_must_be_there(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        cluster.open(tmp_path / "none", create=False)
    assert not (tmp_path / "none").exists()
    (tmp_path / FILE_NAME).touch()
    with pytest.raises(DamagedData, match="empty"):
        cluster.open(tmp_path, create=False)


def test_another_clusters_journal_is_refused(cluster: Cluster, other_cluster: Cluster, tmp_path: Path) -> None:
    cluster.open(tmp_path).close()
    with pytest.raises(NotPermitted, match=cluster.cluster_id):
        other_cluster.open(tmp_path)
    cluster.open(tmp_path).close()


@pytest.mark.parametrize(
    ("statement", "error", "words"),
    [
        ("UPDATE meta SET value = '9' WHERE key = 'schema'", UsageError, "schema 9"),
        ("UPDATE meta SET value = 'recipes' WHERE key = 'kind'", UsageError, "recipes"),
        ("DROP TABLE meta", UsageError, "something else"),
    ],
)
def test_what_is_no_journal_of_this_kind_is_refused(
    cluster: Cluster, tmp_path: Path, statement: str, error: type[RaylogError], words: str
) -> None:
    cluster.open(tmp_path).close()
    tamper(tmp_path, statement)
    with pytest.raises(error, match=words):
        cluster.open(tmp_path)


def test_garbage_instead_of_a_database(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"not a database, but long enough to look at" * 100)
    with pytest.raises(DamagedData, match="damaged"):
        cluster.open(tmp_path)


def test_it_is_written_through_and_private(catalog: Catalog, tmp_path: Path) -> None:
    with catalog._database.write() as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    for file in (tmp_path / "catalog").iterdir():
        assert file.stat().st_mode & 0o077 == 0, file


def test_nothing_is_changed_before_an_epoch_began(cluster: Cluster, tmp_path: Path) -> None:
    catalog = Catalog(Journal(tmp_path, cluster.trust, time.time, create=True))
    with pytest.raises(Unavailable, match="epoch"):
        cluster.put(catalog)
    catalog.begin_epoch(7)
    cluster.put(catalog)
    for epoch in (7, 6, 1):
        with pytest.raises(UsageError, match="above 7"):
            catalog.begin_epoch(epoch)
    catalog.close()


def test_a_superseded_catalog_stops_for_good(cluster: Cluster, tmp_path: Path) -> None:
    catalog = cluster.open(tmp_path, epoch=3)
    manifest, version = cluster.put(catalog, "a")
    shard = manifest.shards[0].shard
    with pytest.raises(Unavailable, match="epoch 5 has begun"):
        catalog.add_replica(cluster.receipt(shard, cluster.nodes[3], epoch=5))
    changes: list[Callable[[], object]] = [
        lambda: cluster.put(catalog, "a"),
        lambda: catalog.delete(Reference("a"), BY),
        lambda: catalog.set_latest(Reference("a"), BY),
        lambda: catalog.forget_node(cluster.nodes[0].id),
        lambda: catalog.remove_replica(shard.shard_id, cluster.nodes[0].id),
    ]
    for change in changes:
        with pytest.raises(Unavailable, match="a newer catalog took over"):
            change()
    assert catalog.stat(Reference("a")) == version
    catalog.close()
    catalog = Catalog(Journal(tmp_path, cluster.trust, time.time, create=False))
    assert catalog.epoch_seen() == 5
    with pytest.raises(UsageError):
        catalog.begin_epoch(5)
    catalog.begin_epoch(6)
    cluster.put(catalog, "a")
    catalog.close()


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("UPDATE records SET signed = (SELECT signed FROM records WHERE sequence = 2) WHERE sequence = 3", DamagedData),
        ("UPDATE records SET signed = substr(signed, 1, 100) WHERE sequence = 2", DamagedData),
        ("UPDATE records SET signed = renamed(signed) WHERE sequence = 3", NotPermitted),
        ("DELETE FROM records WHERE sequence = 3", DamagedData),
        ("DELETE FROM records WHERE sequence = 5", DamagedData),
        ("UPDATE versions SET deleted = 4 WHERE number = 2", DamagedData),
        ("UPDATE versions SET deleted = NULL WHERE number = 1", DamagedData),
        ("UPDATE versions SET digest = zeroblob(32) WHERE number = 2", DamagedData),
        ("UPDATE artifacts SET latest = 2", DamagedData),
        ("UPDATE artifacts SET last_number = 9", DamagedData),
        ("DELETE FROM manifests WHERE sequence = 3", DamagedData),
        ("UPDATE manifests SET committed = (SELECT committed FROM manifests WHERE sequence = 3)", DamagedData),
        ("UPDATE manifests SET committed = substr(committed, 1, 500)", DamagedData),
        ("DELETE FROM artifacts", DamagedData),
        ("UPDATE versions SET name = CAST(x'ff' AS TEXT) WHERE number = 2", DamagedData),
    ],
)
def test_verify_finds_what_was_changed(
    cluster: Cluster, tmp_path: Path, statement: str, error: type[RaylogError]
) -> None:
    catalog = cluster.open(tmp_path)
    for _ in range(3):
        cluster.put(catalog)
    catalog.delete(Reference("corpora/wiki", 1), BY)
    assert catalog.verify() == 5
    catalog.close()
    tamper(tmp_path, statement)
    with pytest.raises(error):
        catalog = Catalog(Journal(tmp_path, cluster.trust, time.time, create=False))
        try:
            catalog.verify()
        finally:
            catalog.close()


def test_the_chain_is_checked_at_its_end_when_opened(cluster: Cluster, tmp_path: Path) -> None:
    catalog = cluster.open(tmp_path)
    cluster.put(catalog)
    catalog.close()
    tamper(tmp_path, "UPDATE records SET signed = (SELECT signed FROM records WHERE sequence = 1) WHERE sequence = 2")
    with pytest.raises(DamagedData, match="expected record 2, got record 1"):
        cluster.open(tmp_path)


def test_a_full_disk_changes_nothing_and_passes(cluster: Cluster, catalog: Catalog) -> None:
    cluster.put(catalog, "a")
    before, pages = catalog.ls(), None
    with catalog._database.write() as connection:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")
    wide = tuple(cluster.entry() for _ in range(400))
    with pytest.raises(NoSpace, match="no space left"):
        cluster.put(catalog, "b", shards=wide)
    assert catalog.ls() == before
    with catalog._database.write() as connection:
        connection.execute("PRAGMA max_page_count = 1000000")
    assert cluster.put(catalog, "b", shards=wide)[1].shards == 400
    assert catalog.verify() == 3


def test_close_twice_leaves_nothing_open(cluster: Cluster, tmp_path: Path) -> None:
    catalog = cluster.open(tmp_path)
    catalog.begin("a", TENANT)
    catalog.close()
    catalog.close()
    held = {path.resolve() for path in Path("/proc/self/fd").iterdir() if path.exists()}
    assert not [path for path in held if tmp_path in path.parents]


def tamper(directory: Path, statement: str) -> None:
    connection = sqlite3.connect(directory / FILE_NAME)
    connection.create_function("renamed", 1, lambda signed: signed.replace(b"wiki", b"wika"))
    connection.execute(statement)
    connection.commit()
    connection.close()
