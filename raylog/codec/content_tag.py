"""`ContentTag`: 32 bytes by which holders of one data key see that two shards hold the same, and nobody else does
(MANIFEST.md, "Content tag").

Guarantee: it depends on kind, cut and content alone, not on how chunks were compressed, nor on the keys, salt or ids
that they were sealed under.
"""

import struct

from blake3 import blake3

from raylog.codec.keys import GroupKey, content_tag_key
from raylog.codec.open import ShardOpener
from raylog.spec import Kind

_CHUNK = struct.Struct("<IIBB")


class ContentTag:
    """Made chunk by chunk, in the shard's order, the preamble's chunks first."""

    def __init__(self, key: GroupKey, kind: Kind) -> None:
        self._hash = blake3(bytes([kind]), key=content_tag_key(key))

    @classmethod
    def of_shard(cls, opener: ShardOpener, key: GroupKey) -> "ContentTag":
        """Of a sealed shard, by opening every chunk of it. Raises as `ShardOpener.chunk`."""
        tag = cls(key, opener.frame.header.kind)
        for entry in opener.frame.chunks:
            tag.add(opener.chunk(entry.number), rows=entry.rows, group=entry.group, continues=entry.continues)
        return tag

    def add(self, content: memoryview, *, rows: int, group: int, continues: bool) -> None:
        self._hash.update(_CHUNK.pack(content.nbytes, rows, group, continues))
        self._hash.update(content)

    def digest(self) -> bytes:
        return self._hash.digest()
