"""The chain and the manifests in a backup (store/REMOTE.md): written as the chain grows, read to rebuild a catalog."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from raylog.catalog.catalog import Catalog
from raylog.catalog.copy import open_entry
from raylog.catalog.encoding import FORMAT_VERSION, SMALL_DOCUMENT_BYTES_MAX, decode, encode
from raylog.catalog.journal import Entry
from raylog.catalog.manifest import ENVELOPE_BYTES_MAX
from raylog.catalog.record import RecordKind, Tail, open_record
from raylog.errors import Conflict, DamagedData, NotFound
from raylog.security.trust import Trust
from raylog.store.objects import Limit, Objects, whole
from raylog.store.remote_shard import folder

RECORDS_PER_SEGMENT = 1_000
SEGMENT_BYTES_MAX = RECORDS_PER_SEGMENT * SMALL_DOCUMENT_BYTES_MAX
MANIFESTS_AT_ONCE = 8
OBJECT_S = 120.0  # to read or write one


class Segment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Signed records, in order."""

    format_version: int = FORMAT_VERSION
    records: tuple[bytes, ...]


class OffsiteChain:
    """One cluster's chain below one URL."""

    def __init__(self, objects: Objects, trust: Trust) -> None:
        self._objects, self._trust = objects, trust
        self._folder = folder(trust.cluster_id)

    def follow(self, catalog: Catalog, up_to: int | None = None) -> int:
        """Brings the copy to where the catalog's chain ends now, and notes it there: manifests, then the records that
        name them, segment by segment, then deletions of the manifests that records have deleted. The last record's
        sequence. `up_to`: what comes after that record is not acknowledged yet, and is left out.

        Raises `Conflict`, and writes nothing, where the copy is not of this catalog's chain: another one, restored from
        it, has gone on there.
        """
        url, last = self._objects.url, catalog.sequence if up_to is None else up_to
        begun = catalog.backups.chain_reached(url)
        self._check_ours(catalog, begun)
        done = begun
        while done < last:
            first = done // RECORDS_PER_SEGMENT * RECORDS_PER_SEGMENT
            end = min(first + RECORDS_PER_SEGMENT, last)
            reached = done
            while reached < end:
                entries = catalog.records(reached)[: end - reached]
                self._write_manifests(entries)
                reached += len(entries)
            records = catalog.backups.signed_records(first, end - first)
            self._write(self._segment_key(first // RECORDS_PER_SEGMENT + 1), encode(Segment(records=tuple(records))))
            catalog.backups.note_chain(url, end)
            done = end
        for digest in catalog.backups.deleted_manifests(begun):
            self._objects.delete(self._manifest_key(digest), Limit.within(OBJECT_S))
        return done

    def _check_ours(self, catalog: Catalog, reached: int) -> None:
        """The last record there must be one of this chain."""
        number = max(reached - 1, 0) // RECORDS_PER_SEGMENT + 1
        records = self._segment_or_none(number)
        while records and len(records) == RECORDS_PER_SEGMENT and (more := self._segment_or_none(number + 1)):
            records, number = more, number + 1
        if not records:
            return
        record, digest = open_record(records[-1], self._trust.cluster_id, self._trust.verify)
        tail = Tail(sequence=record.sequence, epoch=record.epoch, digest=digest)
        if not catalog.contains(tail):
            raise Conflict(
                f"{self._objects.url} has records up to {record.sequence} that this catalog does not have: another "
                "catalog, restored from there, writes to it; end that one, and move its backup away"
            )

    def entries(self) -> Iterator[Entry]:
        """The chain from its first record on, not yet verified as a chain: see `rebuild`. Raises `NotFound` when there
        is none, `DamagedData`."""
        number = 1
        while True:
            records = self._segment(number)
            with ThreadPoolExecutor(MANIFESTS_AT_ONCE, thread_name_prefix="manifest") as executor:
                yield from executor.map(self._entry, records)
            if len(records) < RECORDS_PER_SEGMENT:
                return
            number += 1

    def _write_manifests(self, entries: Sequence[Entry]) -> None:
        """Those of versions that exist."""
        committed = [(self._digest(entry), entry.manifest) for entry in entries if entry.manifest]
        with ThreadPoolExecutor(MANIFESTS_AT_ONCE, thread_name_prefix="manifest") as executor:
            list(executor.map(lambda one: self._write(self._manifest_key(one[0]), one[1]), committed))

    def _segment(self, number: int) -> tuple[bytes, ...]:
        found = self._segment_or_none(number)
        if found is None and number == 1:
            raise NotFound(f"{self._objects.url} has no backup of cluster {self._trust.cluster_id}")
        return found or ()

    def _segment_or_none(self, number: int) -> tuple[bytes, ...] | None:
        key = self._segment_key(number)
        try:
            data = self._read(key, SEGMENT_BYTES_MAX)
        except NotFound:
            return None
        return decode(Segment, data, key, SEGMENT_BYTES_MAX).records

    def _entry(self, record: bytes) -> Entry:
        digest = self._digest(Entry(record=record))
        if not digest:
            return Entry(record=record)
        try:
            return Entry(record=record, manifest=self._read(self._manifest_key(digest), ENVELOPE_BYTES_MAX))
        except NotFound:  # of a version that was deleted; else `rebuild` refuses
            return Entry(record=record)

    def _digest(self, entry: Entry) -> bytes:
        """The manifest's digest of a commit, else nothing."""
        opened = open_entry(entry, self._trust.cluster_id, self._trust.verify)
        return opened.record.manifest_digest if opened.record.kind == RecordKind.COMMIT else b""

    def _read(self, key: str, bytes_max: int) -> bytes:
        size = self._objects.size(key, Limit.within(OBJECT_S))
        if size > bytes_max:
            raise DamagedData(f"{self._objects.url}: {key} has {size} bytes, expected at most {bytes_max}")
        return self._objects.read(key, 0, size, Limit.within(OBJECT_S))

    def _write(self, key: str, data: bytes) -> None:
        self._objects.write(key, whole(data), Limit.within(OBJECT_S))

    def _manifest_key(self, digest: bytes) -> str:
        return f"{self._folder}/manifests/{digest[:1].hex()}/{digest.hex()}"

    def _segment_key(self, number: int) -> str:
        return f"{self._folder}/records/{number:016d}"
