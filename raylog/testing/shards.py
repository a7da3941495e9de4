"""Sealed shards for tests of what moves and keeps them: well formed to everyone who has no key."""

import random
from dataclasses import dataclass

from blake3 import blake3

from raylog.codec.chunk import TAG_BYTES
from raylog.codec.frame import INDEX_TAG_BYTES, ChunkEntry, Frame, encode_index
from raylog.codec.header import Header
from raylog.codec.pieces import Erasure, digests_of, encode_stripe
from raylog.spec import CHUNK_CONTENT_BYTES_MAX, Codec, Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleShard:
    """A frame and the sealed chunks that belong to it."""

    frame: Frame
    chunks: tuple[bytes, ...]

    @property
    def shard_id(self) -> str:
        return self.frame.header.shard_id

    @property
    def file(self) -> bytes:
        """The whole shard as it lies in a file."""
        return self.frame.header_bytes + b"".join(self.chunks) + self.frame.tail_bytes

    def sealed(self, number: int) -> memoryview:
        return memoryview(self.chunks[number])


def sample_shard(
    seed: int,
    chunk_sizes: tuple[int, ...] = (64, 5000, 4096, 17),
    shard_id: str = "",
    *,
    tenant_id: str = "",
    artifact_id: str = "",
    version_id: str = "",
) -> SampleShard:
    """A shard of chunks with so many sealed bytes each (16 or more), the same for the same arguments.

    Commitments, tags and ciphertext are random bytes: no key opens it, everything else about it is right.
    """
    source = random.Random(seed)  # noqa: S311 - repeatable bytes, not secrets
    ids = [source.randbytes(16).hex() for _ in range(5)]
    header = Header(
        kind=Kind.FILES,
        chunk_bytes=CHUNK_CONTENT_BYTES_MAX,
        tenant_id=tenant_id or ids[0],
        artifact_id=artifact_id or ids[1],
        version_id=version_id or ids[2],
        shard_id=shard_id or ids[3],
        schema_hash=source.randbytes(32),
        salt=source.randbytes(32),
        dek_ids=(ids[4],),
        commitments=(source.randbytes(32),),
    ).encode()
    chunks = tuple(source.randbytes(size) for size in chunk_sizes)
    entries, offset = [], len(header)
    for number, sealed in enumerate(chunks):
        content_bytes = len(sealed) - TAG_BYTES
        digest = blake3(sealed).digest()
        entries.append(ChunkEntry(number, offset, len(sealed), content_bytes, 0, Codec.NONE, 0, False, digest))
        offset += len(sealed)
    metadata = header + encode_index(entries) + source.randbytes(INDEX_TAG_BYTES)
    return SampleShard(frame=Frame.decode(metadata, None), chunks=chunks)


def cut(shard: SampleShard, data: int, parity: int) -> tuple[Erasure, list[SampleShard]]:
    """The shard in `data` + `parity` pieces."""
    file, stripes = shard.file, []

    def digests(blank: Erasure) -> bytes:
        found = b""
        for stripe in range(blank.stripes):
            size, start = blank.piece_bytes(stripe), stripe * blank.parity.stripe_bytes
            whole = file[start : start + blank.parity.stripe_bytes].ljust(size * data, b"\0")
            pieces = encode_stripe(blank, stripe, memoryview(whole), memoryview(bytearray(size * parity)))
            stripes.append([bytes(piece) for piece in pieces])
            found += digests_of(pieces)
        return found

    erasure = Erasure.plan(shard.frame.ref(), shard.frame.header, data, parity, digests)
    return erasure, [
        SampleShard(frame=frame, chunks=tuple(pieces[number] for pieces in stripes))
        for number, frame in enumerate(erasure.frames())
    ]
