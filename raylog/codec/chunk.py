"""Seals and opens one chunk: AES-256-GCM with STREAM nonces (Hoang et al. 2015; FORMAT.md, "Chunk").

Guarantee: what `open_chunk` returns was sealed under this key as this chunk of this shard, and nothing else is left in
the output. Misuse to avoid: sealing two contents under one (key, number, final); `ShardSealer` alone numbers chunks.
"""

import struct
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from raylog.codec.damage import Check, damaged
from raylog.spec import Codec

TAG_BYTES = 16
NONCE_BYTES = 12
FLAG_CONTINUES = 1

_ASSOCIATED = struct.Struct("<QIBBBB")


class ChunkPlace(NamedTuple):
    """Everything about a chunk that its tag proves besides its content."""

    number: int
    content_bytes: int
    codec: Codec
    group: int
    continues: bool
    final: bool

    @property
    def nonce(self) -> bytes:
        """12 bytes: the number as 11, big-endian, and the final byte."""
        return self.number.to_bytes(NONCE_BYTES - 1, "big") + bytes([self.final])

    @property
    def associated(self) -> bytes:
        """The additional authenticated data, 16 bytes."""
        flags = FLAG_CONTINUES if self.continues else 0
        return _ASSOCIATED.pack(self.number, self.content_bytes, self.codec, self.group, flags, self.final)


def seal_chunk(cipher: AESGCM, place: ChunkPlace, body: bytes | memoryview, out: memoryview) -> memoryview:
    """Seals `body` into the front of `out`, which must have room for 16 bytes more; returns that front."""
    body_bytes = memoryview(body).nbytes
    sealed = out[: body_bytes + TAG_BYTES]
    cipher.encrypt_into(place.nonce, body, place.associated, sealed)
    return sealed


def open_chunk(cipher: AESGCM, place: ChunkPlace, sealed: memoryview, out: memoryview, shard_id: str) -> None:
    """Opens `sealed` into `out`, 16 bytes shorter. Raises `DamagedData`, and leaves zeros in `out` then."""
    try:
        cipher.decrypt_into(place.nonce, sealed, place.associated, out)
    except InvalidTag:
        check, message = _diagnose(cipher, place, sealed, out)
        out[:] = bytes(len(out))  # decrypt_into has left unverified plaintext there
        raise damaged(check, message, shard_id=shard_id, chunk=place.number) from None


def _diagnose(cipher: AESGCM, place: ChunkPlace, sealed: memoryview, out: memoryview) -> tuple[Check, str]:
    """Why the tag failed: the final flag stands where it should not, or is missing, or the bytes are others."""
    other = place._replace(final=not place.final)
    try:
        cipher.decrypt_into(other.nonce, sealed, other.associated, out)
    except InvalidTag:
        return "tag", "its AES-GCM tag does not fit"
    if place.final:
        return "truncated", "the last chunk was not sealed as the last: the shard was cut short"
    return "extended", "it was sealed as the last chunk, yet others follow: the shard was continued"
