"""Pieces of a shard: framed from the manifest's fields alone, and any k of them read as the shard's file."""

import os
import random

import msgspec
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from raylog.codec import pieces as module
from raylog.codec.frame import Frame
from raylog.codec.keys import GroupKey
from raylog.codec.open import ShardOpener
from raylog.codec.pieces import (
    Erasure,
    Parity,
    ShardOfPieces,
    parse_erasure,
    piece_id,
)
from raylog.errors import DamagedData, UsageError
from raylog.spec import Kind
from raylog.testing import shards
from raylog.testing.shards import SampleShard, sample_shard

Made = list[list[bytes]]  # stripe -> pieces


def cut(shard: SampleShard, data: int, parity: int) -> tuple[Erasure, Made]:
    erasure, pieces = shards.cut(shard, data, parity)
    return erasure, [[piece.chunks[stripe] for piece in pieces] for stripe in range(erasure.stripes)]


@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 3)),
    sizes=st.lists(st.integers(16, 5000), min_size=1, max_size=6),
    largest=st.sampled_from([64, 128, 1024, 1 << 20]),
    seed=st.integers(0, 2**32),
)
def test_any_k_pieces_read_as_the_file(shape: tuple[int, int], sizes: list[int], largest: int, seed: int) -> None:
    (data, parity), source = shape, random.Random(seed)
    shard = sample_shard(seed, tuple(sizes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE_BYTES_MAX", largest)
        erasure, made = cut(shard, data, parity)
        present = [source.sample(range(data + parity), data) for _ in made]
        whole = ShardOfPieces(erasure, lambda stripe: {n: memoryview(made[stripe][n]) for n in present[stripe]})
        assert whole.read(0, len(shard.file)) == shard.file
        start = source.randrange(len(shard.file))
        length = source.randrange(len(shard.file) - start)
        assert whole.read(start, length) == shard.file[start : start + length]
        assert Frame.read(whole.read, len(shard.file)).digest == shard.frame.digest
        for stripe, pieces in enumerate(made):
            for number, piece in enumerate(pieces):
                assert whole.piece(number, stripe) == piece
                erasure.frames()[number].verify_chunk(stripe, piece)


def test_a_piece_is_a_shard_of_its_own() -> None:
    shard = sample_shard(1, (5000,) * 20)
    erasure, made = cut(shard, 4, 2)
    assert len({ref.shard_id for ref in erasure.refs()}) == 6
    for number, frame in enumerate(erasure.frames()):
        assert frame.header.shard_id == piece_id(shard.shard_id, number)
        assert (frame.header.kind, frame.header.version_id) == (Kind.PIECE, erasure.parity.origin)
        file = frame.header_bytes + b"".join(pieces[number] for pieces in made) + frame.tail_bytes
        read = Frame.read(lambda at, length, file=file: file[at : at + length], len(file), frame.digest)
        assert read.ref() == erasure.refs()[number]


def test_nobody_opens_a_piece() -> None:
    erasure, made = cut(sample_shard(2), 2, 1)
    frame = erasure.frames()[0]
    with pytest.raises(DamagedData):
        ShardOpener(frame, [GroupKey(erasure.dek_id, os.urandom(32))], lambda number: memoryview(made[number][0]))


def test_it_follows_from_the_bytes_and_stays_what_it_is() -> None:
    """Golden: the pieces that clusters hold must be found again by later releases."""
    erasure, made = cut(sample_shard(3, (3000, 100, 64)), 4, 2)
    assert erasure.refs()[5].shard_id == piece_id(sample_shard(3, (3000, 100, 64)).shard_id, 5)
    digest = blake3(b"".join(ref.frame_digest for ref in erasure.refs())).hexdigest()
    assert (erasure.parity.stripe_bytes, len(made), digest[:32]) == (3840, 1, GOLDEN)


GOLDEN = "b287299f85dfa7757ce2998f6d41d2da"


def test_what_cannot_be_is_refused() -> None:
    erasure, _ = cut(sample_shard(4), 4, 2)
    for changes in (
        {"stripe_bytes": 100},
        {"digests": b""},
        {"data_pieces": 0},
        {"parity_pieces": 61},
        {"origin": "x"},
    ):
        with pytest.raises(UsageError):
            msgspec.structs.replace(erasure, parity=msgspec.structs.replace(erasure.parity, **changes))
    encoded = msgspec.msgpack.encode(erasure.parity)
    assert msgspec.msgpack.decode(encoded, type=Parity) == erasure.parity


def test_words_for_it() -> None:
    assert parse_erasure("4+2") == (4, 2)
    for bad in ("", "4", "4+", "+2", "-1+2", "4 + 2", "0+2", "4+0", "40+30", "٤+٢", "4+2\n"):
        with pytest.raises(UsageError):
            parse_erasure(bad)
