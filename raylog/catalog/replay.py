"""The listing that a chain of records adds up to. Pure: the catalog checks its tables against it, and one that lost
them is made anew from it."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from raylog.catalog.record import Record, RecordKind
from raylog.catalog.state import latest_after_delete
from raylog.errors import DamagedData


@dataclass(slots=True)
class Versions:
    """One name: what exists, number -> manifest digest, and what the plain name means (0: nothing)."""

    artifact_id: str
    latest: int = 0
    last_number: int = 0
    existing: dict[int, bytes] = field(default_factory=dict)


@dataclass(slots=True)
class Listing:
    """All names ever used."""

    names: dict[str, Versions] = field(default_factory=dict)

    def apply(self, record: Record) -> None:
        """Takes the next record of the chain. Raises `DamagedData` when it cannot follow from what was before."""
        if record.kind not in (RecordKind.COMMIT, RecordKind.SET_LATEST, RecordKind.DELETE):
            return  # a listing does not show it
        if record.kind == RecordKind.COMMIT:
            self._commit(record)
            return
        versions = self.names.get(record.name)
        if versions is None or versions.artifact_id != record.artifact_id:
            raise _impossible(record, "its artifact is not there")
        if record.number and record.number not in versions.existing:
            raise _impossible(record, "its version is not there")
        if record.kind == RecordKind.SET_LATEST:
            versions.latest = record.number
        else:
            self._delete(versions, record)

    def _commit(self, record: Record) -> None:
        versions = self.names.setdefault(record.name, Versions(record.artifact_id))
        if record.number != versions.last_number + 1:
            raise _impossible(record, f"the next number is {versions.last_number + 1}")
        if versions.existing and versions.artifact_id != record.artifact_id:
            raise _impossible(record, f"the artifact is {versions.artifact_id}")
        versions.artifact_id = record.artifact_id
        versions.existing[record.number] = record.manifest_digest
        versions.latest = versions.last_number = record.number

    def _delete(self, versions: Versions, record: Record) -> None:
        if record.number == 0:
            versions.existing.clear()
            versions.latest = 0
            return
        del versions.existing[record.number]
        if versions.latest == record.number:
            versions.latest = latest_after_delete(versions.existing, record.number)


def replay(records: Iterable[Record]) -> Listing:
    """The listing after all of `records`. Raises `DamagedData`."""
    listing = Listing()
    for record in records:
        listing.apply(record)
    return listing


def _impossible(record: Record, why: str) -> DamagedData:
    what = f"{record.name}@{record.number}" if record.number else record.name
    return DamagedData(f"record {record.sequence} ({record.kind} {what}) cannot follow from those before it: {why}")
