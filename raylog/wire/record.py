"""Cargo records: AES-256-GCM under keys of one stream and direction (PROTOCOL.md, "Cargo"). Pure.

Guarantees: an opener returns what a sealer of the same key sealed, in that order, without gaps, replays or repeats, and
leaves nothing unverified in the output; a sealer never uses a nonce twice under a key. Misuse to avoid: two sealers of
one key. Stream ids and both nonces are fresh, so no two streams have the same keys. A stream has records of one kind,
encrypted or authenticated, which its keys are bound to; each kind has its own pair of methods for the body.
"""

import enum
import struct
from typing import NamedTuple, NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from raylog.errors import PeerFault
from raylog.spec import CargoRecords
from raylog.wire.bounds import SEALED_CHUNK_BYTES_MAX

TAG_BYTES = 16
HEAD_BYTES = 32
SEALED_HEAD_BYTES = HEAD_BYTES + TAG_BYTES
BESIDE_BYTES = SEALED_HEAD_BYTES + TAG_BYTES  # what an authenticated record adds to its body
RECORD_BYTES_MAX = SEALED_HEAD_BYTES + SEALED_CHUNK_BYTES_MAX + TAG_BYTES
KEY_BYTES = 32

PREAMBLE_MAGIC = b"RLCARGO1"
PREAMBLE_BYTES = 24

_HEAD = struct.Struct("<B3sIII16s")
_NONCE = struct.Struct(">4xQ")
_LABELS = {
    CargoRecords.ENCRYPTED: b"raylog/1 cargo",
    CargoRecords.AUTHENTICATED: b"raylog/1 cargo authenticated",
}


class RecordType(enum.IntEnum):
    OPEN = 1
    CHUNK = 2
    END = 3


class Head(NamedTuple):
    """What a record is. `body_bytes` is the length of the sealed chunk in it, 0 for `OPEN` and `END`."""

    type: RecordType
    pull: int = 0
    chunk: int = 0
    body_bytes: int = 0


class StreamContext(NamedTuple):
    """Everything that the keys of a stream are bound to. Ids are hex as everywhere; nonces, secrets and the stream id
    are raw."""

    puller_secret: bytes
    source_secret: bytes
    cluster_id: str
    puller_id: str
    source_id: str
    stream: bytes
    puller_nonce: bytes
    source_nonce: bytes
    records: CargoRecords = CargoRecords.ENCRYPTED

    def __repr__(self) -> str:
        return f"<StreamContext of {self.stream.hex()}>"


class StreamKeys(NamedTuple):
    """Raw keys, one per direction, and the kind of records that they are for."""

    from_puller: bytes
    from_source: bytes
    records: CargoRecords = CargoRecords.ENCRYPTED

    def __repr__(self) -> str:
        return "<StreamKeys>"


def derive_keys(context: StreamContext) -> StreamKeys:
    """Both keys of a stream (HKDF-SHA-256, RFC 5869)."""
    return StreamKeys(_expand(context, b"p"), _expand(context, b"s"), context.records)


def _expand(context: StreamContext, direction: bytes) -> bytes:
    ids = bytes.fromhex(context.cluster_id + context.puller_id + context.source_id)
    label, nonces = _LABELS[context.records], context.puller_nonce + context.source_nonce
    info = label + b"\0" + direction + ids + context.stream + nonces
    return _hkdf(context.puller_secret + context.source_secret, info)


def _hkdf(key: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(key)


class _Keyed:
    """One direction's key, its nonces and its rekeying. Every nonce is taken before it is used."""

    def __init__(self, key: bytes, rekey_bytes: int) -> None:
        assert len(key) == KEY_BYTES
        self._key, self._rekey_bytes = key, rekey_bytes
        self._cipher = AESGCM(key)
        self._sealed_bytes = self._next_nonce = 0
        self.has_ended = False

    def _take_nonce(self) -> bytes:
        nonce = _NONCE.pack(self._next_nonce)
        self._next_nonce += 1
        return nonce

    def _record_done(self, head: Head) -> None:
        """Both ends rekey after the record that brings a key to its limit: before it, the receiver would have to know
        the length of a record that it cannot read yet."""
        if not head.body_bytes:
            self._next_nonce += 1  # record k has nonces 2k and 2k + 1
        self._sealed_bytes += HEAD_BYTES + head.body_bytes
        self.has_ended = head.type is RecordType.END
        if self._sealed_bytes >= self._rekey_bytes:
            self._key = _hkdf(self._key, b"raylog/1 rekey")
            self._cipher = AESGCM(self._key)
            self._sealed_bytes = self._next_nonce = 0


class RecordSealer(_Keyed):
    """One direction's outgoing records."""

    def seal_into(self, head: Head, body: memoryview | bytes, out: memoryview) -> int:
        """Writes one record to the start of `out` (at most `RECORD_BYTES_MAX` bytes) and returns its length. `body` may
        not overlap `out`; it is the sealed chunk, empty for `OPEN` and `END`. After `END` nothing follows."""
        sealed_head = self._seal_head(head, body, out)
        length = SEALED_HEAD_BYTES
        if head.body_bytes:
            length += head.body_bytes + TAG_BYTES
            tag = sealed_head[HEAD_BYTES:]
            self._cipher.encrypt_into(self._take_nonce(), body, tag, out[SEALED_HEAD_BYTES:length])
        self._record_done(head)
        return length

    def seal_beside(self, head: Head, body: memoryview | bytes, out: memoryview) -> None:
        """For an authenticated record with a body: writes to `out`, `BESIDE_BYTES` long, the sealed head that goes
        before the body and then the tag that goes after it. The body itself is only read."""
        self._seal_head(head, body, out)
        out[SEALED_HEAD_BYTES:BESIDE_BYTES] = self._cipher.encrypt(self._take_nonce(), b"", body)
        self._record_done(head)

    def _seal_head(self, head: Head, body: memoryview | bytes, out: memoryview) -> memoryview:
        assert not self.has_ended and len(body) == head.body_bytes <= SEALED_CHUNK_BYTES_MAX
        plain = _HEAD.pack(head.type, b"", head.pull, head.chunk, head.body_bytes, b"")
        sealed_head = out[:SEALED_HEAD_BYTES]
        self._cipher.encrypt_into(self._take_nonce(), plain, None, sealed_head)
        return sealed_head


class RecordOpener(_Keyed):
    """One direction's incoming records: `open_head`, then, if the head speaks of a body, `open_body_into` for an
    encrypted one, `check_body` for an authenticated one."""

    def __init__(self, key: bytes, rekey_bytes: int) -> None:
        super().__init__(key, rekey_bytes)
        self._plain = bytearray(HEAD_BYTES)
        self._pending: Head | None = None
        self._tag = b""

    def open_head(self, sealed: memoryview | bytes) -> Head:
        """The head of the next record from its 48 sealed bytes. Raises `PeerFault`; the stream is then over."""
        assert self._pending is None and len(sealed) == SEALED_HEAD_BYTES
        if self.has_ended:
            raise PeerFault("cargo stream: a record follows the end record")
        self._decrypt_into(sealed, None, memoryview(self._plain))
        head = _parse_head(self._plain)
        if head.body_bytes:
            self._pending, self._tag = head, bytes(sealed[HEAD_BYTES:])
        else:
            self._record_done(head)
        return head

    def open_body_into(self, sealed: memoryview | bytes, out: memoryview) -> None:
        """Writes the body to `out`, `body_bytes` long, from its `body_bytes + 16` sealed bytes. Raises `PeerFault`, and
        leaves zeros in `out`, when the tag does not fit; the stream is then over."""
        head = self._pending
        assert head is not None and len(out) == head.body_bytes == len(sealed) - TAG_BYTES
        self._decrypt_into(sealed, self._tag, out)
        self._pending = None
        self._record_done(head)

    def check_body(self, body: memoryview, tag: memoryview | bytes) -> None:
        """Makes sure that `body` and the tag after it are the pending head's. Raises `PeerFault`, and leaves zeros in
        `body`, when the tag does not fit; the stream is then over."""
        head = self._pending
        assert head is not None and len(body) == head.body_bytes and len(tag) == TAG_BYTES
        try:
            self._cipher.decrypt(self._take_nonce(), tag, body)
        except InvalidTag:
            _refuse(body)
        self._pending = None
        self._record_done(head)

    def _decrypt_into(self, sealed: memoryview | bytes, associated: bytes | None, out: memoryview) -> None:
        try:
            self._cipher.decrypt_into(self._take_nonce(), sealed, associated, out)
        except InvalidTag:
            _refuse(out)  # the library leaves what it deciphered


def _refuse(out: memoryview) -> NoReturn:
    out[:] = bytes(len(out))
    raise PeerFault("cargo stream: a record's tag does not fit: changed, replayed or out of order on the way") from None


def _parse_head(plain: bytes | bytearray) -> Head:
    number, zeros, pull, chunk, body_bytes, more_zeros = _HEAD.unpack(plain)
    if any(zeros) or any(more_zeros) or number not in RecordType.__members__.values():
        raise PeerFault(f"cargo stream: expected a record head, got {bytes(plain).hex()}")
    head = Head(RecordType(number), pull, chunk, body_bytes)
    is_chunk = head.type is RecordType.CHUNK
    if body_bytes > SEALED_CHUNK_BYTES_MAX or is_chunk != bool(body_bytes) or (not is_chunk and (pull or chunk)):
        raise PeerFault(f"cargo stream: this record cannot be: {head}")
    return head


def preamble(stream: bytes) -> bytes:
    """The bytes in the clear that a cargo connection begins with."""
    return PREAMBLE_MAGIC + stream


def parse_preamble(data: bytes) -> bytes:
    """The stream id in a preamble of `PREAMBLE_BYTES`; raises `PeerFault`."""
    if data[: len(PREAMBLE_MAGIC)] != PREAMBLE_MAGIC:
        raise PeerFault(f"expected a cargo connection ({PREAMBLE_MAGIC.decode()}), got {data[:16]!r}")
    return data[len(PREAMBLE_MAGIC) :]
