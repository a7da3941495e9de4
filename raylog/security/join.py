"""Joining a cluster: from a join token, or a certificate that still holds, to a new certificate.

The token's secret never travels: it signs the request (HMAC-SHA-256), and the token pins the authority's certificate,
so the answer is believed without trusting whoever carried it. One round trip of two byte strings, over any channel:

    request  = {version, body, proof, certificate?}   body = {cluster, role, id, csr, time, nonce, token id?}
    response = {version, body, signature, ca}         body = {certificate, cluster public key, digest of the request}

`proof` is the HMAC of the token's secret, or for a renewal a signature by the key of `certificate`; `signature` is by
the authority's key.
"""

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from raylog.errors import DamagedData, NotPermitted, UsageError
from raylog.security.credentials import Credentials
from raylog.security.identity import (
    Certificate,
    Identity,
    fingerprint,
    key_of,
    make_csr,
    read_certificate,
    verify_ed25519,
)
from raylog.security.keys import KEY_BYTES, KeyHolder, labelled
from raylog.security.messages import (
    NONCE_BYTES,
    REQUEST_BYTES_MAX,
    check_version,
    decode,
    encode,
)
from raylog.security.private_files import make_private_directory, read_private, write_private
from raylog.spec import parse_id

VERSION = 1
TOKEN_FORMAT_VERSION = 1
_TOKEN_BYTES_MAX = 4096
_REQUEST = "a join request"
_RESPONSE = "the answer to a join request"


class _TokenFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    raylog_join_token_format: int
    cluster_id: str
    token_id: str
    secret: bytes
    ca_fingerprint: str


class JoinBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who asks for a certificate for which key. `token_id` is None in a renewal."""

    cluster_id: str
    role: str
    id: str
    csr: bytes
    time_s: int
    nonce: bytes
    token_id: str | None


class _Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    version: int
    body: bytes
    proof: bytes
    certificate: bytes | None


class _ResponseBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    certificate: bytes
    cluster_public_key: bytes
    request_digest: bytes


class _Response(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    version: int
    body: bytes
    signature: bytes
    ca: bytes


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class JoinToken(KeyHolder):
    """What a machine needs to join: which cluster, a secret of 32 bytes, and the SHA-256 (hex) of the authority's
    certificate. Whoever has it can join as anything that the token is for: keep it like a password."""

    cluster_id: str
    token_id: str
    secret: bytes = field(repr=False)
    ca_fingerprint: str

    def save(self, path: Path) -> None:
        """Writes `path`, mode 0600, replacing a token that was there; its directory is made with mode 0700."""
        make_private_directory(path.parent)
        file = _TokenFile(
            raylog_join_token_format=TOKEN_FORMAT_VERSION,
            cluster_id=self.cluster_id,
            token_id=self.token_id,
            secret=self.secret,
            ca_fingerprint=self.ca_fingerprint,
        )
        write_private(path, msgspec.json.encode(file), replace=True)

    @classmethod
    def load(cls, path: Path) -> "JoinToken":
        """What `save` wrote. Raises `NotPermitted` when it is missing, of laxer modes or another user's (with what to
        do), `DamagedData` when malformed."""
        try:
            file = msgspec.json.decode(read_private(path, _TOKEN_BYTES_MAX), type=_TokenFile)
            parse_id(file.cluster_id, "cluster id")
            parse_id(file.token_id, "token id")
        except FileNotFoundError:
            raise NotPermitted(
                f"there is no join token at {path}: copy it from the machine where 'raylog up' made it, with its mode "
                "(scp -p)"
            ) from None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, UsageError):
            # The cause is left out: it may quote the secret.
            raise DamagedData(f"{path} is no join token, or was damaged: copy it again") from None
        if file.raylog_join_token_format != TOKEN_FORMAT_VERSION or len(file.secret) != KEY_BYTES:
            raise DamagedData(f"{path} is no join token of format {TOKEN_FORMAT_VERSION}: copy it again")
        return cls(
            cluster_id=file.cluster_id,
            token_id=file.token_id,
            secret=file.secret,
            ca_fingerprint=file.ca_fingerprint,
        )

    def __repr__(self) -> str:
        return f"<JoinToken {self.token_id} of cluster {self.cluster_id}>"


class PendingJoin(KeyHolder):
    """A request that was made and whose answer is awaited; holds the private key."""

    def __init__(self, request: bytes, private_key: Ed25519PrivateKey, identity: Identity, ca_fingerprint: str) -> None:
        self.request = request
        self._private_key = private_key
        self._identity = identity
        self._ca_fingerprint = ca_fingerprint

    def accept(self, response: bytes, now_s: float) -> Credentials:
        """The credentials in the authority's answer. Raises `NotPermitted` unless it is the pinned authority's answer
        to this very request, with a certificate for this key and identity that is valid at `now_s`."""
        answer = decode(response, _Response, _RESPONSE, REQUEST_BYTES_MAX)
        check_version(answer.version, VERSION, _RESPONSE)
        found = fingerprint(answer.ca)
        if not hmac.compare_digest(found, self._ca_fingerprint):
            raise NotPermitted(
                f"expected an answer of the authority with fingerprint {self._ca_fingerprint[:16]}…, got one of "
                f"{found[:16]}…: another cluster answered, or somebody in between; check the Ray address and "
                "the join token"
            )
        verify_ed25519(
            key_of(answer.ca), labelled(b"raylog/1 admission", answer.body), answer.signature, "the authority"
        )
        body = decode(answer.body, _ResponseBody, _RESPONSE, REQUEST_BYTES_MAX)
        if body.request_digest != hashlib.sha256(self.request).digest():
            raise NotPermitted("this answers another join request: join again")
        credentials = Credentials(self._private_key, body.certificate, answer.ca, body.cluster_public_key)
        if credentials.identity != self._identity:
            raise NotPermitted(f"asked for a certificate of {self._identity}, got one of {credentials.identity}")
        read_certificate(body.certificate, answer.ca).check_time(now_s)
        return credentials


def request_with_token(
    token: JoinToken, role: str, holder_id: str, now_s: float, private_key: Ed25519PrivateKey | None = None
) -> PendingJoin:
    """Asks for the first certificate of `holder_id`, or for another one after the last has expired: then with the same
    `private_key`, as an id stays bound to its key. Raises `UsageError` for a role or id that is none."""
    identity = Identity(role=role, id=holder_id, cluster_id=token.cluster_id)
    key = private_key or Ed25519PrivateKey.generate()
    body = _body(identity, key, token.token_id, now_s)
    request = encode(_Request(version=VERSION, body=body, proof=_token_proof(token.secret, body), certificate=None))
    return PendingJoin(request, key, identity, token.ca_fingerprint)


def request_renewal(credentials: Credentials, now_s: float) -> PendingJoin:
    """Asks for the next certificate of the same key with the one that still holds. No token is needed."""
    key = credentials.private_key
    body = _body(credentials.identity, key, None, now_s)
    proof = credentials.sign(labelled(b"raylog/1 renewal", body))
    request = encode(_Request(version=VERSION, body=body, proof=proof, certificate=credentials.certificate_der))
    return PendingJoin(request, key, credentials.identity, fingerprint(credentials.ca_der))


class ReceivedJoin:
    """A join request as the authority gets it: parsed, not yet believed. Raises `NotPermitted` for anything else."""

    def __init__(self, request: bytes) -> None:
        parsed = decode(request, _Request, _REQUEST, REQUEST_BYTES_MAX)
        check_version(parsed.version, VERSION, _REQUEST)
        self.body = decode(parsed.body, JoinBody, _REQUEST, REQUEST_BYTES_MAX)
        if len(self.body.nonce) != NONCE_BYTES:
            raise NotPermitted(f"expected a nonce of {NONCE_BYTES} bytes in {_REQUEST}, got {len(self.body.nonce)}")
        if (self.body.token_id is None) == (parsed.certificate is None):
            raise NotPermitted(f"expected either a join token or a certificate as the proof of {_REQUEST}")
        try:
            self.identity = Identity(role=self.body.role, id=self.body.id, cluster_id=self.body.cluster_id)
        except UsageError as error:
            raise NotPermitted(f"{_REQUEST}: {error}") from None
        self.digest = hashlib.sha256(request).digest()
        self.proven_digest = hashlib.sha256(parsed.body).digest()  # of what the proof covers, byte for byte
        self._parsed = parsed

    def check_token(self, secret: bytes) -> None:
        """Raises `NotPermitted` unless the holder of the token's `secret` made this request."""
        if not hmac.compare_digest(self._parsed.proof, _token_proof(secret, self._parsed.body)):
            raise NotPermitted(
                f"{_REQUEST} is not proven by join token {self.body.token_id}: its secret is another one, or the "
                "request was changed; copy the token again from the machine where 'raylog up' made it"
            )

    def check_renewal(self, ca_der: bytes, now_s: float) -> Certificate:
        """The certificate that proves this request; raises `NotPermitted` unless it is valid and this identity's."""
        certificate = read_certificate(self._parsed.certificate or b"", ca_der)
        certificate.check_time(now_s)
        if certificate.identity != self.identity:
            raise NotPermitted(
                f"{certificate.identity} asked for a certificate of {self.identity}: it renews only its own"
            )
        data = labelled(b"raylog/1 renewal", self._parsed.body)
        verify_ed25519(certificate.public_key, data, self._parsed.proof, f"{certificate.identity}")
        return certificate


def admission(
    received: ReceivedJoin, certificate: bytes, ca_key: Ed25519PrivateKey, ca_der: bytes, cluster_public_key: bytes
) -> bytes:
    """The authority's answer, which `PendingJoin.accept` reads."""
    body = encode(
        _ResponseBody(certificate=certificate, cluster_public_key=cluster_public_key, request_digest=received.digest)
    )
    signature = ca_key.sign(labelled(b"raylog/1 admission", body))
    return encode(_Response(version=VERSION, body=body, signature=signature, ca=ca_der))


def _body(identity: Identity, key: Ed25519PrivateKey, token_id: str | None, now_s: float) -> bytes:
    return encode(
        JoinBody(
            cluster_id=identity.cluster_id,
            role=identity.role,
            id=identity.id,
            csr=make_csr(key),
            time_s=int(now_s),
            nonce=secrets.token_bytes(NONCE_BYTES),
            token_id=token_id,
        )
    )


def _token_proof(secret: bytes, body: bytes) -> bytes:
    return hmac.digest(secret, labelled(b"raylog/1 join", body), "sha256")
