"""The control messages of PROTOCOL.md and their framing: `u32 length ‖ msgpack map`, 1 byte to 1 MiB. Pure.

Every field has a bound here, so whoever gets a message needs to check only what depends on the session's state.
"""

import enum
import struct
from typing import Annotated

import msgspec

from raylog.errors import PeerFault
from raylog.spec import CargoRecords, QosClass
from raylog.units import KIB, MIB

PROTOCOL_VERSIONS = (1,)
MESSAGE_BYTES_MAX = MIB
FRAME_PIECE_BYTES_MAX = 256 * KIB
SECRET_BYTES = 32
NONCE_BYTES = 32
STREAM_ID_BYTES = 16
TEXT_CHARACTERS_MAX = 1024
HAVE_RANGES_MAX = 4096
PATIENCE_S_MAX = 60

_LENGTH = struct.Struct("<I")

U32 = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
U64 = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Id = Annotated[str, msgspec.Meta(min_length=32, max_length=32, pattern="^[0-9a-f]{32}$")]
Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
StreamId = Annotated[bytes, msgspec.Meta(min_length=STREAM_ID_BYTES, max_length=STREAM_ID_BYTES)]
Nonce = Annotated[bytes, msgspec.Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
Piece = Annotated[bytes, msgspec.Meta(min_length=1, max_length=FRAME_PIECE_BYTES_MAX)]
Range = tuple[U32, Annotated[int, msgspec.Meta(ge=1, le=2**32 - 1)]]
Text = Annotated[str, msgspec.Meta(max_length=TEXT_CHARACTERS_MAX)]


class RefusalReason(enum.StrEnum):
    """Why a source ends one pull."""

    NOT_FOUND = "not-found"
    DAMAGED = "damaged"
    BUSY = "busy"
    NO_SPACE = "no-space"
    NOT_PERMITTED = "not-permitted"


class ByeReason(enum.StrEnum):
    """Why an end leaves the session."""

    DONE = "done"
    PROTOCOL = "protocol"
    VERSION = "version"
    IDENTITY = "identity"
    RECORDS = "records"
    EXPIRED = "expired"
    SHUTDOWN = "shutdown"


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", forbid_unknown_fields=True):
    pass


class Hello(_Message, frozen=True, tag=True, forbid_unknown_fields=False):
    """Fields that this version does not know are passed over, so that a later one is refused by its number.
    `probe_port`: where a source takes probes (UDP); 0: nowhere."""

    versions: Annotated[list[U32], msgspec.Meta(min_length=1, max_length=64)]
    cluster_id: Id
    node_id: Id
    software: Text
    secret: Annotated[bytes, msgspec.Meta(min_length=SECRET_BYTES, max_length=SECRET_BYTES)]
    probe_port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0

    def __repr__(self) -> str:
        return f"Hello(versions={self.versions}, node_id={self.node_id!r})"  # never the secret


class Open(_Message, frozen=True, tag=True):
    """`patience_s`: how long the source may wait for a shard that is still to come to it."""

    pull: U32
    shard_id: Id
    frame_digest: Digest
    qos: QosClass
    patience_s: Annotated[int, msgspec.Meta(ge=0, le=PATIENCE_S_MAX)] = 0


class Frame(_Message, frozen=True, tag=True):
    pull: U32
    offset: U32
    total: U32
    data: Piece


class Have(_Message, frozen=True, tag=True):
    """Ranges (first chunk, count) that the source has."""

    pull: U32
    ranges: Annotated[list[Range], msgspec.Meta(min_length=1, max_length=HAVE_RANGES_MAX)]


class Stream(_Message, frozen=True, tag=True):
    """`records`: the kind that the puller wants on it."""

    stream: StreamId
    nonce: Nonce
    records: CargoRecords = CargoRecords.ENCRYPTED


class StreamReady(_Message, frozen=True, tag=True):
    stream: StreamId
    nonce: Nonce
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]


class Advise(_Message, frozen=True, tag=True):
    """The source sees losses: with so many streams the puller would get more."""

    streams: Annotated[int, msgspec.Meta(ge=1, le=1024)]


class Want(_Message, frozen=True, tag=True):
    pull: U32
    stream: StreamId
    first: U32
    count: Annotated[int, msgspec.Meta(ge=1, le=2**32 - 1)]


class Credit(_Message, frozen=True, tag=True):
    pull: U32
    total_bytes: U64


class Done(_Message, frozen=True, tag=True):
    pull: U32


class Refused(_Message, frozen=True, tag=True):
    pull: U32
    reason: RefusalReason
    message: Text
    chunk: U32 | None = None


class Ping(_Message, frozen=True, tag=True):
    stamp: U64


class Pong(_Message, frozen=True, tag=True):
    stamp: U64


class Bye(_Message, frozen=True, tag=True):
    reason: ByeReason
    message: Text


Message = (
    Hello | Open | Frame | Have | Stream | StreamReady | Advise | Want | Credit | Done | Refused | Ping | Pong | Bye
)

_decode = msgspec.msgpack.Decoder(Message).decode


def encode(message: Message) -> bytes:
    """The message as it goes over the connection."""
    body = msgspec.msgpack.encode(message)
    assert len(body) <= MESSAGE_BYTES_MAX
    return _LENGTH.pack(len(body)) + body


def shorten(text: str) -> str:
    """`text` as far as a message's field takes it."""
    return text if len(text) <= TEXT_CHARACTERS_MAX else text[: TEXT_CHARACTERS_MAX - 1] + "…"


class MessageBuffer:
    """Bytes in, messages out, however the bytes are cut. Holds at most one message and one `feed` more."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> None:
        self._bytes += data

    def next_message(self) -> Message | None:
        """The next whole message; None: feed more. Raises `PeerFault` for anything that cannot be one, and as soon as
        that is clear: nothing after it can be understood."""
        if len(self._bytes) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._bytes)
        if not 1 <= length <= MESSAGE_BYTES_MAX:
            raise PeerFault(f"expected a control message of 1 to {MESSAGE_BYTES_MAX} bytes, got a length of {length}")
        end = _LENGTH.size + length
        if len(self._bytes) < end:
            return None
        body = bytes(memoryview(self._bytes)[_LENGTH.size : end])
        del self._bytes[:end]
        try:
            message: Message = _decode(body)
        except (msgspec.DecodeError, RecursionError) as error:
            raise PeerFault(f"expected a control message of protocol 1, got something else: {error}") from None
        return message
