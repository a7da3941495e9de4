"""The journal's tables as functions: facts out, effects in. Each takes a connection inside a transaction."""

# ruff: noqa: S608 - statements are put together from constants of this file alone

import sqlite3
from collections.abc import Iterable, Mapping

from raylog.catalog import pieces, remotes
from raylog.catalog.lineage import Origin
from raylog.catalog.manifest import Manifest
from raylog.catalog.receipt import Receipt, kept_on
from raylog.catalog.record import Record
from raylog.catalog.state import Artifact, KnownShard
from raylog.spec import (
    Durability,
    Reference,
    ShardRef,
    ShardStanding,
    StorageStanding,
    TenantUsage,
    TierKind,
    Version,
    parse_id,
    parse_reference,
)

_VERSION = "name, number, shards, rows, content_bytes, stored_bytes, digest"
_SHARD = "shard_id, frame_digest, stored_bytes, content_bytes, rows, chunks"
_ON_DISK = ", ".join(f"'{kind}'" for kind in sorted(kept_on(Durability.DISK)))
_IN_MEMORY = ", ".join(f"'{kind}'" for kind in sorted(kept_on(Durability.MEMORY)))
_COUNTS = f"(tier IN ({_ON_DISK}) OR NOT on_disk AND tier IN ({_IN_MEMORY}))"
_COUNT_STANDING = (
    "UPDATE shards SET standing = (SELECT count(*) FROM replicas WHERE replicas.shard_id = shards.shard_id"
    f" AND {_COUNTS}) WHERE shard_id = ?"
)
_COUNT_LOST = (  # that no node holds, no backup is thought to have, and that cannot be made of other pieces
    "SELECT count(*) FROM shards LEFT JOIN pieces AS own ON own.piece_id = shards.shard_id"
    " WHERE refs > 0 AND standing < wanted"
    " AND NOT EXISTS (SELECT 1 FROM replicas WHERE replicas.shard_id = shards.shard_id)"
    " AND NOT EXISTS (SELECT 1 FROM remotes"
    " WHERE remotes.shard_id = coalesce(own.shard_id, shards.shard_id) AND state != 2)"
    " AND (own.piece_id IS NULL OR own.needed > (SELECT count(DISTINCT others.number) FROM pieces AS others"
    " JOIN replicas ON replicas.shard_id = others.piece_id"
    " WHERE others.shard_id = own.shard_id AND others.number != own.number))"
)
_COUNT_COLD_LOST = (  # promised to backups alone, where it was found bad
    "SELECT count(DISTINCT shard_id) FROM remotes INDEXED BY remotes_wanted JOIN shards USING (shard_id)"
    " WHERE state = 2 AND state != 1 AND refs > 0 AND wanted = 0"
    " AND NOT EXISTS (SELECT 1 FROM erasures WHERE erasures.shard_id = shards.shard_id)"
    " AND NOT EXISTS (SELECT 1 FROM replicas WHERE replicas.shard_id = shards.shard_id)"
    " AND NOT EXISTS (SELECT 1 FROM remotes AS others WHERE others.shard_id = shards.shard_id AND others.state != 2)"
)
_DROP_IF_FREE = (
    "DELETE FROM shards WHERE shard_id = ? AND refs = 0"
    " AND NOT EXISTS (SELECT 1 FROM replicas WHERE replicas.shard_id = shards.shard_id)"
    " AND NOT EXISTS (SELECT 1 FROM remotes WHERE remotes.shard_id = shards.shard_id)"
)


def artifact(connection: sqlite3.Connection, name: str) -> Artifact | None:
    row = connection.execute(
        "SELECT artifact_id, tenant, latest, last_number FROM artifacts WHERE name = ?", (name,)
    ).fetchone()
    if row is None:
        return None
    return Artifact(name=name, artifact_id=row[0].hex(), tenant=row[1].hex(), latest=row[2], last_number=row[3])


def artifact_id_was_used(connection: sqlite3.Connection, artifact_id: str) -> bool:
    """Whether a version of any name was ever committed with it."""
    row = connection.execute("SELECT 1 FROM versions WHERE artifact_id = ?", (bytes.fromhex(artifact_id),)).fetchone()
    return row is not None


def version(connection: sqlite3.Connection, name: str, number: int) -> Version | None:
    """A version that exists; None for one that was deleted or never was."""
    row = connection.execute(
        f"SELECT {_VERSION} FROM versions WHERE name = ? AND number = ? AND deleted IS NULL", (name, number)
    ).fetchone()
    return _version(row) if row else None


def versions(connection: sqlite3.Connection, name: str) -> list[Version]:
    rows = connection.execute(
        f"SELECT {_VERSION} FROM versions WHERE name = ? AND deleted IS NULL ORDER BY number", (name,)
    )
    return [_version(row) for row in rows]


def version_was_given(connection: sqlite3.Connection, name: str, number: int) -> bool:
    """Whether this number was ever given, to a version that exists or not."""
    row = connection.execute("SELECT 1 FROM versions WHERE name = ? AND number = ?", (name, number)).fetchone()
    return row is not None


def by_version_id(connection: sqlite3.Connection, version_id: str) -> tuple[Version, bool] | None:
    """The version that was committed with this id, and whether it still exists."""
    row = connection.execute(
        f"SELECT {_VERSION}, deleted IS NULL FROM versions WHERE version_id = ?", (bytes.fromhex(version_id),)
    ).fetchone()
    return (_version(row), bool(row[-1])) if row else None


def latest_versions(
    connection: sqlite3.Connection, prefix: str, labels: Mapping[str, str] | None = None
) -> list[Version]:
    """The latest version of every name that begins with `prefix`, by name; of those only, that have all `labels`."""
    columns = ", ".join(f"versions.{column}" for column in _VERSION.split(", "))
    rows = connection.execute(
        f"SELECT {columns} FROM artifacts JOIN versions ON versions.name = artifacts.name AND number = latest"
        " WHERE artifacts.name >= ? AND artifacts.name < ?"
        + " AND EXISTS (SELECT 1 FROM labels WHERE key = ? AND value = ? AND labels.name = versions.name"
        " AND labels.number = versions.number)" * len(labels or {}) + " ORDER BY artifacts.name",
        (prefix, prefix + "\U0010ffff", *(text for label in (labels or {}).items() for text in label)),
    )
    return [_version(row) for row in rows]


def committed_manifest(connection: sqlite3.Connection, name: str, number: int) -> bytes | None:
    row = connection.execute(
        "SELECT committed FROM versions JOIN manifests USING (sequence) WHERE name = ? AND number = ?", (name, number)
    ).fetchone()
    return row[0] if row else None


def origin(connection: sqlite3.Connection, reference: Reference) -> Origin:
    """What a version that was given once was made from."""
    rows = connection.execute(
        "SELECT parent, parent_number FROM lineage WHERE name = ? AND number = ? ORDER BY parent, parent_number",
        (reference.name, reference.number),
    )
    return Origin(
        version=str(reference),
        parents=tuple(f"{name}@{number}" for name, number in rows),
        exists=version(connection, reference.name, reference.number or 0) is not None,
    )


def children(connection: sqlite3.Connection, reference: Reference) -> list[str]:
    """The versions that were made from one."""
    rows = connection.execute(
        "SELECT name, number FROM lineage WHERE parent = ? AND parent_number = ? ORDER BY name, number",
        (reference.name, reference.number),
    )
    return [f"{name}@{number}" for name, number in rows]


def known_shards(connection: sqlite3.Connection, shard_ids: Iterable[str]) -> dict[str, KnownShard]:
    """Those of the shards that are known, by id."""
    found: dict[str, KnownShard] = {}
    for shard_id in shard_ids:
        row = connection.execute(
            f"SELECT {_SHARD}, artifact_id, refs FROM shards WHERE shard_id = ?", (bytes.fromhex(shard_id),)
        ).fetchone()
        if row:
            found[shard_id] = KnownShard(
                shard=_shard(row),
                artifact_id=row[6].hex(),
                references=row[7],
                replicas={node: TierKind(tier) for node, tier in _replicas(connection, shard_id)},
                remotes=frozenset(remotes.there(connection, shard_id)),
            )
    return found


def replicas(connection: sqlite3.Connection, shard_id: str) -> list[str]:
    return [node_id for node_id, _ in _replicas(connection, shard_id)]


def holding_nodes(connection: sqlite3.Connection) -> set[str]:
    """Every node that holds a replica of anything."""
    return {node_id.hex() for (node_id,) in connection.execute("SELECT DISTINCT node_id FROM replicas")}


def shards_of(connection: sqlite3.Connection, node_id: str) -> set[str]:
    """The shards that a node holds a replica of."""
    rows = connection.execute("SELECT shard_id FROM replicas WHERE node_id = ?", (bytes.fromhex(node_id),))
    return {shard_id.hex() for (shard_id,) in rows}


def unnamed_shards(connection: sqlite3.Connection, shard_ids: Iterable[str]) -> list[str]:
    """Those of the shards that no version names."""
    statement = "SELECT 1 FROM shards WHERE shard_id = ? AND refs > 0"
    return [one for one in shard_ids if not connection.execute(statement, (bytes.fromhex(one),)).fetchone()]


def is_referenced(connection: sqlite3.Connection, receipt: Receipt) -> bool:
    """Whether a version names the receipt's shard, with its frame digest."""
    row = connection.execute(
        "SELECT 1 FROM shards WHERE shard_id = ? AND frame_digest = ? AND refs > 0",
        (bytes.fromhex(receipt.shard_id), receipt.frame_digest),
    ).fetchone()
    return row is not None


def gone_nodes(connection: sqlite3.Connection) -> set[str]:
    return {row[0].hex() for row in connection.execute("SELECT node_id FROM gone_nodes")}


def give_up(connection: sqlite3.Connection, node_id: str) -> None:
    connection.execute("INSERT OR IGNORE INTO gone_nodes VALUES (?)", (bytes.fromhex(node_id),))


def admit(connection: sqlite3.Connection, node_id: str) -> None:
    connection.execute("DELETE FROM gone_nodes WHERE node_id = ?", (bytes.fromhex(node_id),))


def revoke_put(connection: sqlite3.Connection, version_id: str) -> None:
    """No version is to be committed under this id."""
    connection.execute("INSERT OR IGNORE INTO revoked_puts VALUES (?)", (bytes.fromhex(version_id),))


def is_revoked(connection: sqlite3.Connection, version_id: str) -> bool:
    row = connection.execute("SELECT 1 FROM revoked_puts WHERE version_id = ?", (bytes.fromhex(version_id),)).fetchone()
    return row is not None


def short_shards(connection: sqlite3.Connection, count_max: int) -> list[ShardStanding]:
    """Shards with fewer replicas than were promised, fewest first."""
    return _standings(connection, "refs > 0 AND standing < wanted ORDER BY standing, shard_id", count_max)


def short_without(connection: sqlite3.Connection, node_id: str, count_max: int) -> list[ShardStanding]:
    """Shards on a node of which, without it, fewer replicas would be left than were promised."""
    node = f"x'{parse_id(node_id)}'"
    on_it = f"SELECT 1 FROM replicas WHERE replicas.shard_id = shards.shard_id AND node_id = {node}"
    return _standings(
        connection,
        f"refs > 0 AND shard_id IN (SELECT shard_id FROM replicas WHERE node_id = {node})"
        f" AND standing - EXISTS ({on_it} AND {_COUNTS}) < wanted ORDER BY standing, shard_id",
        count_max,
    )


def usage(connection: sqlite3.Connection) -> list[TenantUsage]:
    """What each tenant has stored; shards of several versions are counted once."""
    versions = {
        tenant: (count, content_bytes)
        for tenant, count, content_bytes in connection.execute(
            "SELECT tenant, count(*), sum(content_bytes) FROM versions JOIN artifacts USING (name)"
            " WHERE deleted IS NULL GROUP BY tenant"
        )
    }
    shards = {
        tenant: (stored_bytes, kept_bytes)
        for tenant, stored_bytes, kept_bytes in connection.execute(
            "SELECT tenant, sum(stored_bytes * NOT EXISTS (SELECT 1 FROM pieces WHERE piece_id = shard_id)),"
            " sum(stored_bytes * standing) FROM shards JOIN artifacts USING (artifact_id)"
            " WHERE refs > 0 GROUP BY tenant"
        )
    }
    return [
        TenantUsage(
            tenant=tenant.hex(),
            versions=versions[tenant][0],
            content_bytes=versions[tenant][1],
            stored_bytes=shards.get(tenant, (0, 0))[0],
            kept_bytes=shards.get(tenant, (0, 0))[1],
        )
        for tenant in sorted(versions)
    ]


def settled_standings(connection: sqlite3.Connection, count_max: int) -> list[ShardStanding]:
    """Shards that have all their replicas, the largest first."""
    return _standings(
        connection, "refs > 0 AND wanted > 0 AND standing >= wanted ORDER BY stored_bytes DESC, shard_id", count_max
    )


def stored_on_nodes(connection: sqlite3.Connection) -> dict[str, int]:
    """Node id -> sealed bytes of the replicas that it holds."""
    rows = connection.execute(
        "SELECT node_id, sum(stored_bytes) FROM replicas JOIN shards USING (shard_id) GROUP BY node_id"
    )
    return {node_id.hex(): stored_bytes for node_id, stored_bytes in rows}


def storage_standing(connection: sqlite3.Connection) -> StorageStanding:
    """Counted by the partial indexes: as quick as there is little to count."""
    ((short,),) = connection.execute("SELECT count(*) FROM shards WHERE refs > 0 AND standing < wanted")
    ((lost,),) = connection.execute(_COUNT_LOST)
    ((cold_lost,),) = connection.execute(_COUNT_COLD_LOST)
    ((to_back_up,),) = connection.execute(
        "SELECT count(*) FROM remotes JOIN shards USING (shard_id) WHERE state != 1 AND refs > 0"
    )
    return StorageStanding(short_shards=short + cold_lost, lost_shards=lost + cold_lost, copies_to_back_up=to_back_up)


def standing(connection: sqlite3.Connection, shard_id: str) -> ShardStanding | None:
    found = _standings(connection, f"refs > 0 AND shard_id = x'{parse_id(shard_id)}'", 1)
    return found[0] if found else None


def free_shards(connection: sqlite3.Connection, count_max: int) -> list[ShardStanding]:
    """Shards that no version names, but of which nodes hold copies."""
    return _standings(connection, "refs = 0 ORDER BY shard_id", count_max)


def drop_if_free(connection: sqlite3.Connection, shard_id: str) -> None:
    """Forgets a shard that no version names and of which no copy is left."""
    connection.execute(_DROP_IF_FREE, (bytes.fromhex(shard_id),))


def signed_records(connection: sqlite3.Connection, after: int, count_max: int) -> list[bytes]:
    """Records after number `after`, in order."""
    rows = connection.execute(
        "SELECT signed FROM records WHERE sequence > ? ORDER BY sequence LIMIT ?", (after, count_max)
    )
    return [signed for (signed,) in rows]


def deleted_digests(connection: sqlite3.Connection, after: int) -> list[bytes]:
    """Digests of the versions that records after number `after` deleted."""
    rows = connection.execute("SELECT digest FROM versions WHERE deleted > ?", (after,))
    return [digest for (digest,) in rows]


def insert_version(
    connection: sqlite3.Connection, manifest: Manifest, added: Version, sequence: int, committed: bytes
) -> None:
    """A new version, which becomes its name's latest."""
    artifact_id = bytes.fromhex(manifest.artifact_id)
    connection.execute(
        "INSERT INTO artifacts VALUES (?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET"
        " artifact_id = excluded.artifact_id, tenant = excluded.tenant, latest = excluded.latest,"
        " last_number = excluded.last_number",
        (added.name, artifact_id, bytes.fromhex(manifest.tenant), added.number, added.number),
    )
    connection.execute(
        "INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL)",
        (
            *(added.name, added.number, bytes.fromhex(manifest.version_id), artifact_id, sequence),
            *(bytes.fromhex(added.digest), added.shards, added.rows, added.content_bytes, added.stored_bytes),
        ),
    )
    connection.execute("INSERT INTO manifests VALUES (?, ?)", (sequence, committed))
    connection.executemany(
        "INSERT INTO labels VALUES (?, ?, ?, ?)",
        [(key, value, added.name, added.number) for key, value in manifest.labels.items()],
    )
    parents = [parse_reference(parent) for parent in manifest.parents]
    connection.executemany(
        "INSERT INTO lineage VALUES (?, ?, ?, ?)",
        [(added.name, added.number, parent.name, parent.number) for parent in parents],
    )


def insert_deleted(connection: sqlite3.Connection, record: Record, version_id: bytes) -> None:
    """A version of which nothing but its commit record is known: its name and number were given. `version_id` is to be
    one that nobody has."""
    artifact_id = bytes.fromhex(record.artifact_id)
    connection.execute(
        "INSERT INTO artifacts VALUES (?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET artifact_id ="
        " excluded.artifact_id, latest = excluded.latest, last_number = excluded.last_number",
        (record.name, artifact_id, bytes(16), record.number, record.number),
    )
    connection.execute(
        "INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?, 0, 0, 0, 0, ?)",
        (
            *(record.name, record.number, version_id, artifact_id, record.sequence),
            *(record.manifest_digest, record.sequence),
        ),
    )


def reference_shards(
    connection: sqlite3.Connection, manifest: Manifest, fresh: Mapping[str, Mapping[str, TierKind]]
) -> None:
    """Counts a version's references and records the replicas that came with it. What was promised to any version of a
    shard holds for all."""
    on_disk = manifest.durability is not Durability.MEMORY
    artifact_id = bytes.fromhex(manifest.artifact_id)
    kept = manifest.kept_shards()
    connection.executemany(
        "INSERT INTO shards VALUES (?, ?, ?, ?, ?, ?, ?, 1, ?, ?, 0) ON CONFLICT (shard_id) DO UPDATE SET"
        " refs = refs + 1, wanted = max(wanted, excluded.wanted), on_disk = max(on_disk, excluded.on_disk)",
        (
            (
                *(bytes.fromhex(one.shard_id), artifact_id, one.frame_digest, one.stored_bytes, one.content_bytes),
                *(one.rows, one.chunks, wanted, on_disk),
            )
            for one, wanted in kept.values()
        ),
    )
    for shard_id, nodes in fresh.items():
        for node_id, tier in nodes.items():
            put_replica(connection, shard_id, node_id, tier)
    count_standing(connection, kept)
    pieces.note(connection, manifest.erasures().values())
    if manifest.backup:
        remotes.want(connection, manifest.distinct_shards(), manifest.backup)


def release_shards(connection: sqlite3.Connection, manifest: Manifest) -> None:
    """Takes a deleted version's references away; a shard without any and without copies is forgotten."""
    ids = [(bytes.fromhex(shard_id),) for shard_id in manifest.kept_shards()]
    connection.executemany("UPDATE shards SET refs = refs - 1 WHERE shard_id = ?", ids)
    connection.executemany(_DROP_IF_FREE, ids)


def mark_deleted(connection: sqlite3.Connection, name: str, number: int, sequence: int) -> None:
    """Leaves a tombstone where a version was."""
    connection.execute(
        "DELETE FROM manifests WHERE sequence = (SELECT sequence FROM versions WHERE name = ? AND number = ?)",
        (name, number),
    )
    connection.execute("UPDATE versions SET deleted = ? WHERE name = ? AND number = ?", (sequence, name, number))
    connection.execute("DELETE FROM labels WHERE name = ? AND number = ?", (name, number))


def set_latest(connection: sqlite3.Connection, name: str, number: int) -> None:
    connection.execute("UPDATE artifacts SET latest = ? WHERE name = ?", (number, name))


def put_replica(connection: sqlite3.Connection, shard_id: str, node_id: str, tier: TierKind) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO replicas VALUES (?, ?, ?)", (bytes.fromhex(shard_id), bytes.fromhex(node_id), tier)
    )


def take_replica(connection: sqlite3.Connection, shard_id: str, node_id: str) -> None:
    raw_id = bytes.fromhex(shard_id)
    connection.execute("DELETE FROM replicas WHERE shard_id = ? AND node_id = ?", (raw_id, bytes.fromhex(node_id)))
    connection.execute(_COUNT_STANDING, (raw_id,))
    connection.execute(_DROP_IF_FREE, (raw_id,))


def take_node(connection: sqlite3.Connection, node_id: str) -> int:
    """Forgets every replica on a node; returns how many there were."""
    raw_node = bytes.fromhex(node_id)
    ids = connection.execute("SELECT shard_id FROM replicas WHERE node_id = ?", (raw_node,)).fetchall()
    connection.execute("DELETE FROM replicas WHERE node_id = ?", (raw_node,))
    connection.executemany(_COUNT_STANDING, ids)
    connection.executemany(_DROP_IF_FREE, ids)
    return len(ids)


def count_standing(connection: sqlite3.Connection, shard_ids: Iterable[str]) -> None:
    """Counts the replicas of shards again, after some came."""
    connection.executemany(_COUNT_STANDING, ((bytes.fromhex(shard_id),) for shard_id in shard_ids))


def _replicas(connection: sqlite3.Connection, shard_id: str) -> list[tuple[str, str]]:
    rows = connection.execute(
        "SELECT node_id, tier FROM replicas WHERE shard_id = ? ORDER BY node_id", (bytes.fromhex(shard_id),)
    )
    return [(node_id.hex(), tier) for node_id, tier in rows]


def _standings(connection: sqlite3.Connection, condition: str, count_max: int) -> list[ShardStanding]:
    rows = connection.execute(
        f"SELECT {_SHARD}, wanted, refs, on_disk FROM shards WHERE {condition} LIMIT ?", (count_max,)
    ).fetchall()
    found = []
    for row in rows:
        kinds = kept_on(Durability.DISK if row[8] else Durability.MEMORY)
        copies = _replicas(connection, row[0].hex())
        needed, siblings = pieces.siblings(connection, row[0].hex())
        whole_id = pieces.whole_shard(connection, row[0].hex()) if needed else row[0].hex()
        found.append(
            ShardStanding(
                shard=_shard(row),
                wanted=row[6] if row[7] else 0,
                nodes=tuple(node_id for node_id, tier in copies if tier in kinds),
                other_nodes=tuple(node_id for node_id, tier in copies if tier not in kinds),
                backups=tuple(remotes.perhaps(connection, whole_id)),
                piece_of=whole_id if needed else "",
                siblings=siblings,
                pieces_needed=needed,
            )
        )
    return found


def _version(row: tuple[str, int, int, int, int, int, bytes]) -> Version:
    name, number, shards, rows, content_bytes, stored_bytes, digest = row[:7]
    return Version(
        name=name,
        number=number,
        shards=shards,
        rows=rows,
        content_bytes=content_bytes,
        stored_bytes=stored_bytes,
        digest=digest.hex(),
    )


def _shard(row: tuple[bytes, bytes, int, int, int, int]) -> ShardRef:
    shard_id, frame_digest, stored_bytes, content_bytes, rows, chunks = row[:6]
    return ShardRef(
        shard_id=shard_id.hex(),
        frame_digest=frame_digest,
        stored_bytes=stored_bytes,
        content_bytes=content_bytes,
        rows=rows,
        chunks=chunks,
    )
