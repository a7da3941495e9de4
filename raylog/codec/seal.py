"""`ShardSealer`: content in, one sealed shard out, in FORMAT.md's write order.

Guarantee: under one salt every chunk number seals one byte string, once. A sealer whose output failed, or that woke
up in a forked process, refuses to go on; the caller starts a new shard, with a fresh salt and a fresh id.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from blake3 import blake3

from raylog.codec.chunk import TAG_BYTES, ChunkPlace, seal_chunk
from raylog.codec.compress import Compressor
from raylog.codec.content_tag import ContentTag
from raylog.codec.frame import (
    CHUNKS_MAX,
    UNIT_CONTENT_BYTES_MAX,
    ChunkEntry,
    Frame,
    encode_index,
)
from raylog.codec.header import SALT_BYTES, Header, ShardIds, check_layout
from raylog.codec.keys import GroupKey, derive_shard_keys, schema_hash
from raylog.errors import RaylogError, UsageError
from raylog.spec import SHARD_CONTENT_BYTES_MAX, Codec, Kind
from raylog.units import MIB

CHUNK_BYTES_DEFAULT = 2 * MIB


class _Held(NamedTuple):
    """A chunk that waits for its successor, since only the last chunk of a shard carries the final flag."""

    content: memoryview
    rows: int
    group: int
    continues: bool
    compressible: bool
    item_bytes: int = 1


class ShardSealer:
    """Seals one shard through `write_at(offset, bytes)`; call `finish` for its frame. For one thread.

    `keys[g]` is key group g's; group 0 seals the preamble. `codec=None` chooses per chunk by sampling, for links of
    `link_bytes_per_s` where they are known. `salt` is for golden vectors alone. Content goes in by `add_unit` (Arrow),
    or `add_bytes` or `add_chunk` (files, tensors). The memoryview given to `write_at` is reused afterwards. Nothing is
    written after an error; what stands is an unfinished file. `on_sealed(content bytes sealed so far, without the
    preamble)` is called after every chunk. With a `tag_key` the content is tagged. Raises `UsageError` for keys, ids or
    sizes that no shard may have.
    """

    def __init__(
        self,
        *,
        ids: ShardIds,
        kind: Kind,
        keys: Sequence[GroupKey],
        preamble: bytes,
        write_at: Callable[[int, memoryview], None],
        codec: Codec | None = None,
        link_bytes_per_s: float | None = None,
        chunk_bytes: int = CHUNK_BYTES_DEFAULT,
        salt: bytes | None = None,
        on_sealed: Callable[[int], None] | None = None,
        tag_key: GroupKey | None = None,
    ) -> None:
        check_layout(kind, len(keys), chunk_bytes)
        self.preamble = preamble
        self.content_bytes = 0
        self._unsealed = _unsealed_header(
            ids, kind, keys, preamble, chunk_bytes, os.urandom(SALT_BYTES) if salt is None else salt
        )
        prefix = self._unsealed.prefix()
        self._keys = [derive_shard_keys(key, g, self._unsealed.salt, prefix) for g, key in enumerate(keys)]
        self._header_bytes = prefix + b"".join(keys.commitment for keys in self._keys)
        self._write_at = write_at
        self._on_sealed = on_sealed
        self._tag = ContentTag(tag_key, kind) if tag_key else None
        self._sealed_bytes = 0
        self._compressor = Compressor(codec, chunk_bytes, link_bytes_per_s)
        self._gathered = memoryview(bytearray(chunk_bytes))
        self._sealed = memoryview(bytearray(chunk_bytes + TAG_BYTES))
        self._stream_bytes = 0  # of a stream's next chunk, gathered so far
        self._stream_compressible = False
        self._stream_item_bytes = 1
        self._held: _Held | None = None
        self._entries: list[ChunkEntry] = []
        self._offset = len(self._header_bytes)
        self._process_id = os.getpid()
        self._numbers_taken = 0
        self._finished = False
        write_at(0, memoryview(self._header_bytes))
        self._hold_unit([preamble], rows=0, group=0)

    @property
    def chunk_bytes(self) -> int:
        """The most content bytes in one chunk."""
        return self._unsealed.chunk_bytes

    @property
    def content_tag(self) -> bytes:
        """Of the finished shard (MANIFEST.md, "Content tag"); empty without a key for it."""
        return self._tag.digest() if self._tag else b""

    @property
    def key_groups(self) -> int:
        return self._unsealed.key_groups

    @property
    def chunks_left(self) -> int:
        """How many more chunks fit into this shard."""
        return CHUNKS_MAX - len(self._entries) - (self._held is not None) - (self._stream_bytes > 0)

    def add_unit(self, parts: Sequence[bytes | memoryview], rows: int, group: int = 0) -> None:
        """Adds a unit: the bytes of all `parts` in a row, cut into several chunks only if they do not fit into one.

        The last chunk's bytes are sealed with the next call: until then leave `parts` unchanged. Raises `UsageError`
        when the unit or the shard gets too large; nothing of the unit is added then.
        """
        assert self._unsealed.kind == Kind.ARROW and 0 <= group < self.key_groups and 0 < rows < 1 << 32
        self._hold_unit(parts, rows, group)
        self.content_bytes += sum(memoryview(part).nbytes for part in parts)

    def add_chunk(self, parts: Sequence[bytes | memoryview], *, item_bytes: int = 1) -> None:
        """Appends the bytes of all `parts` in a row to the stream of a shard of files or tensors, as one chunk.

        They are sealed with the next call: until then leave `parts` unchanged. Raises `UsageError` when they are none,
        or more than a chunk may have, or the shard gets too large.
        """
        views = [memoryview(part).cast("B") for part in parts if memoryview(part).nbytes]
        chunk_bytes = sum(view.nbytes for view in views)
        assert self._unsealed.kind != Kind.ARROW and not self._stream_bytes
        if not 0 < chunk_bytes <= self.chunk_bytes:
            raise UsageError(f"expected a chunk of 1 to {self.chunk_bytes} bytes, got {chunk_bytes}")
        self._check_room(chunk_bytes)
        self.content_bytes += chunk_bytes
        for content in self._cut(views):
            self._flush_held(final=False)
            self._held = _Held(content, 0, 0, False, True, item_bytes)

    def add_bytes(self, buffer: bytes | memoryview, *, compressible: bool = True, item_bytes: int = 1) -> None:
        """Appends to the byte stream of a shard of files or tensors; `buffer` may be reused at once.

        A chunk of which every byte was added with `compressible=False` is stored without trying a codec. `item_bytes`
        is the width of the numbers in `buffer`, if it holds numbers; of a chunk it is that of what was added last.
        Raises `UsageError` when the shard gets too large.
        """
        assert self._unsealed.kind != Kind.ARROW
        rest = memoryview(buffer).cast("B")
        self._check_room(rest.nbytes)
        if rest.nbytes and self._numbers_taken:
            self._flush_held(final=False)  # a chunk of `add_chunk`; it may lie in the memory that is filled now
        self.content_bytes += rest.nbytes
        while rest.nbytes:
            if self._stream_bytes == self.chunk_bytes:
                self._flush_stream(final=False)
            if not self._stream_bytes and rest.nbytes > self.chunk_bytes:  # more follows: seal from where it lies
                self._flush_held(final=False)
                self._seal(_Held(rest[: self.chunk_bytes], 0, 0, False, compressible, item_bytes), final=False)
                rest = rest[self.chunk_bytes :]
            else:
                self._stream_item_bytes = item_bytes
                rest = rest[self._gather(rest, compressible) :]

    def finish(self) -> Frame:
        """Seals the last chunk, writes index and trailer, and returns the frame. The sealer is used up then."""
        self._check_usable()
        if self._stream_bytes:
            self._flush_stream(final=True)
        else:
            self._flush_held(final=True)
        untagged = self._header_bytes + encode_index(self._entries)
        tags = b"".join(blake3(untagged, key=keys.index).digest() for keys in self._keys)
        frame = Frame.decode(untagged + tags, None)
        self._finished = True
        self._write_at(frame.index_offset, memoryview(frame.tail_bytes))
        return frame

    def _hold_unit(self, parts: Sequence[bytes | memoryview], rows: int, group: int) -> None:
        views = [memoryview(part).cast("B") for part in parts if memoryview(part).nbytes]
        unit_bytes = sum(view.nbytes for view in views)
        if unit_bytes > UNIT_CONTENT_BYTES_MAX:
            raise UsageError(f"expected a unit of at most {UNIT_CONTENT_BYTES_MAX} bytes, got {unit_bytes}")
        self._check_room(unit_bytes)
        left_bytes = unit_bytes
        for content in self._cut(views):
            left_bytes -= content.nbytes
            self._flush_held(final=False)
            self._held = _Held(content, rows if not left_bytes else 0, group, left_bytes > 0, True)

    def _cut(self, views: Sequence[memoryview]) -> Iterator[memoryview]:
        """The views in pieces of a chunk; a piece of more than one view is gathered, others lie where they lay."""
        gathered = 0
        for position, view in enumerate(views):
            rest = view
            while rest.nbytes:
                is_last = position == len(views) - 1
                if not gathered and (rest.nbytes >= self.chunk_bytes or is_last):
                    yield rest[: self.chunk_bytes]
                    rest = rest[self.chunk_bytes :]
                    continue
                if not gathered:
                    self._flush_held(final=False)  # it may lie in the memory that is filled now
                taken = min(self.chunk_bytes - gathered, rest.nbytes)
                self._gathered[gathered : gathered + taken] = rest[:taken]
                gathered, rest = gathered + taken, rest[taken:]
                if gathered == self.chunk_bytes or (is_last and not rest.nbytes):
                    yield self._gathered[:gathered]
                    gathered = 0

    def _gather(self, content: memoryview, compressible: bool) -> int:
        """Copies what fits into the stream's next chunk; how many bytes that were."""
        start = self._stream_bytes
        taken = min(self.chunk_bytes - start, content.nbytes)
        self._gathered[start : start + taken] = content[:taken]
        self._stream_compressible = compressible or (start > 0 and self._stream_compressible)
        self._stream_bytes += taken
        return taken

    def _flush_stream(self, *, final: bool) -> None:
        self._flush_held(final=False)
        content = self._gathered[: self._stream_bytes]
        self._seal(_Held(content, 0, 0, False, self._stream_compressible, self._stream_item_bytes), final=final)
        self._stream_bytes = 0

    def _flush_held(self, *, final: bool) -> None:
        if self._held is not None:
            held, self._held = self._held, None
            self._seal(held, final=final)

    def _seal(self, held: _Held, *, final: bool) -> None:
        number = self._take_number()
        if self._tag:
            self._tag.add(held.content, rows=held.rows, group=held.group, continues=held.continues)
        compress = self._compressor.compress if held.compressible else _leave
        codec, body = compress(held.content, held.item_bytes)
        place = ChunkPlace(number, held.content.nbytes, codec, held.group, held.continues, final)
        sealed = seal_chunk(self._keys[held.group].chunk, place, body, self._sealed)
        digest = blake3(sealed).digest()
        self._write_at(self._offset, sealed)
        self._entries.append(
            ChunkEntry(
                number,
                self._offset,
                sealed.nbytes,
                held.content.nbytes,
                held.rows,
                codec,
                held.group,
                held.continues,
                digest,
            )
        )
        self._offset += sealed.nbytes
        self._sealed_bytes += held.content.nbytes
        if self._on_sealed:
            self._on_sealed(max(self._sealed_bytes - len(self.preamble), 0))

    def _take_number(self) -> int:
        """The next chunk number, which nobody gets again: not after a failed write, not in a forked process."""
        self._check_usable()
        self._numbers_taken += 1
        return self._numbers_taken - 1

    def _check_usable(self) -> None:
        if os.getpid() != self._process_id:
            raise RaylogError("this shard was begun in another process: begin a new one here, with a fresh id")
        if self._finished or self._numbers_taken != len(self._entries):
            state = "is finished" if self._finished else "failed while a chunk was sealed or written"
            raise RaylogError(f"shard {self._unsealed.shard_id} {state}: begin a new one, with a fresh id")

    def _check_room(self, more_bytes: int) -> None:
        total_bytes = len(self.preamble) + self.content_bytes + more_bytes
        chunks = len(self._entries) + (self._held is not None)
        chunks += -(-(self._stream_bytes + more_bytes) // self.chunk_bytes)
        if total_bytes > SHARD_CONTENT_BYTES_MAX or chunks > CHUNKS_MAX:
            raise UsageError(
                f"expected at most {SHARD_CONTENT_BYTES_MAX} content bytes and {CHUNKS_MAX} chunks in one shard, got "
                f"{total_bytes} bytes and {chunks} chunks: finish it and begin another"
            )


def _leave(content: memoryview, _item_bytes: int) -> tuple[Codec, bytes | memoryview]:
    return Codec.NONE, content


def _unsealed_header(
    ids: ShardIds, kind: Kind, keys: Sequence[GroupKey], preamble: bytes, chunk_bytes: int, salt: bytes
) -> Header:
    if not preamble or len(salt) != SALT_BYTES:
        raise UsageError(f"expected a preamble and a salt of {SALT_BYTES} bytes, got {len(preamble)} and {len(salt)}")
    return Header(
        kind=kind,
        chunk_bytes=chunk_bytes,
        tenant_id=ids.tenant,
        artifact_id=ids.artifact,
        version_id=ids.version,
        shard_id=ids.shard,
        schema_hash=schema_hash(keys[0], preamble),
        salt=salt,
        dek_ids=tuple(key.dek_id for key in keys),
    )
