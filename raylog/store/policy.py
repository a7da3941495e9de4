"""Which shards get a copy in the arena. Pure; every tier decision of the store stands here."""

ARENA_SHARE = 0.5  # of the arena, at most, for one shard: a larger one would push out everything else


def belongs_in_arena(stored_bytes: int, capacity_bytes: int) -> bool:
    """Whether a shard may lie in an arena of this capacity; a larger one streams to disk."""
    return stored_bytes <= ARENA_SHARE * capacity_bytes


def promote_on_read(stored_bytes: int, capacity_bytes: int, free_bytes: int) -> bool:
    """Whether a shard that is read from disk is kept in the arena as it passes.

    Only into free room: a read must not push out what others read. What is received or put is newer and may.
    """
    return belongs_in_arena(stored_bytes, capacity_bytes) and stored_bytes <= free_bytes
