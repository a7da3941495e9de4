"""Backups of a cluster's keys, sealed to a recovery key that no machine of the cluster has (RECOVERY.md)."""

import base64
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import msgspec

from raylog.errors import Conflict, DamagedData, NotFound, NotPermitted, Unavailable, UsageError
from raylog.security.certs import Authority
from raylog.security.envelopes import EnvelopeStore
from raylog.security.keys import labelled
from raylog.security.private_files import make_private_directory, read_private, write_private
from raylog.security.providers.file import FileKeyring
from raylog.security.recipient import Recipient, Suite, best_suite, fresh_private_bytes, seal_to
from raylog.spec import parse_id

FORMAT_VERSION = 1
KEY_FILE_BYTES_MAX = 16 << 10
BACKUP_BYTES_MAX = 8 << 30
BUSY_TIMEOUT_S = 30.0
T = TypeVar("T")


class _PrivateFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    raylog_recovery_key_format: int = FORMAT_VERSION
    suite: Suite
    key: str


class _PublicFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    raylog_recovery_public_format: int = FORMAT_VERSION
    suite: Suite
    key: str


class _Backup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    raylog_key_backup_format: int = FORMAT_VERSION
    suite: Suite
    cluster_id: str
    created_us: int
    sealed: bytes


class _Files(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    keyring: bytes
    authority: bytes
    envelopes: bytes


class KeyPaths(msgspec.Struct, frozen=True, kw_only=True):
    """Where a cluster's keys lie on its head."""

    keyring: Path
    authority: Path
    envelopes: Path


def create_recovery_key(path: Path) -> Path:
    """Writes a new recovery key to `path`, for its owner alone, and its public half to `path`.pub, which is returned.
    Raises `Conflict` when one of them is there."""
    suite = best_suite()
    private_bytes = fresh_private_bytes(suite)
    public_path = path.with_name(f"{path.name}.pub")
    if public_path.exists():
        raise Conflict(f"{public_path} exists already and is never overwritten: name another file")
    private = _PrivateFile(suite=suite, key=base64.b64encode(private_bytes).decode())
    write_private(path, _json(private), replace=False)
    public = _PublicFile(suite=suite, key=base64.b64encode(Recipient(suite, private_bytes).public_key).decode())
    public_path.write_bytes(_json(public))
    return public_path


def back_up_keys(paths: KeyPaths, public_path: Path, now_s: float) -> bytes:
    """A key backup, sealed to the recovery key whose public half lies at `public_path`. The cluster may be running.

    Raises `NotPermitted` when the keys may not be read here, `UsageError` for another file than a recovery key's.
    """
    public = _read_key_file(public_path, _PublicFile, "the public half of a recovery key")
    cluster_id = FileKeyring.load(paths.keyring).cluster_id
    envelopes, authority = _image(paths.envelopes), _image(paths.authority)
    files = _Files(
        envelopes=envelopes, authority=authority, keyring=read_private(paths.keyring, BACKUP_BYTES_MAX)
    )  # the keyring last: it has every KEK that the others are under
    created_us = int(now_s * 1e6)
    sealed = seal_to(
        public.suite, _base64(public.key, public_path), msgspec.msgpack.encode(files), _info(cluster_id, created_us)
    )
    backup = _Backup(suite=public.suite, cluster_id=cluster_id, created_us=created_us, sealed=sealed)
    return msgspec.msgpack.encode(backup)


def read_backup(path: Path) -> bytes:
    """Raises `NotFound`, `DamagedData`."""
    try:
        with path.open("rb") as file:
            data = file.read(BACKUP_BYTES_MAX + 1)
    except OSError as error:
        raise NotFound(f"expected a backup of keys at {path}: {error.strerror}") from error
    if len(data) > BACKUP_BYTES_MAX:
        raise DamagedData(f"{path} is longer than any backup of keys")
    return data


def restore_keys(data: bytes, private_path: Path, paths: KeyPaths) -> str:
    """Puts a backup's keys where there are none, and checks that they open; the cluster's id.

    Raises `Conflict` when there are keys, `NotPermitted` when the recovery key is another one or is readable by others,
    `DamagedData` for what is no key backup. Then nothing is left behind.
    """
    for path in (paths.keyring, paths.authority, paths.envelopes):
        if path.exists():
            raise Conflict(f"{path} exists: keys are restored only where there are none; move {path.parent} away first")
    backup = _decode(data, _Backup, "a key backup")
    cluster_id = parse_id(backup.cluster_id, "cluster id")
    private = _read_key_file(private_path, _PrivateFile, "a recovery key", is_private=True)
    recipient = Recipient(private.suite, _base64(private.key, private_path))
    opened = recipient.open(backup.sealed, _info(cluster_id, backup.created_us), "the key backup")
    files = _decode(opened, _Files, "what is in the key backup")
    written: list[Path] = []
    try:
        for path, content in (
            (paths.keyring, files.keyring),
            (paths.authority, files.authority),
            (paths.envelopes, files.envelopes),
        ):
            make_private_directory(path.parent)
            write_private(path, content, replace=False)
            written.append(path)
        keyring = FileKeyring.load(paths.keyring, cluster_id)
        with Authority.load(paths.authority, keyring):
            EnvelopeStore(paths.envelopes, keyring).close()
    except BaseException:
        for path in written:
            for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
                path.with_name(name).unlink(missing_ok=True)
        raise
    return cluster_id


def _image(path: Path) -> bytes:
    """One committed state of a SQLite file that others may be writing to."""
    if not path.exists():
        raise NotFound(f"there is no {path}: back up the keys on the head, after 'raylog up'")
    try:
        source = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=BUSY_TIMEOUT_S)
        with closing(source), closing(sqlite3.connect(":memory:")) as copy:
            source.backup(copy)
            return copy.serialize()
    except sqlite3.Error as error:
        raise Unavailable(f"{path} was not copied: {error}") from error


def _info(cluster_id: str, created_us: int) -> bytes:
    return labelled(b"raylog/1 key backup", cluster_id.encode(), str(created_us).encode())


def _read_key_file(path: Path, kind: type[T], what: str, *, is_private: bool = False) -> T:
    try:
        data = read_private(path, KEY_FILE_BYTES_MAX) if is_private else path.read_bytes()[:KEY_FILE_BYTES_MAX]
    except OSError as error:
        raise NotFound(f"expected {what} at {path}: {error.strerror}") from error
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.MsgspecError:
        raise UsageError(f"{path} is not {what}; 'raylog keys recovery-key' makes one") from None


def _decode(data: bytes, kind: type[T], what: str) -> T:
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise DamagedData(f"expected {what} of format {FORMAT_VERSION}, got {len(data)} other bytes") from None


def _base64(text: str, path: Path) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise NotPermitted(f"{path} was damaged: its key is no base64") from None


def _json(document: msgspec.Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(document)) + b"\n"
