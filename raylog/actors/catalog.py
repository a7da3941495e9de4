"""The catalog actor: the catalog over its journal, under an epoch from Ray's GCS; `record_copies.py` keeps copies of
its records, `upkeep.py` those of shards."""

import logging
import threading
import time
from collections.abc import Mapping, Sequence

from raylog.actors import calls
from raylog.actors.backup_keeper import BackupKeeper
from raylog.actors.cluster_nodes import RayNodes
from raylog.actors.eventful import Eventful
from raylog.actors.gcs import GcsRegister
from raylog.actors.record_copies import RecordCopies
from raylog.actors.slot import kept_id
from raylog.actors.standbys import Standbys
from raylog.actors.upkeep import Upkeep
from raylog.catalog.catalog import Catalog
from raylog.catalog.journal import FILE_NAME, Journal
from raylog.catalog.lineage import Lineage
from raylog.catalog.parts import Part, Parts, rank_of
from raylog.catalog.pieces import Whereabouts
from raylog.catalog.record import RecordKind
from raylog.catalog.requests import (
    CATALOG,
    BackUpVersions,
    DeleteVersions,
    DiscardCopies,
    DoubtCopies,
    GovernVersions,
    RebalanceCopies,
    WithdrawVersion,
)
from raylog.catalog.retention import Retention
from raylog.catalog.state import Pending
from raylog.errors import Conflict, NotFound, Unavailable
from raylog.security.certs import Authority
from raylog.security.providers.file import FileKeyring
from raylog.security.requests import Receiver, Signer
from raylog.security.trust import trust_of
from raylog.settings import Settings
from raylog.spec import Reference, StorageStanding, TenantUsage, Version, parse_id, parse_reference

log = logging.getLogger("raylog.catalog")
TENANT_DEFAULT = "0" * 32
PARTS_KEPT_S = 3600.0


class CatalogActor(Eventful):
    """Runs on the head. A restart opens the journal again, begins a higher epoch, and asks the nodes what they hold."""

    def __init__(self, settings: Settings) -> None:
        super().__init__("catalog")
        authority = Authority.load(settings.authority_path, FileKeyring.load(settings.keyring_path))
        trust = trust_of(authority, time.time)
        self._requests = Receiver(CATALOG, trust.cluster_id, trust.verify, trust.identify, time.time)
        journal = Journal(settings.catalog_path, trust, time.time, create=may_create(settings))
        self._catalog = Catalog(journal, settings.backup_urls, is_drill=settings.drill_path.exists())
        register = GcsRegister(trust.cluster_id)
        standbys = Standbys(
            "catalog",
            register,
            machine=self.runs_on(),
            state_id=kept_id(settings.state_id_path),
            when_superseded=calls.end_process,
        )
        self._catalog.begin_epoch(register.claim_epoch(self._catalog.epoch_seen()))
        nodes = RayNodes(Signer.of_cluster(trust), settings.call_deadline_s)
        overrules_below = int(settings.overrules_path.read_text()) if settings.overrules_path.exists() else 0
        self._records = RecordCopies(
            self._catalog, nodes, standbys, settings.call_deadline_s, overrules_below=overrules_below
        )
        self._upkeep = Upkeep(self._catalog, nodes, settings, trust.cluster_id, self._records)
        self._upkeep.start()
        self._parts = Parts(PARTS_KEPT_S)
        self._parts_lock = threading.Lock()
        self._keeper = BackupKeeper(
            self._catalog, trust, settings, self._records.check_not_outdated, self._records.copy_to_another_node
        )

    def ready(self) -> None:
        """Answers once the actor is up; what kept it from starting is raised to whoever asks."""

    def begin(self, name: str) -> Pending:
        return self._catalog.begin(name, TENANT_DEFAULT)

    def renew_lease(self, version_id: str) -> None:
        """Says that the put of this version is still under way; what it sealed is kept for `orphan_grace_s` more."""
        self._upkeep.renew_lease(parse_id(version_id, "version id"))

    def commit(self, signed_manifest: bytes, receipts: Sequence[bytes], base: int) -> Version:
        """Acknowledged when the record is on this disk and, where there is another node, on one of theirs. A caller
        that did not hear the answer asks again and gets the same one."""
        self._records.check_not_outdated()
        version = self._catalog.commit(signed_manifest, receipts, base)
        self._records.copy_to_another_node()
        return version

    def offer_part(self, signed_manifest: bytes, receipts: Sequence[bytes]) -> None:
        """A process's shards of a version that it seals together with others. Asked again, it changes nothing."""
        manifest = self._catalog.open_part(signed_manifest)
        part = Part(signed_manifest, tuple(receipts))
        with self._parts_lock:
            self._parts.offer(manifest.version_id, rank_of(manifest), part, time.monotonic())

    def parts(self, version_id: str) -> dict[int, Part]:
        """Those that were offered so far, by rank. Raises `Cancelled` when a rank has withdrawn the version."""
        with self._parts_lock:
            found = self._parts.of(parse_id(version_id, "version id"), time.monotonic())
        if not found:
            self._catalog.of_version_id(version_id)  # raises where that is known from before a restart
        return found

    def sealed_together(self, version_id: str) -> Version | None:
        """The version with this id, acknowledged as by `commit`; None while it is not committed. Raises `Cancelled`
        when it will not be."""
        with self._parts_lock:
            self._parts.of(parse_id(version_id, "version id"), time.monotonic())
        found = self._catalog.of_version_id(version_id)
        if found is not None:
            self._records.check_not_outdated()
            self._records.copy_to_another_node()
            with self._parts_lock:
                self._parts.forget(version_id)
        return found

    def withdraw(self, signed_request: bytes) -> bool:
        """`signed_request` is for `WithdrawVersion`; False when it was committed before."""
        self._records.check_not_outdated()
        request, asker = self._requests.open(signed_request, WithdrawVersion)
        if not self._catalog.revoke(request.version_id, asker.identity):
            return False
        with self._parts_lock:
            self._parts.withdraw(request.version_id, request.reason, time.monotonic())
        self._records.copy_to_another_node()
        return True

    def committed(self, name: str, digest: str) -> Version | None:
        """The version of that digest, acknowledged as by `commit`; None where there is none. What `versions` shows may
        be on this disk alone yet."""
        try:
            found = next((one for one in self._catalog.versions(name) if one.digest == digest), None)
        except NotFound:
            return None
        if found is not None:
            self._records.check_not_outdated()
            self._records.copy_to_another_node()
        return found

    def delete(self, signed_request: bytes) -> list[Version]:
        """`signed_request` is for `DeleteVersions`: a Ray call alone proves nothing."""
        self._records.check_not_outdated()
        request, asker = self._requests.open(signed_request, DeleteVersions)
        reference = parse_reference(request.reference)
        newest = self._catalog.versions(reference.name)[-1].number
        if reference.number is None and newest > request.latest:
            raise Conflict(f"{reference.name}@{newest} came after the request to delete {reference.name}: ask again")
        deleted = self._catalog.delete(reference, asker.identity)
        self._records.copy_to_another_node()
        return deleted

    def back_up(self, signed_request: bytes) -> list[Version]:
        """`signed_request` is for `BackUpVersions`."""
        self._records.check_not_outdated()
        request, asker = self._requests.open(signed_request, BackUpVersions)
        chosen = self._catalog.back_up(parse_reference(request.reference), request.url, asker.identity)
        self._records.copy_to_another_node()
        return chosen

    def govern(self, signed_request: bytes) -> Retention:
        """`signed_request` is for `GovernVersions`."""
        self._records.check_not_outdated()
        request, asker = self._requests.open(signed_request, GovernVersions)
        reference = parse_reference(request.reference)
        found = self._catalog.govern(RecordKind(request.kind), reference, request.details, asker.identity)
        self._records.copy_to_another_node()
        return found

    def rebalance(self, signed_request: bytes) -> int:
        """`signed_request` is for `RebalanceCopies`; how many moves are planned at first."""
        self._records.check_not_outdated()
        self._requests.open(signed_request, RebalanceCopies)
        return self._upkeep.rebalance()

    def is_rebalancing(self) -> bool:
        return self._upkeep.is_rebalancing

    def retention(self, name: str) -> Retention:
        return self._catalog.retention(name)

    def stored_on_nodes(self) -> dict[str, int]:
        return self._catalog.stored_on_nodes()

    def usage(self) -> list[TenantUsage]:
        return self._catalog.usage()

    def whereabouts(self, shard_ids: Sequence[str]) -> dict[str, Whereabouts]:
        """By shard id: how a shard may be had that no node holds, or none holds whole."""
        return self._catalog.whereabouts(shard_ids)

    def not_backed_up(self, shard_ids: Sequence[str], url: str) -> list[str]:
        """Those of the shards that are still to be written there."""
        return self._catalog.backups.lacking(shard_ids, url)

    def sequence(self) -> int:
        """Of the last record."""
        return self._catalog.sequence

    def chain_backed_up(self, url: str, sequence: int) -> bool:
        """Whether a backup has the chain up to this record."""
        return self._catalog.backups.chain_reached(url) >= sequence

    def doubt(self, signed_request: bytes) -> None:
        """`signed_request` is for `DoubtCopies`."""
        request, _ = self._requests.open(signed_request, DoubtCopies)
        for shard_id in request.shard_ids:
            self._catalog.backups.doubt(shard_id, request.url)

    def discard(self, signed_request: bytes) -> None:
        """`signed_request` is for `DiscardCopies`; it is done in a moment."""
        request, _ = self._requests.open(signed_request, DiscardCopies)
        self._keeper.discard(request.url, self._catalog.unnamed(request.shard_ids))

    def stat(self, reference: Reference) -> Version:
        return self._catalog.stat(reference)

    def versions(self, name: str) -> list[Version]:
        return self._catalog.versions(name)

    def ls(self, prefix: str, labels: Mapping[str, str] | None = None) -> list[Version]:
        return self._catalog.ls(prefix, labels)

    def manifest(self, reference: Reference) -> bytes:
        return self._catalog.manifest(reference)

    def parents(self, references: Sequence[Reference]) -> list[str]:
        return self._catalog.parents(references)

    def lineage(self, reference: Reference) -> Lineage:
        return self._catalog.lineage(reference)

    def replicas(self, shard_ids: Sequence[str]) -> dict[str, list[str]]:
        found = self._catalog.replicas(shard_ids)
        if not self._upkeep.has_asked and not all(found.values()):
            raise Unavailable("the catalog has just begun, and asks the nodes what they hold: ask again in a moment")
        return found

    def short_without(self, node_id: str) -> int:
        """How many shards would be short of replicas if the node were gone; counted up to `STANDINGS_MAX`."""
        return len(self._catalog.short_without(node_id))

    def storage_standing(self) -> StorageStanding:
        return self._catalog.storage_standing()

    def epoch(self) -> int:
        return self._catalog.epoch_seen()


def may_create(settings: Settings) -> bool:
    """Whether an empty journal may be begun: never where this machine's nodes or its standby hold copies of an older
    one."""
    folders = [*settings.nodes_path.glob("slot-*/records"), settings.standby_path]
    copies = [path for folder in folders for path in folder.glob("*.sqlite")]
    if copies and not (settings.catalog_path / FILE_NAME).exists():
        raise Unavailable(
            f"the catalog's journal {settings.catalog_path / FILE_NAME} is gone, but {copies[0]} holds a copy of its "
            "records: run 'raylog catalog rebuild' here; an empty catalog would forget what is stored"
        )
    return not copies
