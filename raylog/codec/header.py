"""The header of a sealed shard: FORMAT.md, "Header". Parsing only: no key and no payload is touched here."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from raylog.codec.damage import damaged
from raylog.errors import UsageError
from raylog.spec import CHUNK_CONTENT_BYTES_MAX, Kind, parse_id

MAGIC = b"\x89RLSHD\r\n"
FORMAT_VERSION = 1
SUITE_AES_256_GCM_HKDF_SHA_256_BLAKE3 = 1
KEY_GROUPS_MAX = 64
SALT_BYTES = 32
HEADER_FIXED_BYTES = 160
HEADER_BYTES_PER_GROUP = 48  # a DEK id and a commitment
HEADER_BYTES_MAX = HEADER_FIXED_BYTES + HEADER_BYTES_PER_GROUP * KEY_GROUPS_MAX

_START = struct.Struct("<8sHHII")  # magic, version, suite, flags, header length
_FIXED = struct.Struct("<8sHHIII16s16s16s16s32s32sBB6s")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardIds:
    """Whose shard this is; every id is 32 hex digits and is bound into the shard's keys. Raises `UsageError`."""

    tenant: str
    artifact: str
    version: str
    shard: str

    def __post_init__(self) -> None:
        for what in ("tenant", "artifact", "version", "shard"):
            parse_id(getattr(self, what), f"a {what} id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The fields of FORMAT.md's header. Ids are 32 hex digits; `dek_ids` and `commitments` have one item per group."""

    kind: Kind
    chunk_bytes: int
    tenant_id: str
    artifact_id: str
    version_id: str
    shard_id: str
    schema_hash: bytes
    salt: bytes
    dek_ids: tuple[str, ...]
    commitments: tuple[bytes, ...] = ()

    @property
    def key_groups(self) -> int:
        return len(self.dek_ids)

    def prefix(self) -> bytes:
        """The encoded header before its commitments: what every key of the shard is derived over."""
        fixed = _FIXED.pack(
            MAGIC,
            FORMAT_VERSION,
            SUITE_AES_256_GCM_HKDF_SHA_256_BLAKE3,
            0,
            header_length(self.key_groups),
            self.chunk_bytes,
            *(bytes.fromhex(one) for one in (self.tenant_id, self.artifact_id, self.version_id, self.shard_id)),
            self.schema_hash,
            self.salt,
            self.kind,
            self.key_groups,
            bytes(6),
        )
        return fixed + b"".join(bytes.fromhex(dek_id) for dek_id in self.dek_ids)

    def encode(self) -> bytes:
        """The header's bytes; needs a commitment for every group."""
        assert len(self.commitments) == self.key_groups
        return self.prefix() + b"".join(self.commitments)

    @staticmethod
    def decode(data: bytes) -> "Header":
        """Parses exactly one header. Raises `DamagedData` whose `check` says which field was refused."""
        expected_bytes = peek_header_length(data)
        if len(data) != expected_bytes:
            raise damaged("lengths", f"expected a header of {expected_bytes} bytes, got {len(data)}")
        fields = _FIXED.unpack_from(data)
        chunk_bytes, (tenant, artifact, version, shard) = fields[5], (one.hex() for one in fields[6:10])
        schema_hash, salt, kind, groups, zero = fields[10:]
        if not 1 <= chunk_bytes <= CHUNK_CONTENT_BYTES_MAX:
            raise damaged(
                "lengths", f"expected a chunk size of 1 to {CHUNK_CONTENT_BYTES_MAX}, got {chunk_bytes}", shard_id=shard
            )
        if kind not in set(Kind):
            raise damaged("lengths", f"expected kind 1 to 4, got {kind}", shard_id=shard)
        if groups * HEADER_BYTES_PER_GROUP + HEADER_FIXED_BYTES != expected_bytes:
            raise damaged("lengths", f"{groups} key groups do not make {expected_bytes} header bytes", shard_id=shard)
        if kind != Kind.ARROW and groups != 1:
            raise damaged("lengths", f"expected one key group for {Kind(kind).name}, got {groups}", shard_id=shard)
        if any(zero):
            raise damaged("zero", f"expected zeros at 154, got {zero.hex()}", shard_id=shard)
        return Header(
            kind=Kind(kind),
            chunk_bytes=chunk_bytes,
            tenant_id=tenant,
            artifact_id=artifact,
            version_id=version,
            shard_id=shard,
            schema_hash=schema_hash,
            salt=salt,
            dek_ids=tuple(one.hex() for one in _slices(data, HEADER_FIXED_BYTES, 16, groups)),
            commitments=tuple(_slices(data, HEADER_FIXED_BYTES + 16 * groups, 32, groups)),
        )


def header_length(key_groups: int) -> int:
    """Length in bytes of a header with so many key groups."""
    return HEADER_FIXED_BYTES + HEADER_BYTES_PER_GROUP * key_groups


def peek_header_length(start: bytes) -> int:
    """The header's length in bytes, from its first 20 bytes or more. Raises `DamagedData`."""
    if len(start) < _START.size:
        raise damaged("truncated", f"expected a header, got {len(start)} bytes")
    magic, version, suite, flags, length = _START.unpack_from(start)
    if magic != MAGIC:
        raise damaged("magic", f"expected the magic {MAGIC.hex()} of a sealed shard, got {magic.hex()}")
    if version != FORMAT_VERSION:
        raise damaged("version", f"format version {version} is not known here, only {FORMAT_VERSION} is")
    if suite != SUITE_AES_256_GCM_HKDF_SHA_256_BLAKE3:
        raise damaged("suite", f"suite {suite} is not known here, only {SUITE_AES_256_GCM_HKDF_SHA_256_BLAKE3} is")
    if flags:
        bits = ", ".join(str(bit) for bit in range(32) if flags >> bit & 1)
        raise damaged("flags", f"expected no flag, got bit {bits}")
    groups, rest = divmod(length - HEADER_FIXED_BYTES, HEADER_BYTES_PER_GROUP)
    if rest or not 1 <= groups <= KEY_GROUPS_MAX:
        raise damaged("lengths", f"expected a header of 160 + 48 x (1 to {KEY_GROUPS_MAX}) bytes, got {length}")
    return int(length)


def check_layout(kind: Kind, key_groups: int, chunk_bytes: int) -> None:
    """Refuses what no header may say, before anything is sealed. Raises `UsageError`."""
    if not 1 <= chunk_bytes <= CHUNK_CONTENT_BYTES_MAX:
        raise UsageError(f"expected chunk_bytes of 1 to {CHUNK_CONTENT_BYTES_MAX}, got {chunk_bytes}")
    groups_max = KEY_GROUPS_MAX if kind == Kind.ARROW else 1
    if not 1 <= key_groups <= groups_max:
        raise UsageError(f"expected 1 to {groups_max} keys for a shard of kind {kind.name}, got {key_groups}")


def _slices(data: bytes, offset: int, size: int, count: int) -> Sequence[bytes]:
    return [data[start : start + size] for start in range(offset, offset + size * count, size)]
