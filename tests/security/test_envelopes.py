"""The envelope store: round trips, moved and changed rows, rotation, crash, crypto-shredding."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from raylog.errors import DamagedData, NotFound, NotPermitted, UsageError
from raylog.security.envelopes import EnvelopeStore
from raylog.security.providers.file import FileKeyring
from raylog.spec import new_id


def path_of(tmp_path: Path) -> Path:
    return tmp_path / "keys" / "envelopes.sqlite"


def change(tmp_path: Path, statement: str, *values: object) -> None:
    connection = sqlite3.connect(path_of(tmp_path))
    assert connection.execute(statement, values).rowcount > 0
    connection.commit()
    connection.close()


def column(tmp_path: Path, statement: str) -> list[bytes]:
    connection = sqlite3.connect(path_of(tmp_path))
    rows = [row[0] for row in connection.execute(statement)]
    connection.close()
    return rows


def test_keys_come_back_after_a_restart(store: EnvelopeStore, keyring: FileKeyring, tmp_path: Path) -> None:
    artifact, tenant = new_id(), new_id()
    first, second = store.create_dek(artifact, tenant), store.create_dek(artifact, tenant)
    keys = [store.dek(first), store.dek(second)]
    assert len(set(keys)) == 2
    assert {len(key) for key in keys} == {32}
    store.close()
    with EnvelopeStore(path_of(tmp_path), keyring) as again:
        assert [again.dek(first), again.dek(second)] == keys
        assert again.artifact_of(second) == artifact
    content = path_of(tmp_path).read_bytes()
    assert not any(key in content for key in keys)


def test_all_files_are_the_owners_alone(store: EnvelopeStore, tmp_path: Path) -> None:
    store.create_dek(new_id(), new_id())
    modes = {path.name: path.stat().st_mode & 0o777 for path in path_of(tmp_path).parent.iterdir()}
    assert set(modes.values()) == {0o600}
    assert "envelopes.sqlite-wal" in modes


def test_laxer_modes_are_refused(store: EnvelopeStore, keyring: FileKeyring, tmp_path: Path) -> None:
    store.close()
    path_of(tmp_path).chmod(0o644)
    with pytest.raises(NotPermitted, match="has mode 0644, expected 0600"):
        EnvelopeStore(path_of(tmp_path), keyring)


def test_another_clusters_store_is_refused_by_both_names(store: EnvelopeStore, tmp_path: Path) -> None:
    other = FileKeyring.create(tmp_path / "other" / "keyring.json", new_id())
    with pytest.raises(NotPermitted, match=f"expected envelopes of format 1 of cluster {other.cluster_id}"):
        EnvelopeStore(path_of(tmp_path), other)


def test_another_keyring_of_the_same_cluster_id_does_not_open_it(
    store: EnvelopeStore, keyring: FileKeyring, tmp_path: Path
) -> None:
    twin = FileKeyring.create(tmp_path / "twin" / "keyring.json", keyring.cluster_id)
    with pytest.raises(DamagedData, match="belongs to another key"):
        EnvelopeStore(path_of(tmp_path), twin)


def test_a_file_that_is_no_database_is_refused(keyring: FileKeyring, tmp_path: Path) -> None:
    path_of(tmp_path).parent.mkdir(mode=0o700)
    path_of(tmp_path).write_bytes(b"not a database, but long enough to look like one" * 30)
    path_of(tmp_path).chmod(0o600)
    with pytest.raises(DamagedData, match="is damaged"):
        EnvelopeStore(path_of(tmp_path), keyring)


def test_an_unknown_key_and_a_bad_id_are_told_apart(store: EnvelopeStore) -> None:
    with pytest.raises(NotFound, match="holds no data key"):
        store.dek(new_id())
    with pytest.raises(UsageError, match="expected DEK id"):
        store.dek("../../etc/passwd")
    with pytest.raises(UsageError, match="expected tenant id"):
        store.create_dek(new_id(), "tenant")


def test_an_artifact_stays_its_tenants(store: EnvelopeStore) -> None:
    artifact, tenant = new_id(), new_id()
    store.create_dek(artifact, tenant)
    with pytest.raises(NotPermitted, match=f"is tenant {tenant}'s"):
        store.create_dek(artifact, new_id())


def test_swapped_and_moved_rows_do_not_open(store: EnvelopeStore, tmp_path: Path) -> None:
    artifact, other, tenant = new_id(), new_id(), new_id()
    one, two, three = (
        store.create_dek(artifact, tenant),
        store.create_dek(artifact, tenant),
        store.create_dek(other, tenant),
    )
    change(tmp_path, "UPDATE deks SET wrapped = (SELECT wrapped FROM deks WHERE dek_id = ?) WHERE dek_id = ?", two, one)
    with pytest.raises(DamagedData, match=f"data key {one} does not open"):
        store.dek(one)
    assert len(store.dek(two)) == 32
    change(tmp_path, "UPDATE deks SET artifact_id = ? WHERE dek_id = ?", artifact, three)
    for method in (store.dek, store.artifact_of):
        with pytest.raises(DamagedData, match="moved from another place"):
            method(three)


def test_a_swapped_artifact_key_or_tenant_does_not_open(store: EnvelopeStore, tmp_path: Path) -> None:
    one, two, tenant = new_id(), new_id(), new_id()
    first, second = store.create_dek(one, tenant), store.create_dek(two, tenant)
    change(
        tmp_path,
        "UPDATE artifacts SET wrapped = (SELECT wrapped FROM artifacts WHERE artifact_id = ?) WHERE artifact_id = ?",
        two,
        one,
    )
    with pytest.raises(DamagedData, match="does not open"):
        store.dek(first)
    change(tmp_path, "UPDATE artifacts SET tenant = ? WHERE artifact_id = ?", new_id(), two)
    with pytest.raises(DamagedData, match="does not open"):
        store.dek(second)


def test_a_rotation_rewraps_artifact_keys_and_nothing_else(
    store: EnvelopeStore, keyring: FileKeyring, tmp_path: Path
) -> None:
    deks = [store.create_dek(new_id(), new_id()) for _ in range(20)]
    keys = [store.dek(dek) for dek in deks]
    wrapped_deks = column(tmp_path, "SELECT wrapped FROM deks ORDER BY dek_id")
    wrapped_artifacts = column(tmp_path, "SELECT wrapped FROM artifacts ORDER BY artifact_id")
    assert store.rewrap_all() == 0
    keyring.add_version()
    assert store.rewrap_all() == 20 + 1  # and the audit log's key
    assert store.rewrap_all() == 0
    assert column(tmp_path, "SELECT wrapped FROM deks ORDER BY dek_id") == wrapped_deks
    after = column(tmp_path, "SELECT wrapped FROM artifacts ORDER BY artifact_id")
    assert not set(after) & set(wrapped_artifacts)
    assert not any(keyring.needs_rewrap(wrapped) for wrapped in after)
    assert [store.dek(dek) for dek in deks] == keys
    content = path_of(tmp_path).read_bytes()
    assert not any(wrapped in content for wrapped in wrapped_artifacts)


CRASH = """
import os, signal, sys
from pathlib import Path
from raylog.security import envelopes
from raylog.security.providers.file import FileKeyring

class Dying(FileKeyring):
    left = 37
    def wrap(self, context, key):
        Dying.left -= 1
        if Dying.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().wrap(context, key)

envelopes._REWRAPPED_AT_ONCE = 10
keyring = Dying.load(Path(sys.argv[1]))
keyring.add_version()
envelopes.EnvelopeStore(Path(sys.argv[2]), keyring).rewrap_all()
"""


def test_sigkill_in_the_middle_of_a_rewrapping_loses_nothing(
    store: EnvelopeStore, keyring: FileKeyring, keyring_path: Path, tmp_path: Path
) -> None:
    deks = {store.create_dek(new_id(), new_id()) for _ in range(60)}
    keys = {dek: store.dek(dek) for dek in deks}
    store.close()
    words = [sys.executable, "-c", CRASH, str(keyring_path), str(path_of(tmp_path))]
    assert subprocess.run(words, timeout=60, check=False).returncode == -9
    with EnvelopeStore(path_of(tmp_path), FileKeyring.load(keyring_path)) as again:
        assert {dek: again.dek(dek) for dek in deks} == keys
        old = sum(keyring.needs_rewrap(wrapped) for wrapped in column(tmp_path, "SELECT wrapped FROM artifacts"))
        assert old == 30  # three whole batches of ten were committed
        assert again.rewrap_all() == 30
        assert {dek: again.dek(dek) for dek in deks} == keys
        again.audit.verify_chain()


def test_a_destroyed_artifact_says_so_and_others_live(
    store: EnvelopeStore, keyring: FileKeyring, tmp_path: Path
) -> None:
    artifact, tenant = new_id(), new_id()
    dek, other = store.create_dek(artifact, tenant), store.create_dek(new_id(), tenant)
    wrapped = column(tmp_path, f"SELECT wrapped FROM deks WHERE dek_id = '{dek}'")
    wrapped += column(tmp_path, f"SELECT wrapped FROM artifacts WHERE artifact_id = '{artifact}'")
    store.destroy_artifact(artifact)
    store.destroy_artifact(artifact)
    for refused in (lambda: store.dek(dek), lambda: store.artifact_of(dek), lambda: store.create_dek(artifact, tenant)):
        with pytest.raises(NotFound, match=f"keys of artifact {artifact} were destroyed on 20"):
            refused()
    assert len(store.dek(other)) == 32
    files = [path.read_bytes() for path in path_of(tmp_path).parent.iterdir()]
    assert len(wrapped) == 2
    assert not any(blob in content for blob in wrapped for content in files)
    assert [entry.event for entry in store.audit.entries()] == ["artifact destroyed"]
    keyring.add_version()
    assert store.rewrap_all() == 2
    with pytest.raises(NotFound, match="destroyed"):
        store.dek(dek)


def test_destroying_an_unknown_artifact_is_told(store: EnvelopeStore) -> None:
    with pytest.raises(NotFound, match="no key of artifact"):
        store.destroy_artifact(new_id())
