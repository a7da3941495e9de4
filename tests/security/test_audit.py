"""The audit log: entries in order, and every way to change them unnoticed that should not work."""

import sqlite3
from pathlib import Path

import pytest

from raylog.errors import DamagedData
from raylog.security.audit import ENTRIES_PER_CALL, AuditHead, AuditLog
from raylog.security.envelopes import EnvelopeStore


@pytest.fixture
def log(store: EnvelopeStore) -> AuditLog:
    for number in range(1, 6):
        store.audit.record("read granted", f"client {number}", '{"deks":[]}', 1000.25 + number)
    return store.audit


def change(tmp_path: Path, statement: str) -> None:
    connection = sqlite3.connect(tmp_path / "keys" / "envelopes.sqlite")
    assert connection.execute(statement).rowcount == 1
    connection.commit()
    connection.close()


def test_entries_come_in_order_and_from_where_one_asks(log: AuditLog) -> None:
    assert [entry.subject for entry in log.entries(since=3)] == ["client 4", "client 5"]
    first = log.entries()[0]
    assert (first.sequence, first.time_s, first.event) == (1, 1001.25, "read granted")
    assert log.verify_chain().sequence == 5


def test_a_long_log_comes_in_pages_and_verifies(store: EnvelopeStore) -> None:
    with store._database.transaction():
        for number in range(ENTRIES_PER_CALL + 5):
            store.audit.record("e", str(number), "{}", 0.0)
    page = store.audit.entries()
    assert len(page) == ENTRIES_PER_CALL
    assert len(store.audit.entries(page[-1].sequence)) == 5
    assert store.audit.verify_chain().sequence == ENTRIES_PER_CALL + 5


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE audit SET subject = 'client 9' WHERE sequence = 3", "entry 3 was changed"),
        ("UPDATE audit SET time_s = 0 WHERE sequence = 1", "entry 1 was changed"),
        ("UPDATE audit SET detail = '' WHERE sequence = 5", "entry 5 was changed"),
        ("DELETE FROM audit WHERE sequence = 2", "entry 2 was removed"),
        ("DELETE FROM audit WHERE sequence = 1", "entry 1 was removed"),
        ("INSERT INTO audit VALUES (6, 0, 'read granted', 'client', '', x'00')", "entry 6 was changed or inserted"),
    ],
)
def test_a_change_is_found_and_named(log: AuditLog, tmp_path: Path, statement: str, message: str) -> None:
    change(tmp_path, statement)
    with pytest.raises(DamagedData, match=message):
        log.verify_chain()


def test_a_cut_end_shows_against_a_noted_head_only(log: AuditLog, tmp_path: Path) -> None:
    earlier = AuditHead(sequence=0, mac=bytes(32))
    noted = log.verify_chain(earlier)
    change(tmp_path, "DELETE FROM audit WHERE sequence = 5")
    assert log.verify_chain().sequence == 4
    with pytest.raises(DamagedData, match="cut or replaced: it does not contain the head noted at entry 5"):
        log.verify_chain(noted)


def test_a_record_falls_with_its_transaction(store: EnvelopeStore) -> None:
    with pytest.raises(ZeroDivisionError), store._database.transaction():
        store.audit.record("e", "s", "d", 0.0)
        raise ZeroDivisionError
    assert store.audit.entries() == []
