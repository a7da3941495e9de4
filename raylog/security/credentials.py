"""Credentials: one process's private key with the certificate that says whose it is, and the TLS they make."""

import os
import ssl
import threading
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from raylog.errors import DamagedData, NotPermitted
from raylog.security.identity import Certificate, Identity, read_certificate
from raylog.security.keys import KeyHolder
from raylog.security.private_files import (
    check_private_directory,
    make_private_directory,
    read_private,
    write_private,
)

ALPN = "raylog/1"
FORMAT_VERSION = 1
_FILE_NAME = "credentials.json"
_FILE_BYTES_MAX = 64 << 10
_RENEW_AFTER = 2 / 3  # of the lifetime: eight hours are left for trying again


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    raylog_credentials_format: int
    private_key: bytes
    certificate: bytes
    ca: bytes
    cluster_public_key: bytes


class Credentials(KeyHolder):
    """A private key, its certificate, the authority's certificate and the cluster's public key (Ed25519, 32 bytes).

    Immutable: a renewed certificate makes another object. Raises `NotPermitted` when the parts do not fit together; an
    expired certificate is accepted here (its holder may join again with the same key) and refused by every peer.
    """

    def __init__(
        self, private_key: Ed25519PrivateKey, certificate_der: bytes, ca_der: bytes, cluster_public_key: bytes
    ) -> None:
        self._certificate = read_certificate(certificate_der, ca_der)
        if private_key.public_key().public_bytes_raw() != self._certificate.public_key:
            raise NotPermitted(
                f"the certificate of {self._certificate.identity} is for another key than the one with it"
            )
        self._private_key = private_key
        self.ca_der = ca_der
        self.cluster_public_key = cluster_public_key

    @property
    def identity(self) -> Identity:
        return self._certificate.identity

    @property
    def certificate_der(self) -> bytes:
        return self._certificate.der

    @property
    def not_after_s(self) -> float:
        """When the certificate expires, POSIX seconds."""
        return self._certificate.not_after_s

    @property
    def private_key(self) -> Ed25519PrivateKey:
        """For joining again under the same key."""
        return self._private_key

    def needs_renewal(self, now_s: float) -> bool:
        """Whether two thirds of the certificate's lifetime are over."""
        begin_s, end_s = self._certificate.not_before_s, self._certificate.not_after_s
        return now_s >= begin_s + (end_s - begin_s) * _RENEW_AFTER

    def sign(self, data: bytes) -> bytes:
        """64 bytes, Ed25519. `data` begins with a label of its purpose (`keys.labelled`), so that no signature passes
        for one of another purpose."""
        return self._private_key.sign(data)

    def tls_context(self, server_side: bool) -> ssl.SSLContext:
        """TLS 1.3 and nothing else, a certificate of this authority from both ends, ALPN `raylog/1`, no tickets.

        After the handshake ask `verify_peer`: OpenSSL has then checked the signature and the time only. Made afresh for
        each call, so that a renewed certificate is used from the next connection on.
        """
        # Made bare: ssl.create_default_context would log session keys to $SSLKEYLOGFILE.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # the identity is the URI SAN
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols([ALPN])
        context.load_verify_locations(cadata=self.ca_der)
        if server_side:
            context.num_tickets = 0
        self._load_chain(context)
        return context

    def verify_peer(self, connection: ssl.SSLSocket | ssl.SSLObject, now_s: float) -> Certificate:
        """Who is at the other end of a finished handshake. Raises `NotPermitted` for another TLS version or protocol,
        no certificate, or one that this cluster's authority did not issue or that is not valid now."""
        version, protocol = connection.version(), connection.selected_alpn_protocol()
        if version != "TLSv1.3" or protocol != ALPN:
            raise NotPermitted(
                f"expected TLSv1.3 and protocol {ALPN}, the peer speaks {version} and {protocol or 'none'}: "
                "is this raylog's port, and the same raylog on both ends?"
            )
        der = connection.getpeercert(binary_form=True)
        if not der:
            raise NotPermitted("the peer showed no certificate: it must join this cluster first")
        certificate = read_certificate(der, self.ca_der)
        certificate.check_time(now_s)
        return certificate

    def save(self, directory: Path) -> None:
        """Writes one file of mode 0600 into `directory` (made, mode 0700), at once: key and certificate always fit."""
        make_private_directory(directory)
        file = _File(
            raylog_credentials_format=FORMAT_VERSION,
            private_key=self._private_key.private_bytes_raw(),
            certificate=self.certificate_der,
            ca=self.ca_der,
            cluster_public_key=self.cluster_public_key,
        )
        write_private(directory / _FILE_NAME, msgspec.json.encode(file), replace=True)

    @classmethod
    def load(cls, directory: Path) -> "Credentials":
        """What `save` wrote. Raises `NotPermitted` when it is missing, of laxer modes or another user's, `DamagedData`
        when malformed."""
        path = directory / _FILE_NAME
        try:
            check_private_directory(directory)
            file = msgspec.json.decode(read_private(path, _FILE_BYTES_MAX), type=_File)
            if file.raylog_credentials_format != FORMAT_VERSION:
                raise DamagedData(
                    f"{path}: expected credentials format {FORMAT_VERSION}, got {file.raylog_credentials_format}"
                )
            key = Ed25519PrivateKey.from_private_bytes(file.private_key)
        except FileNotFoundError:
            raise NotPermitted(f"there are no credentials in {directory}: join the cluster with a join token") from None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError):
            # The cause is left out: it may quote what stands in the file.
            raise DamagedData(f"{path} was damaged: remove it and join the cluster again") from None
        return cls(key, file.certificate, file.ca, file.cluster_public_key)

    def __repr__(self) -> str:
        return f"<Credentials of {self.identity}>"

    def _load_chain(self, context: ssl.SSLContext) -> None:
        """OpenSSL wants a file: an anonymous one in memory, of this process alone, that never touches a disk."""
        pem = self._private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        pem += x509.load_der_x509_certificate(self.certificate_der).public_bytes(Encoding.PEM)
        descriptor = os.memfd_create("raylog-credentials", os.MFD_CLOEXEC)
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
            file.flush()
            context.load_cert_chain(f"/proc/self/fd/{descriptor}")


class CurrentCredentials(KeyHolder):
    """What listens or connects asks at each new connection, so that a renewal needs no restart. Thread-safe."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._lock = threading.Lock()

    def __call__(self) -> Credentials:
        with self._lock:
            return self._credentials

    def replace(self, credentials: Credentials) -> None:
        """From now on these. Raises `NotPermitted` for credentials of another identity."""
        with self._lock:
            if credentials.identity != self._credentials.identity:
                raise NotPermitted(f"expected credentials of {self._credentials.identity}, got {credentials.identity}")
            self._credentials = credentials
