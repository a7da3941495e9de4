"""The one way this package reports bytes that are not the bytes that were sealed."""

from typing import Literal

from raylog.errors import DamagedData

Check = Literal[
    "magic",
    "version",
    "suite",
    "flags",
    "lengths",
    "zero",
    "truncated",
    "extended",
    "frame-digest",
    "index",
    "commitment",
    "index-tag",
    "swapped",
    "digest",
    "tag",
    "decompress",
    "schema-hash",
    "content",
]
"""The checks of FORMAT.md, "Reading, and what is refused", in their order."""


def damaged(check: Check, message: str, *, shard_id: str = "", chunk: int | None = None) -> DamagedData:
    """The error for a failed `check`; `check`, `shard_id` and `chunk` are attributes of it. The caller raises it."""
    place = f"shard {shard_id or 'of unknown id'}" + ("" if chunk is None else f", chunk {chunk}")
    return DamagedData(
        f"{place}: {message} (failed check: {check}); use another copy of it",
        check=check,
        shard_id=shard_id,
        chunk=chunk,
    )
