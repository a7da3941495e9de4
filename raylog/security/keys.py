"""Keys that wrap keys: AES-256-GCM with a random nonce, and what a holder of keys must never do."""

import secrets
from typing import NoReturn, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from raylog.errors import DamagedData, UsageError

KEY_BYTES = 32
_NONCE_BYTES = 12
_TAG_BYTES = 16


class KeyHolder:
    """Base of every class that holds a secret: shows nothing of it, and leaves its process neither by pickling nor by
    copying (both go through `__reduce_ex__`, and so does every Ray argument)."""

    __slots__ = ()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise UsageError(
            f"{type(self).__name__} holds keys and does not leave its process: pass a path, a certificate or a grant"
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


class Provider(Protocol):
    """Holds the key-encryption keys (KEKs) of one cluster; they never leave it. Thread-safe."""

    @property
    def cluster_id(self) -> str:
        """The cluster whose keys these are."""

    def wrap(self, context: bytes, key: bytes) -> bytes:
        """Wraps 32 bytes under the newest KEK. `context` says what the key is for and is authenticated, not stored."""

    def unwrap(self, context: bytes, wrapped: bytes) -> bytes:
        """The 32 bytes. Raises `DamagedData` for changed bytes or another context, `NotPermitted` for a KEK that is not
        here."""

    def needs_rewrap(self, wrapped: bytes) -> bool:
        """Whether an older KEK than the newest wrapped this."""


def new_key() -> bytes:
    """32 bytes of the operating system's generator."""
    return secrets.token_bytes(KEY_BYTES)


def labelled(label: bytes, *parts: bytes) -> bytes:
    """`label ‖ 0x00 ‖ (length as u32 ‖ part) …`: what is signed, hashed or bound. No two different (label, parts) give
    the same bytes, so nothing made for one purpose passes for another."""
    return b"".join([label, b"\x00", *(len(part).to_bytes(4, "big") + part for part in parts)])


def seal(key: bytes, context: bytes, secret: bytes) -> bytes:
    """`nonce (12) ‖ AES-256-GCM(key, nonce, secret, AAD = context)`. Random nonces are safe for 2^32 seals of one key
    (NIST SP 800-38D, 8.3)."""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, secret, context)


def unseal(key: bytes, context: bytes, sealed: bytes, what: str) -> bytes:
    """What `seal` was given; raises `DamagedData` that names `what`."""
    if len(sealed) < _NONCE_BYTES + _TAG_BYTES:
        raise DamagedData(f"{what}: expected at least {_NONCE_BYTES + _TAG_BYTES} sealed bytes, got {len(sealed)}")
    try:
        return AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], context)
    except InvalidTag:
        raise DamagedData(
            f"{what} does not open: its bytes were changed, it was moved from another place, or it belongs to another "
            "key; restore it from its backup"
        ) from None
