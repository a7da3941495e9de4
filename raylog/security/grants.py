"""Grants: data keys for one asker who proved who it is, sealed so that whoever carries them learns nothing.

    request = {version, body, certificate, signature}  body = {suite, recipient key, scope, nonce, time, expiry}
    grant   = {version, body, signature}               body = {request digest, DEK ids, sealed}

The request is signed by the certificate's key, the grant by the cluster's. The HPKE `info` binds recipient, scope,
expiry, the request's digest and the DEK ids, so a grant opens for the request that it answers and for no other.
"""

import hashlib
import secrets

import msgspec

from raylog.errors import NotPermitted, RaylogError, UsageError
from raylog.security.certs import Authority, Credentials
from raylog.security.envelopes import EnvelopeStore
from raylog.security.identity import Identity, read_certificate, verify_ed25519
from raylog.security.keys import KEY_BYTES, KeyHolder, labelled
from raylog.security.messages import (
    NONCE_BYTES,
    REQUEST_BYTES_MAX,
    ReplayCache,
    check_fresh,
    check_version,
    decode,
    encode,
)
from raylog.security.recipient import Recipient, Suite, seal_to
from raylog.spec import parse_id

VERSION = 1
DEKS_MAX = 1024
GRANT_BYTES_MAX = 128 << 10
LIFETIME_S = 300
LIFETIME_S_MAX = 900
GRANTED_ROLE = "client"
_REQUEST = "a grant request"
_GRANT = "a grant"
_REASON_CHARACTERS = 500


class ReadScope(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="read", kw_only=True):
    """Existing data keys, 1 to 1,024 different ids. `plaintext_blocks`: what they open is to lie in Ray's object store
    as blocks of Ray Data, which the audit log says then; absent where it is not."""

    dek_ids: tuple[str, ...]
    plaintext_blocks: bool = False


class WriteScope(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="write", kw_only=True):
    """A fresh data key of an artifact. `tenant` is an id."""

    artifact_id: str
    tenant: str


Scope = ReadScope | WriteScope


class _RequestBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    suite: Suite
    recipient_key: bytes
    scope: Scope
    nonce: bytes
    time_s: int
    expiry_s: int


class _Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    version: int
    body: bytes
    certificate: bytes
    signature: bytes


class _GrantBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    request_digest: bytes
    dek_ids: tuple[str, ...]
    sealed: bytes


class _Grant(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    version: int
    body: bytes
    signature: bytes


class PendingGrant(KeyHolder):
    """A request that was made and whose grant is awaited; holds the recipient's private key. `request` goes to the key
    actor; for another try make another one, as each is answered once."""

    def __init__(self, request: bytes, recipient: Recipient, body: _RequestBody) -> None:
        self.request = request
        self.recipient = recipient
        self.body = body


def request_grant(credentials: Credentials, scope: Scope, now_s: float, lifetime_s: int = LIFETIME_S) -> PendingGrant:
    """Asks for what `scope` names, to be opened within `lifetime_s` from now. Raises `UsageError` for a scope or
    lifetime that no grant can have."""
    try:
        _check_scope(scope)
    except NotPermitted as error:
        raise UsageError(str(error)) from None
    if not 0 < lifetime_s <= LIFETIME_S_MAX:
        raise UsageError(f"expected a lifetime of 1 to {LIFETIME_S_MAX} s, got {lifetime_s}")
    recipient = Recipient.fresh()
    body = _RequestBody(
        suite=recipient.suite,
        recipient_key=recipient.public_key,
        scope=scope,
        nonce=secrets.token_bytes(NONCE_BYTES),
        time_s=int(now_s),
        expiry_s=int(now_s) + lifetime_s,
    )
    data = encode(body)
    signature = credentials.sign(labelled(b"raylog/1 grant request", data))
    request = _Request(version=VERSION, body=data, certificate=credentials.certificate_der, signature=signature)
    return PendingGrant(encode(request), recipient, body)


def open_grant(grant: bytes, pending: PendingGrant, cluster_public_key: bytes, now_s: float) -> dict[str, bytes]:
    """The data keys by DEK id: those asked for, or the one fresh key of a `WriteScope`.

    Raises `NotPermitted` unless the cluster's key signed this grant for this very request, and it has not expired.
    """
    parsed = decode(grant, _Grant, _GRANT, GRANT_BYTES_MAX)
    check_version(parsed.version, VERSION, _GRANT)
    signed = labelled(b"raylog/1 grant", parsed.body)
    verify_ed25519(cluster_public_key, signed, parsed.signature, "the cluster's key")
    body = decode(parsed.body, _GrantBody, _GRANT, GRANT_BYTES_MAX)
    if body.request_digest != hashlib.sha256(pending.request).digest():
        raise NotPermitted("the grant answers another request: ask again")
    if now_s > pending.body.expiry_s:
        raise NotPermitted(f"the grant expired {now_s - pending.body.expiry_s:.0f} s ago: ask again")
    scope = pending.body.scope
    if isinstance(scope, ReadScope) and body.dek_ids != scope.dek_ids:
        raise NotPermitted("the grant holds other data keys than were asked for: ask again")
    keys = pending.recipient.open(body.sealed, _info(pending.body, body.request_digest, body.dek_ids))
    if len(keys) != KEY_BYTES * len(body.dek_ids):
        raise NotPermitted(f"expected {len(body.dek_ids)} data keys in the grant, got {len(keys)} bytes: ask again")
    return {dek_id: keys[i * KEY_BYTES : (i + 1) * KEY_BYTES] for i, dek_id in enumerate(body.dek_ids)}


class Granter(KeyHolder):
    """The key actor's side. Thread-safe."""

    def __init__(self, store: EnvelopeStore, authority: Authority) -> None:
        self._store = store
        self._authority = authority
        self._replays = ReplayCache()

    def handle(self, request: bytes, now_s: float) -> bytes:
        """A grant for a request that proves itself. The audit log holds it before this returns, and every refusal of
        somebody who proved who it is and asks for the first time.

        Raises `NotPermitted` (malformed, certificate, signature, role, clocks apart, replayed, scope), `NotFound` for a
        data key that is not here or was destroyed; then nothing is granted.
        """
        parsed = decode(request, _Request, _REQUEST, REQUEST_BYTES_MAX)
        check_version(parsed.version, VERSION, _REQUEST)
        certificate = read_certificate(parsed.certificate, self._authority.ca_der)
        certificate.check_time(now_s)
        signed = labelled(b"raylog/1 grant request", parsed.body)
        verify_ed25519(certificate.public_key, signed, parsed.signature, f"{certificate.identity}")
        body = decode(parsed.body, _RequestBody, _REQUEST, REQUEST_BYTES_MAX)
        self._check_once(body, hashlib.sha256(certificate.public_key + parsed.body).digest(), now_s)
        digest = hashlib.sha256(request).digest()
        try:
            return self._grant(certificate.identity, body, digest, now_s)
        except RaylogError as error:
            self._record("grant refused", certificate.identity, digest, now_s, reason=str(error)[:_REASON_CHARACTERS])
            raise

    def _check_once(self, body: _RequestBody, digest: bytes, now_s: float) -> None:
        """Before anything is written: whoever recorded a request cannot fill the audit log by sending it again."""
        if len(body.nonce) != NONCE_BYTES:
            raise NotPermitted(f"expected a nonce of {NONCE_BYTES} bytes in {_REQUEST}, got {len(body.nonce)}")
        check_fresh(body.time_s, now_s, _REQUEST)
        self._replays.check(digest, body.time_s, now_s, _REQUEST)

    def _grant(self, identity: Identity, body: _RequestBody, digest: bytes, now_s: float) -> bytes:
        self._check(identity, body, now_s)
        keys, artifacts = self._keys(body.scope)
        info = _info(body, digest, tuple(keys))
        sealed = seal_to(body.suite, body.recipient_key, b"".join(keys.values()), info)
        event = "read granted" if isinstance(body.scope, ReadScope) else "write granted"
        as_blocks = isinstance(body.scope, ReadScope) and body.scope.plaintext_blocks
        more = {"plaintext_blocks": True} if as_blocks else {}
        self._record(event, identity, digest, now_s, artifacts=artifacts, deks=list(keys), **more)
        answer = encode(_GrantBody(request_digest=digest, dek_ids=tuple(keys), sealed=sealed))
        signature = self._authority.sign(labelled(b"raylog/1 grant", answer))
        return encode(_Grant(version=VERSION, body=answer, signature=signature))

    def _check(self, identity: Identity, body: _RequestBody, now_s: float) -> None:
        if identity.role != GRANTED_ROLE:
            raise NotPermitted(
                f"{identity} asks for data keys, which a {identity.role} never gets: it moves sealed bytes only; "
                f"ask with a {GRANTED_ROLE}'s certificate"
            )
        if not 0 < body.expiry_s - body.time_s <= LIFETIME_S_MAX:
            raise NotPermitted(
                f"expected {_REQUEST} for 1 to {LIFETIME_S_MAX} s, got {body.expiry_s - body.time_s} s: ask for less"
            )
        if body.expiry_s < now_s:
            raise NotPermitted(
                f"{_REQUEST} expired {now_s - body.expiry_s:.0f} s ago: ask again, and compare the clocks"
            )
        _check_scope(body.scope)

    def _keys(self, scope: Scope) -> tuple[dict[str, bytes], list[str]]:
        """Data keys by id in the order asked for, and the artifacts that they open."""
        if isinstance(scope, WriteScope):
            dek_id = self._store.create_dek(scope.artifact_id, scope.tenant)
            return {dek_id: self._store.dek(dek_id)}, [scope.artifact_id]
        keys = {dek_id: self._store.dek(dek_id) for dek_id in scope.dek_ids}
        return keys, sorted({self._store.artifact_of(dek_id) for dek_id in keys})

    def _record(self, event: str, identity: Identity, digest: bytes, now_s: float, **values: object) -> None:
        detail = msgspec.json.encode({"request": digest.hex(), **values}).decode()
        self._store.audit.record(event, str(identity), detail, now_s)


def _check_scope(scope: Scope) -> None:
    try:
        if isinstance(scope, WriteScope):
            parse_id(scope.artifact_id, "artifact id")
            parse_id(scope.tenant, "tenant id")
            return
        for dek_id in scope.dek_ids:
            parse_id(dek_id, "DEK id")
    except UsageError as error:
        raise NotPermitted(f"{_REQUEST}: {error}") from None
    if not 1 <= len(set(scope.dek_ids)) == len(scope.dek_ids) <= DEKS_MAX:
        raise NotPermitted(f"expected 1 to {DEKS_MAX} different DEK ids in {_REQUEST}, got {len(scope.dek_ids)}")


def _info(body: _RequestBody, digest: bytes, dek_ids: tuple[str, ...]) -> bytes:
    """What the sealing is bound to, beside the recipient's key itself."""
    return labelled(
        b"raylog/1 grant keys",
        body.suite.to_bytes(4, "big"),
        body.recipient_key,
        encode(body.scope),
        body.expiry_s.to_bytes(8, "big"),
        digest,
        "".join(dek_ids).encode(),
    )
