"""Codecs by measurement: which one is chosen, and that what comes back is exactly what went in."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylog.codec.compress import Compressor, Decompressor, is_compressed_format
from raylog.codec.planes import split_into
from raylog.spec import Codec

SIZE = 1 << 20
WORDS = b"the logistics of a cluster: datasets, checkpoints and weights to the machines that need them "


def text() -> bytes:
    pick = np.random.default_rng(1).integers(0, len(WORDS) - 12, SIZE // 8)
    return b"".join(WORDS[n : n + 9] for n in pick)[:SIZE]


def token_ids() -> bytes:
    return (np.random.default_rng(2).zipf(1.2, SIZE // 8) % 50_257).astype("<i8").tobytes()


def weights() -> bytes:
    values = np.random.default_rng(3).standard_normal(SIZE // 2, dtype=np.float32)
    return (values.view(np.uint32) >> 16).astype("<u2").tobytes()


@pytest.mark.parametrize(
    ("content", "codec"),
    [(text(), Codec.LZ4), (token_ids(), Codec.ZSTD), (weights(), Codec.ZSTD), (os.urandom(SIZE), Codec.NONE),
     (b"", Codec.NONE), (b"x", Codec.NONE)],
)  # fmt: skip
def test_the_codec_that_pays_is_chosen(content: bytes, codec: Codec) -> None:
    chosen, body = Compressor(None, SIZE).compress(memoryview(content))
    assert chosen == codec
    assert len(body) < 0.9 * len(content) if codec else body == content


def gaussian(dtype: str) -> bytes:
    return np.random.default_rng(4).standard_normal(SIZE // 8).astype(dtype).tobytes()


@pytest.mark.parametrize(
    ("content", "item_bytes", "codec"),
    [(weights(), 2, Codec.ZSTD_PLANES_2), (gaussian("<f4"), 4, Codec.ZSTD_PLANES_4),
     (os.urandom(SIZE), 2, Codec.NONE), (os.urandom(SIZE), 8, Codec.NONE), (bytes(SIZE), 4, Codec.ZSTD),
     (weights(), 1, Codec.ZSTD), (weights(), 16, Codec.ZSTD), (b"", 2, Codec.NONE), (b"x", 2, Codec.NONE)],
)  # fmt: skip
def test_numbers_are_split_into_byte_planes_where_that_pays(content: bytes, item_bytes: int, codec: Codec) -> None:
    chosen, body = Compressor(None, SIZE).compress(memoryview(content), item_bytes)
    assert chosen == codec
    if chosen.planes > 1:
        assert len(body) < 0.92 * len(Compressor(Codec.ZSTD, SIZE).compress(memoryview(content))[1])


@pytest.mark.parametrize(
    ("content", "mbit_per_s", "codec"),
    [(text(), 10_000, Codec.LZ4), (text(), 100, Codec.ZSTD), (token_ids(), 100, Codec.ZSTD),
     (os.urandom(SIZE), 1, Codec.NONE), (b"", 1, Codec.NONE)],
)  # fmt: skip
def test_a_slow_link_is_worth_a_slower_codec(content: bytes, mbit_per_s: int, codec: Codec) -> None:
    chosen, _ = Compressor(None, SIZE, mbit_per_s * 1e6 / 8).compress(memoryview(content))
    assert chosen == codec


def test_a_slow_link_is_worth_a_small_gain() -> None:
    content = bytes(SIZE // 10) + os.urandom(SIZE - SIZE // 10)  # a tenth compresses away
    mixed = np.random.default_rng(5).permutation(np.frombuffer(content, np.uint8).reshape(-1, 64)).tobytes()
    kept, sent = (Compressor(None, SIZE, link).choose(memoryview(mixed)) for link in (None, 1e6))
    assert kept == Codec.NONE
    assert sent != Codec.NONE


@given(st.integers(10_000, 10**10), st.sampled_from([text(), token_ids(), weights()]))
def test_no_link_makes_more_of_a_chunk(link_bytes_per_s: int, content: bytes) -> None:
    stored, sent = (Compressor(None, SIZE, link).compress(memoryview(content), 2) for link in (None, link_bytes_per_s))
    assert len(sent[1]) <= 1.01 * len(stored[1])


def test_planes_stand_in_the_order_that_the_format_says() -> None:
    out = memoryview(bytearray(7))
    split_into(b"aAbBcCx", 2, out)
    assert bytes(out) == b"abcABCx"


def test_bf16_weights_shrink_by_a_third() -> None:
    _, body = Compressor(None, SIZE).compress(memoryview(weights()), 2)
    assert SIZE / len(body) > 1.4


@given(content=st.binary(max_size=500) | st.integers(1, 4000).map(bytes), codec=st.sampled_from(Codec))
def test_round_trip_and_never_larger(content: bytes, codec: Codec) -> None:
    chosen, body = Compressor(codec, 4096).compress(memoryview(content))
    assert len(body) < len(content) if chosen else (chosen, body) == (Codec.NONE, content)
    if chosen:
        out = memoryview(bytearray(len(content)))
        assert Decompressor().decompress_into(chosen, memoryview(bytes(body)), out) == ""
        assert out == content


@pytest.mark.parametrize("codec", [Codec.LZ4, Codec.ZSTD, Codec.ZSTD_PLANES_4])
def test_wrong_lengths_and_garbage_are_told(codec: Codec) -> None:
    content = bytes(1000)
    _, body = Compressor(codec, 1000).compress(memoryview(content))
    body, decompressor = memoryview(bytes(body)), Decompressor()
    for size in (999, 1001, 1, 100_000):
        assert decompressor.decompress_into(codec, body, memoryview(bytearray(size)))
    for garbage in (body[:-1], b"\xff" * 40, os.urandom(40), bytes(body) + bytes(body), b""):
        assert decompressor.decompress_into(codec, memoryview(garbage), memoryview(bytearray(1000)))
    assert decompressor.decompress_into(codec, body, memoryview(bytearray(1000))) == ""


def test_a_zstd_frame_that_claims_too_much_allocates_nothing() -> None:
    claims = b"\x28\xb5\x2f\xfd" + bytes([0b11000000, 0xA8]) + (1 << 60).to_bytes(8, "little") + bytes(20)
    assert "zstd" in Decompressor().decompress_into(Codec.ZSTD, memoryview(claims), memoryview(bytearray(64)))


def test_compressed_formats_are_recognised() -> None:
    assert is_compressed_format(b"\x1f\x8b\x08\x00 gzip") and is_compressed_format(memoryview(b"BZh91AY"))
    assert not is_compressed_format(b"\x1f\x8b") and not is_compressed_format(b"plain text")
