"""Content tags: equal for equal content however it was sealed, different for any other, as MANIFEST.md says."""

import struct
from collections.abc import Callable, Sequence

import pytest
from blake3 import blake3
from codec_shards import Sealed, new_key, seal_shard
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from raylog.codec.content_tag import ContentTag
from raylog.codec.keys import GroupKey
from raylog.codec.seal import ShardSealer
from raylog.errors import DamagedData
from raylog.spec import Codec, Kind

KEY = new_key()


def tagged(
    kind: Kind, preamble: bytes, add: Callable[[ShardSealer], object], tag_key: GroupKey = KEY, **options: object
) -> tuple[Sealed, bytes]:
    """A shard and the tag that its sealer made."""
    sealers: list[ShardSealer] = []

    def adding(sealer: ShardSealer) -> None:
        sealers.append(sealer)
        add(sealer)

    sealed = seal_shard(kind, preamble, adding, tag_key=tag_key, **options)
    return sealed, sealers[0].content_tag


def stream(content: bytes, preamble: bytes = b"p", **options: object) -> bytes:
    return tagged(Kind.FILES, preamble, lambda sealer: sealer.add_bytes(content), **options)[1]


def units(parts: Sequence[bytes], rows: Sequence[int], **options: object) -> bytes:
    def add(sealer: ShardSealer) -> None:
        for part, count in zip(parts, rows, strict=True):
            sealer.add_unit([part], count)

    return tagged(Kind.ARROW, b"p", add, **options)[1]


def test_it_is_what_manifest_md_says() -> None:
    key = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"raylog/1 content tag").derive(KEY.dek)
    chunks = [(b"p", 0, 0), (b"aaaa", 0, 1), (b"bb", 7, 0), (b"c", 1, 0)]  # content, rows, goes on
    said = b"".join(struct.pack("<IIBB", len(one), rows, 0, more) + one for one, rows, more in chunks)
    assert units([b"aaaabb", b"c"], [7, 1], chunk_bytes=4) == blake3(b"\x01" + said, key=key).digest()


@given(st.binary(max_size=3000), st.sampled_from([64, 1000]), st.sampled_from([None, *Codec]))
def test_it_does_not_show_how_the_content_was_sealed(content: bytes, chunk_bytes: int, codec: Codec | None) -> None:
    sealed, tag = tagged(
        Kind.TENSORS, b"pre", lambda sealer: sealer.add_bytes(content), codec=codec, chunk_bytes=chunk_bytes
    )
    plain = tagged(
        Kind.TENSORS, b"pre", lambda sealer: sealer.add_bytes(content), codec=Codec.NONE, chunk_bytes=chunk_bytes
    )
    assert tag == plain[1] == ContentTag.of_shard(sealed.opener(), KEY).digest()


def test_any_other_content_cut_kind_or_key_has_another() -> None:
    tags = [
        stream(b"content"),
        stream(b"contend"),
        stream(b"content", preamble=b"q"),
        stream(b"ontent", preamble=b"pc"),
        stream(b"content", chunk_bytes=4),
        stream(b"content", tag_key=new_key()),
        tagged(Kind.TENSORS, b"p", lambda sealer: sealer.add_bytes(b"content"))[1],
        units([b"content"], [1]),
        units([b"content"], [2]),
        units([b"con", b"tent"], [1, 1]),
        units([b"content"], [1], chunk_bytes=3),
    ]
    assert len(set(tags)) == len(tags)


def test_without_a_key_there_is_none() -> None:
    sealers: list[ShardSealer] = []
    seal_shard(Kind.FILES, b"p", sealers.append)
    assert sealers[0].content_tag == b""


def test_a_damaged_shard_gives_no_tag() -> None:
    sealed, _ = tagged(Kind.FILES, b"p", lambda sealer: sealer.add_bytes(b"x" * 500))
    at = sealed.frame.chunks[1].offset
    broken = Sealed(
        sealed.data[:at] + bytes([sealed.data[at] ^ 0xFF]) + sealed.data[at + 1 :], sealed.keys, sealed.frame
    )
    with pytest.raises(DamagedData):
        ContentTag.of_shard(broken.opener(), KEY)
