"""From a data key to the keys of one shard: FORMAT.md, "Keys" (HKDF-SHA-256, RFC 5869)."""

from dataclasses import dataclass, field
from typing import NoReturn

from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from raylog.errors import UsageError
from raylog.spec import parse_id

DEK_BYTES = 32
_DISTINCT_BYTES_MIN = 12  # 32 random bytes have fewer distinct ones in one of 10^19 cases


@dataclass(frozen=True, slots=True)
class GroupKey:
    """The data key of one key group. Raises `UsageError` for whatever is not 32 random bytes: a passphrase or a
    short key is refused, not stretched. It shows no key in its `repr` and refuses to be pickled."""

    dek_id: str
    dek: bytes = field(repr=False)

    def __post_init__(self) -> None:
        parse_id(self.dek_id, "a DEK id")
        check_key(self.dek)

    def __reduce__(self) -> NoReturn:
        raise UsageError("a data key does not leave its process: send a grant (HPKE) instead of pickling it")


@dataclass(frozen=True, slots=True)
class ShardKeys:
    """What one group's data key gives for one shard."""

    chunk: AESGCM
    index: bytes = field(repr=False)
    commitment: bytes


def check_key(key: object) -> None:
    """Passes 32 random bytes; raises `UsageError` for anything else, without showing it."""
    hint = "a passphrase or a short key is refused, not stretched; make one with os.urandom(32)"
    if not isinstance(key, bytes):
        raise UsageError(f"expected a key of {DEK_BYTES} random bytes, got {type(key).__name__}: {hint}")
    if len(key) != DEK_BYTES:
        raise UsageError(f"expected a key of {DEK_BYTES} random bytes, got {len(key)}: {hint}")
    if len(set(key)) < _DISTINCT_BYTES_MIN or all(32 <= byte < 127 for byte in key):
        raise UsageError(f"expected a key of {DEK_BYTES} random bytes, got text or a pattern: {hint}")


def derive_shard_keys(key: GroupKey, group: int, salt: bytes, prefix: bytes) -> ShardKeys:
    """The keys of `group`. `prefix` is the header before its commitments, so all ids and the salt are bound."""
    binding = b"\x00" + bytes([group]) + prefix
    return ShardKeys(
        chunk=AESGCM(_derive(key.dek, salt, b"raylog/1 chunk" + binding)),
        index=_derive(key.dek, salt, b"raylog/1 index" + binding),
        commitment=_derive(key.dek, salt, b"raylog/1 commit" + binding),
    )


def schema_hash(key: GroupKey, preamble: bytes) -> bytes:
    """32 bytes by which holders of one data key see that two shards have the same preamble, and nobody else does."""
    return blake3(preamble, key=_derive(key.dek, None, b"raylog/1 schema")).digest()


def content_tag_key(key: GroupKey) -> bytes:
    """The key of content tags (MANIFEST.md, "Content tag")."""
    return _derive(key.dek, None, b"raylog/1 content tag")


def _derive(key: bytes, salt: bytes | None, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=info).derive(key)
