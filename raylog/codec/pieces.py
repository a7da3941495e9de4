"""Pieces of erasure-coded shards (FORMAT.md, "Pieces"): which there are, how they are framed, and their bytes. Pure."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Self

import msgspec
from blake3 import blake3

from raylog.codec.chunk import TAG_BYTES
from raylog.codec.frame import DIGEST_BYTES, INDEX_TAG_BYTES, ChunkEntry, Frame, encode_index
from raylog.codec.header import Header, header_length
from raylog.codec.reed_solomon import PIECES_MAX, Coder, coder
from raylog.errors import UsageError
from raylog.spec import Codec, Kind, ShardRef, parse_id
from raylog.units import MIB

PIECE_BYTES_MAX = MIB  # of one stripe
ALIGNED_BYTES = 64


class Parity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a shard's file is erasure coded. `origin`: version id of the put that made the pieces; `digests`: 32 bytes
    for each piece, stripe after stripe."""

    data_pieces: int
    parity_pieces: int
    stripe_bytes: int
    origin: str
    digests: bytes

    def check(self, stored_bytes: int) -> None:
        """Raises `UsageError` when it cannot describe a file of `stored_bytes`."""
        count = self.data_pieces + self.parity_pieces
        if self.data_pieces < 1 or self.parity_pieces < 1 or count > PIECES_MAX:
            raise UsageError(f"expected at most {PIECES_MAX} pieces, got {self.data_pieces}+{self.parity_pieces}")
        piece_bytes, rest = divmod(self.stripe_bytes, self.data_pieces)
        if rest or piece_bytes % ALIGNED_BYTES or not ALIGNED_BYTES <= piece_bytes <= PIECE_BYTES_MAX:
            raise UsageError(
                f"expected stripes of {self.data_pieces} x 64 to {PIECE_BYTES_MAX} bytes, got {self.stripe_bytes}"
            )
        parse_id(self.origin, "version id")
        expected = -(-stored_bytes // self.stripe_bytes) * count * DIGEST_BYTES
        if len(self.digests) != expected:
            raise UsageError(f"expected {expected} bytes of piece digests, got {len(self.digests)}")


class Erasure(msgspec.Struct, frozen=True, kw_only=True):
    """An erasure-coded shard and all that its pieces follow from."""

    shard: ShardRef
    tenant: str
    artifact_id: str
    dek_id: str
    parity: Parity

    def __post_init__(self) -> None:
        for what in ("tenant", "artifact_id", "dek_id"):
            parse_id(getattr(self, what), what)
        parse_id(self.shard.shard_id, "shard id")
        self.parity.check(self.shard.stored_bytes)

    @property
    def pieces(self) -> int:
        return self.parity.data_pieces + self.parity.parity_pieces

    @property
    def stripes(self) -> int:
        return -(-self.shard.stored_bytes // self.parity.stripe_bytes)

    @property
    def coder(self) -> Coder:
        return coder(self.parity.data_pieces, self.parity.parity_pieces)

    def piece_bytes(self, stripe: int) -> int:
        """Of each piece of that stripe."""
        left = self.shard.stored_bytes - stripe * self.parity.stripe_bytes
        return piece_bytes(min(left, self.parity.stripe_bytes), self.parity.data_pieces)

    def frames(self) -> tuple[Frame, ...]:
        """Of all pieces, in order."""
        return _frames(self)

    def refs(self) -> tuple[ShardRef, ...]:
        """The pieces as shards of their own, in order."""
        return tuple(frame.ref() for frame in self.frames())

    @classmethod
    def plan(cls, shard: ShardRef, ids: Header, data: int, parity: int, digests: Callable[[Self], bytes]) -> Self:
        """For a shard that is to be cut now, whose header is `ids`; `digests` makes the pieces of what it is given."""
        size = min(piece_bytes(shard.stored_bytes, data), PIECE_BYTES_MAX)
        stripes = -(-shard.stored_bytes // (size * data))
        empty = Parity(
            data_pieces=data,
            parity_pieces=parity,
            stripe_bytes=size * data,
            origin=ids.version_id,
            digests=bytes(stripes * (data + parity) * DIGEST_BYTES),
        )
        blank = cls(shard=shard, tenant=ids.tenant_id, artifact_id=ids.artifact_id, dek_id=ids.dek_ids[0], parity=empty)
        made = msgspec.structs.replace(empty, digests=digests(blank))
        return msgspec.structs.replace(blank, parity=made)


def parse_erasure(text: str) -> tuple[int, int]:
    """`"4+2"` -> (4, 2); raises `UsageError`."""
    data, plus, parity = text.partition("+")
    if not (plus and data.isascii() and data.isdigit() and parity.isascii() and parity.isdigit()):
        raise UsageError(f"expected data and parity pieces such as '4+2', got {text[:40]!r}")
    if not (int(data) >= 1 and int(parity) >= 1 and int(data) + int(parity) <= PIECES_MAX):
        raise UsageError(f"expected at least 1+1 and at most {PIECES_MAX} pieces, got {text[:40]!r}")
    return int(data), int(parity)


def piece_bytes(stripe_bytes: int, data_pieces: int) -> int:
    """A piece of a stripe of so many bytes, which is filled up with zeros."""
    unit = data_pieces * ALIGNED_BYTES
    return -(-stripe_bytes // unit) * ALIGNED_BYTES


def piece_id(shard_id: str, number: int) -> str:
    return blake3(b"raylog/1 piece\x00" + bytes.fromhex(shard_id) + bytes([number])).digest(16).hex()


def encode_stripe(erasure: Erasure, stripe: int, data: memoryview, parity: memoryview) -> list[memoryview]:
    """All pieces of a stripe: `data` holds the file's bytes of it and zeros up to k pieces, `parity` room for m."""
    size = erasure.piece_bytes(stripe)
    k, m = erasure.parity.data_pieces, erasure.parity.parity_pieces
    pieces = [data[number * size : (number + 1) * size] for number in range(k)]
    made = [parity[number * size : (number + 1) * size] for number in range(m)]
    erasure.coder.encode(pieces, made)
    return pieces + made


def digests_of(pieces: Sequence[memoryview]) -> bytes:
    """As they stand in `Parity.digests`, for one stripe."""
    return b"".join(blake3(piece).digest() for piece in pieces)


Pieces = Mapping[int, memoryview]
"""Verified pieces of one stripe, by number: at least as many as there are data pieces."""


class ShardOfPieces:
    """The file of an erasure-coded shard, and its pieces, from any k pieces of each stripe, which `pieces(stripe)`
    gives."""

    def __init__(self, erasure: Erasure, pieces: Callable[[int], Pieces], stripes_kept: int = 4) -> None:
        self._erasure, self._pieces = erasure, pieces
        self._data = functools.lru_cache(maxsize=stripes_kept)(self._data_pieces)

    def read(self, start: int, length: int) -> bytes:
        """Bytes of the shard's file."""
        found = bytearray(length)
        self.read_into(memoryview(found), start)
        return bytes(found)

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fills `buffer` with bytes of the shard's file from `start` on."""
        done = 0
        while done < len(buffer):
            stripe, offset = divmod(start + done, self._erasure.parity.stripe_bytes)
            number, within = divmod(offset, self._erasure.piece_bytes(stripe))
            part = self._data(stripe)[number][within : within + len(buffer) - done]
            buffer[done : done + len(part)] = part
            done += len(part)

    def piece(self, number: int, stripe: int) -> memoryview:
        """One piece of a stripe, computed where it is not among those that are there."""
        pieces = self._pieces(stripe)
        if number in pieces:
            return pieces[number]
        return self._rebuilt(stripe, pieces, [number])[number]

    def _data_pieces(self, stripe: int) -> list[memoryview]:
        pieces, k = self._pieces(stripe), self._erasure.parity.data_pieces
        made = self._rebuilt(stripe, pieces, [number for number in range(k) if number not in pieces])
        return [pieces[number] if number in pieces else made[number] for number in range(k)]

    def _rebuilt(self, stripe: int, pieces: Pieces, numbers: Sequence[int]) -> dict[int, memoryview]:
        size = self._erasure.piece_bytes(stripe)
        made = {number: memoryview(bytearray(size)) for number in numbers}
        self._erasure.coder.rebuild(pieces, made)
        return made


@functools.lru_cache(maxsize=32)
def _frames(erasure: Erasure) -> tuple[Frame, ...]:
    return tuple(_frame(erasure, number) for number in range(erasure.pieces))


def _frame(erasure: Erasure, number: int) -> Frame:
    header = Header(
        kind=Kind.PIECE,
        chunk_bytes=erasure.parity.stripe_bytes // erasure.parity.data_pieces,
        tenant_id=erasure.tenant,
        artifact_id=erasure.artifact_id,
        version_id=erasure.parity.origin,
        shard_id=piece_id(erasure.shard.shard_id, number),
        schema_hash=bytes(32),
        salt=bytes(32),
        dek_ids=(erasure.dek_id,),
        commitments=(bytes(32),),
    )
    metadata = header.encode() + encode_index(list(_entries(erasure, number))) + bytes(INDEX_TAG_BYTES)
    return Frame.decode(metadata, None)


def _entries(erasure: Erasure, number: int) -> Iterator[ChunkEntry]:
    offset = header_length(1)
    for stripe in range(erasure.stripes):
        sealed_bytes = erasure.piece_bytes(stripe)
        at = (stripe * erasure.pieces + number) * DIGEST_BYTES
        digest = erasure.parity.digests[at : at + DIGEST_BYTES]
        yield ChunkEntry(stripe, offset, sealed_bytes, sealed_bytes - TAG_BYTES, 0, Codec.NONE, 0, False, digest)
        offset += sealed_bytes
