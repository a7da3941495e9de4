"""Envelopes and the authority's tables on a second machine: what changed comes over, and nothing comes back."""

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from raylog.errors import Conflict, DamagedData, NotFound, NotPermitted
from raylog.security.certs import Authority
from raylog.security.envelopes import EnvelopeStore
from raylog.security.identity import Identity
from raylog.security.join import request_renewal, request_with_token
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


def test_a_key_that_is_in_use_is_never_replaced_by_another(tmp_path: Path, keyring: FileKeyring) -> None:
    artifact = new_id()
    with (
        EnvelopeStore(tmp_path / "a" / "envelopes.sqlite", keyring) as one,
        EnvelopeStore(tmp_path / "b" / "envelopes.sqlite", keyring) as other,
    ):
        kept, foreign = one.create_dek(artifact, TENANT), other.create_dek(artifact, TENANT)
        with pytest.raises(Conflict, match="another key of artifact"):
            one.take(carried(other.rows, 0)[1])
        assert len(one.dek(kept)) == 32
        with pytest.raises(NotFound):
            one.dek(foreign)


def test_tokens_and_bindings_come_over(tmp_path: Path, keyring: FileKeyring) -> None:
    node = Identity(role="node", id=new_id(), cluster_id=keyring.cluster_id)
    path = tmp_path / "a" / "authority.sealed"
    with Authority.create(path, keyring) as head:
        (tmp_path / "b").mkdir(mode=0o700)
        (tmp_path / "b" / "authority.sealed").touch(mode=0o600)
        (tmp_path / "b" / "authority.sealed").write_bytes(back_up(path))
        with Authority.load(tmp_path / "b" / "authority.sealed", keyring) as standby:
            token, revoked = head.make_join_token(), head.make_join_token()
            head.revoke_join_token(revoked.token_id)
            pending = request_with_token(token, node.role, node.id, time.time(), None)
            credentials = pending.accept(head.admit(pending.request, time.time()), time.time())
            standby.take(carried(head.rows, 0)[1])
            renewal = request_renewal(credentials, time.time())
            renewal.accept(standby.admit(renewal.request, time.time()), time.time())
            stranger = request_with_token(token, node.role, node.id, time.time(), None)
            with pytest.raises(NotPermitted, match="bound to another key"):
                standby.admit(stranger.request, time.time())
            late = request_with_token(revoked, node.role, new_id(), time.time(), None)
            with pytest.raises(NotPermitted, match="was revoked"):
                standby.admit(late.request, time.time())
            reached, _ = carried(head.rows, 0)
            head.forget(node)
            standby.take(carried(head.rows, reached)[1])
            standby.admit(request_with_token(token, node.role, node.id, time.time(), None).request, time.time())


def back_up(path: Path) -> bytes:
    """A committed state of a file that is open."""
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(":memory:")) as copy:
        source.backup(copy)
        return copy.serialize()
