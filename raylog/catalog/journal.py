"""The catalog's journal: the chain of signed records on disk, and the epoch under which it may grow.

A record and what follows from it are written in one transaction and are on the disk when it returns. Tables:

meta       whose file this is (database.py)
records    the chain: sequence, signed record. Never changed, never deleted
fence      the highest epoch seen anywhere, one row: also epochs that another catalog began
manifests  committed manifest of each version that exists, by the sequence of its commit record
artifacts  every name ever used: artifact id, tenant, latest number (0: none left), highest number ever given
versions   every version ever committed, with its totals; `deleted`: sequence of the record that deleted it, or null
shards     every shard that a version names, or whose copies are still to be removed (`refs` = 0); `wanted` replicas,
           `on_disk` whether memory does not count, `standing` replicas that count
replicas   which node holds a copy of a shard, on which kind of tier, by the node's receipt
lineage    which versions a version was made from, deleted ones among both
remotes    where shards are to have remote copies, and whether they have: `state` 0 not that is known, 1 yes, 2 damaged
erasures   erasure-coded shards, which nobody holds whole (`wanted` = 0), and what their pieces follow from
pieces     their pieces, each a shard of its own, and how many of them it takes (`needed`)
offsite    up to which record a backup has the chain
holds      versions (number 0: the whole name) that nobody may delete, and why
expiries   versions that are deleted after a time (`at_us`)
keeps      names of which only so many versions are kept
labels     the labels of versions that exist
gone_nodes nodes that were given up; their receipts do not count until they are admitted again
revoked_puts  version ids under which nothing may be committed any more: their shards were deleted as leftovers

Where copies are, which nodes are gone and what is in backups does not follow from the chain: nodes and the backups say
so. All else does.
"""

import sqlite3
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from raylog.catalog.database import Database, held
from raylog.catalog.encoding import digest_of, encode
from raylog.catalog.record import Record, RecordKind, Tail, follow, open_record, sign_record
from raylog.catalog.state import check_fence
from raylog.errors import DamagedData, Unavailable, UsageError
from raylog.security.trust import Trust

FILE_NAME = "journal.sqlite"
SCHEMA_VERSION = 3
_SCHEMA = (
    "CREATE TABLE records (sequence INTEGER PRIMARY KEY, signed BLOB NOT NULL)",
    "CREATE TABLE fence (epoch INTEGER NOT NULL)",
    "INSERT INTO fence VALUES (0)",
    "CREATE TABLE manifests (sequence INTEGER PRIMARY KEY REFERENCES records, committed BLOB NOT NULL)",
    "CREATE TABLE artifacts (name TEXT PRIMARY KEY, artifact_id BLOB NOT NULL UNIQUE, tenant BLOB NOT NULL,"
    " latest INTEGER NOT NULL, last_number INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE versions (name TEXT NOT NULL, number INTEGER NOT NULL, version_id BLOB NOT NULL UNIQUE,"
    " artifact_id BLOB NOT NULL, sequence INTEGER NOT NULL, digest BLOB NOT NULL, shards INTEGER NOT NULL,"
    " rows INTEGER NOT NULL, content_bytes INTEGER NOT NULL, stored_bytes INTEGER NOT NULL, deleted INTEGER,"
    " PRIMARY KEY (name, number)) WITHOUT ROWID",
    "CREATE INDEX versions_by_artifact ON versions (artifact_id)",
    "CREATE TABLE shards (shard_id BLOB PRIMARY KEY, artifact_id BLOB NOT NULL, frame_digest BLOB NOT NULL,"
    " stored_bytes INTEGER NOT NULL, content_bytes INTEGER NOT NULL, rows INTEGER NOT NULL, chunks INTEGER NOT NULL,"
    " refs INTEGER NOT NULL, wanted INTEGER NOT NULL, on_disk INTEGER NOT NULL, standing INTEGER NOT NULL)"
    " WITHOUT ROWID",
    "CREATE INDEX shards_short ON shards (shard_id) WHERE refs > 0 AND standing < wanted",
    "CREATE INDEX shards_free ON shards (shard_id) WHERE refs = 0",
    "CREATE TABLE replicas (shard_id BLOB NOT NULL REFERENCES shards, node_id BLOB NOT NULL, tier TEXT NOT NULL,"
    " PRIMARY KEY (shard_id, node_id)) WITHOUT ROWID",
    "CREATE INDEX replicas_by_node ON replicas (node_id)",
    "CREATE TABLE remotes (shard_id BLOB NOT NULL REFERENCES shards, url TEXT NOT NULL, state INTEGER NOT NULL,"
    " PRIMARY KEY (shard_id, url)) WITHOUT ROWID",
    "CREATE INDEX remotes_wanted ON remotes (shard_id) WHERE state != 1",
    "CREATE INDEX remotes_by_url ON remotes (url)",
    "CREATE TABLE erasures (shard_id BLOB PRIMARY KEY REFERENCES shards ON DELETE CASCADE, erasure BLOB NOT NULL)"
    " WITHOUT ROWID",
    "CREATE TABLE pieces (piece_id BLOB PRIMARY KEY REFERENCES shards ON DELETE CASCADE, shard_id BLOB NOT NULL,"
    " number INTEGER NOT NULL, needed INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE INDEX pieces_by_shard ON pieces (shard_id)",
    "CREATE TABLE offsite (url TEXT PRIMARY KEY, sequence INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE holds (name TEXT NOT NULL, number INTEGER NOT NULL, reason TEXT NOT NULL, PRIMARY KEY (name, number))"
    " WITHOUT ROWID",
    "CREATE TABLE expiries (name TEXT NOT NULL, number INTEGER NOT NULL, at_us INTEGER NOT NULL,"
    " PRIMARY KEY (name, number)) WITHOUT ROWID",
    "CREATE INDEX expiries_by_time ON expiries (at_us)",
    "CREATE TABLE keeps (name TEXT PRIMARY KEY, versions INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE labels (key TEXT NOT NULL, value TEXT NOT NULL, name TEXT NOT NULL, number INTEGER NOT NULL,"
    " PRIMARY KEY (key, value, name, number)) WITHOUT ROWID",
    "CREATE INDEX labels_by_version ON labels (name, number)",
    "CREATE TABLE gone_nodes (node_id BLOB PRIMARY KEY) WITHOUT ROWID",
    "CREATE TABLE lineage (name TEXT NOT NULL, number INTEGER NOT NULL, parent TEXT NOT NULL,"
    " parent_number INTEGER NOT NULL, PRIMARY KEY (name, number, parent, parent_number)) WITHOUT ROWID",
    "CREATE INDEX lineage_by_parent ON lineage (parent, parent_number)",
    "CREATE TABLE revoked_puts (version_id BLOB PRIMARY KEY) WITHOUT ROWID",
)


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A signed record as it goes to other nodes, with the committed manifest if it is a commit that still exists."""

    record: bytes
    manifest: bytes = b""


@dataclass(slots=True)
class Change:
    """A transaction that may add records to the chain."""

    connection: sqlite3.Connection
    tail: Tail
    epoch: int
    time_us: int
    _trust: Trust
    _entries: list[Record] = field(default_factory=list)

    def append(
        self,
        kind: RecordKind,
        *,
        by: str,
        artifact_id: str = "",
        name: str = "",
        number: int = 0,
        manifest_digest: bytes = b"",
        details: Mapping[str, str] | None = None,
    ) -> Record:
        """Adds the chain's next record; it is part of the chain when the transaction is."""
        record = Record(
            cluster_id=self._trust.cluster_id,
            sequence=self.tail.sequence + 1,
            epoch=self.epoch,
            kind=kind,
            artifact_id=artifact_id,
            name=name,
            number=number,
            manifest_digest=manifest_digest,
            previous=self.tail.digest,
            time_us=self.time_us,
            by=by,
            details=details or {},
        )
        self.tail = follow(self.tail, record, digest_of(encode(record)))
        signed = sign_record(record, self._trust)
        self.connection.execute("INSERT INTO records VALUES (?, ?)", (record.sequence, signed))
        return record


class Journal:
    """The chain of one cluster's catalog, in a directory of its own. Threads may share it."""

    def __init__(self, directory: Path, trust: Trust, clock: Callable[[], float], *, create: bool) -> None:
        """Opens the journal and checks the end of its chain. `clock` gives seconds since 1970.

        `create` allows to begin an empty one; where nodes hold shards of this cluster, pass False. Nothing can be
        written before `begin_epoch`. Raises `NotFound`, `Unavailable` when another process has it open, `NotPermitted`
        for another cluster's, `UsageError` for another schema, `DamagedData`.
        """
        self._trust = trust
        self._clock = clock
        self._epoch = 0
        self._turn = threading.Lock()  # held from reading the tail until it is moved on
        self.database = Database(
            directory / FILE_NAME,
            kind="raylog catalog",
            schema_version=SCHEMA_VERSION,
            cluster_id=trust.cluster_id,
            schema=_SCHEMA,
            create=create,
        )
        try:
            self._tail = self._read_tail()
        except BaseException:
            self.database.close()
            raise

    @property
    def trust(self) -> Trust:
        return self._trust

    @property
    def tail(self) -> Tail:
        """Where the chain ends. A copy of it that is longer means that this file is an old one: do not use it."""
        return self._tail

    @property
    def epoch(self) -> int:
        """That was begun here; 0 before `begin_epoch`."""
        return self._epoch

    def epoch_seen(self) -> int:
        """The highest epoch that was begun here or observed elsewhere; a new one must be above it."""
        with self.database.read() as connection:
            return max(self._tail.epoch, _fence(connection))

    def begin_epoch(self, epoch: int) -> None:
        """Makes this the catalog of `epoch`; from here on it may commit. Raises `UsageError` unless `epoch` is above
        all that were seen."""
        by = f"raylog://{self._trust.cluster_id}/catalog/{epoch}"
        with held(self._turn, self.database.path):
            with self.database.write() as connection:
                seen = max(self._tail.epoch, _fence(connection))
                if epoch <= seen:
                    raise UsageError(f"expected an epoch above {seen}, which has begun, got {epoch}")
                change = self._change(connection, epoch)
                change.append(RecordKind.EPOCH, by=by)
                connection.execute("UPDATE fence SET epoch = ?", (epoch,))
            self._tail, self._epoch = change.tail, epoch

    def observe_epoch(self, epoch: int) -> None:
        """Takes note that `epoch` has begun somewhere, for good. When it is above this catalog's own, every later
        change raises `Unavailable`."""
        with self.database.write() as connection:
            connection.execute("UPDATE fence SET epoch = max(epoch, ?)", (epoch,))

    @contextmanager
    def change(self) -> Generator[Change]:
        """One transaction that may append records. Raises `Unavailable` before `begin_epoch` and when superseded."""
        with held(self._turn, self.database.path):
            with self.database.write() as connection:
                if not self._epoch:
                    raise Unavailable("the catalog has not begun an epoch yet; ask again in a moment")
                check_fence(self._epoch, _fence(connection))
                change = self._change(connection, self._epoch)
                yield change
            self._tail = change.tail

    def entries(self, since_sequence: int, count_max: int) -> list[Entry]:
        """Records after `since_sequence`, in order, for copies on other nodes; at most `count_max`."""
        with self.database.read() as connection:
            rows = connection.execute(
                "SELECT signed, committed FROM records LEFT JOIN manifests USING (sequence)"
                " WHERE sequence > ? ORDER BY sequence LIMIT ?",
                (since_sequence, count_max),
            ).fetchall()
        return [Entry(record=signed, manifest=committed or b"") for signed, committed in rows]

    def contains(self, tail: Tail) -> bool:
        """Whether the chain has a record of that sequence and digest (the empty end is every chain's)."""
        with self.database.read() as connection:
            row = connection.execute("SELECT signed FROM records WHERE sequence = ?", (tail.sequence,)).fetchone()
        if row is None:
            return tail == Tail()
        return open_record(row[0], self._trust.cluster_id, self._trust.verify)[1] == tail.digest

    def verified_records(self, connection: sqlite3.Connection) -> Generator[Record]:
        """Every record from the first, its signature and place in the chain checked; `connection` is a snapshot.
        Raises `DamagedData`, `NotPermitted`."""
        expected, tail = self._tail, Tail()
        for (signed,) in connection.execute("SELECT signed FROM records ORDER BY sequence"):
            record, digest = open_record(signed, self._trust.cluster_id, self._trust.verify)
            tail = follow(tail, record, digest)
            yield record
        if tail.sequence < expected.sequence:
            raise DamagedData(f"{self.database.path}: record {tail.sequence + 1} and those after it are gone")

    def close(self) -> None:
        """Lets the files go; may be called twice."""
        self.database.close()

    def _change(self, connection: sqlite3.Connection, epoch: int) -> Change:
        return Change(connection, self._tail, epoch, int(self._clock() * 1e6), self._trust)

    def _read_tail(self) -> Tail:
        """The end of the chain, by its last two records."""
        with self.database.read() as connection:
            rows = connection.execute("SELECT sequence, signed FROM records ORDER BY sequence DESC LIMIT 2").fetchall()
        tail = Tail()
        for sequence, signed in reversed(rows):
            record, digest = open_record(signed, self._trust.cluster_id, self._trust.verify)
            if record.sequence != sequence:
                raise DamagedData(f"{self.database.path}: expected record {sequence}, got record {record.sequence}")
            if len(rows) == 2 and not tail.sequence:
                tail = Tail(sequence=sequence, epoch=record.epoch, digest=digest)
            else:
                tail = follow(tail, record, digest)
        return tail


def _fence(connection: sqlite3.Connection) -> int:
    ((epoch,),) = connection.execute("SELECT epoch FROM fence").fetchall()
    return int(epoch)
