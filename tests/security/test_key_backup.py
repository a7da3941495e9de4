"""Backups of keys: they open with the recovery key alone, and put everything back as it was or nothing at all."""

import stat
from pathlib import Path

import msgspec
import pytest

from raylog.errors import Conflict, DamagedData, NotFound, NotPermitted, RaylogError, UsageError
from raylog.security.certs import Authority
from raylog.security.envelopes import EnvelopeStore
from raylog.security.key_backup import KeyPaths, back_up_keys, create_recovery_key, read_backup, restore_keys
from raylog.security.providers.file import FileKeyring
from raylog.spec import new_id


@pytest.fixture
def paths(tmp_path: Path, keyring_path: Path, authority: Authority, store: EnvelopeStore) -> KeyPaths:
    return KeyPaths(keyring=keyring_path, authority=keyring_path.parent / "authority.sealed",
                    envelopes=tmp_path / "keys" / "envelopes.sqlite")  # fmt: skip


@pytest.fixture
def elsewhere(tmp_path: Path) -> KeyPaths:
    top = tmp_path / "elsewhere"
    return KeyPaths(keyring=top / "k" / "keyring.json", authority=top / "k" / "authority.sealed",
                    envelopes=top / "e" / "envelopes.sqlite")  # fmt: skip


@pytest.fixture
def recovery(tmp_path: Path) -> Path:
    create_recovery_key(tmp_path / "recovery")
    return tmp_path / "recovery"


def public(recovery: Path) -> Path:
    return recovery.with_name("recovery.pub")


def test_what_was_backed_up_while_it_was_in_use_opens_elsewhere(
    paths: KeyPaths,
    elsewhere: KeyPaths,
    recovery: Path,
    store: EnvelopeStore,
    keyring: FileKeyring,
    authority: Authority,
) -> None:
    artifact_id = new_id()
    before = store.create_dek(artifact_id, new_id())
    key = store.dek(before)
    keyring.add_version()
    data = back_up_keys(paths, public(recovery), 1.0)
    later = store.create_dek(new_id(), new_id())
    assert restore_keys(data, recovery, elsewhere) == keyring.cluster_id
    again = FileKeyring.load(elsewhere.keyring)
    assert (again.cluster_id, again.newest_version) == (keyring.cluster_id, 2)
    with Authority.load(elsewhere.authority, again) as restored:
        assert restored.cluster_public_key == authority.cluster_public_key
    with EnvelopeStore(elsewhere.envelopes, again) as envelopes:
        assert envelopes.dek(before) == key
        with pytest.raises(NotFound):
            envelopes.dek(later)
    for path in (elsewhere.keyring, elsewhere.authority, elsewhere.envelopes):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_it_shows_no_key(paths: KeyPaths, recovery: Path, store: EnvelopeStore) -> None:
    data = back_up_keys(paths, public(recovery), 1.0)
    keks = msgspec.json.decode(paths.keyring.read_bytes())["versions"]
    for entry in keks:
        assert entry["key"].encode() not in data
    assert b"SQLite format" not in data
    assert stat.S_IMODE(recovery.stat().st_mode) == 0o600


@pytest.mark.parametrize("trouble", ["other key", "bit", "cluster", "time", "cut", "nothing", "a key file"])
def test_what_does_not_open_leaves_nothing(
    paths: KeyPaths, elsewhere: KeyPaths, recovery: Path, tmp_path: Path, trouble: str
) -> None:
    data = back_up_keys(paths, public(recovery), 1.0)
    fields = msgspec.msgpack.decode(data)
    key = recovery
    if trouble == "other key":
        key = tmp_path / "other"
        create_recovery_key(key)
    elif trouble == "bit":
        data = data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]
    elif trouble == "cluster":
        data = msgspec.msgpack.encode(fields | {"cluster_id": new_id()})
    elif trouble == "time":
        data = msgspec.msgpack.encode(fields | {"created_us": 2})
    elif trouble == "a key file":
        data = recovery.read_bytes()
    else:
        data = data[: len(data) // 2] if trouble == "cut" else b""
    with pytest.raises((NotPermitted, DamagedData)):
        restore_keys(data, key, elsewhere)
    top = tmp_path / "elsewhere"
    assert [path for path in top.rglob("*") if path.is_file()] == []


def test_keys_that_are_there_are_not_replaced(paths: KeyPaths, recovery: Path) -> None:
    before = paths.keyring.read_bytes()
    data = back_up_keys(paths, public(recovery), 1.0)
    with pytest.raises(Conflict, match="exists"):
        restore_keys(data, recovery, paths)
    assert paths.keyring.read_bytes() == before


def test_files_that_are_not_what_they_should_be(
    paths: KeyPaths, elsewhere: KeyPaths, recovery: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="public half"):
        back_up_keys(paths, recovery, 1.0)
    with pytest.raises(NotFound, match="public half"):
        back_up_keys(paths, tmp_path / "none", 1.0)
    with pytest.raises(RaylogError):
        back_up_keys(elsewhere, public(recovery), 1.0)
    data = back_up_keys(paths, public(recovery), 1.0)
    with pytest.raises(UsageError, match="recovery key"):
        pub = public(recovery)
        pub.chmod(0o600)
        restore_keys(data, pub, elsewhere)
    recovery.chmod(0o644)
    with pytest.raises(NotPermitted, match="0644"):
        restore_keys(data, recovery, elsewhere)
    with pytest.raises(NotFound):
        read_backup(tmp_path / "none")
    with pytest.raises(Conflict):
        create_recovery_key(recovery)
