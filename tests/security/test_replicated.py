"""Envelopes and the authority's tables on a second machine: what changed comes over, and nothing comes back."""

from pathlib import Path

import msgspec
import pytest

from raylog.errors import DamagedData, NotFound
from raylog.security.envelopes import EnvelopeStore
from raylog.security.providers.file import FileKeyring
from raylog.security.replicated import ROWS_MAX, Replicated, Row
from raylog.spec import new_id

TENANT = "0" * 32


@pytest.fixture
def keyring(tmp_path: Path) -> FileKeyring:
    return FileKeyring.create(tmp_path / "keyring" / "keyring.json", new_id())


def carried(source: Replicated, since: int) -> tuple[int, list[Row]]:
    """All that changed, as it travels."""
    found: list[Row] = []
    while True:
        reached, rows = source.since(since)
        if reached == since:
            return reached, msgspec.msgpack.decode(msgspec.msgpack.encode(found), type=list[Row])
        assert len(rows) <= ROWS_MAX
        since, found = reached, found + rows


def test_keys_open_on_the_other_machine(tmp_path: Path, keyring: FileKeyring) -> None:
    artifact = new_id()
    with (
        EnvelopeStore(tmp_path / "a" / "envelopes.sqlite", keyring) as head,
        EnvelopeStore(tmp_path / "b" / "envelopes.sqlite", keyring) as standby,
    ):
        ids = [head.create_dek(artifact, TENANT) for _ in range(ROWS_MAX + 3)]
        reached, rows = carried(head.rows, 0)
        standby.take(rows)
        standby.take(rows)
        assert [standby.dek(one) for one in ids] == [head.dek(one) for one in ids]
        later = head.create_dek(artifact, TENANT)
        again, rows = carried(head.rows, reached)
        assert [row.key for row in rows] == [later]
        standby.take(rows)
        assert standby.dek(later) == head.dek(later)
        assert head.rows.since(again) == (again, [])


def test_a_destroyed_key_is_destroyed_everywhere(tmp_path: Path, keyring: FileKeyring) -> None:
    artifact, path = new_id(), tmp_path / "b" / "envelopes.sqlite"
    with (
        EnvelopeStore(tmp_path / "a" / "envelopes.sqlite", keyring) as head,
        EnvelopeStore(path, keyring) as standby,
    ):
        dek_id = head.create_dek(artifact, TENANT)
        reached, rows = carried(head.rows, 0)
        standby.take(rows)
        wrapped = next(row.values[2] for row in rows if row.key == dek_id and row.values)
        assert wrapped in path.read_bytes() + path.with_name(f"{path.name}-wal").read_bytes()
        head.destroy_artifact(artifact)
        standby.take(carried(head.rows, reached)[1])
        with pytest.raises(NotFound, match="were destroyed"):
            standby.dek(dek_id)
        assert wrapped not in path.read_bytes() + path.with_name(f"{path.name}-wal").read_bytes()


def test_a_file_from_before_changes_were_noted(tmp_path: Path, keyring: FileKeyring) -> None:
    path = tmp_path / "a" / "envelopes.sqlite"
    with EnvelopeStore(path, keyring) as head:
        dek_id = head.create_dek(new_id(), TENANT)
        for statement in ("DELETE FROM changes",):
            head._database.execute(statement)
    with EnvelopeStore(path, keyring) as head:
        assert dek_id in [row.key for row in carried(head.rows, 0)[1]]


def test_what_does_not_fit_is_refused_whole(tmp_path: Path, keyring: FileKeyring) -> None:
    other = FileKeyring.create(tmp_path / "other" / "keyring.json", keyring.cluster_id)
    with (
        EnvelopeStore(tmp_path / "a" / "envelopes.sqlite", other) as foreign,
        EnvelopeStore(tmp_path / "b" / "envelopes.sqlite", keyring) as standby,
    ):
        dek_id = foreign.create_dek(new_id(), TENANT)
        _, rows = carried(foreign.rows, 0)
        with pytest.raises(DamagedData, match="does not open"):
            standby.take(rows)
        for row in (
            Row(table="audit", key="1", values=("1",)),
            Row(table="deks", key="1", values=("1",)),
            Row(table="deks", key="1", values=("2", "3", b"4")),
            Row(table="deks", key="1", values=("1", "3", ["4"])),
        ):
            with pytest.raises(DamagedData, match="expected"):
                standby.take([row])
        with pytest.raises(NotFound, match="holds no data key"):
            standby.dek(dek_id)
        assert standby.rows.since(0) == (0, [])
