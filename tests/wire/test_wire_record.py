"""Cargo records: round trips, and every way in which a stream of them can be wrong."""

from dataclasses import dataclass

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from raylog.errors import PeerFault
from raylog.spec import CargoRecords
from raylog.wire.record import (
    BESIDE_BYTES,
    HEAD_BYTES,
    PREAMBLE_BYTES,
    RECORD_BYTES_MAX,
    SEALED_HEAD_BYTES,
    TAG_BYTES,
    Head,
    RecordOpener,
    RecordSealer,
    RecordType,
    StreamContext,
    derive_keys,
    parse_preamble,
    preamble,
)

KEY, FAR = bytes(range(32)), 1 << 40
END = Head(RecordType.END)
CONTEXT = StreamContext(bytes(32), b"s" * 32, "a" * 32, "b" * 32, "c" * 32, bytes(16), b"n" * 32, b"m" * 32)


def seal(sealer: RecordSealer, body: bytes, pull: int = 1, chunk: int = 2) -> bytes:
    out = memoryview(bytearray(SEALED_HEAD_BYTES + len(body) + TAG_BYTES))
    return bytes(out[: sealer.seal_into(Head(RecordType.CHUNK, pull, chunk, len(body)), body, out)])


def seal_beside(sealer: RecordSealer, body: bytes, pull: int = 1, chunk: int = 2) -> bytes:
    """An authenticated record, as it goes over the wire."""
    beside = memoryview(bytearray(BESIDE_BYTES))
    sealer.seal_beside(Head(RecordType.CHUNK, pull, chunk, len(body)), body, beside)
    return bytes(beside[:SEALED_HEAD_BYTES]) + body + bytes(beside[SEALED_HEAD_BYTES:])


def seal_end(sealer: RecordSealer) -> bytes:
    out = memoryview(bytearray(SEALED_HEAD_BYTES))
    return bytes(out[: sealer.seal_into(END, b"", out)])


@dataclass
class Opened:
    head: Head
    body: bytes


def open_record(opener: RecordOpener, raw: bytes) -> Opened:
    head = opener.open_head(raw[:SEALED_HEAD_BYTES])
    out = bytearray(head.body_bytes)
    if head.body_bytes:
        opener.open_body_into(raw[SEALED_HEAD_BYTES:], memoryview(out))
    return Opened(head, bytes(out))


def check_record(opener: RecordOpener, raw: bytes) -> Opened:
    """Opens an authenticated record."""
    head, body = opener.open_head(raw[:SEALED_HEAD_BYTES]), bytearray(raw[SEALED_HEAD_BYTES:-TAG_BYTES])
    opener.check_body(memoryview(body), raw[-TAG_BYTES:])
    return Opened(head, bytes(body))


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=12), st.sampled_from([1, 40, 100, 1000, FAR]))
def test_round_trip_with_any_rekeying(bodies: list[bytes], rekey_bytes: int) -> None:
    sealer, opener = RecordSealer(KEY, rekey_bytes), RecordOpener(KEY, rekey_bytes)
    for number, body in enumerate(bodies):
        record = seal(sealer, body, 7, number)
        assert open_record(opener, record) == Opened(Head(RecordType.CHUNK, 7, number, len(body)), body)
        assert body not in record or len(body) < 4
    assert open_record(opener, seal_end(sealer)).head == END
    assert opener.has_ended and sealer.has_ended


@settings(max_examples=200)
@given(st.data())
def test_any_flipped_bit_is_refused_and_nothing_unverified_is_left(data: st.DataObject) -> None:
    record = bytearray(seal(RecordSealer(KEY, FAR), b"sealed chunk"))
    bit = data.draw(st.integers(0, len(record) * 8 - 1))
    record[bit // 8] ^= 1 << bit % 8
    opener, out = RecordOpener(KEY, FAR), bytearray(b"x" * 12)
    with pytest.raises(PeerFault, match="tag does not fit"):
        opener.open_head(bytes(record[:SEALED_HEAD_BYTES]))
        try:
            opener.open_body_into(bytes(record[SEALED_HEAD_BYTES:]), memoryview(out))
        finally:
            assert out == bytes(12)


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=12), st.sampled_from([1, 40, 100, 1000, FAR]))
def test_authenticated_records_carry_the_body_as_it_is(bodies: list[bytes], rekey_bytes: int) -> None:
    sealer, opener = RecordSealer(KEY, rekey_bytes), RecordOpener(KEY, rekey_bytes)
    for number, body in enumerate(bodies):
        record = seal_beside(sealer, body, 7, number)
        assert record[SEALED_HEAD_BYTES:-TAG_BYTES] == body and len(record) == len(body) + BESIDE_BYTES
        assert check_record(opener, record) == Opened(Head(RecordType.CHUNK, 7, number, len(body)), body)
    assert open_record(opener, seal_end(sealer)).head == END
    assert opener.has_ended and sealer.has_ended


def test_the_tag_of_an_authenticated_record_is_gmac_of_the_body() -> None:
    """As PROTOCOL.md says, by another road: GCM of nothing, the body fed as associated data in two parts."""
    sealer, cipher = RecordSealer(KEY, FAR), AESGCM(KEY)
    for k, body in enumerate((b"one", b"two" * 1000)):
        record = seal_beside(sealer, body)
        head, tag = record[:SEALED_HEAD_BYTES], record[-TAG_BYTES:]
        gmac = Cipher(algorithms.AES(KEY), modes.GCM((2 * k + 1).to_bytes(12, "big"))).encryptor()
        for part in (body[:2], body[2:]):
            gmac.authenticate_additional_data(part)
        gmac.finalize()
        assert tag == gmac.tag
        assert len(cipher.decrypt((2 * k).to_bytes(12, "big"), head, None)) == HEAD_BYTES


@settings(max_examples=200)
@given(st.data())
def test_any_flipped_bit_of_an_authenticated_record_is_refused(data: st.DataObject) -> None:
    record = bytearray(seal_beside(RecordSealer(KEY, FAR), b"sealed chunk"))
    bit = data.draw(st.integers(0, len(record) * 8 - 1))
    record[bit // 8] ^= 1 << bit % 8
    opener, body = RecordOpener(KEY, FAR), bytearray(record[SEALED_HEAD_BYTES:-TAG_BYTES])
    with pytest.raises(PeerFault, match="tag does not fit"):
        opener.open_head(bytes(record[:SEALED_HEAD_BYTES]))
        try:
            opener.check_body(memoryview(body), bytes(record[-TAG_BYTES:]))
        finally:
            assert body == bytes(12)


def test_authenticated_records_out_of_place_are_refused() -> None:
    sealer = RecordSealer(KEY, FAR)
    first, second, third = (seal_beside(sealer, body) for body in (b"one", b"two", b"three"))
    mixed = second[:SEALED_HEAD_BYTES] + first[SEALED_HEAD_BYTES:]  # an authentic body under the next head
    for wrong in ([first, first], [second], [first, third], [first, mixed], [seal(RecordSealer(KEY, FAR), b"one")]):
        opener = RecordOpener(KEY, FAR)
        for record in wrong[:-1]:
            check_record(opener, record)
        with pytest.raises(PeerFault, match="tag does not fit"):
            check_record(opener, wrong[-1])


def test_no_key_and_nonce_are_used_twice_for_authenticated_records(monkeypatch: pytest.MonkeyPatch) -> None:
    sealer = RecordSealer(KEY, 3 * HEAD_BYTES)
    used = watch_nonces(sealer, monkeypatch)
    for body in (b"a", b"bb", b"c" * 100, b"d") * 20:
        seal_beside(sealer, body)
    assert len(used) == len(set(used)) == 160 and len({key for key, _ in used}) > 20


def test_replayed_reordered_dropped_and_foreign_records_are_refused() -> None:
    sealer = RecordSealer(KEY, FAR)
    first, second, third = (seal(sealer, body) for body in (b"one", b"two", b"three"))
    for wrong in ([first, first], [second], [first, third], [seal(RecordSealer(bytes(32), FAR), b"one")]):
        opener = RecordOpener(KEY, FAR)
        for record in wrong[:-1]:
            open_record(opener, record)
        with pytest.raises(PeerFault, match="tag does not fit"):
            open_record(opener, wrong[-1])


def test_a_body_under_another_records_head_is_refused() -> None:
    one = seal(RecordSealer(KEY, FAR), b"one", chunk=1)
    two = seal(RecordSealer(KEY, FAR), b"two", chunk=2)  # another sealer of one key: what must never be
    with pytest.raises(PeerFault, match="tag does not fit"):
        open_record(RecordOpener(KEY, FAR), one[:SEALED_HEAD_BYTES] + two[SEALED_HEAD_BYTES:])


def test_records_from_before_a_rekey_do_not_open_after_it() -> None:
    limit = HEAD_BYTES + 3
    sealer, opener = RecordSealer(KEY, limit), RecordOpener(KEY, limit)
    first = seal(sealer, b"one")
    open_record(opener, first)
    with pytest.raises(PeerFault):
        open_record(opener, first)  # its nonce is 0, as is the next record's, under another key


def test_no_key_and_nonce_are_used_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    sealer = RecordSealer(KEY, 3 * HEAD_BYTES)
    used = watch_nonces(sealer, monkeypatch)
    for body in (b"a", b"bb", b"c" * 100, b"d") * 20:
        seal(sealer, body)
    assert len(used) == len(set(used)) == 160 and len({key for key, _ in used}) > 20


def watch_nonces(sealer: RecordSealer, monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes, bytes]]:
    """Every key and nonce that the sealer uses from now on."""
    used: list[tuple[bytes, bytes]] = []
    take = sealer._take_nonce

    def watched() -> bytes:
        used.append((sealer._key, take()))
        return used[-1][1]

    monkeypatch.setattr(sealer, "_take_nonce", watched)
    return used


def test_after_the_end_record_nothing_follows() -> None:
    sealer, opener = RecordSealer(KEY, FAR), RecordOpener(KEY, FAR)
    open_record(opener, seal_end(sealer))
    with pytest.raises(PeerFault, match="follows the end record"):
        opener.open_head(bytes(SEALED_HEAD_BYTES))
    with pytest.raises(AssertionError):
        seal(sealer, b"more")


@pytest.mark.parametrize(
    "plain",
    [
        Head(RecordType.OPEN, 1),
        Head(RecordType.END, 0, 1),
        Head(RecordType.CHUNK, 1, 1, 0),
        Head(RecordType.CHUNK, 1, 1, RECORD_BYTES_MAX),
        (9, 0, 0, 0),
    ],
)
def test_authentic_heads_that_cannot_be_are_refused(plain: tuple[int, int, int, int]) -> None:
    from raylog.wire import record

    sealer, out = RecordSealer(KEY, FAR), bytearray(SEALED_HEAD_BYTES)
    raw = record._HEAD.pack(plain[0], b"", plain[1], plain[2], plain[3], b"")
    sealer._cipher.encrypt_into(sealer._take_nonce(), raw, None, memoryview(out))
    with pytest.raises(PeerFault, match="record"):
        RecordOpener(KEY, FAR).open_head(bytes(out))


def test_keys_depend_on_everything_they_are_bound_to() -> None:
    keys = {derive_keys(CONTEXT)}
    for name, value in CONTEXT._asdict().items():
        other = "d" * 32 if isinstance(value, str) else b"z" * len(value)
        other = CargoRecords.AUTHENTICATED if name == "records" else other
        keys.add(derive_keys(CONTEXT._replace(**{name: other})))
    assert len(keys) == 1 + len(CONTEXT)
    assert all(pair.from_puller != pair.from_source for pair in keys)
    assert repr(next(iter(keys))) == "<StreamKeys>"


def test_preamble() -> None:
    stream = bytes(range(16))
    assert parse_preamble(preamble(stream)) == stream and len(preamble(stream)) == PREAMBLE_BYTES
    with pytest.raises(PeerFault, match="expected a cargo connection"):
        parse_preamble(b"GET / HTTP/1.1\r\nHost: x")
