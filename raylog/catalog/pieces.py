"""Erasure-coded shards as the journal keeps them: which pieces they have. Facts out, effects in; each takes a
connection inside a transaction. All of it follows from the manifests.
"""

import sqlite3
from collections.abc import Iterable

import msgspec

from raylog.catalog import remotes
from raylog.catalog.encoding import encode
from raylog.codec.pieces import Erasure


class Whereabouts(msgspec.Struct, frozen=True, kw_only=True):
    """How a shard may be had besides from nodes that hold it: URLs of backups, the surest first; for an erasure-coded
    shard, or piece `number` of one, from its pieces, of which `holders` lists the nodes, piece by piece."""

    backups: tuple[str, ...] = ()
    erasure: Erasure | None = None
    number: int | None = None
    holders: tuple[tuple[str, ...], ...] = ()


def note(connection: sqlite3.Connection, erasures: Iterable[Erasure]) -> None:
    """Remembers what pieces there are; their rows in `shards` are there already."""
    for erasure in erasures:
        raw_id = bytes.fromhex(erasure.shard.shard_id)
        connection.execute("INSERT OR IGNORE INTO erasures VALUES (?, ?)", (raw_id, encode(erasure)))
        connection.executemany(
            "INSERT OR IGNORE INTO pieces VALUES (?, ?, ?, ?)",
            [
                (bytes.fromhex(ref.shard_id), raw_id, number, erasure.parity.data_pieces)
                for number, ref in enumerate(erasure.refs())
            ],
        )


def siblings(connection: sqlite3.Connection, piece_id: str) -> tuple[int, tuple[tuple[str, ...], ...]]:
    """How many pieces it takes to make this one anew, and the nodes of each of the others; 0 and none for a shard that
    is no piece."""
    row = connection.execute(
        "SELECT shard_id, number, needed FROM pieces WHERE piece_id = ?", (bytes.fromhex(piece_id),)
    ).fetchone()
    if row is None:
        return 0, ()
    shard_id, number, needed = row
    return needed, tuple(nodes for one, nodes in enumerate(_holders(connection, shard_id)) if one != number)


def whereabouts(connection: sqlite3.Connection, shard_id: str) -> Whereabouts:
    raw_id, number = bytes.fromhex(shard_id), None
    row = connection.execute("SELECT shard_id, number FROM pieces WHERE piece_id = ?", (raw_id,)).fetchone()
    if row:
        raw_id, number = row
    found = connection.execute("SELECT erasure FROM erasures WHERE shard_id = ?", (raw_id,)).fetchone()
    return Whereabouts(
        backups=tuple(remotes.perhaps(connection, raw_id.hex())),
        erasure=msgspec.msgpack.decode(found[0], type=Erasure) if found else None,
        number=number,
        holders=_holders(connection, raw_id) if found else (),
    )


def whole_shard(connection: sqlite3.Connection, shard_id: str) -> str:
    """The shard that a piece is of; any other shard itself."""
    row = connection.execute("SELECT shard_id FROM pieces WHERE piece_id = ?", (bytes.fromhex(shard_id),)).fetchone()
    return row[0].hex() if row else shard_id


def _holders(connection: sqlite3.Connection, raw_id: bytes) -> tuple[tuple[str, ...], ...]:
    """Nodes that hold a copy of each piece, piece by piece."""
    held: dict[int, list[str]] = {}
    for number, node_id in connection.execute(
        "SELECT number, node_id FROM pieces LEFT JOIN replicas ON replicas.shard_id = piece_id"
        " WHERE pieces.shard_id = ?",
        (raw_id,),
    ):
        held.setdefault(number, []).extend([node_id.hex()] if node_id else [])
    return tuple(tuple(held[number]) for number in sorted(held))
