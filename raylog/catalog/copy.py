"""A node's copy of the catalog's chain: append only, and deaf to catalogs that were superseded.

Tables: `entries`: sequence, signed record, committed manifest (empty for what is no commit, or was deleted before it
was copied); `named`: the shards of all those manifests; `fence`: the highest epoch of a record that the cluster's key
signed and that did not fit here, since the chain was forked. An append is on the disk when it returns.
"""

import logging
import sqlite3
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from raylog.catalog.database import Database, held
from raylog.catalog.journal import Entry
from raylog.catalog.manifest import Manifest, open_manifest
from raylog.catalog.record import Record, RecordKind, Tail, check_not_superseded, follow, open_record
from raylog.errors import DamagedData, NotPermitted
from raylog.security.trust import Verify

log = logging.getLogger("raylog.catalog")
FILE_NAME = "records.sqlite"
SCHEMA_VERSION = 2
_SCHEMA = (
    "CREATE TABLE entries (sequence INTEGER PRIMARY KEY, record BLOB NOT NULL, manifest BLOB NOT NULL)",
    "CREATE TABLE named (shard_id BLOB PRIMARY KEY) WITHOUT ROWID",
    "CREATE TABLE fence (epoch INTEGER NOT NULL)",
    "INSERT INTO fence VALUES (0)",
)
_IS_NAMED = "SELECT 1 FROM named WHERE shard_id = ?"
_PAGE = 1000  # entries read at once


@dataclass(frozen=True, slots=True)
class OpenedEntry:
    """A verified entry: its record, the digest of that, and the manifest that it commits, if it came with one."""

    record: Record
    digest: bytes
    manifest: Manifest | None


def open_entry(entry: Entry, cluster_id: str, verify: Verify) -> OpenedEntry:
    """The entry, verified; its manifest, if there is one, is the one that its record names. Raises `DamagedData`,
    `NotPermitted`."""
    record, digest = open_record(entry.record, cluster_id, verify)
    if not entry.manifest:
        return OpenedEntry(record, digest, None)
    if record.kind != RecordKind.COMMIT:
        raise DamagedData(f"record {record.sequence} is a {record.kind} and comes with a manifest")
    manifest, statement = open_manifest(entry.manifest, cluster_id, verify)
    stated = (manifest.name, manifest.artifact_id, statement.number, statement.digest)
    if stated != (record.name, record.artifact_id, record.number, record.manifest_digest):
        raise DamagedData(
            f"record {record.sequence} commits {record.name}@{record.number}, the manifest with it is of "
            f"{manifest.name}@{statement.number}"
        )
    return OpenedEntry(record, digest, manifest)


class RecordCopy:
    """The copy that one node keeps, in a directory of its own. Threads may share it."""

    def __init__(self, directory: Path, cluster_id: str, verify: Verify) -> None:
        """Opens the copy or begins one, and checks where it ends. `verify` is of the cluster's key.

        Raises `Unavailable` when another process has it open, `NotPermitted` when it is another cluster's,
        `UsageError` for another schema, `DamagedData`.
        """
        self._cluster_id = cluster_id
        self._verify = verify
        self._turn = threading.Lock()  # held from reading the tail until it is moved on
        self._database = Database(
            directory / FILE_NAME,
            kind="raylog copy of the catalog's chain",
            schema_version=SCHEMA_VERSION,
            cluster_id=cluster_id,
            schema=_SCHEMA,
            create=True,
        )
        try:
            self._tail, self._epoch_seen = self._read_end()
        except BaseException:
            self._database.close()
            raise

    @property
    def tail(self) -> Tail:
        """Where the copy ends: what to ask the catalog for next."""
        return self._tail

    def highest_epoch(self) -> int:
        """The highest epoch that this node has seen, 0 for none; a new catalog's must be above it."""
        return self._epoch_seen

    def append(self, entries: Sequence[Entry]) -> Tail:
        """Takes the next records, all or none, and returns where the copy ends, once that is on the disk. Records that
        are here already are passed over if they are the same ones.

        Raises `NotPermitted` (forged, of another cluster, or of an epoch below the highest seen: attribute `epoch`),
        `DamagedData` (a gap, a broken chain, another record than the one here, a manifest that is not the record's).
        """
        opened = [self._open(entry) for entry in entries]
        with held(self._turn, self._database.path):
            newest = max((one.record for one in opened), key=lambda record: record.epoch, default=None)
            if newest and any(one.record.sequence > self._tail.sequence for one in opened):
                check_not_superseded(self._epoch_seen, newest)
            try:
                self._tail = self._take(entries, opened)
            except DamagedData:
                if newest and opened[0].record.sequence <= self._tail.sequence + 1:  # a fork and no mere gap
                    self._observe(newest.epoch)  # its records may not fit here, but the older catalog has ended
                raise
            self._epoch_seen = max(self._epoch_seen, self._tail.epoch)
        return self._tail

    def observe(self, epoch: int) -> None:
        """Raises the fence, for good: from here on no catalog of an older epoch has its records taken."""
        with held(self._turn, self._database.path):
            self._observe(epoch)

    def _observe(self, epoch: int) -> None:
        if epoch > self._epoch_seen:
            with self._database.write() as connection:
                connection.execute("UPDATE fence SET epoch = ?", (epoch,))
            self._epoch_seen = epoch

    def restart(self, epoch: int) -> None:
        """Drops all records, as the catalog of `epoch` asks, whose chain this copy is not of: it sends its own from the
        first on. Raises `NotPermitted` unless it has begun after the last record here."""
        with held(self._turn, self._database.path):
            if epoch <= self._tail.epoch:
                raise NotPermitted(
                    f"the records here go up to epoch {self._tail.epoch}: a catalog of epoch {epoch} cannot replace "
                    "them",
                    epoch=self._tail.epoch,
                )
            dropped = self._tail.sequence
            with self._database.write() as connection:
                connection.execute("DELETE FROM entries")
                connection.execute("DELETE FROM named")
                connection.execute("UPDATE fence SET epoch = max(epoch, ?)", (epoch,))
            self._tail, self._epoch_seen = Tail(), max(self._epoch_seen, epoch)
        log.warning("%d records of an older catalog were dropped for one of epoch %d", dropped, epoch)

    def entries(self) -> Generator[tuple[Record, bytes]]:
        """Every record from the first, verified again, with its committed manifest (empty where there is none): what a
        lost catalog is made anew from, together with `replay`. Raises `DamagedData`, `NotPermitted`."""
        tail = Tail()
        while tail.sequence < self._tail.sequence:
            with self._database.read() as connection:
                rows = connection.execute(
                    "SELECT record, manifest FROM entries WHERE sequence > ? ORDER BY sequence LIMIT ?",
                    (tail.sequence, _PAGE),
                ).fetchall()
            if not rows:
                raise DamagedData(f"{self._database.path}: record {tail.sequence + 1} and those after it are gone")
            for signed, manifest in rows:
                one = self._open(Entry(record=signed, manifest=manifest))
                tail = follow(tail, one.record, one.digest)
                yield one.record, manifest

    def page(self, since_sequence: int, count_max: int) -> list[Entry]:
        """Entries after `since_sequence` as they were taken, in order, at most `count_max`."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT record, manifest FROM entries WHERE sequence > ? ORDER BY sequence LIMIT ?",
                (since_sequence, count_max),
            ).fetchall()
        return [Entry(record=signed, manifest=manifest) for signed, manifest in rows]

    def named(self, shard_ids: Sequence[str]) -> list[str]:
        """Those of `shard_ids` that a version names, or named before it was deleted, as far as this copy goes."""
        with self._database.read() as connection:
            found = (connection.execute(_IS_NAMED, (bytes.fromhex(one),)).fetchone() for one in shard_ids)
            return [one for one, row in zip(shard_ids, found, strict=True) if row]

    def close(self) -> None:
        """Lets the directory go; may be called twice."""
        self._database.close()

    def _open(self, entry: Entry) -> OpenedEntry:
        return open_entry(entry, self._cluster_id, self._verify)

    def _take(self, entries: Sequence[Entry], opened: Sequence[OpenedEntry]) -> Tail:
        """Writes what is new, all or none; the end of the chain after it."""
        tail = self._tail
        with self._database.write() as connection:
            for entry, one in zip(entries, opened, strict=True):
                if one.record.sequence <= tail.sequence:
                    self._check_same(connection, entry, one.record)
                    continue
                tail = follow(tail, one.record, one.digest)
                row = (one.record.sequence, entry.record, entry.manifest)
                connection.execute("INSERT INTO entries VALUES (?, ?, ?)", row)
                shard_ids = one.manifest.kept_shards() if one.manifest else ()
                ids = [(bytes.fromhex(shard_id),) for shard_id in shard_ids]
                connection.executemany("INSERT OR IGNORE INTO named VALUES (?)", ids)
        return tail

    def _check_same(self, connection: sqlite3.Connection, entry: Entry, record: Record) -> None:
        row = connection.execute("SELECT record FROM entries WHERE sequence = ?", (record.sequence,)).fetchone()
        if row is None or row[0] != entry.record:
            raise DamagedData(f"record {record.sequence} is not the one that is here: the chain was forked")

    def _read_end(self) -> tuple[Tail, int]:
        with self._database.read() as connection:
            ((fence,),) = connection.execute("SELECT epoch FROM fence").fetchall()
            row = connection.execute("SELECT record FROM entries ORDER BY sequence DESC LIMIT 1").fetchone()
        if row is None:
            return Tail(), fence
        record, digest = open_record(row[0], self._cluster_id, self._verify)
        return Tail(sequence=record.sequence, epoch=record.epoch, digest=digest), max(fence, record.epoch)
