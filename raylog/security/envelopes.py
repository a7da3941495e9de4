"""The envelope store: data keys (DEKs) wrapped by artifact keys, artifact keys wrapped by the KEK.

It is the only place where wrapped keys lie, so that a rotation rewrites a few bytes per artifact and no data, and
destroying one artifact key destroys that artifact in every replica and every backup of the shards.
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import msgspec

from raylog.errors import Conflict, NotFound, NotPermitted
from raylog.security.audit import SCHEMA as AUDIT_SCHEMA
from raylog.security.audit import AuditLog
from raylog.security.database import Database
from raylog.security.keys import KeyHolder, Provider, labelled, new_key, seal, unseal
from raylog.security.replicated import Replicated, Row
from raylog.security.replicated import schema as replicated_schema
from raylog.spec import new_id, parse_id

FORMAT_VERSION = 1
_WRAPPED = 2  # the column of artifacts and of deks; null once the key was destroyed
_KEPT_ELSEWHERE = {"artifacts": "artifact_id", "deks": "dek_id"}  # the audit log is not: each machine has its own
_REWRAPPED_AT_ONCE = 500  # artifacts per transaction, so that grants wait for milliseconds only
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS artifacts (artifact_id TEXT PRIMARY KEY, tenant TEXT NOT NULL, wrapped BLOB, "
    "destroyed_s REAL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS deks (dek_id TEXT PRIMARY KEY, artifact_id TEXT NOT NULL, wrapped BLOB) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS deks_of_artifact ON deks (artifact_id)",
)


class EnvelopeStore(KeyHolder):
    """SQLite (WAL, synchronous=FULL) at `path`; ids are bound into every wrapping, so a row moved to another id does
    not open. Nothing is cached: a destroyed key is gone for the next call. Thread-safe.

    Raises `NotPermitted` when the file is of laxer modes or of another cluster than `provider`.
    """

    def __init__(self, path: Path, provider: Provider) -> None:
        self._provider = provider
        self._database = Database(
            path,
            kind="envelopes",
            format_version=FORMAT_VERSION,
            cluster_id=provider.cluster_id,
            schema=(*_SCHEMA, *AUDIT_SCHEMA, *replicated_schema(_KEPT_ELSEWHERE)),
        )
        self.rows = Replicated(self._database, _KEPT_ELSEWHERE)
        try:
            self.audit = AuditLog(self._database, provider)
        except BaseException:
            self._database.close()
            raise

    def create_dek(self, artifact_id: str, tenant: str) -> str:
        """The id of a fresh data key of that artifact, durable when this returns. `tenant` is an id.

        Raises `NotPermitted` when the artifact is another tenant's, `NotFound` when it was destroyed.
        """
        parse_id(artifact_id, "artifact id")
        parse_id(tenant, "tenant id")
        dek_id = new_id()
        with self._database.transaction():
            artifact_key, owner = self._artifact(artifact_id) or (self._create_artifact(artifact_id, tenant), tenant)
            if owner != tenant:
                raise NotPermitted(f"artifact {artifact_id} is tenant {owner}'s, not {tenant}'s")
            wrapped = seal(artifact_key, _dek_context(artifact_id, dek_id), new_key())
            self._database.execute("INSERT INTO deks VALUES (?, ?, ?)", dek_id, artifact_id, wrapped)
        return dek_id

    def dek(self, dek_id: str) -> bytes:
        """The data key, 32 bytes. Raises `NotFound` when it never was here or was destroyed (which of both is said),
        `DamagedData` when its row was changed or moved."""
        return self._open(dek_id)[0]

    def artifact_of(self, dek_id: str) -> str:
        """The artifact that the key really belongs to: proven by opening it, not by its row. Raises as `dek`."""
        return self._open(dek_id)[1]

    def destroy_artifact(self, artifact_id: str) -> None:
        """Crypto-shreds: deletes the artifact's key and its data keys, here and now. Nothing sealed under them opens
        again, in any replica or backup of the shards. Doing it again does no harm.

        Backups of this store from before still hold the wrapped keys: destroy those too. Raises `NotFound` for an
        artifact that has no keys here, `Unavailable` when another process keeps the write-ahead log (do it again).
        """
        parse_id(artifact_id, "artifact id")
        with self._database.transaction():
            rows = self._database.execute("SELECT destroyed_s FROM artifacts WHERE artifact_id = ?", artifact_id)
            if not rows:
                raise NotFound(f"there is no key of artifact {artifact_id} in {self._database.path}")
            if rows[0][0] is None:
                self._database.execute(
                    "UPDATE artifacts SET wrapped = NULL, destroyed_s = ? WHERE artifact_id = ?",
                    time.time(),
                    artifact_id,
                )
                self._database.execute("UPDATE deks SET wrapped = NULL WHERE artifact_id = ?", artifact_id)
                detail = msgspec.json.encode({"artifact": artifact_id}).decode()
                self.audit.record("artifact destroyed", "keys", detail, time.time())
        self._database.forget_deleted()

    def rewrap_all(self) -> int:
        """Wraps every artifact key under the newest KEK and returns how many were under an older one. Data keys and
        data stay as they are. A crash in the middle leaves all of them readable; the next call does the rest."""
        count, after = self.audit.rewrap(), ""
        while True:
            with self._database.transaction():
                rows = self._database.execute(
                    "SELECT artifact_id, wrapped FROM artifacts WHERE artifact_id > ? AND wrapped IS NOT NULL "
                    "ORDER BY artifact_id LIMIT ?",
                    after,
                    _REWRAPPED_AT_ONCE,
                )
                if not rows:
                    break
                count += sum(self._rewrap(artifact_id, wrapped) for artifact_id, wrapped in rows)
                after = rows[-1][0]
        self._database.forget_deleted()
        return count

    def take(self, rows: Sequence[Row]) -> None:
        """Takes over what another machine's store of this cluster has (`rows.since`), all or nothing; what is destroyed
        there is destroyed here. Raises `NotPermitted` when a key is wrapped under a KEK that this machine has not,
        `Conflict` when it has another key of an artifact, `DamagedData`."""
        with self._database.transaction():
            artifacts = [row.key for row in rows if row.table == "artifacts"]
            before = {artifact_id: self._key_or_none(artifact_id) for artifact_id in artifacts}
            self.rows.take(rows)
            for artifact_id in artifacts:
                key = self._key_or_none(artifact_id)
                if None not in (key, before[artifact_id]) and key != before[artifact_id]:
                    raise Conflict(
                        f"{self._database.path} has another key of artifact {artifact_id}, and what is sealed under it "
                        "would be lost: keep this file, it belongs to a cluster that went on without the other"
                    )
        if any(row.values and row.values[_WRAPPED] is None for row in rows):
            self._database.forget_deleted()

    def _key_or_none(self, artifact_id: str) -> bytes | None:
        """None for an artifact that is new here, or destroyed."""
        with suppress(NotFound):
            found = self._artifact(artifact_id)
            return found[0] if found else None
        return None

    def close(self) -> None:
        """Nothing may be called afterwards."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _rewrap(self, artifact_id: str, wrapped: bytes) -> bool:
        if not self._provider.needs_rewrap(wrapped):
            return False
        ((tenant,),) = self._database.execute("SELECT tenant FROM artifacts WHERE artifact_id = ?", artifact_id)
        context = _artifact_context(artifact_id, tenant)
        again = self._provider.wrap(context, self._provider.unwrap(context, wrapped))
        self._database.execute("UPDATE artifacts SET wrapped = ? WHERE artifact_id = ?", again, artifact_id)
        return True

    def _create_artifact(self, artifact_id: str, tenant: str) -> bytes:
        key = new_key()
        wrapped = self._provider.wrap(_artifact_context(artifact_id, tenant), key)
        self._database.execute("INSERT INTO artifacts VALUES (?, ?, ?, NULL)", artifact_id, tenant, wrapped)
        return key

    def _artifact(self, artifact_id: str) -> tuple[bytes, str] | None:
        """Key and tenant of an artifact; None when it is new; raises `NotFound` when it was destroyed."""
        rows = self._database.execute(
            "SELECT tenant, wrapped, destroyed_s FROM artifacts WHERE artifact_id = ?", artifact_id
        )
        if not rows:
            return None
        tenant, wrapped, destroyed_s = rows[0]
        return self._artifact_key(artifact_id, tenant, wrapped, destroyed_s), tenant

    def _artifact_key(self, artifact_id: str, tenant: str, wrapped: bytes | None, destroyed_s: float) -> bytes:
        if wrapped is None:
            moment = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(destroyed_s))
            raise NotFound(
                f"the keys of artifact {artifact_id} were destroyed on {moment}: no copy of it can be opened"
            )
        return self._provider.unwrap(_artifact_context(artifact_id, tenant), wrapped)

    def _open(self, dek_id: str) -> tuple[bytes, str]:
        parse_id(dek_id, "DEK id")
        rows = self._database.execute(
            "SELECT artifact_id, deks.wrapped, tenant, artifacts.wrapped, destroyed_s FROM deks "
            "JOIN artifacts USING (artifact_id) WHERE dek_id = ?",
            dek_id,
        )
        if not rows:
            raise NotFound(f"{self._database.path} holds no data key {dek_id}: is this the cluster that sealed it?")
        artifact_id, wrapped, *artifact = rows[0]
        artifact_key = self._artifact_key(artifact_id, *artifact)
        return unseal(
            artifact_key, _dek_context(artifact_id, dek_id), wrapped or b"", f"data key {dek_id}"
        ), artifact_id


def _artifact_context(artifact_id: str, tenant: str) -> bytes:
    return labelled(b"raylog/1 artifact key", artifact_id.encode(), tenant.encode())


def _dek_context(artifact_id: str, dek_id: str) -> bytes:
    return labelled(b"raylog/1 data key", artifact_id.encode(), dek_id.encode())
