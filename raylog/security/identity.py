"""Certificates: who a node or a client is, proven by the cluster's authority. Ed25519 throughout (RFC 8032, RFC 8410).

The identity is one URI in the certificate's subject alternative name; host names are not looked at.
"""

import datetime
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, SignatureAlgorithmOID

from raylog.errors import NotPermitted, UsageError
from raylog.spec import parse_id

ROLES = ("node", "client")
BACKDATED_S = 300.0  # clocks of one cluster may differ by so much
CERTIFICATE_BYTES_MAX = 4096
_USES = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
_MALFORMED = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A role ("node" or "client") and an id (32 hex digits) in one cluster. Raises `UsageError` for anything else."""

    role: str
    id: str
    cluster_id: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise UsageError(f"expected a role of {', '.join(ROLES)}, got {self.role[:80]!r}")
        parse_id(self.id, f"{self.role} id")
        parse_id(self.cluster_id, "cluster id")

    def __str__(self) -> str:
        return f"raylog://{self.cluster_id}/{self.role}/{self.id}"

    @classmethod
    def parse(cls, uri: str) -> "Identity":
        """The inverse of `str`; raises `UsageError`."""
        scheme, separator, rest = uri.partition("://")
        parts = rest.split("/")
        if not separator or scheme != "raylog" or len(parts) != 3:
            raise UsageError(f"expected an identity such as raylog://CLUSTER/node/ID, got {uri[:120]!r}")
        return cls(cluster_id=parts[0], role=parts[1], id=parts[2])


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What the authority signed: this identity has this key (32 raw bytes) from one time to another (POSIX seconds)."""

    identity: Identity
    public_key: bytes
    not_before_s: float
    not_after_s: float
    der: bytes

    def check_time(self, now_s: float) -> None:
        """Raises `NotPermitted` outside of the validity, which says by how much."""
        if now_s < self.not_before_s:
            raise NotPermitted(
                f"the certificate of {self.identity} becomes valid in {self.not_before_s - now_s:.0f} s: the clock of "
                "this machine or of the authority is wrong; set both by NTP"
            )
        if now_s > self.not_after_s:
            raise NotPermitted(
                f"the certificate of {self.identity} expired {now_s - self.not_after_s:.0f} s ago: join again with the "
                "join token (and compare the clocks if it should be younger)"
            )


def verify_certificate(der: bytes, ca_der: bytes, now_s: float) -> Identity:
    """The identity of a certificate that this cluster's authority signed and that is valid at `now_s`.

    Raises `NotPermitted`, which says what is wrong: malformed, another authority's, another cluster's, no end
    certificate, no identity, not yet valid, expired.
    """
    certificate = read_certificate(der, ca_der)
    certificate.check_time(now_s)
    return certificate.identity


def verify_signature(certificate_der: bytes, data: bytes, signature: bytes) -> None:
    """Raises `NotPermitted` unless the certificate's key made `signature` over `data`. Whether to believe the
    certificate is `verify_certificate`'s to say."""
    verify_ed25519(_raw_key(_load(certificate_der)), data, signature, "the certificate's key")


def verify_ed25519(public_key: bytes, data: bytes, signature: bytes, whose: str) -> None:
    """Raises `NotPermitted` unless the holder of `public_key` (32 raw bytes) made `signature` (64) over `data`."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, data)
    except (InvalidSignature, ValueError):
        raise NotPermitted(f"the signature is not by {whose}, or what it signs was changed: ask for it again") from None


def read_certificate(der: bytes, ca_der: bytes) -> Certificate:
    """All of `verify_certificate` but the time, and what else the certificate says (a session ends when it expires)."""
    certificate, authority = _load(der), _load(ca_der)
    try:
        # The signature first: what follows looks only at what the authority wrote.
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, *_MALFORMED):
        raise NotPermitted(
            f"expected a certificate of the authority {_name_of(authority)!r} with fingerprint "
            f"{fingerprint(ca_der)[:16]}…, got one of {_issuer_of(certificate)!r} that it did not sign: another "
            "cluster's, or forged; join this cluster with its own join token"
        ) from None
    try:
        return _read(certificate, authority, der)
    except (*_MALFORMED, x509.ExtensionNotFound, UsageError) as error:
        raise NotPermitted(f"the certificate is not one that raylog issues: {error}") from None


def fingerprint(ca_der: bytes) -> str:
    """SHA-256 of an authority's certificate in hex: what a join token pins."""
    return _load(ca_der).fingerprint(SHA256()).hex()


def key_of(certificate_der: bytes) -> bytes:
    """The raw Ed25519 key (32 bytes) that a certificate, end or authority's, is for; raises `NotPermitted`."""
    return _raw_key(_load(certificate_der))


def cluster_of(ca_der: bytes) -> str:
    """The cluster id in an authority's certificate; raises `NotPermitted`."""
    return _cluster_of(_load(ca_der))


def make_csr(private_key: Ed25519PrivateKey) -> bytes:
    """A certificate request (PKCS #10, DER) that proves possession of the key. It asks for no name: the authority alone
    decides what it certifies."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(private_key, None).public_bytes(Encoding.DER)


def key_of_csr(csr_der: bytes) -> bytes:
    """The raw key that a certificate request proves possession of; raises `NotPermitted`."""
    if len(csr_der) > CERTIFICATE_BYTES_MAX:
        raise NotPermitted(f"expected a request of at most {CERTIFICATE_BYTES_MAX} bytes, got {len(csr_der)}")
    try:
        csr = x509.load_der_x509_csr(csr_der)
        is_proven = csr.is_signature_valid
        key = csr.public_key()
    except _MALFORMED as error:
        raise NotPermitted(f"expected a certificate request (PKCS #10, DER): {error}") from None
    if not is_proven:
        raise NotPermitted("the certificate request is not signed by its own key: its sender does not hold that key")
    if not isinstance(key, Ed25519PublicKey):
        raise NotPermitted("expected a certificate request for an Ed25519 key, got one for another kind of key")
    return key.public_bytes_raw()


def issue_authority(private_key: Ed25519PrivateKey, cluster_id: str, not_before_s: float, not_after_s: float) -> bytes:
    """The authority's own certificate (DER); it signs end certificates only (path length 0)."""
    name = _name(f"raylog {cluster_id}")
    builder = _builder(name, name, private_key.public_key(), not_before_s, not_after_s)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=True), critical=True)
    return builder.sign(private_key, None).public_bytes(Encoding.DER)


def issue_certificate(
    ca_key: Ed25519PrivateKey,
    ca_der: bytes,
    public_key: bytes,
    identity: Identity,
    not_before_s: float,
    not_after_s: float,
) -> bytes:
    """An end certificate (DER) for `public_key`, for both ends of a connection."""
    authority = _load(ca_der)
    key = Ed25519PublicKey.from_public_bytes(public_key)
    builder = _builder(_name(f"{identity.role} {identity.id}"), authority.subject, key, not_before_s, not_after_s)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage(_USES), critical=True)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
    )
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(identity))])
    return builder.add_extension(names, critical=False).sign(ca_key, None).public_bytes(Encoding.DER)


def _read(certificate: x509.Certificate, authority: x509.Certificate, der: bytes) -> Certificate:
    if certificate.signature_algorithm_oid != SignatureAlgorithmOID.ED25519:
        raise NotPermitted("expected a certificate signed with Ed25519")
    extensions = certificate.extensions
    if extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
        raise NotPermitted("expected the certificate of a node or a client, got an authority's")
    if not extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature:
        raise NotPermitted("expected a certificate whose key may sign")
    if set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) != set(_USES):
        raise NotPermitted("expected a certificate for TLS servers and clients")
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1 or len(names) != 1:
        raise NotPermitted(f"expected one URI as the only name in the certificate, got {len(names)} names")
    identity = Identity.parse(uris[0])
    cluster_id = _cluster_of(authority)
    if identity.cluster_id != cluster_id:
        raise NotPermitted(f"expected a certificate of cluster {cluster_id}, got one of {identity.cluster_id}")
    return Certificate(
        identity=identity,
        public_key=_raw_key(certificate),
        not_before_s=certificate.not_valid_before_utc.timestamp(),
        not_after_s=certificate.not_valid_after_utc.timestamp(),
        der=der,
    )


def _load(der: bytes) -> x509.Certificate:
    if len(der) > CERTIFICATE_BYTES_MAX:
        raise NotPermitted(f"expected a certificate of at most {CERTIFICATE_BYTES_MAX} bytes, got {len(der)}")
    try:
        return x509.load_der_x509_certificate(der)
    except _MALFORMED as error:
        raise NotPermitted(f"expected a certificate (X.509, DER), got {len(der)} other bytes: {error}") from None


def _raw_key(certificate: x509.Certificate) -> bytes:
    try:
        key = certificate.public_key()
    except _MALFORMED as error:
        raise NotPermitted(f"expected a certificate for an Ed25519 key: {error}") from None
    if not isinstance(key, Ed25519PublicKey):
        raise NotPermitted("expected a certificate for an Ed25519 key, got one for another kind of key")
    return key.public_bytes_raw()


def _cluster_of(authority: x509.Certificate) -> str:
    try:
        return parse_id(_name_of(authority).removeprefix("raylog "), "cluster id")
    except UsageError:
        raise NotPermitted("expected the certificate of a raylog authority") from None


def _name_of(certificate: x509.Certificate) -> str:
    try:
        return certificate.subject.rfc4514_string().removeprefix("CN=")
    except _MALFORMED:
        return "(malformed)"


def _issuer_of(certificate: x509.Certificate) -> str:
    try:
        return certificate.issuer.rfc4514_string().removeprefix("CN=")[:120]
    except _MALFORMED:
        return "(malformed)"


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: Ed25519PublicKey, not_before_s: float, not_after_s: float
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder(subject_name=subject, issuer_name=issuer, public_key=key)
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(_moment(not_before_s)).not_valid_after(_moment(not_after_s))
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _moment(time_s: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(time_s), datetime.UTC)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
