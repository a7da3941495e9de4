"""Whom a grant is sealed to: HPKE (RFC 9180) with a key made for one request.

Suite 1 is X25519 together with ML-KEM-768 (draft-ietf-hpke-pq, X-Wing's combination): a recording of today's traffic
does not open to a quantum computer later. Suite 2 is X25519 alone, for a cryptography package built without
ML-KEM. Both with HKDF-SHA-256 and AES-256-GCM.
"""

import enum
import functools
import logging
import secrets
from typing import Self

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from raylog.errors import NotPermitted
from raylog.security.keys import KeyHolder

log = logging.getLogger("raylog.grants")

_X25519_BYTES = 32
_MLKEM768_BYTES = 1184
_MLKEM768_SEED_BYTES = 64


class Suite(enum.IntEnum):
    """Which algorithms; the value stands in the grant request."""

    MLKEM768_X25519 = 1
    X25519 = 2


class Recipient(KeyHolder):
    """A private key: a fresh one for each grant, or a recovery key that is kept (RECOVERY.md)."""

    def __init__(self, suite: Suite, private_bytes: bytes) -> None:
        """`private_bytes`: 32 of X25519, for suite 1 after 64 of ML-KEM's seed. Raises `NotPermitted` for others."""
        self.suite = suite
        seed, curve_bytes = private_bytes[:-_X25519_BYTES], private_bytes[-_X25519_BYTES:]
        if len(seed) != (_MLKEM768_SEED_BYTES if suite is Suite.MLKEM768_X25519 else 0):
            raise NotPermitted(f"expected the private key of suite {suite.name}, got {len(private_bytes)} bytes")
        curve = X25519PrivateKey.from_private_bytes(curve_bytes)
        self.public_key = curve.public_key().public_bytes_raw()
        self._key: X25519PrivateKey | hpke.MLKEM768X25519PrivateKey = curve
        if suite is Suite.MLKEM768_X25519:
            lattice = MLKEM768PrivateKey.from_seed_bytes(seed)
            self.public_key = lattice.public_key().public_bytes_raw() + self.public_key
            self._key = hpke.MLKEM768X25519PrivateKey(lattice, curve)

    @classmethod
    def fresh(cls) -> Self:
        """Of the strongest suite that this machine has."""
        return cls(best_suite(), fresh_private_bytes(best_suite()))

    def open(self, sealed: bytes, info: bytes, what: str = "the grant") -> bytes:
        """What was sealed to this recipient with the same `info`; raises `NotPermitted`."""
        try:
            return _hpke(self.suite).decrypt(sealed, self._key, info)
        except (InvalidTag, ValueError):
            raise NotPermitted(
                f"{what} does not open: it was changed, or sealed to another recipient or for another scope or time"
            ) from None


def fresh_private_bytes(suite: Suite) -> bytes:
    """A new private key, as `Recipient` takes it."""
    seed_bytes = _MLKEM768_SEED_BYTES if suite is Suite.MLKEM768_X25519 else 0
    return secrets.token_bytes(seed_bytes) + X25519PrivateKey.generate().private_bytes_raw()


def seal_to(suite: Suite, public_key: bytes, secret: bytes, info: bytes) -> bytes:
    """`secret` for the holder of `public_key` alone. Raises `NotPermitted` for a key that is none of that suite."""
    try:
        return _hpke(suite).encrypt(secret, _parse(suite, public_key), info)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise NotPermitted(f"expected an HPKE recipient key of suite {suite.name}: {error}") from None


@functools.cache
def best_suite() -> Suite:
    """The strongest suite that this machine has; the weaker one is taken with a warning."""
    try:
        MLKEM768PrivateKey.generate()
    except UnsupportedAlgorithm:
        log.warning("no ML-KEM in this build of cryptography: grants are sealed with X25519 alone; use its PyPI wheel")
        return Suite.X25519
    return Suite.MLKEM768_X25519


def _hpke(suite: Suite) -> hpke.Suite:
    kem = hpke.KEM.MLKEM768_X25519 if suite is Suite.MLKEM768_X25519 else hpke.KEM.X25519
    return hpke.Suite(kem, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


def _parse(suite: Suite, public_key: bytes) -> X25519PublicKey | hpke.MLKEM768X25519PublicKey:
    expected = _X25519_BYTES + (_MLKEM768_BYTES if suite is Suite.MLKEM768_X25519 else 0)
    if len(public_key) != expected:
        raise ValueError(f"expected {expected} bytes of public key, got {len(public_key)}")
    curve = X25519PublicKey.from_public_bytes(public_key[-_X25519_BYTES:])
    if suite is Suite.X25519:
        return curve
    return hpke.MLKEM768X25519PublicKey(MLKEM768PublicKey.from_public_bytes(public_key[:_MLKEM768_BYTES]), curve)
