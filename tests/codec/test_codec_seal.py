"""The sealer: what it writes, and that no nonce ever seals two contents."""

import os
import tracemalloc
from typing import Any

import pytest
from codec_shards import new_ids, new_key, open_shard, read_frame, seal_shard
from hypothesis import given, settings
from hypothesis import strategies as st

from raylog.codec import seal as seal_module
from raylog.codec.chunk import ChunkPlace
from raylog.codec.frame import CHUNKS_MAX, TRAILER_BYTES
from raylog.codec.seal import ShardSealer
from raylog.errors import RaylogError, UsageError
from raylog.spec import Codec, Kind


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(st.binary(max_size=300), max_size=12),
    chunk_bytes=st.integers(1, 200),
    codec=st.sampled_from([None, *Codec]),
)
def test_streams_round_trip(parts: list[bytes], chunk_bytes: int, codec: Codec | None) -> None:
    def add(sealer: ShardSealer) -> None:
        reused = bytearray(300)
        for part in parts:
            reused[: len(part)] = part
            sealer.add_bytes(memoryview(reused)[: len(part)])
            reused[:] = b"\xee" * 300  # the sealer must not look at it again
        assert sealer.content_bytes == len(b"".join(parts))

    shard = seal_shard(Kind.FILES, b"preamble", add, chunk_bytes=chunk_bytes, codec=codec)
    opener, content = shard.opener(), b"".join(parts)
    assert opener.preamble() == b"preamble"
    assert b"".join(bytes(opener.chunk(unit.first)) for unit in opener.units) == content
    assert shard.frame.content_bytes == len(content) and shard.frame.stored_bytes == len(shard.data)
    assert read_frame(shard.data) == shard.frame
    full = [entry.content_bytes for entry in shard.frame.chunks[shard.frame.units[0].chunks :]]
    assert all(size == chunk_bytes for size in full[:-1])


@settings(max_examples=60, deadline=None)
@given(
    units=st.lists(st.lists(st.binary(min_size=1, max_size=90), min_size=1, max_size=4), max_size=8),
    chunk_bytes=st.integers(1, 120),
    groups=st.integers(1, 3),
)
def test_units_round_trip(units: list[list[bytes]], chunk_bytes: int, groups: int) -> None:
    def add(sealer: ShardSealer) -> None:
        for number, parts in enumerate(units):
            sealer.add_unit(parts, rows=number + 1, group=number % groups)

    shard = seal_shard(Kind.ARROW, b"p" * 30, add, keys=[new_key() for _ in range(groups)], chunk_bytes=chunk_bytes)
    opener = shard.opener()
    assert [bytes(opener.unit(unit, b"<")) for unit in opener.units] == [b"<" + b"".join(parts) for parts in units]
    assert [unit.rows for unit in opener.units] == list(range(1, len(units) + 1))
    assert shard.frame.rows == sum(range(1, len(units) + 1, groups))
    ref = shard.frame.ref()
    assert (ref.rows, ref.chunks, ref.stored_bytes) == (shard.frame.rows, len(shard.frame.chunks), len(shard.data))


def test_nonces_are_used_once_and_one_is_final(monkeypatch: pytest.MonkeyPatch) -> None:
    nonces: list[bytes] = []
    seal_chunk = seal_module.seal_chunk

    def recording(cipher: Any, place: ChunkPlace, body: Any, out: memoryview) -> memoryview:
        nonces.append(place.nonce)
        return seal_chunk(cipher, place, body, out)

    monkeypatch.setattr(seal_module, "seal_chunk", recording)
    for sizes in ((), (1,), (16,), (16, 16), (17, 40, 3), (16, 0), (1000,)):
        nonces.clear()
        shard = seal_shard(
            Kind.FILES, b"preamble", lambda s, sizes=sizes: [s.add_bytes(os.urandom(n)) for n in sizes], chunk_bytes=16
        )
        assert len(nonces) == len(set(nonces)) == len(shard.frame.chunks)
        assert [nonce[-1] for nonce in nonces] == [0] * (len(nonces) - 1) + [1]
        assert {len(nonce) for nonce in nonces} == {12}
        assert [int.from_bytes(nonce[:11], "big") for nonce in nonces] == list(range(len(nonces)))


def sealer_with(write_at: Any, **options: Any) -> ShardSealer:
    arguments = {"kind": Kind.FILES, "chunk_bytes": 16, **options}
    return ShardSealer(ids=new_ids(), keys=[new_key()], preamble=b"preamble", write_at=write_at, **arguments)


def test_a_sealer_whose_output_failed_does_not_go_on() -> None:
    writes: list[int] = []

    def failing(offset: int, sealed: memoryview) -> None:
        writes.append(offset)
        if len(writes) == 3:
            raise OSError(28, "No space left on device")

    sealer = sealer_with(failing)
    with pytest.raises(OSError, match="No space"):
        sealer.add_bytes(bytes(64))
    for again in (lambda: sealer.add_bytes(bytes(64)), sealer.finish):
        with pytest.raises(RaylogError, match="begin a new one"):
            again()
    assert len(writes) == 3


def test_a_finished_sealer_is_used_up() -> None:
    sealer = sealer_with(lambda offset, sealed: None)
    sealer.finish()
    with pytest.raises(RaylogError, match="finished"):
        sealer.finish()


def test_a_forked_sealer_does_not_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    sealer = sealer_with(lambda offset, sealed: None)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(RaylogError, match="another process"):
        sealer.add_bytes(bytes(64))


def test_salts_and_sealed_bytes_are_fresh_every_time() -> None:
    key, ids = new_key(), new_ids()
    one, two = (seal_shard(Kind.FILES, b"p", lambda s: s.add_bytes(b"same"), keys=[key], ids=ids) for _ in range(2))
    assert one.frame.header.salt != two.frame.header.salt and one.chunk(1) != two.chunk(1)
    assert one.frame.header.schema_hash == two.frame.header.schema_hash


def test_limits() -> None:
    sealer = sealer_with(lambda offset, sealed: None, chunk_bytes=1)
    sealer.add_bytes(bytes(CHUNKS_MAX - 8), compressible=False)
    assert sealer.chunks_left == 0
    with pytest.raises(UsageError, match="begin another"):
        sealer.add_bytes(b"x")
    frame = sealer.finish()
    assert (
        len(frame.chunks) == CHUNKS_MAX
        and frame.stored_bytes == frame.index_offset + len(frame.index_bytes) + TRAILER_BYTES
    )
    with pytest.raises(UsageError, match="preamble"):
        seal_shard(Kind.FILES, b"", lambda s: None)


def test_chunks_open_in_any_order_into_given_memory() -> None:
    content = os.urandom(100)
    shard = seal_shard(Kind.FILES, b"preamble", lambda s: s.add_bytes(content), chunk_bytes=32)
    opener, out = open_shard(shard.data, shard.keys), memoryview(bytearray(100))
    for number in (4, 2, 1, 3):
        start = (number - 1) * 32
        assert opener.chunk(number, out[start : min(100, start + 32)]).nbytes in (32, 4)
    assert bytes(out) == content


def test_an_opener_at_rest_needs_no_chunk_of_memory() -> None:
    """Streams hold hundreds of them."""
    content = b"some words " * 100_000
    shard = seal_shard(Kind.FILES, b"p", lambda one: one.add_bytes(memoryview(content)), codec=Codec.ZSTD)
    tracemalloc.start()
    try:
        openers = [shard.opener() for _ in range(8)]
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert b"".join(openers[0].chunk(unit.first) for unit in openers[0].units) == content
    assert held_bytes < 1 << 20
