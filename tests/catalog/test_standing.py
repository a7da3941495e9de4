"""What counts as lost: no node has it, no backup is thought to have it, and no other pieces give it back."""

import sqlite3

import pytest

from raylog.catalog import tables
from raylog.catalog.journal import _SCHEMA

NODE = b"n" * 16
THERE, UNKNOWN, BAD = 1, 0, 2


@pytest.fixture
def connection():
    connection = sqlite3.connect(":memory:")
    for statement in _SCHEMA:
        connection.execute(statement)
    yield connection
    connection.close()


def shard(connection, name, *, wanted=1, held=False):
    row = (name, b"a" * 16, b"d" * 32, 1, 1, 0, 1, 1, wanted, 1, int(held))
    connection.execute(f"INSERT INTO shards VALUES ({', '.join('?' * len(row))})", row)
    if held:
        connection.execute("INSERT INTO replicas (shard_id, node_id, tier) VALUES (?, ?, 'ssd')", (name, NODE))


def backed_up(connection, name, state):
    connection.execute("INSERT INTO remotes VALUES (?, 's3://b', ?)", (name, state))


@pytest.mark.parametrize(("state", "lost"), [(None, 1), (THERE, 0), (UNKNOWN, 0), (BAD, 1)])
def test_a_shard_without_copies(connection, state, lost):
    shard(connection, b"1")
    shard(connection, b"2", held=True)
    if state is not None:
        backed_up(connection, b"1", state)
    found = tables.storage_standing(connection)
    assert (found.short_shards, found.lost_shards) == (1, lost)


@pytest.mark.parametrize(
    ("held", "state", "short", "lost"),
    [(3, None, 0, 0), (2, None, 1, 0), (1, None, 2, 2), (1, THERE, 2, 0), (1, BAD, 2, 2), (0, UNKNOWN, 3, 0)],
)
def test_a_shard_of_two_pieces_and_parity(connection, held, state, short, lost):
    shard(connection, b"whole", wanted=0)
    connection.execute("INSERT INTO erasures VALUES (?, ?)", (b"whole", b""))
    for number in range(3):
        shard(connection, b"%d" % number, held=number < held)
        connection.execute("INSERT INTO pieces VALUES (?, ?, ?, 2)", (b"%d" % number, b"whole", number))
    if state is not None:
        backed_up(connection, b"whole", state)
    found = tables.storage_standing(connection)
    assert (found.short_shards, found.lost_shards) == (short, lost)


@pytest.mark.parametrize(("states", "lost"), [([THERE], 0), ([BAD], 1), ([BAD, BAD], 1), ([BAD, THERE], 0)])
def test_cold_copies_are_lost_with_their_backups(connection, states, lost):
    shard(connection, b"1", wanted=0)
    for number, state in enumerate(states):
        connection.execute("INSERT INTO remotes VALUES (?, ?, ?)", (b"1", f"s3://{number}", state))
    found = tables.storage_standing(connection)
    assert (found.short_shards, found.lost_shards, found.copies_to_back_up) == (lost, lost, states.count(BAD))
