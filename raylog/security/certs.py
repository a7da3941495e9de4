"""The cluster's authority: admits nodes and clients, issues their certificates, signs what must outlive those.

An id belongs to the first key it was certified for, and is certified again for that key only: to a holder of a join
token, or of a certificate that still holds (a renewal). So a token lets strangers in, but none of them become
somebody who is there already; and as a renewal changes no key, an answer that was lost on its way locks nobody out.

The authority's user can let go of an id (`forget`), and revoke a token: nobody joins by it any more, and what joined by
it cannot renew, so that after one certificate lifetime all of it is out.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from raylog.errors import DamagedData, NotFound, NotPermitted, UsageError
from raylog.security import join
from raylog.security.audit import SCHEMA as AUDIT_SCHEMA
from raylog.security.audit import AuditLog
from raylog.security.credentials import Credentials, CurrentCredentials
from raylog.security.database import Database
from raylog.security.identity import (
    BACKDATED_S,
    ROLES,
    Identity,
    fingerprint,
    issue_authority,
    issue_certificate,
    key_of,
    key_of_csr,
    verify_certificate,
    verify_ed25519,
    verify_signature,
)
from raylog.security.keys import KEY_BYTES, KeyHolder, Provider, labelled, new_key, seal, unseal
from raylog.security.messages import ReplayCache, check_fresh
from raylog.security.private_files import check_private_file, make_private_directory, publish_private
from raylog.security.replicated import Replicated, Row
from raylog.security.replicated import schema as replicated_schema
from raylog.spec import new_id

__all__ = [
    "Authority",
    "Credentials",
    "CurrentCredentials",
    "Identity",
    "verify_certificate",
    "verify_ed25519",
    "verify_signature",
]

FORMAT_VERSION = 1
LIFETIME_S = 24 * 3600.0
_LIFETIME_S_MIN, _LIFETIME_S_MAX = 60.0, 30 * 86400.0
_AUTHORITY_LIFETIME_S = 10 * 365 * 86400.0
_BINDING_KEPT_S = 30 * 86400.0  # after the certificate's expiry the id stays its key's for so long
_KEPT_ELSEWHERE = {"tokens": "token_id", "bindings": "uri"}
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS authority (ca_der BLOB NOT NULL, wrapped BLOB NOT NULL, sealed BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS tokens (token_id TEXT PRIMARY KEY, roles TEXT NOT NULL, wrapped BLOB NOT NULL, "
    "revoked_s REAL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS bindings (uri TEXT PRIMARY KEY, public_key BLOB NOT NULL, token_id TEXT NOT NULL, "
    "not_after_s REAL NOT NULL) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS bindings_by_expiry ON bindings (not_after_s)",
)


class Authority(KeyHolder):
    """The CA key and the cluster's long-lived signing key (both Ed25519), the join tokens, and who was certified for
    which key. One SQLite file; the keys in it are sealed under the keyring's KEK. Thread-safe, and several processes
    may have it open: a revocation holds for all of them at once.
    """

    def __init__(self, database: Database, provider: Provider) -> None:
        self._database = database
        self._provider = provider
        self.ca_der, wrapped, sealed = _only_row(database)
        keys = unseal(provider.unwrap(_KEY_CONTEXT, wrapped), _sealed_context(self.ca_der), sealed, "the authority")
        self._ca_key = Ed25519PrivateKey.from_private_bytes(keys[:KEY_BYTES])
        self._cluster_key = Ed25519PrivateKey.from_private_bytes(keys[KEY_BYTES:])
        self.audit = AuditLog(database, provider)
        self.rows = Replicated(database, _KEPT_ELSEWHERE)
        self._replays = ReplayCache()

    @classmethod
    def create(cls, path: Path, provider: Provider) -> "Authority":
        """A new authority for the provider's cluster, its certificate good for ten years from now. Raises `Conflict`
        when there is a file already."""
        make_private_directory(path.parent)

        def fill(temporary: Path) -> None:
            database = _open(temporary, provider)
            try:
                with database.transaction():
                    database.execute("INSERT INTO authority VALUES (?, ?, ?)", *_new_keys(provider))
            finally:
                database.close()

        publish_private(path, fill, replace=False)
        return cls.load(path, provider)

    @classmethod
    def load(cls, path: Path, provider: Provider) -> "Authority":
        """The authority at `path`. Raises `NotPermitted` when it is missing, of laxer modes or another cluster's,
        `DamagedData` when it was changed."""
        try:
            check_private_file(path)
        except FileNotFoundError:
            raise NotPermitted(
                f"there is no authority at {path}: 'raylog up' makes one for a new cluster; else restore it from the "
                "backup that the keyring came from"
            ) from None
        database = _open(path, provider)
        try:
            return cls(database, provider)
        except BaseException:
            database.close()
            raise

    @property
    def cluster_id(self) -> str:
        return self._provider.cluster_id

    @property
    def cluster_public_key(self) -> bytes:
        """32 bytes, Ed25519: verifies manifests and grants, whatever becomes of certificates."""
        return self._cluster_key.public_key().public_bytes_raw()

    def sign(self, data: bytes) -> bytes:
        """64 bytes by the cluster's signing key; check with `verify_ed25519`. `data` begins with a label of its purpose
        (`keys.labelled`)."""
        return self._cluster_key.sign(data)

    def issue(self, csr_der: bytes, identity: Identity, *, now_s: float, lifetime_s: float = LIFETIME_S) -> bytes:
        """A certificate (DER) of `identity` for the key of a certificate request, valid from 5 minutes ago. It asks
        nobody's permission: `admit` does. Raises `NotPermitted` for a request that does not prove its key."""
        if not _LIFETIME_S_MIN <= lifetime_s <= _LIFETIME_S_MAX:
            raise UsageError(
                f"expected a lifetime of {_LIFETIME_S_MIN:.0f} to {_LIFETIME_S_MAX:.0f} s, got {lifetime_s:.0f}"
            )
        if identity.cluster_id != self.cluster_id:
            raise NotPermitted(f"this is the authority of cluster {self.cluster_id}, not of {identity.cluster_id}")
        begin_s, end_s = now_s - BACKDATED_S, now_s + lifetime_s
        return issue_certificate(self._ca_key, self.ca_der, key_of_csr(csr_der), identity, begin_s, end_s)

    def admit(self, request: bytes, now_s: float) -> bytes:
        """Answers a join request (join.py) with a certificate; the identity is bound to its key, and the audit log has
        it, before this returns.

        Raises `NotPermitted`, each time saying why: malformed, another cluster's, token unknown, revoked or not for
        that role, proof wrong, certificate not valid, clocks apart, replayed, id bound to another key.
        """
        received = join.ReceivedJoin(request)
        if received.identity.cluster_id != self.cluster_id:
            raise NotPermitted(
                f"this is the authority of cluster {self.cluster_id}, the request is for cluster "
                f"{received.identity.cluster_id}: use this cluster's join token"
            )
        with self._database.transaction():
            token_id = self._check_proof(received, now_s)
            check_fresh(received.body.time_s, now_s, "a join request")
            certificate = self.issue(received.body.csr, received.identity, now_s=now_s)
            self._bind(received, token_id, now_s)
            self._replays.check(received.proven_digest, received.body.time_s, now_s, "a join request")
            self.audit.record("admitted", str(received.identity), _json(token=token_id), now_s)
        return join.admission(received, certificate, self._ca_key, self.ca_der, self.cluster_public_key)

    def make_join_token(self, roles: Sequence[str] = ROLES) -> join.JoinToken:
        """A fresh token that admits holders of `roles`; valid until it is revoked."""
        if not roles or not set(roles) <= set(ROLES):
            raise UsageError(f"expected roles of {', '.join(ROLES)}, got {', '.join(roles) or 'none'}")
        token_id, secret = new_id(), new_key()
        wrapped = self._provider.wrap(_token_context(token_id), secret)
        with self._database.transaction():
            self._database.execute("INSERT INTO tokens VALUES (?, ?, ?, NULL)", token_id, " ".join(roles), wrapped)
            self.audit.record("join token made", "authority", _json(token=token_id), time.time())
        return join.JoinToken(
            cluster_id=self.cluster_id,
            token_id=token_id,
            secret=secret,
            ca_fingerprint=fingerprint(self.ca_der),
        )

    def take(self, rows: Sequence[Row]) -> None:
        """Takes over the tokens and bindings that another machine's file of this cluster has (`rows.since`), all or
        nothing. Raises `NotPermitted` when a token is wrapped under a KEK that this machine has not, `DamagedData`."""
        with self._database.transaction():
            self.rows.take(rows)
            for row in rows:
                if row.table == "tokens" and row.values is not None:
                    self._provider.unwrap(_token_context(row.key), row.values[2])

    def revoke_join_token(self, token_id: str) -> None:
        """Nobody joins by it any more, and what joined by it cannot renew; certificates given out hold until they
        expire. Raises `NotFound`."""
        with self._database.transaction():
            known = [row[0] for row in self._database.execute("SELECT token_id FROM tokens WHERE revoked_s IS NULL")]
            if token_id not in known:
                raise NotFound(f"there is no valid join token {token_id}; there are: {', '.join(known) or 'none'}")
            now_s = time.time()
            self._database.execute("UPDATE tokens SET revoked_s = ? WHERE token_id = ?", now_s, token_id)
            self.audit.record("join token revoked", "authority", _json(token=token_id), now_s)

    def forget(self, identity: Identity) -> None:
        """Lets go of the binding of an id to its key, for a machine that lost its key: the next holder of a join token
        may have the id. Until then nobody can renew it. Raises `NotFound`."""
        with self._database.transaction():
            if not self._database.execute("DELETE FROM bindings WHERE uri = ? RETURNING uri", str(identity)):
                raise NotFound(f"{identity} was never certified here, or is forgotten already")
            self.audit.record("identity forgotten", "authority", _json(identity=str(identity)), time.time())

    def rewrap(self) -> int:
        """Wraps what is under an older KEK under the newest, and returns how many keys that were. All or nothing."""
        with self._database.transaction():
            count = self.audit.rewrap()
            ((wrapped,),) = self._database.execute("SELECT wrapped FROM authority")
            if self._provider.needs_rewrap(wrapped):
                self._database.execute("UPDATE authority SET wrapped = ?", self._again(_KEY_CONTEXT, wrapped))
                count += 1
            for token_id, wrapped in self._database.execute("SELECT token_id, wrapped FROM tokens"):
                if self._provider.needs_rewrap(wrapped):
                    again = self._again(_token_context(token_id), wrapped)
                    self._database.execute("UPDATE tokens SET wrapped = ? WHERE token_id = ?", again, token_id)
                    count += 1
        self._database.forget_deleted()
        return count

    def close(self) -> None:
        """Nothing may be called afterwards."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Authority of cluster {self.cluster_id}>"

    def _again(self, context: bytes, wrapped: bytes) -> bytes:
        return self._provider.wrap(context, self._provider.unwrap(context, wrapped))

    def _check_proof(self, received: join.ReceivedJoin, now_s: float) -> str:
        """The id of the token by which the asker is, or once was, let in."""
        if received.body.token_id is not None:
            secret = self._token_secret(received.body.token_id, received.identity)
            received.check_token(secret)
            return received.body.token_id
        certificate = received.check_renewal(self.ca_der, now_s)
        rows = self._database.execute("SELECT public_key, token_id FROM bindings WHERE uri = ?", str(received.identity))
        if not rows or rows[0][0] != certificate.public_key:
            raise NotPermitted(f"{received.identity} was forgotten here: join again with the join token")
        self._token_secret(rows[0][1], received.identity)
        return str(rows[0][1])

    def _token_secret(self, token_id: str, identity: Identity) -> bytes:
        rows = self._database.execute("SELECT roles, wrapped, revoked_s FROM tokens WHERE token_id = ?", token_id)
        if not rows:
            raise NotPermitted(f"cluster {self.cluster_id} has no join token {token_id[:80]!r}: copy its present one")
        roles, wrapped, revoked_s = rows[0]
        if revoked_s is not None:
            raise NotPermitted(f"join token {token_id} was revoked: copy the present one, and join with it")
        if identity.role not in roles.split():
            raise NotPermitted(f"join token {token_id} is for {roles}, not for a {identity.role}: use another token")
        return self._provider.unwrap(_token_context(token_id), wrapped)

    def _bind(self, received: join.ReceivedJoin, token_id: str, now_s: float) -> None:
        """Binds the identity to the key it is certified for, and drops bindings that expired long ago."""
        old = self._database.execute(
            "DELETE FROM bindings WHERE not_after_s < ? RETURNING uri", now_s - _BINDING_KEPT_S
        )
        for (uri,) in old:
            self.rows.forget("bindings", uri)  # every machine drops it by itself
        uri, key = str(received.identity), key_of_csr(received.body.csr)
        bound = self._database.execute("SELECT public_key FROM bindings WHERE uri = ?", uri)
        if bound and bound[0][0] != key:
            raise NotPermitted(
                f"{uri} is bound to another key: if this machine lost that key, give it a new id, or let the authority "
                "forget this one; if it did not, somebody else tries to become it"
            )
        self._database.execute(
            "INSERT OR REPLACE INTO bindings VALUES (?, ?, ?, ?)", uri, key, token_id, now_s + LIFETIME_S
        )


_KEY_CONTEXT = labelled(b"raylog/1 authority key")


def _sealed_context(ca_der: bytes) -> bytes:
    return labelled(b"raylog/1 authority", ca_der)


def _token_context(token_id: str) -> bytes:
    return labelled(b"raylog/1 join token", token_id.encode())


def _open(path: Path, provider: Provider) -> Database:
    return Database(
        path,
        kind="authority",
        format_version=FORMAT_VERSION,
        cluster_id=provider.cluster_id,
        schema=(*_SCHEMA, *AUDIT_SCHEMA, *replicated_schema(_KEPT_ELSEWHERE)),
    )


def _new_keys(provider: Provider) -> tuple[bytes, bytes, bytes]:
    """The row of table `authority`."""
    ca_key, cluster_key, key = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate(), new_key()
    begin_s = time.time() - BACKDATED_S
    ca_der = issue_authority(ca_key, provider.cluster_id, begin_s, begin_s + _AUTHORITY_LIFETIME_S)
    secrets = ca_key.private_bytes_raw() + cluster_key.private_bytes_raw()
    return ca_der, provider.wrap(_KEY_CONTEXT, key), seal(key, _sealed_context(ca_der), secrets)


def _only_row(database: Database) -> tuple[bytes, bytes, bytes]:
    rows = database.execute("SELECT ca_der, wrapped, sealed FROM authority")
    if len(rows) != 1:
        raise DamagedData(f"{database.path}: expected one authority, got {len(rows)}: restore it from its backup")
    ca_der, wrapped, sealed = rows[0]
    key_of(ca_der)
    return ca_der, wrapped, sealed


def _json(**values: str) -> str:
    return msgspec.json.encode(values).decode()
