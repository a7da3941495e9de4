"""Whom to believe, as functions that are passed in: what uses them reads no key and no clock."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from raylog.security.certs import Authority
from raylog.security.identity import Certificate, read_certificate, verify_ed25519

CERTIFICATES_MAX = 1024  # whose check against the authority is remembered; their time is checked at every call

Sign = Callable[[bytes], bytes]
"""Data in, signature out."""

Verify = Callable[[bytes, bytes], None]
"""(data, signature): checks a signature of the cluster's long-lived key. Raises `NotPermitted`."""

Identify = Callable[[bytes, bytes, bytes], str]
"""(certificate DER, data, signature) -> identity URI. Checks that the certificate is the cluster's and valid now, and
the signature against its key. Raises `NotPermitted`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """One cluster's keys as its head uses them: the catalog, and whoever asks nodes in the cluster's name."""

    cluster_id: str
    sign: Sign
    verify: Verify
    identify: Identify


def verify_by(cluster_public_key: bytes) -> Verify:
    """Checks with the cluster's signing key, 32 raw bytes of Ed25519."""

    def verify(data: bytes, signature: bytes) -> None:
        verify_ed25519(cluster_public_key, data, signature, "the cluster's signing key")

    return verify


def identify_by(ca_der: bytes, clock: Callable[[], float]) -> Identify:
    """Checks with the cluster's authority, at the time of each call; `clock` gives seconds since 1970."""

    @lru_cache(maxsize=CERTIFICATES_MAX)
    def read(certificate_der: bytes) -> Certificate:
        return read_certificate(certificate_der, ca_der)

    def identify(certificate_der: bytes, data: bytes, signature: bytes) -> str:
        certificate = read(certificate_der)
        certificate.check_time(clock())
        verify_ed25519(certificate.public_key, data, signature, str(certificate.identity))
        return str(certificate.identity)

    return identify


def trust_of(authority: Authority, clock: Callable[[], float]) -> Trust:
    """The keys of the cluster that `authority` is of."""
    return Trust(
        cluster_id=authority.cluster_id,
        sign=authority.sign,
        verify=verify_by(authority.cluster_public_key),
        identify=identify_by(authority.ca_der, clock),
    )
