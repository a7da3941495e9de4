"""What versions are kept for how long: holds, expiry, how many of a name; and what is due to go. Facts out, effects in;
each takes a connection inside a transaction. All of it follows from the chain.
"""

# ruff: noqa: S608 - statements are put together from constants of this file alone

import sqlite3
from collections.abc import Mapping

import msgspec

from raylog.catalog.record import Record, RecordKind
from raylog.errors import NotPermitted
from raylog.spec import Reference


class Retention(msgspec.Struct, frozen=True, kw_only=True):
    """What was set for a name: versions kept (0: all), holds by number (0: the whole name) with their reasons, and when
    versions expire (microseconds since 1970), by number."""

    keep: int
    holds: dict[int, str]
    expires_us: dict[int, int]


def apply(connection: sqlite3.Connection, record: Record) -> None:
    """Carries out a record of kind hold, release, expire or keep."""
    of = (record.name, record.number)
    if record.kind == RecordKind.HOLD:
        connection.execute("INSERT OR REPLACE INTO holds VALUES (?, ?, ?)", (*of, record.details["reason"]))
    elif record.kind == RecordKind.RELEASE:
        connection.execute("DELETE FROM holds WHERE name = ? AND number = ?", of)
    elif record.kind == RecordKind.EXPIRE:
        connection.execute("DELETE FROM expiries WHERE name = ? AND number = ?", of)
        if int(record.details["at_us"]):
            connection.execute("INSERT INTO expiries VALUES (?, ?, ?)", (*of, int(record.details["at_us"])))
    elif record.kind == RecordKind.KEEP:
        connection.execute("DELETE FROM keeps WHERE name = ?", (record.name,))
        if int(record.details["versions"]):
            connection.execute("INSERT INTO keeps VALUES (?, ?)", (record.name, int(record.details["versions"])))


def check_not_held(connection: sqlite3.Connection, name: str, numbers: set[int]) -> None:
    """Raises `NotPermitted` when one of these versions, or the whole name, is held."""
    for number, reason in holds(connection, name).items():
        if number == 0 or number in numbers:
            what = f"{name}@{number}" if number else name
            raise NotPermitted(f"{what} is held ({reason}) and is not deleted: 'raylog release {what}' ends the hold")


def holds(connection: sqlite3.Connection, name: str) -> dict[int, str]:
    """Reasons by version number; 0 is the whole name."""
    return dict(connection.execute("SELECT number, reason FROM holds WHERE name = ? ORDER BY number", (name,)))


def of_name(connection: sqlite3.Connection, name: str) -> Retention:
    row = connection.execute("SELECT versions FROM keeps WHERE name = ?", (name,)).fetchone()
    expiries = connection.execute("SELECT number, at_us FROM expiries WHERE name = ? ORDER BY number", (name,))
    return Retention(keep=row[0] if row else 0, holds=holds(connection, name), expires_us=dict(expiries))


def forget(connection: sqlite3.Connection, name: str, number: int) -> None:
    """A version was deleted: nothing is left to expire."""
    connection.execute("DELETE FROM expiries WHERE name = ? AND number = ?", (name, number))


def is_due(connection: sqlite3.Connection, reference: Reference, now_us: int) -> bool:
    """Whether this version is to be deleted, as things stand in this transaction."""
    return reference in due(connection, now_us, 1 << 30, reference.name)


def due(connection: sqlite3.Connection, now_us: int, count_max: int, name: str | None = None) -> dict[Reference, str]:
    """Versions that are to be deleted now, and why: expired ones, and the oldest of a name that keeps fewer. Never the
    latest by `keep`, and nothing that is held. Of all names, or of `name`."""
    of_name, names = ("", ()) if name is None else (" AND name = ?", (name,))
    found: dict[Reference, str] = {}
    for expired, number in connection.execute(
        "SELECT name, number FROM expiries JOIN versions USING (name, number)"
        f" WHERE at_us <= ? AND deleted IS NULL{of_name} ORDER BY at_us LIMIT ?",
        (now_us, *names, count_max),
    ):
        found[Reference(expired, number)] = "it has expired"
    kept = connection.execute(f"SELECT name, versions FROM keeps WHERE TRUE{of_name} ORDER BY name", names)
    for plain, keep in kept.fetchall():
        older = connection.execute(
            "SELECT number FROM versions JOIN artifacts USING (name)"
            " WHERE name = ? AND deleted IS NULL AND number != latest ORDER BY number DESC LIMIT -1 OFFSET ?",
            (plain, keep - 1),
        )
        for (number,) in older.fetchall()[:count_max]:
            found.setdefault(Reference(plain, number), f"{keep} versions of {plain} are kept")
    held: Mapping[str, dict[int, str]] = {name: holds(connection, name) for name in {one.name for one in found}}
    return {one: why for one, why in found.items() if not {0, one.number} & held[one.name].keys()}
