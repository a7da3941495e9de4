"""One SQLite file with one owner: who may open it, what its transactions promise, and its errors in raylog's terms.

- One process has the file open at a time: a lock on the open descriptor of `<file>.lock`, which the kernel drops with
  the process, however that ends.
- A transaction that was committed is on the disk (WAL, synchronous=FULL). One that failed changed nothing.
- Reads run on a connection of their own and see one committed state from begin to end; they never wait for an fsync.
- After the device failed to write, it is not known what it kept: nothing more is written until the file is opened anew.
"""

import fcntl
import os
import sqlite3
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from raylog.errors import DamagedData, NoSpace, NotFound, NotPermitted, RaylogError, Unavailable, UsageError

LOCK_TIMEOUT_S = 60.0

_META = "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID"


class Database:
    """A SQLite file of mode 0600 that says whose it is. Threads may share it."""

    def __init__(
        self, path: Path, *, kind: str, schema_version: int, cluster_id: str, schema: Sequence[str], create: bool
    ) -> None:
        """Opens the file, or makes it when `create` and it is not there.

        Raises `NotFound`, `Unavailable` when another process has it open, `NotPermitted` when it is another cluster's,
        `UsageError` when it is something else or of another schema, `DamagedData` when it is not intact.
        """
        self.path = path
        self._failure = ""
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()
        if not path.exists() and not create:
            raise NotFound(f"{path} is not there")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock_fd = _claim(path)
        self._connections: list[sqlite3.Connection] = []
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
            self._writer = self._connect("synchronous=FULL", "journal_mode=WAL", "foreign_keys=ON")
            self._own(kind, schema_version, cluster_id, schema, create)
            self._reader = self._connect("query_only=ON")
            sync_directory(path.parent)
        except BaseException:
            self.close()
            raise

    @contextmanager
    def write(self) -> Generator[sqlite3.Connection]:
        """One transaction, alone: everything in it or nothing. On the disk when the block has been left.

        Raises `NoSpace`, `DamagedData` or `Unavailable`, naming the file.
        """
        with held(self._write_lock, self.path), self._errors():
            if self._failure:
                raise Unavailable(f"{self.path}: nothing is written since the device failed ({self._failure}): restart")
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except sqlite3.Error as error:
                if _code(error) == sqlite3.SQLITE_IOERR:
                    self._failure = str(error)
                raise
            finally:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")

    @contextmanager
    def read(self) -> Generator[sqlite3.Connection]:
        """One committed state, the same for every statement of the block. Keep it short: readers take turns."""
        with held(self._read_lock, self.path), self._errors():
            self._reader.execute("BEGIN")
            try:
                yield self._reader
            finally:
                self._reader.execute("ROLLBACK")

    @contextmanager
    def snapshot(self) -> Generator[sqlite3.Connection]:
        """As `read`, on a connection of its own, for long reads that must not make others wait."""
        connection = self._connect("query_only=ON")
        try:
            with self._errors():
                connection.execute("BEGIN")
                yield connection
        finally:
            self._connections.remove(connection)
            connection.close()

    def check_pages(self, connection: sqlite3.Connection) -> None:
        """Reads the whole file and raises `DamagedData` unless SQLite finds it intact."""
        ((found,),) = connection.execute("PRAGMA integrity_check(1)").fetchall()
        if found != "ok":
            raise DamagedData(f"{self.path} is damaged: {found}")

    def close(self) -> None:
        """Lets the file go; may be called twice."""
        while self._connections:
            self._connections.pop().close()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _connect(self, *pragmas: str) -> sqlite3.Connection:
        with self._errors():
            connection = sqlite3.connect(
                self.path, timeout=LOCK_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            self._connections.append(connection)
            for pragma in ("trusted_schema=OFF", "cell_size_check=ON", *pragmas):
                connection.execute(f"PRAGMA {pragma}").fetchall()
        return connection

    def _own(self, kind: str, schema_version: int, cluster_id: str, schema: Sequence[str], create: bool) -> None:
        expected = {"kind": kind, "schema": str(schema_version), "cluster_id": cluster_id}
        with self.write() as connection:
            if not connection.execute("SELECT 1 FROM sqlite_schema").fetchone():
                if not create:
                    raise DamagedData(f"{self.path} is empty")
                for statement in (_META, *schema):
                    connection.execute(statement)
                connection.executemany("INSERT INTO meta VALUES (?, ?)", expected.items())
            found = _meta(connection)
        if found.get("kind") != kind:
            raise UsageError(
                f"{self.path}: expected {kind}, got {found.get('kind', 'a SQLite file of something else')}"
            )
        if found.get("cluster_id") != cluster_id:
            raise NotPermitted(f"{self.path} belongs to cluster {found.get('cluster_id')}, not to cluster {cluster_id}")
        if found.get("schema") != str(schema_version):
            raise UsageError(
                f"{self.path} has schema {found.get('schema')}, this raylog knows schema {schema_version}: install the "
                "raylog that wrote it"
            )

    @contextmanager
    def _errors(self) -> Generator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise _translated(self.path, error) from error


def _meta(connection: sqlite3.Connection) -> dict[str, str]:
    if not connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'meta'").fetchone():
        return {}
    return dict(connection.execute("SELECT key, value FROM meta").fetchall())


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary result code."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _translated(path: Path, error: sqlite3.Error) -> RaylogError:
    code = _code(error)
    if code == sqlite3.SQLITE_FULL:
        return NoSpace(f"{path}: no space left on its disk; nothing was changed, make room and try again")
    is_misread = isinstance(error, sqlite3.OperationalError) and not code  # by Python, of text that is none
    if is_misread or code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return DamagedData(f"{path} is damaged ({error})")
    return Unavailable(f"{path}: {error}")


def _claim(path: Path) -> int:
    """A descriptor whose lock is the claim to the file."""
    lock_path = path.with_name(path.name + ".lock")
    lock_fd = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock_fd, 20, 0).decode("ascii", "replace") or "unknown"
        os.close(lock_fd)
        raise Unavailable(f"{path} is open in another process (pid {holder}): it has one writer at a time") from None
    os.ftruncate(lock_fd, 0)
    os.pwrite(lock_fd, str(os.getpid()).encode(), 0)
    return lock_fd


def sync_directory(directory: Path) -> None:
    """Makes a new file's name survive a power cut."""
    directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory_fd)
    finally:
        os.close(directory_fd)


@contextmanager
def held(lock: threading.Lock, path: Path) -> Generator[None]:
    """The lock, or `Unavailable` after `LOCK_TIMEOUT_S`."""
    if not lock.acquire(timeout=LOCK_TIMEOUT_S):
        raise Unavailable(f"{path}: busy for {LOCK_TIMEOUT_S:.0f} s")
    try:
        yield
    finally:
        lock.release()
