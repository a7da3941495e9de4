"""Remote copies as the journal keeps them: where shards are to have one, and where they have. Facts out, effects in;
each takes a connection inside a transaction. Whether a copy is there does not follow from the chain: nodes say so.
"""

import sqlite3
from collections.abc import Iterable

_ABSENT, _THERE, _DAMAGED = range(3)


def want(connection: sqlite3.Connection, shard_ids: Iterable[str], url: str) -> None:
    """These shards are to have a copy below `url`; those that have keep it."""
    connection.executemany(
        "INSERT OR IGNORE INTO remotes VALUES (?, ?, ?)", ((bytes.fromhex(one), url, _ABSENT) for one in shard_ids)
    )


def put(connection: sqlite3.Connection, shard_id: str, url: str) -> bool:
    """The copy is there. False, and nothing is noted, where no version wants one."""
    found = connection.execute(
        "UPDATE remotes SET state = ? WHERE shard_id = ? AND url = ?", (_THERE, bytes.fromhex(shard_id), url)
    )
    return found.rowcount > 0


def doubt(connection: sqlite3.Connection, shard_id: str, url: str) -> None:
    """The copy was found missing, truncated or replaced: it is to be written anew."""
    connection.execute(
        "UPDATE remotes SET state = ? WHERE shard_id = ? AND url = ?", (_DAMAGED, bytes.fromhex(shard_id), url)
    )


def take(connection: sqlite3.Connection, shard_id: str, url: str) -> None:
    """The copy is gone, and wanted by nobody."""
    connection.execute("DELETE FROM remotes WHERE shard_id = ? AND url = ?", (bytes.fromhex(shard_id), url))


def there(connection: sqlite3.Connection, shard_id: str) -> list[str]:
    """URLs of the backups in which the shard is."""
    return _urls(connection, "shard_id = ? AND state = 1", bytes.fromhex(shard_id))


def perhaps(connection: sqlite3.Connection, shard_id: str) -> list[str]:
    """URLs where a copy may be had, the surest first: it is there, nothing is known, it was found bad."""
    return _urls(connection, "shard_id = ? ORDER BY state = 1 DESC, state, url", bytes.fromhex(shard_id))


def wanted(connection: sqlite3.Connection, url: str, after: str, count_max: int) -> list[tuple[str, bool]]:
    """Shard id, and whether the copy there is known to be bad: what is to be written below `url`, or looked for, of the
    shards whose ids come after `after`."""
    rows = connection.execute(
        "SELECT shard_id, state FROM remotes JOIN shards USING (shard_id)"
        " WHERE state != 1 AND refs > 0 AND url = ? AND shard_id > ? ORDER BY shard_id LIMIT ?",
        (url, bytes.fromhex(after), count_max),
    )
    return [(shard_id.hex(), state == _DAMAGED) for shard_id, state in rows]


def is_used(connection: sqlite3.Connection, url: str) -> bool:
    """Whether any shard has a copy there, or is to have one."""
    return connection.execute("SELECT 1 FROM remotes WHERE url = ? LIMIT 1", (url,)).fetchone() is not None


def forget_chain(connection: sqlite3.Connection, url: str) -> None:
    """The backup is no longer kept up."""
    connection.execute("DELETE FROM offsite WHERE url = ?", (url,))


def free(connection: sqlite3.Connection, url: str, count_max: int) -> list[str]:
    """Shards whose copies below `url` no version names any more."""
    rows = connection.execute(
        "SELECT shard_id FROM remotes JOIN shards USING (shard_id) WHERE refs = 0 AND url = ?"
        " ORDER BY shard_id LIMIT ?",
        (url, count_max),
    )
    return [shard_id.hex() for (shard_id,) in rows]


def lacking(connection: sqlite3.Connection, shard_ids: Iterable[str], url: str) -> list[str]:
    """Those of the shards that are to have a copy below `url` and, as far as is known, have none."""
    statement = "SELECT 1 FROM remotes WHERE shard_id = ? AND url = ? AND state != 1"
    return [one for one in shard_ids if connection.execute(statement, (bytes.fromhex(one), url)).fetchone()]


def urls(connection: sqlite3.Connection) -> list[str]:
    """Every backup that holds anything or is to."""
    known = {url for (url,) in connection.execute("SELECT DISTINCT url FROM remotes")}
    return sorted(known | {url for (url,) in connection.execute("SELECT url FROM offsite")})


def chain_reached(connection: sqlite3.Connection, url: str) -> int:
    """Up to which record a backup has the chain."""
    row = connection.execute("SELECT sequence FROM offsite WHERE url = ?", (url,)).fetchone()
    return row[0] if row else 0


def note_chain(connection: sqlite3.Connection, url: str, sequence: int) -> None:
    connection.execute("INSERT OR REPLACE INTO offsite VALUES (?, ?)", (url, sequence))


def _urls(connection: sqlite3.Connection, condition: str, *values: object) -> list[str]:
    return [url for (url,) in connection.execute(f"SELECT url FROM remotes WHERE {condition}", values)]  # noqa: S608
