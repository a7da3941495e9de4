"""The file keyring: versioned key-encryption keys in one file that only its owner may read."""

import fcntl
import hmac
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from raylog.errors import DamagedData, NotPermitted, Unavailable, UsageError
from raylog.security.keys import KEY_BYTES, KeyHolder, labelled, new_key, seal, unseal
from raylog.security.private_files import (
    PRIVATE_MODE,
    check_private_directory,
    make_private_directory,
    read_private,
    write_private,
)
from raylog.spec import parse_id

FORMAT_VERSION = 1
LOCK_TIMEOUT_S = 10.0
_VERSIONS_MAX = 10_000
_FILE_BYTES_MAX = 4 << 20
_BLOB_FORMAT = 1
_HEAD_BYTES = 5  # blob format u8, KEK version u32
_Stamp = tuple[int, int, int]


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    number: int
    key: bytes
    check: str


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    raylog_keyring_format: int
    cluster_id: str
    versions: list[_Entry]


class FileKeyring(KeyHolder):
    """The KEKs of one cluster from one JSON file of mode 0600 in a directory of mode 0700; a `Provider`.

    Losing this file loses everything that is sealed under it: back it up after `create` and after each `add_version`,
    apart from the shards and the envelope store. Thread-safe; a version that another process added is picked up.
    """

    def __init__(self, path: Path, cluster_id: str, keks: dict[int, bytes], stamp: _Stamp) -> None:
        self._path = path
        self._cluster_id = cluster_id
        self._keks = keks
        self._stamp = stamp
        self._lock = threading.Lock()

    @classmethod
    def create(cls, path: Path, cluster_id: str) -> "FileKeyring":
        """A new keyring with KEK version 1; its directory is made. Raises `Conflict` when there is one already."""
        parse_id(cluster_id, "cluster id")
        make_private_directory(path.parent)
        write_private(path, _encode(cluster_id, {1: new_key()}), replace=False)
        return cls.load(path, cluster_id)

    @classmethod
    def load(cls, path: Path, cluster_id: str | None = None) -> "FileKeyring":
        """The keyring at `path`; `cluster_id`, where given, must be its cluster's.

        Raises `NotPermitted` when it is missing, of laxer modes, another user's or another cluster's, `DamagedData`
        when it is malformed; each says what to do.
        """
        found, keks, stamp = _read(path)
        if cluster_id is not None and found != cluster_id:
            raise NotPermitted(
                f"{path} is the keyring of cluster {found}, expected that of cluster {cluster_id}: name the right file"
            )
        return cls(path, found, keks, stamp)

    @property
    def cluster_id(self) -> str:
        return self._cluster_id

    @property
    def newest_version(self) -> int:
        """The KEK version that `wrap` uses."""
        return max(self._keks)

    def add_version(self) -> int:
        """Adds a fresh KEK, which wraps from now on, and returns its number; older ones keep unwrapping.

        Atomic, also among processes: two that rotate at once make two versions. Afterwards rewrap what is stored
        (`EnvelopeStore.rewrap_all`, `Authority.rewrap`) and back the keyring up.
        """
        with self._lock, _locked(self._path):
            _, keks, _ = self._read_again()
            number = max(keks) + 1
            if number > _VERSIONS_MAX:
                raise UsageError(f"{self._path} holds {_VERSIONS_MAX} KEK versions, the most there may be")
            write_private(self._path, _encode(self._cluster_id, keks | {number: new_key()}), replace=True)
            _, self._keks, self._stamp = self._read_again()
            return number

    def wrap(self, context: bytes, key: bytes) -> bytes:
        if len(key) != KEY_BYTES:
            raise UsageError(f"expected a key of {KEY_BYTES} bytes to wrap, got {len(key)}")
        with self._lock:
            self._refresh()
            number = max(self._keks)
            head = bytes([_BLOB_FORMAT]) + number.to_bytes(4, "big")
            return head + seal(self._keks[number], self._bind(head, context), key)

    def unwrap(self, context: bytes, wrapped: bytes) -> bytes:
        number = _kek_version(wrapped)
        with self._lock:
            if number not in self._keks:
                self._refresh()
            if number not in self._keks:
                raise NotPermitted(
                    f"a key is wrapped under KEK version {number}, {self._path} holds versions 1 to {max(self._keks)}: "
                    "an older copy of the keyring was put in its place; restore the newest one"
                )
            kek = self._keks[number]
        head, sealed = wrapped[:_HEAD_BYTES], wrapped[_HEAD_BYTES:]
        return unseal(kek, self._bind(head, context), sealed, f"a key wrapped under KEK version {number}")

    def needs_rewrap(self, wrapped: bytes) -> bool:
        with self._lock:
            self._refresh()
            return _kek_version(wrapped) != max(self._keks)

    def __repr__(self) -> str:
        return f"<FileKeyring of cluster {self._cluster_id} at {self._path}>"

    def _bind(self, head: bytes, context: bytes) -> bytes:
        return labelled(b"raylog/1 kek", self._cluster_id.encode(), head, context)

    def _refresh(self) -> None:
        """Reads the file again if another process has replaced it: a key wrapped under a KEK that a rotation left
        behind would be forgotten by its rewrapping."""
        try:
            stamp = _stamp(self._path.stat())
        except FileNotFoundError:
            return  # what is loaded still serves; the next start says that the file is gone
        if stamp != self._stamp:
            _, self._keks, self._stamp = self._read_again()

    def _read_again(self) -> tuple[str, dict[int, bytes], _Stamp]:
        found, keks, stamp = _read(self._path)
        if found != self._cluster_id or any(keks.get(number) != key for number, key in self._keks.items()):
            raise NotPermitted(
                f"{self._path} was replaced by a keyring that lacks keys of cluster {self._cluster_id}: "
                "restore the newest"
            )
        return found, keks, stamp


def _read(path: Path) -> tuple[str, dict[int, bytes], _Stamp]:
    """Cluster id, KEKs by version, and which file they came from."""
    try:
        check_private_directory(path.parent)
        stamp = _stamp(path.stat())  # taken first: a file replaced meanwhile is then read once more, never missed
        data = read_private(path, _FILE_BYTES_MAX)
    except FileNotFoundError:
        raise NotPermitted(
            f"there is no keyring at {path}: 'raylog up' makes one for a new cluster; where sealed data exists, "
            "restore the keyring from its backup (a new one opens nothing that is stored)"
        ) from None
    return *_decode(data, path), stamp


def _decode(data: bytes, path: Path) -> tuple[str, dict[int, bytes]]:
    try:
        file = msgspec.json.decode(data, type=_File)
        cluster_id = parse_id(file.cluster_id, "cluster id")
        keks = {entry.number: entry.key for entry in file.versions}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError, UsageError):
        # The cause is left out: it may quote what stands in the file.
        raise DamagedData(f"{path} is not a keyring, or was damaged: restore it from its backup") from None
    if file.raylog_keyring_format != FORMAT_VERSION:
        raise DamagedData(f"{path}: expected keyring format {FORMAT_VERSION}, got {file.raylog_keyring_format}")
    if not keks or list(keks) != list(range(1, len(file.versions) + 1)):
        raise DamagedData(f"{path}: expected KEK versions 1, 2, … without gaps, got {list(keks)[:20]}: restore it")
    for entry in file.versions:
        key = keks[entry.number]
        if len(key) != KEY_BYTES or not hmac.compare_digest(_check_value(key), entry.check.encode()):
            raise DamagedData(f"{path}: KEK version {entry.number} was damaged: restore the keyring from its backup")
    return cluster_id, keks


def _encode(cluster_id: str, keks: dict[int, bytes]) -> bytes:
    versions = [_Entry(number=number, key=key, check=_check_value(key).decode()) for number, key in keks.items()]
    file = _File(raylog_keyring_format=FORMAT_VERSION, cluster_id=cluster_id, versions=versions)
    return msgspec.json.format(msgspec.json.encode(file)) + b"\n"


def _check_value(key: bytes) -> bytes:
    """16 hex digits that show a damaged key at loading, not when the first shard fails to open."""
    return hmac.digest(key, b"raylog/1 kek check", "sha256")[:8].hex().encode()


def _kek_version(wrapped: bytes) -> int:
    if len(wrapped) < _HEAD_BYTES or wrapped[0] != _BLOB_FORMAT:
        raise DamagedData(f"expected a wrapped key of format {_BLOB_FORMAT}, got {len(wrapped)} other bytes")
    return int.from_bytes(wrapped[1:_HEAD_BYTES], "big")


def _stamp(found: os.stat_result) -> _Stamp:
    return found.st_ino, found.st_mtime_ns, found.st_size


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time reads, changes and replaces the file. Held for milliseconds; the kernel drops the lock with
    its process. Raises `Unavailable` after `LOCK_TIMEOUT_S`."""
    descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_MODE)
    try:
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while not _try_lock(descriptor):
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"another process has changed {path} for {LOCK_TIMEOUT_S:.0f} s: is it stopped? try again"
                )
            time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
