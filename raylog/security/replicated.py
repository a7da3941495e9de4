"""Tables of a SQLite file that other machines have as well: which rows changed since when, and taking them over.

Triggers note every change, whichever process makes it. A row travels as it is now, or as gone; taking it twice does no
harm, and an older state of it never follows a newer one, as the rows are sent by one process in the order of `changes`.
"""

# ruff: noqa: S608 - the names of tables and columns are this package's own

from collections.abc import Iterator, Mapping, Sequence
from types import NoneType
from typing import Any

import msgspec

from raylog.errors import DamagedData
from raylog.security.database import Database

ROWS_MAX = 500  # in one answer of `since`


class Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One row of `table`, by its key; `values` are None for one that was deleted."""

    table: str
    key: str
    values: tuple[Any, ...] | None  # as SQLite gives them: texts, bytes, numbers, None


def schema(tables: Mapping[str, str]) -> tuple[str, ...]:
    """To be run after that of the tables. `tables`: name -> its key's column, a text."""
    return (
        "CREATE TABLE IF NOT EXISTS changes (sequence INTEGER PRIMARY KEY AUTOINCREMENT, of TEXT NOT NULL,"
        " key TEXT NOT NULL, UNIQUE (of, key))",
        *(statement for table, key in tables.items() for statement in _notes(table, key)),
    )


def _notes(table: str, key: str) -> Iterator[str]:
    for event, row in (("INSERT", "new"), ("UPDATE", "new"), ("DELETE", "old")):
        yield (
            f"CREATE TRIGGER IF NOT EXISTS {table}_{event.lower()} AFTER {event} ON {table} BEGIN "
            f"DELETE FROM changes WHERE of = '{table}' AND key = {row}.{key}; "
            f"INSERT INTO changes (of, key) VALUES ('{table}', {row}.{key}); END"
        )
    yield (  # of a file from before changes were noted
        f"INSERT INTO changes (of, key) SELECT '{table}', {key} FROM {table} "
        f"WHERE NOT EXISTS (SELECT 1 FROM changes WHERE of = '{table}')"
    )


class Replicated:
    """The rows of such tables in one database."""

    def __init__(self, database: Database, tables: Mapping[str, str]) -> None:
        self._database, self._tables = database, tables

    def since(self, sequence: int) -> tuple[int, list[Row]]:
        """What changed after change number `sequence`, at most `ROWS_MAX` rows, and up to which number that is."""
        with self._database.transaction():
            changes = self._database.execute(
                "SELECT sequence, of, key FROM changes WHERE sequence > ? ORDER BY sequence LIMIT ?", sequence, ROWS_MAX
            )
            rows = [self._row(table, key) for _, table, key in changes]
        return (changes[-1][0] if changes else sequence), rows

    def take(self, rows: Sequence[Row]) -> None:
        """Makes these rows as they are elsewhere; all or none. Raises `DamagedData` for rows of no table here."""
        with self._database.transaction():
            for row in rows:
                self._take(row)

    def forget(self, table: str, key: str) -> None:
        """No longer notes that this row was deleted."""
        self._database.execute("DELETE FROM changes WHERE of = ? AND key = ?", table, key)

    def _row(self, table: str, key: str) -> Row:
        found = self._database.execute(f"SELECT * FROM {table} WHERE {self._tables[table]} = ?", key)
        return Row(table=table, key=key, values=found[0] if found else None)

    def _take(self, row: Row) -> None:
        column = self._tables.get(row.table)
        if column is None:
            raise DamagedData(f"{self._database.path}: expected rows of {', '.join(self._tables)}, got {row.table!r}")
        if row.values is None:
            self._database.execute(f"DELETE FROM {row.table} WHERE {column} = ?", row.key)
            return
        columns = len(self._database.execute(f"PRAGMA table_info({row.table})"))
        are_values = all(isinstance(value, (str, bytes, int, float, NoneType)) for value in row.values)
        if len(row.values) != columns or row.values[0] != row.key or not are_values:
            raise DamagedData(f"{self._database.path}: expected {columns} values of {row.table}, the key first")
        places = ", ".join("?" * columns)
        self._database.execute(f"INSERT OR REPLACE INTO {row.table} VALUES ({places})", *row.values)
