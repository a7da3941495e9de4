"""The SQLite file under the envelope store and the authority: full disks, busy locks, deleted secrets."""

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from raylog.errors import NoSpace, NotPermitted, Unavailable
from raylog.security import database as module
from raylog.security.database import Database
from raylog.spec import new_id

CLUSTER = new_id()


def opened(path: Path, **changes: object) -> Database:
    values: dict[str, object] = {"kind": "test", "format_version": 1, "cluster_id": CLUSTER}
    return Database(path, schema=["CREATE TABLE IF NOT EXISTS items (value BLOB)"], **(values | changes))  # type: ignore[arg-type]


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    monkeypatch.setattr(module, "BUSY_TIMEOUT_S", 0.1)
    database = opened(tmp_path / "private" / "file.sqlite")
    yield database
    database.close()


def count(database: Database) -> int:
    ((items,),) = database.execute("SELECT count(*) FROM items")
    return int(items)


def test_a_transaction_is_all_or_nothing_also_nested(database: Database) -> None:
    with pytest.raises(ZeroDivisionError), database.transaction():
        database.execute("INSERT INTO items VALUES (1)")
        with database.transaction():
            database.execute("INSERT INTO items VALUES (2)")
        raise ZeroDivisionError
    assert count(database) == 0
    with database.transaction(), database.transaction():
        database.execute("INSERT INTO items VALUES (3)")
    assert count(database) == 1


def test_threads_take_turns(database: Database) -> None:
    def add() -> None:
        for _ in range(20):
            with database.transaction():
                database.execute("INSERT INTO items VALUES ((SELECT count(*) FROM items))")

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(value for (value,) in database.execute("SELECT value FROM items")) == list(range(80))


@pytest.mark.parametrize("change", [{"kind": "other"}, {"format_version": 2}, {"cluster_id": new_id()}])
def test_another_kind_format_or_cluster_is_refused(database: Database, change: dict[str, object]) -> None:
    with pytest.raises(NotPermitted, match=f"is test of format 1 of cluster {CLUSTER}, expected"):
        opened(database.path, **change)


def test_a_busy_file_is_unavailable_after_the_timeout_and_nothing_is_changed(database: Database) -> None:
    other = sqlite3.connect(database.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="locked; nothing was changed"), database.transaction():
        pass
    other.rollback()
    other.close()
    with database.transaction():
        database.execute("INSERT INTO items VALUES (1)")
    assert count(database) == 1


def test_a_full_disk_is_no_space_and_nothing_is_changed(database: Database) -> None:
    database.execute("PRAGMA max_page_count = 8")
    with pytest.raises(NoSpace, match="disk is full; nothing was changed"), database.transaction():
        database.execute("INSERT INTO items VALUES (1)")
        database.execute("INSERT INTO items VALUES (zeroblob(100000))")
    assert count(database) == 0


def test_what_was_deleted_stands_in_no_file(database: Database) -> None:
    secret = b"a wrapped key that is to be gone"
    database.execute("INSERT INTO items VALUES (?)", secret)
    assert any(secret in path.read_bytes() for path in database.path.parent.iterdir())
    database.execute("DELETE FROM items")
    database.forget_deleted()
    assert not any(secret in path.read_bytes() for path in database.path.parent.iterdir())


def test_a_reader_that_holds_the_log_back_is_told(database: Database) -> None:
    database.execute("INSERT INTO items VALUES (1)")
    reader = sqlite3.connect(database.path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM items").fetchall()
    database.execute("DELETE FROM items")
    with pytest.raises(Unavailable, match="another process is reading"):
        database.forget_deleted()
    reader.close()
    database.forget_deleted()


def test_a_commit_that_fails_leaves_no_transaction_open(database: Database) -> None:
    """A deferred constraint fails at the commit itself, as a disk that is full then does."""
    database.execute("PRAGMA foreign_keys = ON")
    database.execute("CREATE TABLE parents (id INTEGER PRIMARY KEY)")
    database.execute("CREATE TABLE children (id INTEGER REFERENCES parents DEFERRABLE INITIALLY DEFERRED)")
    with pytest.raises(Unavailable, match="nothing was changed"), database.transaction():
        database.execute("INSERT INTO items VALUES (1)")
        database.execute("INSERT INTO children VALUES (7)")
    with database.transaction():
        database.execute("INSERT INTO items VALUES (2)")
    other = opened(database.path)
    assert [row for (row,) in other.execute("SELECT value FROM items")] == [2], "durable, and alone"
    other.close()
