"""The frame: all metadata of a shard (FORMAT.md, "Index", "Trailer", "Reading"). Pure: bytes in, structs out.

From a verified frame every chunk can be checked on its own, in any order, from any source, without a key.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from blake3 import blake3

from raylog.codec.chunk import FLAG_CONTINUES, TAG_BYTES
from raylog.codec.damage import Check, damaged
from raylog.codec.header import (
    HEADER_BYTES_MAX,
    HEADER_FIXED_BYTES,
    KEY_GROUPS_MAX,
    Header,
    header_length,
    peek_header_length,
)
from raylog.errors import DamagedData
from raylog.spec import SHARD_CONTENT_BYTES_MAX, Codec, Kind, ShardRef
from raylog.units import GIB, MIB

INDEX_MAGIC = b"RLINDEX1"
TRAILER_MAGIC = b"RLSHEND1"
INDEX_START_BYTES = 16
ENTRY_BYTES = 56
INDEX_TAG_BYTES = 32
DIGEST_BYTES = 32
TRAILER_BYTES = 64
CHUNKS_MAX = 65_536
UNIT_CONTENT_BYTES_MAX = GIB
METADATA_BYTES_MAX = HEADER_BYTES_MAX + INDEX_START_BYTES + ENTRY_BYTES * CHUNKS_MAX + INDEX_TAG_BYTES * KEY_GROUPS_MAX

_INDEX_START = struct.Struct("<8sII")
_ENTRY = struct.Struct("<QIIIBBBB32s")
_TRAILER = struct.Struct("<QI12s32s8s")
_SEARCH_BYTES = MIB  # how far before the end an appended-to shard's trailer is looked for


class ChunkEntry(NamedTuple):
    """One chunk as the index lists it. `offset` and `sealed_bytes` are of the file, `digest` is the BLAKE3 of the
    sealed bytes, `rows` stands on the last chunk of a unit, `continues` on all others."""

    number: int
    offset: int
    sealed_bytes: int
    content_bytes: int
    rows: int
    codec: Codec
    group: int
    continues: bool
    digest: bytes


class Unit(NamedTuple):
    """A record batch or the preamble: `chunks` chunks from chunk `first` on, `rows` rows (0 for bytes of a stream)."""

    first: int
    chunks: int
    rows: int
    group: int
    content_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A checked frame. `units[0]` is the preamble; `content_bytes` is what was put, so without the preamble; `rows`
    counts the rows of group 0."""

    header: Header
    chunks: tuple[ChunkEntry, ...]
    units: tuple[Unit, ...]
    tags: tuple[bytes, ...]
    header_bytes: bytes
    index_bytes: bytes
    digest: bytes
    content_bytes: int
    rows: int

    @property
    def metadata(self) -> bytes:
        """header ‖ index: what the digest is over, and what goes over the wire before any chunk."""
        return self.header_bytes + self.index_bytes

    @property
    def untagged(self) -> bytes:
        """What the index tags are over: `metadata` without them."""
        return self.metadata[: -INDEX_TAG_BYTES * len(self.tags)]

    @property
    def index_offset(self) -> int:
        """Where the index begins in the file, which is where the last chunk ends."""
        return self.chunks[-1].offset + self.chunks[-1].sealed_bytes

    @property
    def tail_bytes(self) -> bytes:
        """index ‖ trailer: what follows the last chunk in the file."""
        trailer = _TRAILER.pack(self.index_offset, len(self.index_bytes), bytes(12), self.digest, TRAILER_MAGIC)
        return self.index_bytes + trailer

    @property
    def stored_bytes(self) -> int:
        """Length of the whole file."""
        return self.index_offset + len(self.index_bytes) + TRAILER_BYTES

    def ref(self) -> ShardRef:
        """The shard as manifests and messages name it."""
        return ShardRef(
            shard_id=self.header.shard_id,
            frame_digest=self.digest,
            stored_bytes=self.stored_bytes,
            content_bytes=self.content_bytes,
            rows=self.rows,
            chunks=len(self.chunks),
        )

    def verify_chunk(self, number: int, sealed: memoryview | bytes) -> None:
        """Checks one sealed chunk by length and BLAKE3, without a key. Raises `DamagedData`."""
        entry, shard_id, got_bytes = self.chunks[number], self.header.shard_id, memoryview(sealed).nbytes
        if got_bytes != entry.sealed_bytes:
            check: Check = "truncated" if got_bytes < entry.sealed_bytes else "extended"
            message = f"expected {entry.sealed_bytes} sealed bytes, got {got_bytes}"
            raise damaged(check, message, shard_id=shard_id, chunk=number)
        digest = blake3(sealed).digest()
        if digest == entry.digest:
            return
        for other in self.chunks:
            if other.digest == digest:
                message = f"these are the bytes of chunk {other.number}"
                raise damaged("swapped", message, shard_id=shard_id, chunk=number)
        message = f"expected BLAKE3 {entry.digest.hex()}, got {digest.hex()}"
        raise damaged("digest", message, shard_id=shard_id, chunk=number)

    @staticmethod
    def decode(metadata: bytes, expected_digest: bytes | None) -> "Frame":
        """The frame in header ‖ index, which must be nothing more. `expected_digest` is the manifest's; None where
        there is none. Raises `DamagedData` whose `check` says what failed."""
        length = peek_header_length(metadata[:HEADER_FIXED_BYTES])
        header = Header.decode(metadata[:length])
        index, shard_id = metadata[length:], header.shard_id
        digest = blake3(metadata).digest()
        if expected_digest is not None and digest != expected_digest:
            message = f"expected frame digest {expected_digest.hex()}, got {digest.hex()}"
            raise damaged("frame-digest", message, shard_id=shard_id)
        count = _chunk_count(index, header)
        chunks = tuple(_decode_entries(index, count, header))
        _check_entries(chunks, header)
        units = tuple(_group_units(chunks, header))
        return Frame(
            header=header,
            chunks=chunks,
            units=units,
            tags=tuple(_slices(index[INDEX_START_BYTES + ENTRY_BYTES * count :])),
            header_bytes=metadata[:length],
            index_bytes=index,
            digest=digest,
            content_bytes=sum(unit.content_bytes for unit in units[1:]),
            rows=sum(unit.rows for unit in units if unit.group == 0),
        )

    @staticmethod
    def read(read_at: Callable[[int, int], bytes], file_bytes: int, expected_digest: bytes | None = None) -> "Frame":
        """The frame of a shard file, read from its end by `read_at(offset, length)`. A file without a trailer is an
        unfinished write and is refused as truncated. Raises `DamagedData`; reads nothing it has not bounded."""
        length = peek_header_length(read_at(0, min(file_bytes, HEADER_FIXED_BYTES)))
        smallest = length + TAG_BYTES + INDEX_START_BYTES + ENTRY_BYTES + INDEX_TAG_BYTES + TRAILER_BYTES
        if file_bytes < smallest:
            raise damaged("truncated", f"expected at least {smallest} bytes of a shard, got {file_bytes}")
        header = read_at(0, length)
        shard_id = Header.decode(header).shard_id
        index_offset, index_bytes, digest = _read_trailer(read_at, file_bytes, shard_id)
        if index_offset < length or index_bytes > METADATA_BYTES_MAX:
            message = f"the trailer names an index of {index_bytes} bytes at {index_offset}, which cannot be"
            raise damaged("lengths", message, shard_id=shard_id)
        frame = Frame.decode(header + read_at(index_offset, index_bytes), digest)
        if expected_digest is not None and digest != expected_digest:
            message = f"expected frame digest {expected_digest.hex()} by the manifest, got {digest.hex()}"
            raise damaged("frame-digest", message, shard_id=shard_id)
        if frame.index_offset != index_offset:
            message = f"expected the index at {frame.index_offset}, the trailer says {index_offset}"
            raise damaged("index", message, shard_id=shard_id)
        return frame


def sealed_bytes_max(content_bytes: int, chunks: int) -> int:
    """The most bytes of a shard file of one key group with so much content, the preamble with it, in so many chunks."""
    frame_bytes = HEADER_BYTES_MAX + INDEX_START_BYTES + INDEX_TAG_BYTES + TRAILER_BYTES
    return frame_bytes + content_bytes + chunks * (TAG_BYTES + ENTRY_BYTES)


def encode_index(entries: Sequence[ChunkEntry]) -> bytes:
    """The index without its tags."""
    rows = [
        _ENTRY.pack(one.offset, one.sealed_bytes, one.content_bytes, one.rows, one.codec, one.group,
                    FLAG_CONTINUES if one.continues else 0, 0, one.digest)
        for one in entries
    ]  # fmt: skip
    return _INDEX_START.pack(INDEX_MAGIC, len(entries), 0) + b"".join(rows)


def _read_trailer(read_at: Callable[[int, int], bytes], file_bytes: int, shard_id: str) -> tuple[int, int, bytes]:
    """Index offset, index length and frame digest; they fit the file's length."""
    offset, length, zero, digest, magic = _TRAILER.unpack(read_at(file_bytes - TRAILER_BYTES, TRAILER_BYTES))
    if magic != TRAILER_MAGIC:
        raise _without_trailer(read_at, file_bytes, shard_id)
    if any(zero):
        raise damaged("zero", f"expected zeros in the trailer, got {zero.hex()}", shard_id=shard_id)
    if offset + length + TRAILER_BYTES != file_bytes:
        check: Check = "truncated" if offset + length + TRAILER_BYTES > file_bytes else "extended"
        message = f"its trailer speaks of {offset + length + TRAILER_BYTES} bytes, the file has {file_bytes}"
        raise damaged(check, message, shard_id=shard_id)
    return offset, length, digest


def _without_trailer(read_at: Callable[[int, int], bytes], file_bytes: int, shard_id: str) -> DamagedData:
    """A file that does not end in a trailer was continued if a fitting one stands before its end, else cut short."""
    first = max(0, file_bytes - _SEARCH_BYTES)
    tail = read_at(first, file_bytes - first)
    end = tail.rfind(TRAILER_MAGIC) + len(TRAILER_MAGIC)
    if end >= TRAILER_BYTES:
        offset, length, *_ = _TRAILER.unpack_from(tail, end - TRAILER_BYTES)
        if offset + length + TRAILER_BYTES == first + end:
            message = f"{file_bytes - first - end} bytes follow its trailer"
            return damaged("extended", message, shard_id=shard_id)
    return damaged("truncated", "it has no trailer: cut short, or a write that was not finished", shard_id=shard_id)


def _chunk_count(index: bytes, header: Header) -> int:
    if len(index) < INDEX_START_BYTES:
        raise damaged("truncated", f"expected an index, got {len(index)} bytes", shard_id=header.shard_id)
    magic, count, zero = _INDEX_START.unpack_from(index)
    if magic != INDEX_MAGIC:
        raise damaged("magic", f"expected the index magic, got {magic.hex()}", shard_id=header.shard_id)
    if not 1 <= count <= CHUNKS_MAX:
        raise damaged("lengths", f"expected 1 to {CHUNKS_MAX} chunks, got {count}", shard_id=header.shard_id)
    if zero:
        raise damaged("zero", f"expected zeros in the index, got {zero:#x}", shard_id=header.shard_id)
    expected_bytes = INDEX_START_BYTES + ENTRY_BYTES * count + INDEX_TAG_BYTES * header.key_groups
    if len(index) != expected_bytes:
        message = f"expected {expected_bytes} index bytes for {count} chunks, got {len(index)}"
        raise damaged("lengths", message, shard_id=header.shard_id)
    return int(count)


def _decode_entries(index: bytes, count: int, header: Header) -> list[ChunkEntry]:
    """The entries as they stand; a codec, flag or offset that cannot be is refused."""
    entries = []
    offset_expected, shard_id = header_length(header.key_groups), header.shard_id
    table = memoryview(index)[INDEX_START_BYTES : INDEX_START_BYTES + ENTRY_BYTES * count]
    for number, fields in enumerate(_ENTRY.iter_unpack(table)):
        offset, sealed, content, rows, codec, group, flags, zero, digest = fields
        if codec > Codec.ZSTD_PLANES_8 or flags & ~FLAG_CONTINUES or zero:
            message = f"unknown codec {codec}, flags {flags:#x} or padding {zero}"
            raise damaged("index", message, shard_id=shard_id, chunk=number)
        if offset != offset_expected:
            message = f"expected it at {offset_expected}, the index says {offset}"
            raise damaged("index", message, shard_id=shard_id, chunk=number)
        offset_expected += sealed
        entries.append(ChunkEntry(number, offset, sealed, content, rows, Codec(codec), group, bool(flags), digest))
    return entries


def _check_entries(chunks: Sequence[ChunkEntry], header: Header) -> None:
    for one in chunks:
        body_bytes = one.sealed_bytes - TAG_BYTES
        fits = body_bytes == one.content_bytes if one.codec == Codec.NONE else 0 < body_bytes < one.content_bytes
        if one.content_bytes > header.chunk_bytes or not fits:
            message = f"{one.content_bytes} content bytes cannot be {one.sealed_bytes} sealed bytes ({one.codec.name})"
            raise damaged("index", message, shard_id=header.shard_id, chunk=one.number)
        if one.group >= header.key_groups:
            message = f"key group {one.group} of {header.key_groups} does not exist"
            raise damaged("index", message, shard_id=header.shard_id, chunk=one.number)
    if sum(one.content_bytes for one in chunks) > SHARD_CONTENT_BYTES_MAX:
        raise damaged("index", f"more than {SHARD_CONTENT_BYTES_MAX} content bytes", shard_id=header.shard_id)


def _group_units(chunks: Sequence[ChunkEntry], header: Header) -> list[Unit]:
    """Chunks joined into units. A unit has one group, rows only at its end, and an end."""
    units: list[Unit] = []
    first = content_bytes = 0
    for one in chunks:
        content_bytes += one.content_bytes
        misplaced = one.continues and (one.rows or one is chunks[-1])
        if misplaced or one.group != chunks[first].group or content_bytes > UNIT_CONTENT_BYTES_MAX:
            message = "its unit has no end, two groups, rows before its end, or too many bytes"
            raise damaged("index", message, shard_id=header.shard_id, chunk=one.number)
        if not one.continues:
            units.append(Unit(first, one.number - first + 1, one.rows, one.group, content_bytes))
            first, content_bytes = one.number + 1, 0
    if units[0].rows or units[0].group:
        raise damaged("index", "the preamble must be of group 0 and without rows", shard_id=header.shard_id, chunk=0)
    if header.kind != Kind.ARROW and any(unit.rows or unit.chunks != 1 for unit in units[1:]):
        raise damaged("index", f"rows in a shard of kind {header.kind.name}", shard_id=header.shard_id)
    return units


def _slices(tags: bytes) -> list[bytes]:
    return [tags[start : start + INDEX_TAG_BYTES] for start in range(0, len(tags), INDEX_TAG_BYTES)]
