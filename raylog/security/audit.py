"""The audit log: what was asked for and given, in an order that nobody can change without the key.

Each entry carries HMAC-SHA-256(audit key, the entry before's MAC ‖ this entry). The key is wrapped under the KEK, so
whoever has the file alone can neither change, insert nor remove an entry unnoticed. Cutting off the newest entries, or
putting an older copy of the whole file in place, shows only against a head that was noted elsewhere.
"""

import hmac
import struct

import msgspec

from raylog.errors import DamagedData
from raylog.security.database import Database
from raylog.security.keys import KeyHolder, Provider, labelled, new_key

ENTRIES_PER_CALL = 1000
_CONTEXT = b"raylog/1 audit key"
_FIRST = bytes(32)

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS audit (sequence INTEGER PRIMARY KEY, time_s REAL NOT NULL, event TEXT NOT NULL, "
    "subject TEXT NOT NULL, detail TEXT NOT NULL, mac BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS audit_key (wrapped BLOB NOT NULL)",
)


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One event. `subject` is who did it, `detail` says to what, as JSON; `sequence` counts from 1 without gaps."""

    sequence: int
    time_s: float
    event: str
    subject: str
    detail: str


class AuditHead(msgspec.Struct, frozen=True, kw_only=True):
    """The end of the chain: note it elsewhere, and a later log that does not contain it was cut."""

    sequence: int
    mac: bytes


class AuditLog(KeyHolder):
    """The append-only table of one database (made with `SCHEMA`). Thread-safe."""

    def __init__(self, database: Database, provider: Provider) -> None:
        self._database = database
        self._provider = provider
        with database.transaction():
            rows = database.execute("SELECT wrapped FROM audit_key")
            if rows:
                self._key = provider.unwrap(_CONTEXT, rows[0][0])
            else:
                self._key = new_key()
                database.execute("INSERT INTO audit_key VALUES (?)", provider.wrap(_CONTEXT, self._key))

    def record(self, event: str, subject: str, detail: str, time_s: float) -> None:
        """Appends one entry; it is on the disk when this returns. In a transaction of the database it stands or falls
        with that."""
        with self._database.transaction():
            head = self._last()
            entry = AuditEntry(sequence=head.sequence + 1, time_s=time_s, event=event, subject=subject, detail=detail)
            self._database.execute(
                "INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?)",
                *msgspec.structs.astuple(entry),
                self._mac(head.mac, entry),
            )

    def entries(self, since: int = 0) -> list[AuditEntry]:
        """The entries after sequence number `since`, oldest first, at most 1,000: ask on from the last one."""
        return [entry for entry, _ in self._page(since)]

    def verify_chain(self, noted: AuditHead | None = None) -> AuditHead:
        """Checks every entry, and that the log still contains the head `noted` earlier; returns the head of today.
        Raises `DamagedData` that names the first entry that does not fit."""
        head = AuditHead(sequence=0, mac=_FIRST)
        met_noted = noted is None or noted == head
        while page := self._page(head.sequence):
            for entry, mac in page:
                if entry.sequence != head.sequence + 1:
                    raise DamagedData(f"{self._database.path}: audit entry {head.sequence + 1} was removed")
                if not hmac.compare_digest(mac, self._mac(head.mac, entry)):
                    raise DamagedData(f"{self._database.path}: audit entry {entry.sequence} was changed or inserted")
                head = AuditHead(sequence=entry.sequence, mac=mac)
                met_noted = met_noted or head == noted
        if noted is not None and not met_noted:
            raise DamagedData(
                f"{self._database.path}: the audit log was cut or replaced: it does not contain the head noted at "
                f"entry {noted.sequence}, it ends at entry {head.sequence}"
            )
        return head

    def rewrap(self) -> int:
        """Wraps the audit key under the newest KEK; returns 1 if it was under an older one, else 0."""
        with self._database.transaction():
            if not self._provider.needs_rewrap(self._database.execute("SELECT wrapped FROM audit_key")[0][0]):
                return 0
            self._database.execute("UPDATE audit_key SET wrapped = ?", self._provider.wrap(_CONTEXT, self._key))
            return 1

    def _last(self) -> AuditHead:
        rows = self._database.execute("SELECT sequence, mac FROM audit ORDER BY sequence DESC LIMIT 1")
        return AuditHead(sequence=rows[0][0], mac=rows[0][1]) if rows else AuditHead(sequence=0, mac=_FIRST)

    def _page(self, since: int) -> list[tuple[AuditEntry, bytes]]:
        rows = self._database.execute(
            "SELECT sequence, time_s, event, subject, detail, mac FROM audit WHERE sequence > ? "
            "ORDER BY sequence LIMIT ?",
            since,
            ENTRIES_PER_CALL,
        )
        names = AuditEntry.__struct_fields__
        return [(AuditEntry(**dict(zip(names, row, strict=False))), row[5]) for row in rows]

    def _mac(self, before: bytes, entry: AuditEntry) -> bytes:
        fixed = struct.pack(">Qd", entry.sequence, entry.time_s)
        texts = (text.encode() for text in (entry.event, entry.subject, entry.detail))
        return hmac.digest(self._key, labelled(b"raylog/1 audit", before, fixed, *texts), "sha256")
