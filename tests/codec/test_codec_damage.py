"""Whatever happens to the bytes of a shard is noticed, and named."""

import random

import pytest
from codec_shards import Sealed, new_ids, new_key, open_shard, read_frame, seal_shard

from raylog.codec.files import FileExtent, files_preamble, open_files
from raylog.codec.open import ShardOpener
from raylog.errors import DamagedData
from raylog.spec import Codec, Kind


def small_shard(**options: object) -> Sealed:
    content = bytes(range(80))
    preamble = files_preamble([FileExtent(path="x", offset=0, length=80, size=80)])
    return seal_shard(Kind.FILES, preamble, lambda s: s.add_bytes(content), chunk_bytes=32, codec=Codec.NONE, **options)


def read_all(data: bytes, shard: Sealed) -> bytes:
    opener = open_shard(data, shard.keys)
    return b"".join(bytes(piece) for _, pieces in open_files(opener) for piece in pieces)


def check_of(data: bytes, shard: Sealed) -> str:
    with pytest.raises(DamagedData) as caught:
        read_all(data, shard)
    return str(caught.value.check)


def test_any_flipped_bit_is_noticed() -> None:
    shard = small_shard()
    checks = set()
    for position in range(len(shard.data)):
        flipped = bytearray(shard.data)
        flipped[position] ^= 1 << (position % 8)
        checks.add(check_of(bytes(flipped), shard))
    assert checks >= {"magic", "version", "suite", "flags", "lengths", "zero", "frame-digest", "digest"}


def test_a_chunk_that_is_mended_is_opened_once_more() -> None:
    shard = small_shard()
    data, entry = bytearray(shard.data), shard.frame.chunks[2]
    asked = []

    def read_chunk(number: int) -> memoryview:
        chunk = shard.frame.chunks[number]
        return memoryview(bytes(data[chunk.offset : chunk.offset + chunk.sealed_bytes]))

    def mend(number: int) -> None:
        asked.append(number)
        if len(asked) == 2:
            data[:] = shard.data

    data[entry.offset + 3] ^= 1
    opener = ShardOpener(shard.frame, shard.keys, read_chunk, mend)
    out = memoryview(bytearray(entry.content_bytes))
    with pytest.raises(DamagedData):
        opener.chunk(2, out)
    assert not any(out)
    assert (bytes(opener.chunk(2, out)), asked) == (bytes(shard.opener().chunk(2)), [2, 2])


def test_every_bit_of_the_metadata_is_noticed_without_a_key() -> None:
    shard = small_shard()
    first, end = shard.frame.chunks[0].offset, shard.frame.index_offset
    for position in [*range(first), *range(end, len(shard.data))]:
        for bit in range(8):
            flipped = bytearray(shard.data)
            flipped[position] ^= 1 << bit
            with pytest.raises(DamagedData):
                read_frame(bytes(flipped))


def test_truncated_at_every_length_and_extended() -> None:
    shard = small_shard()
    assert {check_of(shard.data[:length], shard) for length in range(len(shard.data))} == {"truncated"}
    noise = random.Random(5)
    for more in (1, 63, 64, 65, 5000):
        assert check_of(shard.data + noise.randbytes(more), shard) == "extended"
    assert check_of(shard.data + shard.data, shard) == "extended"


def test_chunks_swapped_or_of_another_artifact() -> None:
    key = new_key()
    shard, other = small_shard(keys=[key]), small_shard(keys=[key])
    number = shard.frame.units[0].chunks  # the first that is full
    right, next_one = shard.chunk(number), shard.chunk(number + 1)
    wrongs = {"swapped": next_one, "digest": other.chunk(number), "truncated": right[:-1], "extended": right + b"x"}
    for check, wrong in wrongs.items():
        opener = ShardOpener(shard.frame, [key], lambda _, wrong=wrong: memoryview(wrong))
        with pytest.raises(DamagedData) as caught:
            opener.chunk(number)
        assert (caught.value.check, caught.value.chunk) == (check, number)
        assert caught.value.shard_id == shard.frame.header.shard_id
        with pytest.raises(DamagedData) as without_key:
            shard.frame.verify_chunk(number, memoryview(wrong))
        assert without_key.value.check == check
    shard.frame.verify_chunk(number, memoryview(right))


def test_no_unverified_plaintext_is_left_behind() -> None:
    shard = small_shard()
    out = memoryview(bytearray(b"\xaa" * 32))
    number = shard.frame.units[0].chunks
    damaged = bytearray(shard.chunk(number))
    damaged[-1] ^= 1
    with pytest.raises(DamagedData):
        ShardOpener(shard.frame, shard.keys, lambda _: memoryview(damaged)).chunk(number, out)
    assert bytes(out) == bytes(32)


def test_the_manifests_digest_is_what_counts() -> None:
    key, ids = new_key(), new_ids()
    pinned, substitute = small_shard(keys=[key], ids=ids), small_shard(keys=[key], ids=ids)
    assert read_frame(pinned.data, pinned.frame.digest) == pinned.frame
    with pytest.raises(DamagedData) as caught:
        read_frame(substitute.data, pinned.frame.digest)
    assert caught.value.check == "frame-digest"
    with pytest.raises(DamagedData) as sent:
        type(pinned.frame).decode(substitute.frame.metadata, pinned.frame.digest)
    assert sent.value.check == "frame-digest"


def test_random_damage_never_escapes_the_error_tree() -> None:
    shard, noise = small_shard(), random.Random(11)
    for _ in range(300):
        data = bytearray(shard.data)
        start = noise.randrange(len(data))
        data[start : start + noise.randrange(1, 40)] = noise.randbytes(noise.randrange(40))
        if bytes(data) != shard.data:
            check_of(bytes(data), shard)
