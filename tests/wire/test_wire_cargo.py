"""Cargo over real sockets: whole, cut, stopped, trickling, unread."""

import socket
import threading
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest

from raylog.errors import PeerFault, Unavailable
from raylog.spec import CargoRecords
from raylog.wire.cargo import (
    END_RECORD,
    PROOF_BYTES,
    CargoReceiver,
    CargoSender,
    has_come,
    receive_end,
    receive_exactly,
    receive_proof,
    send_all,
    tune,
)
from raylog.wire.record import SEALED_HEAD_BYTES, TAG_BYTES, Head, RecordOpener, RecordSealer, RecordType

KEY, FAR, TIMEOUT_S = bytes(32), 1 << 40, 0.2
ENCRYPTED, AUTHENTICATED = CargoRecords
both_kinds = pytest.mark.parametrize("records", CargoRecords)
BODY = bytes(range(256)) * 2000


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    for connection in (one, other):
        tune(connection, TIMEOUT_S)
    with one, other:
        yield one, other


def ends(
    pair: tuple[socket.socket, socket.socket], records: CargoRecords = ENCRYPTED
) -> tuple[CargoSender, CargoReceiver]:
    return CargoSender(pair[0], KEY, FAR, TIMEOUT_S, records), CargoReceiver(pair[1], KEY, FAR, TIMEOUT_S, records)


def chunk(number: int) -> Head:
    return Head(RecordType.CHUNK, 1, number, len(BODY))


def receive_body(receiver: CargoReceiver, head: Head) -> bytes:
    if not receiver.is_direct:
        receiver.receive_body(head)
    return bytes(receiver.open_body(head))


@both_kinds
def test_records_then_an_end(pair: tuple[socket.socket, socket.socket], records: CargoRecords) -> None:
    sender, receiver = ends(pair, records)

    def send() -> None:
        for number in range(20):
            sender.send(chunk(number), BODY)
        sender.send(END_RECORD)

    thread = threading.Thread(target=send)
    thread.start()
    for number in range(20):
        head = receiver.next_head()
        assert head == chunk(number)
        assert receive_body(receiver, head) == BODY
    assert receiver.next_head() == END_RECORD
    thread.join()


def test_a_stream_that_ends_without_an_end_record_was_cut(pair: tuple[socket.socket, socket.socket]) -> None:
    _, receiver = ends(pair)
    pair[0].close()
    with pytest.raises(Unavailable, match="was cut"):
        receiver.next_head()


@both_kinds
@pytest.mark.parametrize("length", [1, 47, 48, 49, 1000])
def test_a_record_cut_anywhere(pair: tuple[socket.socket, socket.socket], length: int, records: CargoRecords) -> None:
    receiver = CargoReceiver(pair[1], KEY, FAR, TIMEOUT_S, records)
    pair[0].sendall(whole_record()[:length])
    pair[0].close()
    with pytest.raises(Unavailable, match="was cut"):
        receive_body(receiver, receiver.next_head())


@both_kinds
@pytest.mark.parametrize("length", [20, 48, 1000])
def test_a_record_that_stops_half_way(
    pair: tuple[socket.socket, socket.socket], length: int, records: CargoRecords
) -> None:
    receiver = CargoReceiver(pair[1], KEY, FAR, TIMEOUT_S, records)
    pair[0].sendall(whole_record()[:length])
    with pytest.raises(PeerFault, match=r"stopped|did not come"):
        receive_body(receiver, receiver.next_head())


def test_a_record_that_trickles(pair: tuple[socket.socket, socket.socket]) -> None:
    receiver, stop, began = CargoReceiver(pair[1], KEY, FAR, TIMEOUT_S, ENCRYPTED), threading.Event(), time.monotonic()

    def trickle() -> None:
        for byte in whole_record():
            if stop.wait(TIMEOUT_S / 5):
                return
            pair[0].sendall(bytes([byte]))

    thread = threading.Thread(target=trickle)
    thread.start()
    with pytest.raises(PeerFault, match=r"stopped|did not come whole"):
        receiver.next_head()
    stop.set()
    thread.join()
    assert time.monotonic() - began < 5 * TIMEOUT_S


def test_parts_go_out_and_come_in_whatever_their_sizes(pair: tuple[socket.socket, socket.socket]) -> None:
    """More than the sockets hold, into parts other than it was sent in."""
    data = bytes(range(251)) * 60_000
    out = memoryview(bytearray(len(data)))
    parts = [memoryview(data)[start:end] for start, end in pairwise((0, 1, 1, 5_000_000, 5_000_003, len(data)))]
    thread = threading.Thread(target=send_all, args=(pair[0], parts, 10.0))
    thread.start()
    assert receive_exactly(pair[1], [out[:7], out[7:7_000_000], out[7:7], out[7_000_000:]], 10.0)
    thread.join()
    assert out == data


@both_kinds
def test_a_peer_that_does_not_read(pair: tuple[socket.socket, socket.socket], records: CargoRecords) -> None:
    sender, began = CargoSender(pair[0], KEY, FAR, TIMEOUT_S, records), time.monotonic()
    with pytest.raises(Unavailable, match="did not take a record"):
        for number in range(100):
            sender.send(chunk(number), BODY)
    assert time.monotonic() - began < 10


def test_a_peer_that_is_gone(pair: tuple[socket.socket, socket.socket]) -> None:
    sender, _ = ends(pair)
    pair[1].close()
    with pytest.raises(Unavailable, match="was cut"):
        for number in range(100):
            sender.send(chunk(number), BODY)


def test_a_farewell_is_seen_and_anything_else_refused(pair: tuple[socket.socket, socket.socket]) -> None:
    assert not has_come(pair[1])
    CargoSender(pair[0], KEY, FAR, TIMEOUT_S, ENCRYPTED).send(END_RECORD)
    while not has_come(pair[1]):
        time.sleep(0.001)
    receive_end(pair[1], RecordOpener(KEY, FAR), TIMEOUT_S)
    pair[0].sendall(whole_record())
    with pytest.raises(PeerFault, match="no end record"):
        receive_end(pair[1], RecordOpener(KEY, FAR), TIMEOUT_S)
    pair[0].close()
    assert has_come(pair[1])


def test_a_proof_has_one_deadline_however_it_comes(pair: tuple[socket.socket, socket.socket]) -> None:
    proof = bytes(range(PROOF_BYTES))
    pair[0].sendall(proof[:10])
    threading.Timer(0.05, lambda: pair[0].sendall(proof[10:])).start()
    assert receive_proof(pair[1], 5.0) == proof
    began = time.monotonic()
    pair[0].sendall(proof[:-1])
    with pytest.raises(PeerFault, match="did not prove itself"):
        receive_proof(pair[1], TIMEOUT_S)
    assert TIMEOUT_S / 2 < time.monotonic() - began < 5
    pair[0].close()
    with pytest.raises(Unavailable, match="before it proved itself"):
        receive_proof(pair[1], 5.0)


def whole_record() -> bytes:
    """The first record of `KEY`, as bytes."""
    body = BODY[:2000]
    out = memoryview(bytearray(SEALED_HEAD_BYTES + len(body) + TAG_BYTES))
    RecordSealer(KEY, FAR).seal_into(Head(RecordType.CHUNK, 1, 0, len(body)), body, out)
    return bytes(out)
