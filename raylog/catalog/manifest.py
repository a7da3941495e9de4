"""Manifests: what a version is made of, signed by its writer and countersigned by the catalog (MANIFEST.md)."""

from collections.abc import Mapping
from typing import NamedTuple, Self

import msgspec

from raylog.catalog.encoding import (
    CERTIFICATE_BYTES_MAX,
    DIGEST_BYTES,
    FORMAT_VERSION,
    SMALL_DOCUMENT_BYTES_MAX,
    check_bytes,
    check_cluster,
    check_range,
    decode,
    digest_of,
    encode,
    signing_input,
)
from raylog.codec.pieces import Erasure, Parity
from raylog.errors import DamagedData, NotPermitted, UsageError
from raylog.security.trust import Identify, Sign, Trust, Verify
from raylog.spec import (
    SHARD_CONTENT_BYTES_MAX,
    Durability,
    Kind,
    ShardRef,
    Version,
    parse_backup,
    parse_id,
    parse_name,
    parse_reference,
)
from raylog.units import MIB

MANIFEST_BYTES_MAX = 64 * MIB
SHARDS_MAX = 131_072
REPLICAS_MAX = 16
PARENTS_MAX = 64
LABELS_MAX = 64
LABEL_KEY_CHARACTERS_MAX = 64
LABEL_VALUE_CHARACTERS_MAX = 1024
CHUNKS_MAX = 65_536  # FORMAT.md
ROWS_MAX = 1 << 44  # of a shard, so that a version's sum stays far below 63 bits

ENVELOPE_BYTES_MAX = MANIFEST_BYTES_MAX + CERTIFICATE_BYTES_MAX + SMALL_DOCUMENT_BYTES_MAX
_LABEL = "raylog/1 manifest"
_COUNTERSIGN_LABEL = "raylog/1 countersign"


class Extent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A range of a shard's chunks that belongs to a version, with the rows and content bytes that are in it."""

    first: int
    count: int
    rows: int
    content_bytes: int


class ShardEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One shard's part in a version. `dek_ids`: one per key group of the shard; `content_tag`: equal for shards that
    hold the same."""

    shard: ShardRef
    dek_ids: tuple[str, ...]
    content_tag: bytes
    extents: tuple[Extent, ...]
    parity: Parity | None = None

    @classmethod
    def whole(cls, shard: ShardRef, dek_ids: tuple[str, ...], content_tag: bytes, parity: Parity | None = None) -> Self:
        """All of a shard."""
        everything = Extent(first=0, count=shard.chunks, rows=shard.rows, content_bytes=shard.content_bytes)
        return cls(shard=shard, dek_ids=dek_ids, content_tag=content_tag, extents=(everything,), parity=parity)

    @property
    def is_whole(self) -> bool:
        """Whether all of the shard belongs to the version."""
        return sum(extent.count for extent in self.extents) == self.shard.chunks

    @property
    def ranges(self) -> list[range] | None:
        """The numbers of the chunks that belong to the version; None for all."""
        return None if self.is_whole else [range(one.first, one.first + one.count) for one in self.extents]

    def __post_init__(self) -> None:
        shard = self.shard
        parse_id(shard.shard_id, "shard id")
        check_bytes(shard.frame_digest, DIGEST_BYTES, "frame digest")
        check_range(shard.chunks, 1, CHUNKS_MAX, f"chunks of shard {shard.shard_id}")
        check_range(shard.stored_bytes, 1, 2 * SHARD_CONTENT_BYTES_MAX, f"stored bytes of shard {shard.shard_id}")
        check_range(shard.content_bytes, 0, SHARD_CONTENT_BYTES_MAX, f"content bytes of shard {shard.shard_id}")
        check_range(shard.rows, 0, ROWS_MAX, f"rows of shard {shard.shard_id}")
        check_range(len(self.dek_ids), 1, 64, f"keys of shard {shard.shard_id}")
        for dek_id in self.dek_ids:
            parse_id(dek_id, "key id")
        check_bytes(self.content_tag, DIGEST_BYTES, f"content tag of shard {shard.shard_id}")
        self._check_extents()
        if self.parity:
            self.parity.check(shard.stored_bytes)

    def _check_extents(self) -> None:
        check_range(len(self.extents), 1, self.shard.chunks, f"extents of shard {self.shard.shard_id}")
        free = 0
        for extent in self.extents:
            if extent.first < free or extent.count < 1 or extent.first + extent.count > self.shard.chunks:
                raise UsageError(
                    f"expected extents of shard {self.shard.shard_id} in order within {self.shard.chunks} chunks, got "
                    f"{extent.count} from chunk {extent.first}"
                )
            free = extent.first + extent.count
        if min(extent.rows for extent in self.extents) < 0 or sum(e.rows for e in self.extents) > self.shard.rows:
            raise UsageError(f"extents of shard {self.shard.shard_id} have more rows than its {self.shard.rows}")
        content_bytes = sum(extent.content_bytes for extent in self.extents)
        if min(extent.content_bytes for extent in self.extents) < 0 or content_bytes > self.shard.content_bytes:
            raise UsageError(
                f"extents of shard {self.shard.shard_id} have more content than its {self.shard.content_bytes} bytes"
            )


class KeptShard(NamedTuple):
    """A shard file that nodes keep, and how many of them are to; 0: any copy is only cache."""

    shard: ShardRef
    wanted: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one version is made of. Checked when made and when decoded; raises `UsageError`.

    `parents` are `name@number`; `created_us` microseconds since 1970 by the writer's clock; `signer` the writer's
    identity URI; `replicas`, `durability` and `backup` (a URL) what was promised to the writer; `tag_dek_id` keys the
    content tags.
    """

    format_version: int = FORMAT_VERSION
    cluster_id: str
    tenant: str
    artifact_id: str
    version_id: str
    name: str
    kind: Kind
    parents: tuple[str, ...] = ()
    labels: Mapping[str, str] = {}
    replicas: int = 1
    durability: Durability = Durability.DISK
    backup: str = ""
    created_us: int
    signer: str
    tag_dek_id: str
    shards: tuple[ShardEntry, ...]

    def __post_init__(self) -> None:
        for what, one in (("cluster", self.cluster_id), ("tenant", self.tenant), ("artifact", self.artifact_id)):
            parse_id(one, f"{what} id")
        parse_id(self.version_id, "version id")
        parse_id(self.tag_dek_id, "key id")
        parse_name(self.name)
        if self.kind is Kind.PIECE:
            raise UsageError("a version's content is a table, files or tensors, not pieces")
        if self.kind is not Kind.TENSORS and not all(entry.is_whole for entry in self.shards):
            raise UsageError("a table or files are made of whole shards; only of tensors a version may name ranges")
        self._check_promise()
        check_range(self.created_us, 0, 1 << 62, "created_us")
        check_range(len(self.shards), 1, SHARDS_MAX, "shards")
        _check_parents(self.parents)
        _check_labels(self.labels)
        self.distinct_shards()

    def _check_promise(self) -> None:
        is_remote = self.durability is Durability.REMOTE
        check_range(self.replicas, 0 if is_remote else 1, REPLICAS_MAX, "replicas")
        if self.backup and parse_backup(self.backup) != self.backup:
            raise UsageError(f"expected the URL of a backup without a slash at its end, got {self.backup!r}")
        if is_remote and not self.backup:
            raise UsageError("durability remote promises copies in a backup, and no backup is named")

    def distinct_shards(self) -> dict[str, ShardRef]:
        """Every shard once, by id, in order of first appearance. Raises `UsageError` when two entries disagree."""
        found: dict[str, ShardEntry] = {}
        for entry in self.shards:
            first = found.setdefault(entry.shard.shard_id, entry)
            if entry is not first and msgspec.structs.replace(entry, extents=first.extents) != first:
                raise UsageError(f"two entries of {self.name} disagree about shard {entry.shard.shard_id}")
        return {shard_id: entry.shard for shard_id, entry in found.items()}

    def erasures(self) -> dict[str, Erasure]:
        """The erasure-coded shards among them, by id, with what their pieces follow from."""
        return {
            entry.shard.shard_id: Erasure(
                shard=entry.shard,
                tenant=self.tenant,
                artifact_id=self.artifact_id,
                dek_id=entry.dek_ids[0],
                parity=entry.parity,
            )
            for entry in self.shards
            if entry.parity
        }

    def kept_shards(self) -> dict[str, KeptShard]:
        """What nodes keep of it, by id: shards with as many replicas as were promised, of the erasure-coded ones their
        pieces with one each."""
        erasures = self.erasures()
        kept = {
            shard_id: KeptShard(shard, 0 if shard_id in erasures else self.replicas)
            for shard_id, shard in self.distinct_shards().items()
        }
        for erasure in erasures.values():
            kept |= {ref.shard_id: KeptShard(ref, 1) for ref in erasure.refs()}
        return kept

    def version(self, number: int, digest: bytes) -> Version:
        """What the client sees of it under `number`."""
        distinct = self.distinct_shards()
        extents = [extent for entry in self.shards for extent in entry.extents]
        return Version(
            name=self.name,
            number=number,
            shards=len(distinct),
            rows=sum(extent.rows for extent in extents),
            content_bytes=sum(extent.content_bytes for extent in extents),
            stored_bytes=sum(shard.stored_bytes for shard in distinct.values()),
            digest=digest.hex(),
        )


class SignedManifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a writer hands in."""

    manifest: bytes
    certificate: bytes
    signature: bytes


class Statement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the catalog states about a manifest under the cluster's key."""

    format_version: int = FORMAT_VERSION
    cluster_id: str
    digest: bytes
    signer: str
    number: int
    epoch: int
    time_us: int


class CommittedManifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the catalog keeps and readers check."""

    manifest: bytes
    certificate: bytes
    signature: bytes
    statement: bytes
    countersignature: bytes


def sign_manifest(manifest: Manifest, certificate: bytes, sign: Sign) -> bytes:
    """The signed manifest to hand to the catalog. `certificate` is the writer's, in DER, `sign` uses its key."""
    data = encode(manifest)
    if len(data) > MANIFEST_BYTES_MAX:
        raise UsageError(
            f"the manifest of {manifest.name} has {len(data)} bytes, at most {MANIFEST_BYTES_MAX} are allowed: use "
            "larger shards"
        )
    signature = sign(signing_input(_LABEL, digest_of(data)))
    return encode(SignedManifest(manifest=data, certificate=certificate, signature=signature))


def decode_signed(data: bytes, cluster_id: str) -> tuple[SignedManifest, Manifest]:
    """A signed manifest and what is in it, structure and cluster checked, *signature not*: see `verify_writer`.

    Raises `DamagedData`, `NotPermitted` for another cluster's.
    """
    signed = decode(SignedManifest, data, "a signed manifest", ENVELOPE_BYTES_MAX)
    return signed, _decode_manifest(signed.manifest, cluster_id)


def verify_writer(signed: SignedManifest, manifest: Manifest, identify: Identify) -> None:
    """Raises `NotPermitted` unless the manifest was signed by the certificate whose identity it names."""
    what = f"the manifest of {manifest.name}"
    if len(signed.certificate) > CERTIFICATE_BYTES_MAX:
        raise NotPermitted(f"{what}: a certificate of {len(signed.certificate)} bytes is not one")
    identity = identify(signed.certificate, signing_input(_LABEL, digest_of(signed.manifest)), signed.signature)
    if identity != manifest.signer:
        raise NotPermitted(f"{what} says that {manifest.signer} signed it, its certificate is {identity}'s")


def countersign(signed: SignedManifest, signer: str, number: int, epoch: int, time_us: int, trust: Trust) -> bytes:
    """The committed manifest: the catalog's word that it verified `signer`'s signature."""
    statement = encode(
        Statement(
            cluster_id=trust.cluster_id,
            digest=digest_of(signed.manifest),
            signer=signer,
            number=number,
            epoch=epoch,
            time_us=time_us,
        )
    )
    return encode(
        CommittedManifest(
            manifest=signed.manifest,
            certificate=signed.certificate,
            signature=signed.signature,
            statement=statement,
            countersignature=trust.sign(signing_input(_COUNTERSIGN_LABEL, statement)),
        )
    )


def open_manifest(data: bytes, cluster_id: str, verify: Verify) -> tuple[Manifest, Statement]:
    """A committed manifest, verified by the cluster's key alone: the writer's certificate may have expired long ago.

    Raises `DamagedData` (malformed, or not the manifest that was countersigned), `NotPermitted` (forged, or of another
    cluster). That it is the version that was asked for, compare `name` and `number`.
    """
    committed = decode(CommittedManifest, data, "a committed manifest", ENVELOPE_BYTES_MAX)
    statement = decode(Statement, committed.statement, "a countersignature")
    check_cluster(cluster_id, statement.cluster_id, "a countersignature")
    verify(signing_input(_COUNTERSIGN_LABEL, committed.statement), committed.countersignature)
    digest = digest_of(committed.manifest)
    if digest != statement.digest:
        raise DamagedData(f"expected the manifest with digest {statement.digest.hex()}, got {digest.hex()}")
    manifest = _decode_manifest(committed.manifest, cluster_id)
    if manifest.signer != statement.signer:
        raise NotPermitted(f"{manifest.name} names {manifest.signer} as its signer, the catalog saw {statement.signer}")
    return manifest, statement


def _decode_manifest(data: bytes, cluster_id: str) -> Manifest:
    manifest = decode(Manifest, data, "a manifest", MANIFEST_BYTES_MAX)
    check_cluster(cluster_id, manifest.cluster_id, f"the manifest of {manifest.name}")
    return manifest


def _check_parents(parents: tuple[str, ...]) -> None:
    check_range(len(parents), 0, PARENTS_MAX, "parents")
    for parent in parents:
        if parse_reference(parent).number is None:
            raise UsageError(f"expected a parent as name@number, got {parent!r}")
    if len(set(parents)) < len(parents):
        raise UsageError(f"a parent is named twice: {', '.join(parents)}")


def _check_labels(labels: Mapping[str, str]) -> None:
    check_range(len(labels), 0, LABELS_MAX, "labels")
    for key, value in labels.items():
        check_range(len(key), 1, LABEL_KEY_CHARACTERS_MAX, f"characters in the label key {key[:80]!r}")
        check_range(len(value), 0, LABEL_VALUE_CHARACTERS_MAX, f"characters in the label {key!r}")
