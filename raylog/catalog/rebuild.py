"""A lost journal made anew from the copies of its chain that nodes keep: the same names, numbers, latest versions and
tombstones. Which node holds what is not in the chain: the nodes say it again by their receipts."""

import logging
import secrets
import shutil
import sqlite3
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from raylog.catalog import remotes, retention, tables
from raylog.catalog.catalog import Catalog
from raylog.catalog.copy import OpenedEntry, open_entry
from raylog.catalog.database import sync_directory
from raylog.catalog.journal import FILE_NAME, Entry, Journal
from raylog.catalog.manifest import Manifest, open_manifest
from raylog.catalog.record import Record, RecordKind, Tail, follow
from raylog.catalog.state import latest_after_delete
from raylog.errors import Conflict, DamagedData
from raylog.security.trust import Trust

log = logging.getLogger("raylog.catalog")


def best_copy(tails: Mapping[str, Tail]) -> str | None:
    """The node whose copy to rebuild from: of the newest epoch, of those the longest. None when no node has a record.

    Chains of one cluster differ only where a catalog went on after a newer one had begun; what it wrote then was
    acknowledged to nobody, since no node that had seen the newer epoch copied it.
    """
    ends = {node_id: (tail.epoch, tail.sequence) for node_id, tail in tails.items() if tail.sequence}
    return max(sorted(ends), key=lambda node_id: ends[node_id]) if ends else None


def rebuild(directory: Path, trust: Trust, entries: Iterable[Entry], spare: Mapping[int, bytes]) -> int:
    """Writes a journal into `directory` from a chain's entries, all of them and in order, and checks it as a whole;
    returns the number of records. `spare`: committed manifests by sequence from other copies, for entries without one.

    The journal appears whole or not at all. Raises `Conflict` when there is one, `NotPermitted` for a forged record or
    manifest, `DamagedData` for a gap, or when no copy has the manifest of a version that exists.
    """
    if (directory / FILE_NAME).exists():
        raise Conflict(f"{directory / FILE_NAME} exists: a journal that is there is not replaced; move it away first")
    fresh = directory.with_name(f"{directory.name}.rebuilding")
    shutil.rmtree(fresh, ignore_errors=True)
    journal = Journal(fresh, trust, time.time, create=True)
    try:
        with journal.database.write() as connection:
            _Replaying(connection, trust, spare).take_all(entries)
    finally:
        journal.close()
    count = _verified(fresh, trust)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in fresh.iterdir():
        if path.name != FILE_NAME:
            path.unlink()  # nothing is left in the write-ahead log of a closed database
    (fresh / FILE_NAME).rename(directory / FILE_NAME)
    sync_directory(directory)  # commits that come after rest on this name
    shutil.rmtree(fresh, ignore_errors=True)
    log.warning("the catalog's journal was made anew from %d records", count)
    return count


def _verified(directory: Path, trust: Trust) -> int:
    catalog = Catalog(Journal(directory, trust, time.time, create=False))
    try:
        return catalog.verify()
    finally:
        catalog.close()


class _Replaying:
    """The tables in the making, inside one transaction."""

    def __init__(self, connection: sqlite3.Connection, trust: Trust, spare: Mapping[int, bytes]) -> None:
        self._connection, self._trust, self._spare = connection, trust, spare
        self._lacking: dict[tuple[str, int], Record] = {}  # versions that exist so far, whose manifest no copy has

    def take_all(self, entries: Iterable[Entry]) -> None:
        tail = Tail()
        for entry in entries:
            opened = open_entry(entry, self._trust.cluster_id, self._trust.verify)
            sequence = opened.record.sequence
            if not entry.manifest and sequence in self._spare:
                entry = Entry(record=entry.record, manifest=self._spare[sequence])
                opened = open_entry(entry, self._trust.cluster_id, self._trust.verify)
            tail = follow(tail, opened.record, opened.digest)
            self._connection.execute("INSERT INTO records VALUES (?, ?)", (sequence, entry.record))
            self._apply(opened, entry.manifest)
        if self._lacking:
            (name, number), record = next(iter(self._lacking.items()))
            raise DamagedData(
                f"no copy has the manifest of {name}@{number} (record {record.sequence}): bring back the nodes that "
                "have it, and rebuild again"
            )
        self._connection.execute("UPDATE fence SET epoch = ?", (tail.epoch,))

    def _apply(self, opened: OpenedEntry, committed: bytes) -> None:
        record = opened.record
        if record.kind == RecordKind.COMMIT:
            self._commit(record, opened.manifest, committed)
        elif record.kind == RecordKind.SET_LATEST:
            tables.set_latest(self._connection, record.name, record.number)
        elif record.kind == RecordKind.DELETE:
            self._delete(record)
        elif record.kind == RecordKind.BACKUP:
            self._back_up(record)
        elif record.kind == RecordKind.REVOKE:
            tables.revoke_put(self._connection, record.details["version_id"])
        else:
            retention.apply(self._connection, record)

    def _commit(self, record: Record, manifest: Manifest | None, committed: bytes) -> None:
        if manifest is None:
            self._lacking[record.name, record.number] = record
            tables.insert_deleted(self._connection, record, secrets.token_bytes(16))
            return
        version = manifest.version(record.number, record.manifest_digest)
        tables.insert_version(self._connection, manifest, version, record.sequence, committed)
        tables.reference_shards(self._connection, manifest, {})

    def _back_up(self, record: Record) -> None:
        existing = [one.number for one in tables.versions(self._connection, record.name)]
        for number in [record.number] if record.number else existing:
            if number in existing:  # else it is lacking: deleted by a later record, or refused in the end
                manifest = self._manifest(record.name, number)
                remotes.want(self._connection, manifest.distinct_shards(), record.details["url"])

    def _manifest(self, name: str, number: int) -> Manifest:
        committed = tables.committed_manifest(self._connection, name, number) or b""
        return open_manifest(committed, self._trust.cluster_id, self._trust.verify)[0]

    def _delete(self, record: Record) -> None:
        existing = {one.number for one in tables.versions(self._connection, record.name)}
        lacking = {number for name, number in self._lacking if name == record.name}
        doomed = {record.number} if record.number else existing | lacking
        for number in sorted(doomed & existing):
            manifest = self._manifest(record.name, number)
            tables.mark_deleted(self._connection, record.name, number, record.sequence)
            tables.release_shards(self._connection, manifest)
            retention.forget(self._connection, record.name, number)
        for number in doomed & lacking:
            tables.mark_deleted(self._connection, record.name, number, record.sequence)
            del self._lacking[record.name, number]
        artifact = tables.artifact(self._connection, record.name)
        if artifact and artifact.latest in doomed:
            left = (existing | lacking) - doomed
            tables.set_latest(self._connection, record.name, latest_after_delete(left, artifact.latest))
