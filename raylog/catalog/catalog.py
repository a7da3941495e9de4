"""The catalog: which versions exist, what the plain names mean, and where the copies are. One writer, one directory.

Guarantees
- What a call that changes something returned is on the disk, and stays through any crash.
- A version appears with all of its shards at once, under a number that its name never had before.
- Readers see the state before or after a change, never between.
- A call that was cut off may be made again: `commit` gives the same answer, the others find their work done.

Threads may share a catalog.
"""

import logging
import sqlite3
import threading
from collections.abc import Mapping, Sequence

from raylog.catalog import pieces, remotes, retention, tables
from raylog.catalog.backups import Backups
from raylog.catalog.encoding import digest_of
from raylog.catalog.journal import Change, Entry, Journal
from raylog.catalog.lineage import Lineage, trace
from raylog.catalog.manifest import Manifest, SignedManifest, countersign, decode_signed, open_manifest, verify_writer
from raylog.catalog.pieces import Whereabouts
from raylog.catalog.receipt import Receipt, verify_receipt
from raylog.catalog.record import Record, RecordKind, Tail
from raylog.catalog.replay import Versions, replay
from raylog.catalog.retention import Retention
from raylog.catalog.state import (
    Artifact,
    Pending,
    begin,
    check_shards,
    latest_after_delete,
    next_number,
    not_found,
)
from raylog.errors import Cancelled, Conflict, DamagedData, NotFound, NotPermitted, UsageError
from raylog.spec import (
    Reference,
    ShardStanding,
    StorageStanding,
    TenantUsage,
    Version,
    check_backup_allowed,
    new_id,
    parse_id,
    parse_name,
    parse_reference,
)

STANDINGS_MAX = 10_000  # shards in one answer of `short_shards` and `unreferenced_shards`; ask again for the rest
ENTRIES_MAX = 1_000  # records in one answer of `records`

log = logging.getLogger("raylog.catalog")


class Catalog:
    """The catalog over a journal, which it owns from here on."""

    def __init__(self, journal: Journal, backup_urls: Sequence[str] = (), *, is_drill: bool = False) -> None:
        """`backup_urls`: below which backups may lie; none given: anywhere. In a drill nothing is backed up."""
        self._journal, self._backup_urls, self._is_drill = journal, backup_urls, is_drill
        self._database = journal.database
        self._trust = journal.trust
        self._copies_lock = threading.Lock()
        self._copied: dict[str, int] = {}
        self.backups = Backups(journal)

    # Epochs

    def begin_epoch(self, epoch: int) -> None:
        """Makes this the catalog of `epoch`. Before it, everything can be read and nothing changed. Raises `UsageError`
        unless it is above every epoch seen (`epoch_seen`)."""
        self._journal.begin_epoch(epoch)
        log.info("Epoch %d begins at record %d", epoch, self._journal.tail.sequence)

    def observe_epoch(self, epoch: int) -> None:
        """What a node has seen. An epoch above this catalog's own stops it: every change raises `Unavailable`."""
        self._journal.observe_epoch(epoch)

    @property
    def epoch(self) -> int:
        """This catalog's own; 0 before `begin_epoch`."""
        return self._journal.epoch

    def epoch_seen(self) -> int:
        return self._journal.epoch_seen()

    # Writing versions

    def begin(self, name: str, tenant: str) -> Pending:
        """What a writer needs to seal the next version of `name`. Reserves nothing: the first to commit wins.

        Raises `NotPermitted` when the name is another tenant's.
        """
        parse_name(name)
        parse_id(tenant, "tenant id")
        with self._database.read() as connection:
            return begin(tables.artifact(connection, name), name, tenant, new_id())

    def commit(self, signed_manifest: bytes, receipts: Sequence[bytes], base: int) -> Version:
        """Makes a version exist and be the latest of its name; all or nothing, on the disk when this returns.

        `base` is what `begin` said. Called again with the same version (its caller did not hear the answer), it gives
        the same answer and changes nothing. Raises `Conflict` when another version became the latest since `begin` or
        the put was revoked, `Unavailable` when a shard is short of the promised replicas (`shard_id`, `missing`) or
        this catalog was superseded, `NotPermitted` for a signature, cluster, tenant or artifact that does not fit,
        `DamagedData` for bytes that are no manifest or receipt, `UsageError` for one that names what it may not.
        """
        signed, manifest = decode_signed(signed_manifest, self._trust.cluster_id)
        if manifest.backup:
            self._check_backup(manifest.backup)
        with self._database.read() as connection:
            before = _committed_before(connection, signed, manifest)
        if before:
            return before
        verify_writer(signed, manifest, self._trust.identify)
        verified = [verify_receipt(one, self._trust.cluster_id, self._trust.identify) for one in receipts]
        self._observe_receipts(verified)
        with self._journal.change() as change:
            before = _committed_before(change.connection, signed, manifest)
            return before or self._commit(change, signed, manifest, verified, base)

    def open_part(self, signed_manifest: bytes) -> Manifest:
        """One process's part of a version, its writer's signature checked. Raises as `commit`."""
        signed, manifest = decode_signed(signed_manifest, self._trust.cluster_id)
        verify_writer(signed, manifest, self._trust.identify)
        return manifest

    def of_version_id(self, version_id: str) -> Version | None:
        """The version that was committed under this id; None for none yet. Raises `Cancelled` when none will be."""
        with self._database.read() as connection:
            found = tables.by_version_id(connection, version_id)
            if found is None and tables.is_revoked(connection, version_id):
                raise Cancelled("this save was given up by one of its ranks, or was silent for too long")
            return found[0] if found else None

    def set_latest(self, reference: Reference, by: str) -> Version:
        """Makes the plain name mean this version, which must exist. Raises `NotFound`."""
        with self._journal.change() as change:
            artifact, version = _existing(change.connection, reference)
            if artifact.latest != version.number:
                _append(change, RecordKind.SET_LATEST, artifact, version.number, by)
                tables.set_latest(change.connection, artifact.name, version.number)
        return version

    def back_up(self, reference: Reference, url: str, by: str) -> list[Version]:
        """That the shards of a version, or for a plain name of all that exist, are to have remote copies below `url`;
        returns these versions. Raises `NotFound`, `UsageError`."""
        self._check_backup(url)
        with self._journal.change() as change:
            artifact, version = _existing(change.connection, reference)
            chosen = [version] if reference.number else tables.versions(change.connection, artifact.name)
            _append(change, RecordKind.BACKUP, artifact, reference.number or 0, by, {"url": url})
            for one in chosen:
                remotes.want(change.connection, self._manifest(change.connection, one).distinct_shards(), url)
        return chosen

    def delete_due(self, reference: Reference, now_us: int, by: str) -> bool:
        """Deletes a version if it is still due to go (`due`) when that is done."""
        with self._journal.change() as change:
            if not retention.is_due(change.connection, reference, now_us):
                return False
            self._delete(change, reference, by)
        return True

    def delete(self, reference: Reference, by: str) -> list[Version]:
        """Deletes a version, or for a plain name all that exist; returns what was deleted. `by` is the identity that
        asked. Numbers are never given again; shards that no version names any more are `unreferenced_shards`.

        When the latest went, the nearest older version becomes it. Raises `NotFound`, `NotPermitted` for what is held.
        """
        with self._journal.change() as change:
            return self._delete(change, reference, by)

    def _delete(self, change: Change, reference: Reference, by: str) -> list[Version]:
        artifact, version = _existing(change.connection, reference)
        doomed = [version] if reference.number else tables.versions(change.connection, artifact.name)
        retention.check_not_held(change.connection, artifact.name, {one.number for one in doomed})
        record = _append(change, RecordKind.DELETE, artifact, reference.number or 0, by)
        for one in doomed:
            manifest = self._manifest(change.connection, one)
            tables.mark_deleted(change.connection, one.name, one.number, record.sequence)
            tables.release_shards(change.connection, manifest)
            retention.forget(change.connection, one.name, one.number)
        if artifact.latest in {one.number for one in doomed}:
            left = [one.number for one in tables.versions(change.connection, artifact.name)]
            tables.set_latest(change.connection, artifact.name, latest_after_delete(left, artifact.latest))
        return doomed

    def govern(self, kind: RecordKind, reference: Reference, details: Mapping[str, str], by: str) -> Retention:
        """Holds, releases, expires or keeps (MANIFEST.md); what is set for the name then. Raises `NotFound`,
        `UsageError`."""
        with self._journal.change() as change:
            artifact, _ = _existing(change.connection, reference)
            record = _append(change, kind, artifact, reference.number or 0, by, details)
            retention.apply(change.connection, record)
            return retention.of_name(change.connection, artifact.name)

    # Reading

    def retention(self, name: str) -> Retention:
        """What is set for a name. Raises `NotFound`."""
        with self._database.read() as connection:
            return retention.of_name(connection, _existing(connection, Reference(name))[0].name)

    def due(self, now_us: int) -> dict[Reference, str]:
        """Versions that are to be deleted now, and why."""
        with self._database.read() as connection:
            return retention.due(connection, now_us, STANDINGS_MAX)

    def usage(self) -> list[TenantUsage]:
        """What each tenant has stored."""
        with self._database.read() as connection:
            return tables.usage(connection)

    def stat(self, reference: Reference) -> Version:
        """One version; the latest for a plain name. Raises `NotFound`."""
        with self._database.read() as connection:
            return _existing(connection, reference)[1]

    def versions(self, name: str) -> list[Version]:
        """All versions of a name that exist, oldest first. Raises `NotFound` when there is none."""
        with self._database.read() as connection:
            found = tables.versions(connection, name)
            if not found:
                raise not_found(name, None, tables.artifact(connection, name))
            return found

    def ls(self, prefix: str = "", labels: Mapping[str, str] | None = None) -> list[Version]:
        """The latest version of every name that begins with `prefix`, by name; only those that have all `labels`."""
        with self._database.read() as connection:
            return tables.latest_versions(connection, prefix, labels)

    def manifest(self, reference: Reference) -> bytes:
        """The committed manifest of a version, for `open_manifest`. Raises `NotFound`."""
        with self._database.read() as connection:
            version = _existing(connection, reference)[1]
            return self._committed(connection, version)

    def parents(self, references: Sequence[Reference]) -> list[str]:
        """The references as a manifest's `parents`: a plain name is its latest version. Raises `NotFound` for a plain
        name without any, `UsageError` for a version that never existed."""
        with self._database.read() as connection:
            found = []
            for reference in references:
                if reference.number is None:
                    reference = Reference(reference.name, _existing(connection, reference)[1].number)
                _check_parent(connection, reference)
                found.append(str(reference))
            return found

    def lineage(self, reference: Reference) -> Lineage:
        """What a version was made from and what was made from it, deleted ones too. Raises `NotFound` for a plain name
        of which nothing is left and for a version that never existed."""
        with self._database.read() as connection:
            number = reference.number
            if number is None or not tables.version_was_given(connection, reference.name, number):
                number = _existing(connection, reference)[1].number
            return trace(
                f"{reference.name}@{number}",
                lambda one: tables.origin(connection, parse_reference(one)),
                lambda one: tables.children(connection, parse_reference(one)),
            )

    # Where the copies are

    def replicas(self, shard_ids: Sequence[str]) -> dict[str, list[str]]:
        """Shard id -> ids of the nodes that hold a replica of it, from their receipts; empty for an unknown shard."""
        with self._database.read() as connection:
            return {shard_id: tables.replicas(connection, shard_id) for shard_id in shard_ids}

    def holding_nodes(self) -> set[str]:
        """Every node that holds a replica of anything, as far as is known."""
        with self._database.read() as connection:
            return tables.holding_nodes(connection)

    def shards_of(self, node_id: str) -> set[str]:
        """The shards that a node holds a replica of, as far as is known."""
        with self._database.read() as connection:
            return tables.shards_of(connection, node_id)

    def add_replica(self, receipt: bytes) -> None:
        """A node holds a copy of a shard (after a repair, a move, a reconciliation).

        Raises `NotFound` when no version names that shard with that frame digest: the node should delete its copy;
        `NotPermitted` for a forged receipt or one of a node that was given up, `DamagedData`, `Unavailable`.
        """
        verified = verify_receipt(receipt, self._trust.cluster_id, self._trust.identify)
        self._observe_receipts([verified])
        with self._journal.change() as change:
            if verified.node_id in tables.gone_nodes(change.connection):
                raise NotPermitted(f"node {verified.node_id} was given up; it counts again once it has been admitted")
            if not self._put_replica(change.connection, verified):
                raise NotFound(f"no version names shard {verified.shard_id} as node {verified.node_id} holds it")

    def remove_replica(self, shard_id: str, node_id: str) -> None:
        """A node no longer holds a copy: it was deleted, evicted or found damaged. Nothing happens if it did not."""
        with self._journal.change() as change:
            tables.take_replica(change.connection, shard_id, node_id)

    def forget_node(self, node_id: str) -> int:
        """Gives a node up: nothing on it counts, and none of its receipts until `admit_node`. Returns the number of
        replicas that were lost with it."""
        with self._journal.change() as change:
            tables.give_up(change.connection, node_id)
            lost = tables.take_node(change.connection, node_id)
        log.warning("Node %s is given up, since it is gone: %d replicas are lost with it", node_id, lost)
        return lost

    def admit_node(self, node_id: str) -> None:
        """Lets a node's receipts count (again). What it held before counts only by new receipts."""
        with self._journal.change() as change:
            tables.admit(change.connection, node_id)

    def reconcile(self, node_id: str, receipts: Sequence[bytes]) -> list[str]:
        """What a node that came, or came back, really holds: from here on its replicas are those of `receipts` and no
        others, and its receipts count. One transaction. Returns the shards among them that no version names: orphans,
        or of a put that is under way.

        Raises `NotPermitted` for a forged receipt or another node's, `DamagedData`, `Unavailable`.
        """
        verified = [verify_receipt(one, self._trust.cluster_id, self._trust.identify) for one in receipts]
        if any(receipt.node_id != node_id for receipt in verified):
            raise NotPermitted(f"expected receipts of node {node_id} alone")
        self._observe_receipts(verified)
        orphans = []
        with self._journal.change() as change:
            tables.admit(change.connection, node_id)
            held = set(tables.shards_of(change.connection, node_id))
            for receipt in verified:
                held.discard(receipt.shard_id)
                if not self._put_replica(change.connection, receipt):
                    orphans.append(receipt.shard_id)
            for shard_id in sorted(held):
                tables.take_replica(change.connection, shard_id, node_id)
        return orphans

    def short_shards(self) -> list[ShardStanding]:
        """Shards with fewer replicas than were promised, fewest first: what there is to repair."""
        with self._database.read() as connection:
            return tables.short_shards(connection, STANDINGS_MAX)

    def short_without(self, node_id: str) -> list[ShardStanding]:
        """Shards that would be short of replicas if the node were gone: what it has to be relieved of."""
        with self._database.read() as connection:
            return tables.short_without(connection, node_id, STANDINGS_MAX)

    def whereabouts(self, shard_ids: Sequence[str]) -> dict[str, Whereabouts]:
        """By shard id: how a shard may be had that no node holds, or none holds whole."""
        with self._database.read() as connection:
            return {shard_id: pieces.whereabouts(connection, shard_id) for shard_id in shard_ids}

    def storage_standing(self) -> StorageStanding:
        """How much is not as it was promised."""
        with self._database.read() as connection:
            return tables.storage_standing(connection)

    def settled_standings(self) -> list[ShardStanding]:
        """Shards that have all their replicas, the largest first: what may be moved."""
        with self._database.read() as connection:
            return tables.settled_standings(connection, STANDINGS_MAX)

    def stored_on_nodes(self) -> dict[str, int]:
        """Node id -> sealed bytes of the replicas that it holds."""
        with self._database.read() as connection:
            return tables.stored_on_nodes(connection)

    def standing(self, shard_id: str) -> ShardStanding | None:
        """Where a shard stands that a version names; None for any other."""
        with self._database.read() as connection:
            return tables.standing(connection, shard_id)

    def unreferenced_shards(self) -> list[ShardStanding]:
        """Shards of deleted versions that nodes still hold. Delete the copies, then `remove_replica` each."""
        with self._database.read() as connection:
            return tables.free_shards(connection, STANDINGS_MAX)

    def unnamed(self, shard_ids: Sequence[str]) -> list[str]:
        """Those of the shards that no version names: leftovers, or of a put that is under way."""
        with self._database.read() as connection:
            return tables.unnamed_shards(connection, shard_ids)

    def revoke(self, version_id: str, by: str) -> bool:
        """Before leftovers of a put are deleted: from here on it cannot commit any more. False when it has committed,
        and what no version names of it are leftovers of a version."""
        with self._journal.change() as change:
            if tables.by_version_id(change.connection, version_id):
                return False
            if not tables.is_revoked(change.connection, version_id):
                change.append(RecordKind.REVOKE, by=by, details={"version_id": version_id})
                tables.revoke_put(change.connection, version_id)
        return True

    # Copies of the chain

    @property
    def sequence(self) -> int:
        """Of the last record."""
        return self._journal.tail.sequence

    def records(self, since_sequence: int) -> list[Entry]:
        """What a copy that ends at `since_sequence` lacks, at most `ENTRIES_MAX` at a time."""
        return self._journal.entries(since_sequence, ENTRIES_MAX)

    def contains(self, tail: Tail) -> bool:
        """Whether a copy that ends so is of this chain. If not, it was forked, or this catalog's directory is an older
        state of itself than the copy: commit nothing."""
        return self._journal.contains(tail)

    def copied(self, node_id: str, sequence: int) -> None:
        """A node's copy of the chain has been on its disk up to `sequence`. Not remembered across restarts: ask the
        nodes where their copies end."""
        with self._copies_lock:
            self._copied[node_id] = max(sequence, self._copied.get(node_id, 0))

    def replicated_to(self, sequence: int) -> list[str]:
        """Nodes whose copy of the chain has reached `sequence`."""
        with self._copies_lock:
            return sorted(node_id for node_id, reached in self._copied.items() if reached >= sequence)

    # Upkeep

    def verify(self) -> int:
        """Checks everything: pages, each record's signature and place in the chain, that the tables say what the chain
        adds up to, every manifest. Returns the number of records. Raises `DamagedData`, `NotPermitted`."""
        with self._database.snapshot() as connection:
            self._database.check_pages(connection)
            records = list(self._journal.verified_records(connection))
            for name, expected in replay(records).names.items():
                self._check_tables(connection, name, expected)
        return len(records)

    def close(self) -> None:
        """Lets the directory go; may be called twice."""
        self._journal.close()

    def _commit(
        self, change: Change, signed: SignedManifest, manifest: Manifest, receipts: Sequence[Receipt], base: int
    ) -> Version:
        connection = change.connection
        if tables.is_revoked(connection, manifest.version_id):
            raise Conflict(
                f"this put of {manifest.name} was silent for so long that its shards were taken for leftovers and "
                "deleted: put again",
                name=manifest.name,
            )
        artifact = tables.artifact(connection, manifest.name)
        number = next_number(artifact, manifest, base)
        if base == 0 and tables.artifact_id_was_used(connection, manifest.artifact_id):
            raise NotPermitted(f"{manifest.name} uses the id of another artifact or of a deleted one: put it again")
        for parent in manifest.parents:
            _check_parent(connection, parse_reference(parent))
        known = tables.known_shards(connection, manifest.kept_shards())
        fresh = check_shards(manifest, known, receipts, tables.gone_nodes(connection))
        version = manifest.version(number, digest_of(signed.manifest))
        record = change.append(
            RecordKind.COMMIT,
            by=manifest.signer,
            artifact_id=manifest.artifact_id,
            name=manifest.name,
            number=number,
            manifest_digest=bytes.fromhex(version.digest),
        )
        committed = countersign(signed, manifest.signer, number, record.epoch, record.time_us, self._trust)
        tables.insert_version(connection, manifest, version, record.sequence, committed)
        tables.reference_shards(connection, manifest, fresh)
        for receipt in receipts:
            if receipt.url:
                remotes.put(connection, receipt.shard_id, receipt.url)
        return version

    def _check_tables(self, connection: sqlite3.Connection, name: str, expected: Versions) -> None:
        """Raises `DamagedData` unless the tables say of a name what its records add up to."""
        existing = tables.versions(connection, name)
        artifact = tables.artifact(connection, name)
        numbers = {one.number: bytes.fromhex(one.digest) for one in existing}
        found = Versions(artifact.artifact_id, artifact.latest, artifact.last_number, numbers) if artifact else None
        if found != expected:
            raise DamagedData(f"the tables of {name} do not say what its records add up to: rebuild the catalog")
        for version in existing:
            self._manifest(connection, version)

    def _observe_receipts(self, receipts: Sequence[Receipt]) -> None:
        """A node that has seen a higher epoch says so in its receipts; that stops this catalog for good."""
        highest = max((receipt.epoch for receipt in receipts), default=0)
        if highest > self._journal.epoch_seen():
            self._journal.observe_epoch(highest)

    def _put_replica(self, connection: sqlite3.Connection, receipt: Receipt) -> bool:
        """Whether a version names the shard as the receipt's node holds it; only then it is recorded."""
        if not tables.is_referenced(connection, receipt):
            return False
        tables.put_replica(connection, receipt.shard_id, receipt.node_id, receipt.tier)
        tables.count_standing(connection, [receipt.shard_id])
        return True

    def _committed(self, connection: sqlite3.Connection, version: Version) -> bytes:
        committed = tables.committed_manifest(connection, version.name, version.number)
        if committed is None:
            raise DamagedData(f"the manifest of {version} is missing from the catalog's journal: rebuild the catalog")
        return committed

    def _check_backup(self, url: str) -> None:
        if self._is_drill:
            raise UsageError(
                f"this cluster was restored as a drill: it reads backups and writes to none, also not to {url}"
            )
        check_backup_allowed(url, self._backup_urls)

    def _manifest(self, connection: sqlite3.Connection, version: Version) -> Manifest:
        """The version's manifest, checked to be the one that the version names."""
        committed = self._committed(connection, version)
        manifest, statement = open_manifest(committed, self._trust.cluster_id, self._trust.verify)
        stated = (manifest.name, statement.number, statement.digest.hex())
        if stated != (version.name, version.number, version.digest):
            raise DamagedData(f"the manifest kept for {version} is {stated[0]}@{stated[1]}'s: rebuild the catalog")
        return manifest


def _append(
    change: Change,
    kind: RecordKind,
    artifact: Artifact,
    number: int,
    by: str,
    details: Mapping[str, str] | None = None,
) -> Record:
    return change.append(
        kind, by=by, artifact_id=artifact.artifact_id, name=artifact.name, number=number, details=details
    )


def _existing(connection: sqlite3.Connection, reference: Reference) -> tuple[Artifact, Version]:
    """A version that exists, and its artifact. Raises `NotFound`."""
    artifact = tables.artifact(connection, reference.name)
    if artifact:
        version = tables.version(connection, artifact.name, reference.number or artifact.latest)
        if version:
            return artifact, version
    raise not_found(reference.name, reference.number, artifact)


def _committed_before(connection: sqlite3.Connection, signed: SignedManifest, manifest: Manifest) -> Version | None:
    """The answer to a commit that was made before, by its version id."""
    found = tables.by_version_id(connection, manifest.version_id)
    if found is None:
        return None
    version, exists = found
    if bytes.fromhex(version.digest) != digest_of(signed.manifest):
        raise UsageError(
            f"version id {manifest.version_id} was committed as {version} with another manifest: draw a new"
        )
    if not exists:
        raise Conflict(f"this version was committed as {version} and has been deleted since", name=version.name)
    return version


def _check_parent(connection: sqlite3.Connection, parent: Reference) -> None:
    if not tables.version_was_given(connection, parent.name, parent.number or 0):
        raise UsageError(f"{parent}, named as a parent, never existed")
