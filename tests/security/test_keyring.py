"""The file keyring: who may read it, what it refuses, rotation, and what it never overwrites."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylog.errors import Conflict, DamagedData, NotPermitted, RaylogError, Unavailable, UsageError
from raylog.security.keys import new_key
from raylog.security.providers.file import FileKeyring
from raylog.spec import new_id


def test_a_key_wrapped_comes_back_after_a_restart(keyring: FileKeyring, keyring_path: Path) -> None:
    key = new_key()
    wrapped = keyring.wrap(b"what for", key)
    assert key not in wrapped
    assert wrapped != keyring.wrap(b"what for", key)
    assert FileKeyring.load(keyring_path, keyring.cluster_id).unwrap(b"what for", wrapped) == key


def test_file_and_directory_are_the_owners_alone(keyring: FileKeyring, keyring_path: Path) -> None:
    assert keyring_path.stat().st_mode & 0o777 == 0o600
    assert keyring_path.parent.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in keyring_path.parent.iterdir()] == ["keyring.json"]


def test_a_missing_keyring_says_how_to_get_one(keyring_path: Path) -> None:
    with pytest.raises(NotPermitted, match=r"no keyring at .*'raylog up' makes one.*restore"):
        FileKeyring.load(keyring_path)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o601])
def test_laxer_modes_are_refused_with_the_command_to_run(keyring: FileKeyring, keyring_path: Path, mode: int) -> None:
    keyring_path.chmod(mode)
    with pytest.raises(NotPermitted, match=rf"has mode {mode:04o}, expected 0600.*chmod 600 {keyring_path}"):
        FileKeyring.load(keyring_path)


def test_a_directory_open_to_others_is_refused(keyring: FileKeyring, keyring_path: Path) -> None:
    keyring_path.parent.chmod(0o755)
    with pytest.raises(NotPermitted, match=rf"has mode 0755, expected 0700.*chmod 700 {keyring_path.parent}"):
        FileKeyring.load(keyring_path)


def test_a_new_keyring_is_not_put_into_a_directory_open_to_others(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "open").chmod(0o755)
    with pytest.raises(NotPermitted, match="0755"):
        FileKeyring.create(tmp_path / "open" / "keyring.json", new_id())
    assert list((tmp_path / "open").iterdir()) == []


def test_another_owner_is_refused(keyring: FileKeyring, keyring_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(NotPermitted, match=f"belongs to user {owner}, this process runs as user {owner + 1}"):
        FileKeyring.load(keyring_path)


def test_a_link_and_a_directory_are_no_keyring(keyring: FileKeyring, keyring_path: Path) -> None:
    link = keyring_path.with_name("link.json")
    link.symlink_to(keyring_path)
    with pytest.raises(NotPermitted, match="not a link"):
        FileKeyring.load(link)
    keyring_path.with_name("folder").mkdir(mode=0o700)
    with pytest.raises(NotPermitted, match="expected a regular file"):
        FileKeyring.load(keyring_path.with_name("folder"))


def test_another_clusters_keyring_is_refused_by_both_names(keyring: FileKeyring, keyring_path: Path) -> None:
    other = new_id()
    with pytest.raises(NotPermitted, match=f"cluster {keyring.cluster_id}, expected that of cluster {other}"):
        FileKeyring.load(keyring_path, other)


def test_an_existing_keyring_is_never_overwritten(keyring: FileKeyring, keyring_path: Path) -> None:
    before = keyring_path.read_bytes()
    with pytest.raises(Conflict, match="never overwritten"):
        FileKeyring.create(keyring_path, new_id())
    assert keyring_path.read_bytes() == before
    assert [path.name for path in keyring_path.parent.iterdir()] == ["keyring.json"]


def test_a_damaged_key_is_found_at_loading(keyring: FileKeyring, keyring_path: Path) -> None:
    content = json.loads(keyring_path.read_text())
    key = content["versions"][0]["key"]
    content["versions"][0]["key"] = ("B" if key[0] == "A" else "A") + key[1:]
    keyring_path.write_text(json.dumps(content))
    with pytest.raises(DamagedData, match="KEK version 1 was damaged"):
        FileKeyring.load(keyring_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"raylog_keyring_format": 9}, "expected keyring format 1, got 9"),
        ({"versions": []}, "without gaps"),
        ({"cluster_id": "../x"}, "is not a keyring"),
        ({"more": 1}, "is not a keyring"),
    ],
)
def test_a_malformed_keyring_is_refused(
    keyring: FileKeyring, keyring_path: Path, change: dict[str, object], message: str
) -> None:
    keyring_path.write_text(json.dumps(json.loads(keyring_path.read_text()) | change))
    with pytest.raises(DamagedData, match=message):
        FileKeyring.load(keyring_path)


@given(content=st.binary(max_size=200))
def test_any_other_bytes_are_refused_by_name(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("keyring", numbered=True) / "keyring.json"
    path.parent.chmod(0o700)
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(DamagedData, match="is not a keyring"):
        FileKeyring.load(path)


def test_old_keys_unwrap_after_a_rotation_and_new_ones_wrap(keyring: FileKeyring, keyring_path: Path) -> None:
    key = new_key()
    old = keyring.wrap(b"c", key)
    assert keyring.add_version() == 2
    new = keyring.wrap(b"c", key)
    assert keyring.needs_rewrap(old)
    assert not keyring.needs_rewrap(new)
    again = FileKeyring.load(keyring_path)
    assert again.newest_version == 2
    assert again.unwrap(b"c", old) == again.unwrap(b"c", new) == key
    assert keyring_path.stat().st_mode & 0o777 == 0o600


def test_a_rotation_by_another_process_is_picked_up(keyring: FileKeyring, keyring_path: Path) -> None:
    other = FileKeyring.load(keyring_path)
    other.add_version()
    key = new_key()
    assert not other.needs_rewrap(keyring.wrap(b"c", key))
    other.add_version()
    assert keyring.unwrap(b"c", other.wrap(b"c", key)) == key


def test_rotations_at_once_lose_no_version(keyring: FileKeyring, keyring_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from raylog.security.providers.file import FileKeyring\n"
        "keyring = FileKeyring.load(Path(sys.argv[1]))\n"
        "for _ in range(5): keyring.add_version()"
    )
    processes = [subprocess.Popen([sys.executable, "-c", script, str(keyring_path)]) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert FileKeyring.load(keyring_path).newest_version == 11


def test_a_rotation_does_not_wait_forever(
    keyring: FileKeyring, keyring_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raylog.security.providers.file.LOCK_TIMEOUT_S", 0.05)
    with keyring_path.with_name(".keyring.json.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(Unavailable, match="another process has changed"):
            keyring.add_version()
    assert keyring.add_version() == 2


def test_an_older_keyring_put_back_is_told(keyring: FileKeyring, keyring_path: Path) -> None:
    old = keyring_path.read_bytes()
    keyring.add_version()
    wrapped = keyring.wrap(b"c", new_key())
    keyring_path.write_bytes(old)
    with pytest.raises(NotPermitted, match=r"KEK version 2, .* holds versions 1 to 1"):
        FileKeyring.load(keyring_path).unwrap(b"c", wrapped)
    with pytest.raises(NotPermitted, match="lacks keys of cluster"):
        keyring.add_version()


def test_a_keyring_removed_while_running_still_serves(keyring: FileKeyring, keyring_path: Path) -> None:
    keyring_path.unlink()
    key = new_key()
    assert keyring.unwrap(b"c", keyring.wrap(b"c", key)) == key


def test_another_context_or_cluster_does_not_unwrap(keyring: FileKeyring, tmp_path: Path) -> None:
    wrapped = keyring.wrap(b"artifact a", new_key())
    with pytest.raises(DamagedData, match="does not open"):
        keyring.unwrap(b"artifact b", wrapped)
    other = FileKeyring.create(tmp_path / "other" / "keyring.json", new_id())
    with pytest.raises(DamagedData, match="does not open"):
        other.unwrap(b"artifact a", wrapped)


@given(position=st.integers(0, 64), bit=st.integers(0, 7), cut=st.integers(0, 65))
def test_any_flipped_bit_and_any_cut_is_refused(
    tmp_path_factory: pytest.TempPathFactory, position: int, bit: int, cut: int
) -> None:
    keyring = FileKeyring.create(tmp_path_factory.mktemp("k") / "private" / "keyring.json", new_id())
    wrapped = bytearray(keyring.wrap(b"c", new_key()))
    assert len(wrapped) == 65
    with pytest.raises(RaylogError):
        keyring.unwrap(b"c", bytes(wrapped[: min(cut, 64)]))
    wrapped[min(position, 64)] ^= 1 << bit
    with pytest.raises(RaylogError):
        keyring.unwrap(b"c", bytes(wrapped))


@pytest.mark.parametrize("key", [b"", b"correct horse battery staple", bytes(31), bytes(33)])
def test_only_keys_of_32_bytes_are_wrapped(keyring: FileKeyring, key: bytes) -> None:
    with pytest.raises(UsageError, match=f"32 bytes to wrap, got {len(key)}"):
        keyring.wrap(b"c", key)
