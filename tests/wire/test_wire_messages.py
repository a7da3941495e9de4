"""Control messages: what goes in comes out, however it is cut, and nothing else does."""

import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylog.errors import PeerFault
from raylog.spec import CargoRecords, QosClass
from raylog.wire import messages
from raylog.wire.messages import MESSAGE_BYTES_MAX, MessageBuffer, encode

ID, DIGEST, STREAM, NONCE = "0123456789abcdef" * 2, bytes(range(32)), bytes(range(16)), bytes(range(32))
EVERY_MESSAGE: list[messages.Message] = [
    messages.Hello(versions=[1], cluster_id=ID, node_id=ID, software="0.1.0", secret=NONCE),
    messages.Open(pull=0, shard_id=ID, frame_digest=DIGEST, qos=QosClass.REPAIR),
    messages.Frame(pull=1, offset=0, total=3, data=b"abc"),
    messages.Open(pull=7, shard_id=ID, frame_digest=DIGEST, qos=QosClass.SHIP, patience_s=60),
    messages.Have(pull=1, ranges=[(0, 1), (7, 2**32 - 1)]),
    messages.Stream(stream=STREAM, nonce=NONCE),
    messages.Stream(stream=STREAM, nonce=NONCE, records=CargoRecords.AUTHENTICATED),
    messages.StreamReady(stream=STREAM, nonce=NONCE, port=7000),
    messages.Advise(streams=8),
    messages.Want(pull=1, stream=STREAM, first=0, count=5),
    messages.Credit(pull=1, total_bytes=1 << 40),
    messages.Done(pull=1),
    messages.Refused(pull=1, reason=messages.RefusalReason.DAMAGED, message="chunk 7", chunk=7),
    messages.Ping(stamp=12),
    messages.Pong(stamp=12),
    messages.Bye(reason=messages.ByeReason.DONE, message="done"),
]


def drain(buffer: MessageBuffer) -> list[messages.Message]:
    found = []
    while (message := buffer.next_message()) is not None:
        found.append(message)
    return found


def framed(fields: dict[str, object]) -> bytes:
    body = msgspec.msgpack.encode(fields)
    return struct.pack("<I", len(body)) + body


def test_every_message_byte_by_byte() -> None:
    buffer, found = MessageBuffer(), []
    for byte in b"".join(encode(message) for message in EVERY_MESSAGE):
        buffer.feed(bytes([byte]))
        found += drain(buffer)
    assert found == EVERY_MESSAGE


@given(st.lists(st.sampled_from(EVERY_MESSAGE), max_size=8), st.data())
def test_any_messages_cut_anyhow(sent: list[messages.Message], data: st.DataObject) -> None:
    raw = b"".join(encode(message) for message in sent)
    buffer, found = MessageBuffer(), []
    while raw:
        size = data.draw(st.integers(1, len(raw)))
        buffer.feed(raw[:size])
        raw = raw[size:]
        found += drain(buffer)
    assert found == sent


@given(st.binary(min_size=4, max_size=200))
def test_garbage_is_a_peer_fault_or_not_yet_a_message(garbage: bytes) -> None:
    buffer = MessageBuffer()
    buffer.feed(garbage)
    try:
        drain(buffer)
    except PeerFault as fault:
        assert "expected a control message" in str(fault)


@pytest.mark.parametrize("length", [0, MESSAGE_BYTES_MAX + 1, 2**32 - 1])
def test_an_impossible_length_is_refused_before_its_body_comes(length: int) -> None:
    buffer = MessageBuffer()
    buffer.feed(struct.pack("<I", length))
    with pytest.raises(PeerFault, match=f"got a length of {length}"):
        buffer.next_message()


BAD_FIELDS: dict[str, dict[str, object]] = {
    "an unknown type": {"type": "Delete", "pull": 1},
    "no type": {"pull": 1},
    "an unknown field": {"type": "Done", "pull": 1, "why": "so"},
    "a field missing": {"type": "Want", "pull": 1},
    "a pull of 2^32": {"type": "Done", "pull": 2**32},
    "a negative pull": {"type": "Done", "pull": -1},
    "an id that is a path": {"type": "Open", "pull": 1, "shard_id": "../" * 10 + "aa", "frame_digest": DIGEST,
                             "qos": "ship"},
    "an id with a newline": {"type": "Open", "pull": 1, "shard_id": ID[:-1] + "\n", "frame_digest": DIGEST,
                             "qos": "ship"},
    "an unknown class": {"type": "Open", "pull": 1, "shard_id": ID, "frame_digest": DIGEST, "qos": "urgent"},
    "a short digest": {"type": "Open", "pull": 1, "shard_id": ID, "frame_digest": DIGEST[:-1], "qos": "ship"},
    "a piece too long": {"type": "Frame", "pull": 1, "offset": 0, "total": 2**19, "data": bytes(2**18 + 1)},
    "an empty piece": {"type": "Frame", "pull": 1, "offset": 0, "total": 1, "data": b""},
    "a range of nothing": {"type": "Want", "pull": 1, "stream": STREAM, "first": 0, "count": 0},
    "an offer of nothing": {"type": "Have", "pull": 1, "ranges": []},
    "an offered range of nothing": {"type": "Have", "pull": 1, "ranges": [(3, 0)]},
    "too many offered ranges": {"type": "Have", "pull": 1, "ranges": [(n, 1) for n in range(4097)]},
    "too patient": {"type": "Open", "pull": 1, "shard_id": ID, "frame_digest": DIGEST, "qos": "ship",
                    "patience_s": 61},
    "port 0": {"type": "StreamReady", "stream": STREAM, "nonce": NONCE, "port": 0},
    "a long text": {"type": "Bye", "reason": "done", "message": "x" * 1025},
    "a short secret": {"type": "Hello", "versions": [1], "cluster_id": ID, "node_id": ID, "software": "",
                       "secret": b"x"},
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FIELDS)
def test_fields_that_do_not_fit_are_refused(name: str) -> None:
    buffer = MessageBuffer()
    buffer.feed(framed(BAD_FIELDS[name]))
    with pytest.raises(PeerFault, match="expected a control message of protocol 1"):
        buffer.next_message()


def test_deep_nesting_is_refused_and_does_not_exhaust_the_stack() -> None:
    buffer = MessageBuffer()
    buffer.feed(struct.pack("<I", 500_001) + b"\x91" * 500_000 + b"\x01")
    with pytest.raises(PeerFault):
        buffer.next_message()


def test_a_later_hello_is_understood_as_far_as_its_versions() -> None:
    hello = {"type": "Hello", "versions": [2, 3], "cluster_id": ID, "node_id": ID, "software": "9", "secret": NONCE}
    buffer = MessageBuffer()
    buffer.feed(framed({**hello, "shapes": ["round"]}))
    message = buffer.next_message()
    assert isinstance(message, messages.Hello) and message.versions == [2, 3]


def test_a_hello_does_not_show_its_secret() -> None:
    assert "secret" not in repr(EVERY_MESSAGE[0]) and repr(NONCE) not in repr(EVERY_MESSAGE[0])
