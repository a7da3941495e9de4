"""Commit records: what happened, in order, as a chain that the cluster's key signs (MANIFEST.md)."""

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from raylog.catalog.encoding import (
    DIGEST_BYTES,
    FORMAT_VERSION,
    check_bytes,
    check_cluster,
    check_range,
    decode,
    digest_of,
    encode,
    signing_input,
)
from raylog.catalog.receipt import EPOCH_MAX
from raylog.errors import DamagedData, NotPermitted, UsageError
from raylog.security.trust import Trust, Verify
from raylog.spec import parse_backup, parse_id, parse_name

REASON_CHARACTERS_MAX = 1024
NUMBER_MAX = 10**12 - 1  # what a reference can name (spec.parse_reference)

_LABEL = "raylog/1 record"


class RecordKind(StrEnum):
    EPOCH = "epoch"
    COMMIT = "commit"
    SET_LATEST = "set-latest"
    DELETE = "delete"
    BACKUP = "backup"
    HOLD = "hold"
    RELEASE = "release"
    EXPIRE = "expire"
    KEEP = "keep"
    REVOKE = "revoke"


_DETAILS = {
    RecordKind.BACKUP: "url",
    RecordKind.HOLD: "reason",
    RecordKind.EXPIRE: "at_us",
    RecordKind.KEEP: "versions",
    RecordKind.REVOKE: "version_id",
}
_ABOUT_NO_ARTIFACT = {RecordKind.EPOCH, RecordKind.REVOKE}
_ABOUT_ALL = {RecordKind.DELETE, RecordKind.BACKUP, RecordKind.HOLD, RecordKind.RELEASE, RecordKind.KEEP}


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One link of the chain. `number` 0 means no version in particular; see MANIFEST.md for what each kind does.

    `kind` is text and not `RecordKind`, so that an unknown one is refused by its name.
    """

    format_version: int = FORMAT_VERSION
    cluster_id: str
    sequence: int
    epoch: int
    kind: str
    artifact_id: str = ""
    name: str = ""
    number: int = 0
    manifest_digest: bytes = b""
    previous: bytes
    time_us: int
    by: str
    details: Mapping[str, str] = {}

    def __post_init__(self) -> None:
        if self.kind not in list(RecordKind):
            raise UsageError(f"record kind {self.kind!r} is not known here; install a raylog that knows it")
        parse_id(self.cluster_id, "cluster id")
        check_range(self.sequence, 1, EPOCH_MAX, "sequence")
        check_range(self.epoch, 1, EPOCH_MAX, "epoch")
        check_range(self.time_us, 0, 1 << 62, "time_us")
        check_bytes(self.previous, DIGEST_BYTES, "previous digest")
        check_bytes(self.manifest_digest, DIGEST_BYTES if self.kind == RecordKind.COMMIT else 0, "manifest digest")
        self._check_details()
        self._check_subject()

    def _check_details(self) -> None:
        expected = _DETAILS.get(RecordKind(self.kind), "")
        if list(self.details) != ([expected] if expected else []):
            raise UsageError(f"a record of kind {self.kind} has the detail {expected!r}, got {list(self.details)}")
        value = self.details.get(expected, "")
        if expected == "url" and parse_backup(value) != value:
            raise UsageError(f"a backup's URL ends in a slash: {value}")
        if expected == "version_id":
            parse_id(value, "version id")
        if expected == "reason" and not 1 <= len(value) <= REASON_CHARACTERS_MAX:
            raise UsageError(f"expected a reason of 1 to {REASON_CHARACTERS_MAX} characters, got {len(value)}")
        if expected in ("at_us", "versions") and not (value.isascii() and value.isdigit() and len(value) <= 18):
            raise UsageError(f"expected a number for {expected}, got {value[:40]!r}")

    def _check_subject(self) -> None:
        if self.kind in _ABOUT_NO_ARTIFACT:
            if self.artifact_id or self.name or self.number:
                raise UsageError(f"a record of kind {self.kind} is about no artifact, got {self.name!r}")
            return
        parse_id(self.artifact_id, "artifact id")
        parse_name(self.name)
        check_range(self.number, 0 if self.kind in _ABOUT_ALL else 1, NUMBER_MAX, "version number")


class SignedRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    record: bytes
    signature: bytes


class Tail(msgspec.Struct, frozen=True, kw_only=True):
    """Where a chain ends: the last sequence, its epoch, the digest of its record. The defaults are an empty chain."""

    sequence: int = 0
    epoch: int = 0
    digest: bytes = bytes(DIGEST_BYTES)


def sign_record(record: Record, trust: Trust) -> bytes:
    """The signed record, by the cluster's key."""
    data = encode(record)
    return encode(SignedRecord(record=data, signature=trust.sign(signing_input(_LABEL, data))))


def open_record(data: bytes, cluster_id: str, verify: Verify) -> tuple[Record, bytes]:
    """A record from untrusted bytes, verified, and its digest. Raises `DamagedData`, `NotPermitted`."""
    signed = decode(SignedRecord, data, "a signed record")
    record = decode(Record, signed.record, "a record")
    check_cluster(cluster_id, record.cluster_id, f"record {record.sequence}")
    verify(signing_input(_LABEL, signed.record), signed.signature)
    return record, digest_of(signed.record)


def check_not_superseded(epoch_seen: int, record: Record) -> None:
    """Raises `NotPermitted` (attribute `epoch`: the newer one) for a new record older than an epoch that was seen."""
    if record.epoch < epoch_seen:
        raise NotPermitted(
            f"record {record.sequence} is of epoch {record.epoch}, but epoch {epoch_seen} has begun: the catalog that "
            "wrote it was superseded and must stop",
            epoch=epoch_seen,
        )


def follow(tail: Tail, record: Record, digest: bytes) -> Tail:
    """The chain's end after `record`. Raises `DamagedData` for a gap or a broken chain, `NotPermitted` for an epoch
    older than one seen: its catalog was superseded."""
    check_not_superseded(tail.epoch, record)
    if record.sequence != tail.sequence + 1:
        raise DamagedData(f"expected record {tail.sequence + 1}, got record {record.sequence}: records are missing")
    if record.previous != tail.digest:
        raise DamagedData(f"record {record.sequence} does not follow the record {tail.sequence} that is here")
    if record.kind == RecordKind.EPOCH and record.epoch == tail.epoch:
        raise DamagedData(f"record {record.sequence} begins epoch {record.epoch} a second time")
    if record.kind != RecordKind.EPOCH and record.epoch != tail.epoch:
        raise DamagedData(f"record {record.sequence} is of epoch {record.epoch}, which no record before it began")
    return Tail(sequence=record.sequence, epoch=record.epoch, digest=digest)
