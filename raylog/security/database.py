"""A SQLite file of mode 0600 that says whose it is: what the envelope store and the authority keep their state in."""

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raylog.errors import DamagedData, NoSpace, NotPermitted, Unavailable
from raylog.security.private_files import PRIVATE_MODE, check_private_file, make_private_directory

BUSY_TIMEOUT_S = 10.0
_FULL = {sqlite3.SQLITE_FULL}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_META = "CREATE TABLE IF NOT EXISTS meta (kind TEXT NOT NULL, format INTEGER NOT NULL, cluster_id TEXT NOT NULL)"


class Database:
    """One connection for all threads of this process; other processes may have the file open too.

    `kind`, `format` and `cluster_id` are written at the first opening and must fit ever after. What a transaction
    committed is on the disk (synchronous=FULL); what was deleted is overwritten (secure_delete).
    """

    def __init__(self, path: Path, *, kind: str, format_version: int, cluster_id: str, schema: Sequence[str]) -> None:
        self.path = path
        self._lock = threading.RLock()
        make_private_directory(path.parent)
        # SQLite would make the file by the umask; its -wal and -shm take the modes of the file itself.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, PRIVATE_MODE))
        check_private_file(path)
        self._connection = sqlite3.connect(
            path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, cached_statements=64
        )
        try:
            self._prepare([_META, *schema])
            self._check_owner(kind, format_version, cluster_id)
        except BaseException:
            self._connection.close()
            raise

    def _prepare(self, schema: Sequence[str]) -> None:
        with _errors(self.path):
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON", "trusted_schema=OFF"):
                self._connection.execute(f"PRAGMA {pragma}").fetchall()
        with self.transaction():
            for statement in schema:
                self.execute(statement)

    def _check_owner(self, kind: str, format_version: int, cluster_id: str) -> None:
        expected = (kind, format_version, cluster_id)
        with self.transaction():
            rows = self.execute("SELECT kind, format, cluster_id FROM meta")
            if not rows:
                self.execute("INSERT INTO meta VALUES (?, ?, ?)", *expected)
                return
        if rows != [expected]:
            found = f"{rows[0][0]} of format {rows[0][1]} of cluster {rows[0][2]}"
            raise NotPermitted(
                f"{self.path} is {found}, expected {kind} of format {format_version} of cluster {cluster_id}: name the "
                "file that belongs to this keyring"
            )

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it or nothing, alone among threads and processes. May be nested: the outermost one decides."""
        with self._lock:
            if self._connection.in_transaction:
                yield
                return
            with _errors(self.path):
                self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._connection.rollback()
                raise
            try:
                with _errors(self.path):
                    self._connection.commit()
            except BaseException:  # else the next transaction would pass for a nested one, and never be committed
                self._connection.rollback()
                raise

    def execute(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """All rows of one statement. Raises `NoSpace`, `DamagedData` or `Unavailable`, naming the file."""
        with self._lock, _errors(self.path):
            return self._connection.execute(statement, values).fetchall()

    def forget_deleted(self) -> None:
        """Empties the write-ahead log: what was deleted or replaced stands in no file of this database any more (the
        disk's own spare blocks, snapshots and backups are another matter). Raises `Unavailable` while others read."""
        with self._lock, _errors(self.path):
            ((busy, _, _),) = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        if busy:
            raise Unavailable(
                f"{self.path}: what was deleted still stands in the write-ahead log, as another process is reading: "
                "close it and do this again"
            )

    def close(self) -> None:
        """Nothing may be called afterwards."""
        with self._lock:
            self._connection.close()


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in _FULL:
            raise NoSpace(f"{path}: the disk is full; nothing was changed, make room and try again") from error
        if code in _DAMAGED:
            raise DamagedData(f"{path} is damaged ({error}): restore it from its backup") from error
        raise Unavailable(f"{path}: {error}; nothing was changed") from error
