"""Peers that are not what they should be, over real sockets: each is refused by name, counted, and leaves nothing."""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace

import pytest
from wire_parts import Cluster, MemorySink, MemorySource, leak_check, wait_until

from raylog.errors import NotPermitted, PeerFault, RaylogError, Unavailable
from raylog.security.credentials import Credentials
from raylog.security.identity import Certificate, Identity
from raylog.spec import QosClass, new_id
from raylog.testing.shards import sample_shard
from raylog.wire import messages
from raylog.wire.bounds import Bounds
from raylog.wire.client import pull
from raylog.wire.fetcher import Source
from raylog.wire.messages import ByeReason, MessageBuffer, encode
from raylog.wire.record import (
    RECORD_BYTES_MAX,
    Head,
    RecordSealer,
    RecordType,
    StreamContext,
    StreamKeys,
    derive_keys,
    preamble,
)
from raylog.wire.server import WireServer
from raylog.wire.sessions import PeerAddress

SHARD = sample_shard(5, (70_000, 16, 200_000, *[100_000] * 20))
QUICK = Bounds(
    greeting_timeout_s=0.5,
    stream_timeout_s=0.5,
    progress_timeout_s=0.5,
    ping_after_s=0.2,
    silence_timeout_s=0.8,
    handshakes_max=3,
    cargo_unproven_max=3,
    sessions_max=2,
)
CLUSTER = Cluster()
NODE, ME = CLUSTER.credentials(), CLUSTER.credentials()
NONCE = b"n" * 32

nothing_is_left = pytest.fixture(autouse=True)(leak_check)


@pytest.fixture
def server() -> Iterator[WireServer]:
    with WireServer(lambda: NODE, MemorySource(SHARD), bind_host="127.0.0.1", bounds=QUICK) as server:
        yield server
        # Whatever was tried, the next one is served.
        wait_until(lambda: server.counters().sessions_open == 0, "a session stays")
        assert fetch(server.control_port).is_committed


def fetch(port: int, credentials: Credentials = ME, node_id: str = NODE.identity.id) -> MemorySink:
    sink = MemorySink(SHARD)
    address = Source(peer=PeerAddress(node_id=node_id, host="127.0.0.1", control_port=port))
    pull(SHARD.frame.ref(), [address], sink, credentials, deadline_s=10, bounds=QUICK)
    return sink


def context(credentials: Credentials | None, *, server_side: bool = False) -> ssl.SSLContext:
    """A context that trusts anybody, so that it is the other end that has to refuse."""
    if credentials is not None:
        made = credentials.tls_context(server_side)
    else:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        made.set_alpn_protocols(["raylog/1"])
    made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    return made


def tls_1_2(made: ssl.SSLContext) -> ssl.SSLContext:
    made.minimum_version = made.maximum_version = ssl.TLSVersion.TLSv1_2
    return made


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=5)


class Peer:
    """The puller's end of a session, spoken by hand."""

    def __init__(self, server: WireServer, credentials: Credentials = ME) -> None:
        self.server, self.secret = server, b"p" * 32
        self.tls = context(credentials).wrap_socket(connect(server.control_port))
        self.buffer = MessageBuffer()
        me = credentials.identity
        self.say(messages.Hello(versions=[1], cluster_id=me.cluster_id, node_id=me.id, software="", secret=self.secret))

    def say(self, *told: messages.Message) -> None:
        self.tls.sendall(b"".join(encode(message) for message in told))

    def hear(self, kind: type[messages.Message]) -> messages.Message:
        """The next message of this kind; others are passed over."""
        while True:
            while (message := self.buffer.next_message()) is not None:
                if isinstance(message, kind):
                    return message
            data = self.tls.recv(65536)
            assert data, f"the session ended before {kind.__name__}"
            self.buffer.feed(data)

    def stream(self) -> tuple[bytes, StreamKeys, int]:
        """A stream that the source awaits."""
        hello = self.hear(messages.Hello)
        stream = new_id().encode()[:16]
        self.say(messages.Stream(stream=stream, nonce=NONCE))
        ready = self.hear(messages.StreamReady)
        assert isinstance(hello, messages.Hello) and isinstance(ready, messages.StreamReady)
        keys = StreamContext(
            self.secret, hello.secret, CLUSTER.id, ME.identity.id, NODE.identity.id, stream, NONCE, ready.nonce
        )
        return stream, derive_keys(keys), ready.port

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self.tls.close()


def opening(pull: int = 0) -> messages.Open:
    return messages.Open(pull=pull, shard_id=SHARD.shard_id, frame_digest=SHARD.frame.digest, qos=QosClass.SHIP)


def open_record(key: bytes) -> bytes:
    out = memoryview(bytearray(48))
    RecordSealer(key, QUICK.rekey_bytes).seal_into(Head(RecordType.OPEN), b"", out)
    return bytes(out)


def ends(connection: socket.socket) -> bool:
    """Whether the other end closes it, without having said anything readable but alerts."""
    with suppress(ConnectionResetError):
        while connection.recv(65536):
            pass
    return True


# Who connects to a server.


@pytest.mark.parametrize(
    ("said", "refusal"), [(b"\x00\x01" * 500, "garbage"), (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "http"), (b"", "cut")]
)
def test_garbage_and_http(server: WireServer, said: bytes, refusal: str) -> None:
    with connect(server.control_port) as connection:
        connection.sendall(said)
        connection.shutdown(socket.SHUT_WR)
        assert ends(connection)
    wait_until(lambda: server.counters().refused == {refusal: 1}, f"not counted: {server.counters()}")


@pytest.mark.parametrize(
    ("made", "refusal"),
    [
        (lambda: tls_1_2(context(ME)), "tls-version"),
        (lambda: context(None), "no-certificate"),
        (lambda: context(Cluster().credentials()), "authority"),
        (lambda: context(CLUSTER.credentials(lifetime_s=-60)), "expired"),
    ],
)
def test_tls_that_is_not_ours(server: WireServer, made: Callable[[], ssl.SSLContext], refusal: str) -> None:
    with connect(server.control_port) as connection, pytest.raises((ssl.SSLError, ConnectionResetError)):
        tls = made().wrap_socket(connection)
        with tls:
            tls.sendall(b"hello")
            while tls.recv(1000):
                pass
    wait_until(lambda: server.counters().refused == {refusal: 1}, f"not counted: {server.counters()}")
    assert server.counters().sessions_admitted == 0


def test_another_application_protocol(server: WireServer) -> None:
    made = context(ME)
    made.set_alpn_protocols(["h2"])
    with made.wrap_socket(connect(server.control_port)) as tls:
        assert ends(tls)
    wait_until(lambda: server.counters().refused == {"identity": 1}, f"not counted: {server.counters()}")


def test_connections_that_say_nothing_are_bounded_and_end(server: WireServer) -> None:
    silent = [connect(server.control_port) for _ in range(QUICK.handshakes_max)]
    time.sleep(0.1)
    with connect(server.control_port) as one_more:
        assert ends(one_more), "one more than the bound is closed at once"
    wait_until(lambda: server.counters().refused == {"busy": 1}, f"not counted: {server.counters()}")
    for connection in silent:
        assert ends(connection)
        connection.close()
    wait_until(lambda: server.counters().refused == {"busy": 1, "timeout": 3}, f"not counted: {server.counters()}")


def test_a_handshake_that_trickles_is_cut_at_its_deadline(server: WireServer) -> None:
    began = time.monotonic()
    with connect(server.control_port) as connection, pytest.raises(OSError):
        for byte in b"\x16\x03\x01\x02\x00" + bytes(500):
            connection.sendall(bytes([byte]))
            time.sleep(0.02)
    assert time.monotonic() - began < 3
    wait_until(lambda: server.counters().refused == {"timeout": 1}, f"not counted: {server.counters()}")


def test_a_session_that_trickles_or_is_silent_ends(server: WireServer) -> None:
    made = context(ME)
    with made.wrap_socket(connect(server.control_port)) as silent:
        assert ends(silent), "no hello"
    with Peer(server) as peer:
        with suppress(OSError):
            for byte in b"\x00\x01\x00\x00" + bytes(100):  # a message of 256 bytes that never comes whole
                peer.tls.sendall(bytes([byte]))
                time.sleep(0.02)
        bye = peer.hear(messages.Bye)
        assert isinstance(bye, messages.Bye) and "silent" in bye.message


def test_more_sessions_than_are_served(server: WireServer) -> None:
    peers = [Peer(server) for _ in range(QUICK.sessions_max)]
    for peer in peers:
        peer.hear(messages.Hello)
    peers.append(Peer(server))
    refused = peers[-1].hear(messages.Bye)
    assert isinstance(refused, messages.Bye) and "serves 2 sessions already" in refused.message
    wait_until(lambda: server.counters().refused == {"busy": 1}, f"not counted: {server.counters()}")
    for peer in peers:
        peer.tls.close()


def test_a_hello_of_another_node_than_the_certificate_says(server: WireServer) -> None:
    with context(ME).wrap_socket(connect(server.control_port)) as tls:
        lie = messages.Hello(versions=[1], cluster_id=CLUSTER.id, node_id=new_id(), software="", secret=NONCE)
        tls.sendall(encode(lie))
        heard = b"".join(iter(lambda: tls.recv(65536), b""))
    assert b"expected the hello of" in heard


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (messages.Credit(pull=0, total_bytes=2**41), "expected a credit"),
        (messages.Want(pull=0, stream=b"x" * 16, first=0, count=1), "not announced"),
        (messages.Want(pull=0, stream=b"x" * 16, first=20, count=2**31), "expected chunks of 0 to 22"),
        (messages.Want(pull=4, stream=b"x" * 16, first=0, count=1), "never opened"),
        (opening(), "expected pull numbers that ascend"),
    ],
)
def test_a_puller_that_breaks_the_protocol_is_told_and_left(
    server: WireServer, told: messages.Message, words: str
) -> None:
    with Peer(server) as peer:
        peer.say(opening())
        peer.hear(messages.Frame)
        peer.say(told)
        bye = peer.hear(messages.Bye)
        assert isinstance(bye, messages.Bye) and bye.reason is ByeReason.PROTOCOL and words in bye.message


def test_a_certificate_that_expires_during_a_session(server: WireServer) -> None:
    with Peer(server, CLUSTER.credentials(lifetime_s=1.3)) as peer:
        beat = threading.Event()

        def ping() -> None:
            with suppress(OSError):
                while not beat.wait(0.2):
                    peer.say(messages.Ping(stamp=1))

        pinging = threading.Thread(target=ping)
        pinging.start()
        bye = peer.hear(messages.Bye)
        beat.set()
        pinging.join()
    assert isinstance(bye, messages.Bye) and bye.reason is ByeReason.EXPIRED


# The cargo port.


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n" + b"x" * 80, bytes(72), preamble(b"z" * 16) + bytes(48), b"RL"])
def test_cargo_from_anybody(server: WireServer, said: bytes) -> None:
    with connect(server.cargo_port) as connection:
        connection.sendall(said)
        assert ends(connection)
    wait_until(lambda: server.counters().refused == {"cargo": 1}, f"not counted: {server.counters()}")


def test_a_cargo_connection_with_the_stream_but_without_the_key(server: WireServer) -> None:
    with Peer(server) as peer:
        stream, keys, port = peer.stream()
        with connect(port) as thief:
            thief.sendall(preamble(stream) + open_record(bytes(32)))
            assert ends(thief)
        with connect(port) as reflector:
            reflector.sendall(preamble(stream) + open_record(keys.from_source))
            assert ends(reflector)
        peer.say(messages.Ping(stamp=1))
        peer.hear(messages.Pong)
        with connect(port) as mine:  # the stream was not used up by those
            mine.sendall(preamble(stream) + open_record(keys.from_puller))
            peer.say(opening())
            peer.hear(messages.Frame)
            peer.say(messages.Credit(pull=0, total_bytes=10**6), messages.Want(pull=0, stream=stream, first=0, count=1))
            assert mine.recv(1)
            with connect(port) as again:
                again.sendall(preamble(stream) + open_record(keys.from_puller))
                assert ends(again), "a stream is connected once"
    wait_until(lambda: server.counters().refused == {"cargo": 3}, f"not counted: {server.counters()}")


def test_cargo_connections_that_trickle_are_bounded_and_end(server: WireServer) -> None:
    silent = [connect(server.cargo_port) for _ in range(QUICK.cargo_unproven_max)]
    silent[0].sendall(b"RLCARGO1")
    time.sleep(0.1)
    with connect(server.cargo_port) as one_more:
        assert ends(one_more)
    for connection in silent:
        assert ends(connection)
        connection.close()
    wait_until(lambda: server.counters().refused == {"busy": 1, "cargo": 3}, f"not counted: {server.counters()}")


def test_a_puller_that_asks_and_does_not_read(server: WireServer) -> None:
    """The sender gives up by its own bound; the session and the pin go with the puller."""
    with Peer(server) as peer:
        stream, keys, port = peer.stream()
        with connect(port) as mine:
            mine.sendall(preamble(stream) + open_record(keys.from_puller))
            peer.say(opening())
            peer.hear(messages.Frame)
            wants = [messages.Want(pull=0, stream=stream, first=0, count=23) for _ in range(400)]
            peer.say(messages.Credit(pull=0, total_bytes=2**40), *wants)
            wait_until(lambda: server.counters().sent_chunks > 0, "nothing is sent")

            def has_given_up() -> bool:
                peer.say(messages.Ping(stamp=1))
                return [thread.name for thread in threading.enumerate()].count("raylog-wire-serve") == 1

            wait_until(has_given_up, "the sender waits for ever")


# Whom a puller meets.


@contextmanager
def listening(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server of one connection at a time that does what `serve` does."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    connection.settimeout(5)
                    with closing(connection), suppress(OSError, AssertionError):
                        serve(connection)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def serving_tls(made: ssl.SSLContext) -> Callable[[socket.socket], None]:
    def serve(connection: socket.socket) -> None:
        with made.wrap_socket(connection, server_side=True) as tls:
            while tls.recv(1000):
                pass

    return serve


def http(connection: socket.socket) -> None:
    connection.recv(1000)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def silence(connection: socket.socket) -> None:
    while connection.recv(1000):
        pass


@pytest.mark.parametrize(
    ("serve", "kind", "words"),
    [
        (http, PeerFault, "expected TLS"),
        (silence, Unavailable, "TLS handshake: no answer in time"),
        (lambda connection: None, Unavailable, "cut during the handshake"),
        (serving_tls(tls_1_2(context(NODE, server_side=True))), PeerFault, "expected TLS 1.3"),
        (serving_tls(context(Cluster().credentials(), server_side=True)), PeerFault, "not of this cluster's authority"),
        (serving_tls(context(CLUSTER.credentials(), server_side=True)), PeerFault, "another process listens"),
        (serving_tls(context(CLUSTER.credentials("client", node_id=NODE.identity.id), server_side=True)), PeerFault,
         "got that of client"),
        (serving_tls(context(CLUSTER.credentials(node_id=NODE.identity.id, lifetime_s=-60), server_side=True)),
         PeerFault, "not valid now"),
        (serving_tls(context(NODE, server_side=True)), PeerFault, "no hello within 0.5 s"),
    ],
    ids=["http", "silence", "closes", "tls 1.2", "foreign", "another node", "a client", "expired", "no hello"],
)  # fmt: skip
def test_a_source_that_is_not_the_one(
    serve: Callable[[socket.socket], None], kind: type[RaylogError], words: str
) -> None:
    with listening(serve) as port, pytest.raises(kind) as caught:
        fetch(port)
    assert words in str(caught.value) and NODE.identity.id in str(caught.value)


class Stranger(Credentials):
    """Has the certificate of another cluster and believes this one's."""

    def __init__(self) -> None:
        self._other = Cluster().credentials()

    @property
    def identity(self) -> Identity:
        return ME.identity

    @property
    def not_after_s(self) -> float:
        return ME.not_after_s

    def tls_context(self, server_side: bool) -> ssl.SSLContext:
        made = self._other.tls_context(server_side)
        made.load_verify_locations(cadata=CLUSTER.ca_der)
        return made

    def verify_peer(self, connection: ssl.SSLSocket | ssl.SSLObject, now_s: float) -> Certificate:
        return ME.verify_peer(connection, now_s)


def test_a_puller_whose_certificate_is_refused_is_told(server: WireServer) -> None:
    for _ in range(10):
        with pytest.raises(NotPermitted, match="does not accept our certificate"):
            fetch(server.control_port, Stranger())


def test_a_puller_whose_own_certificate_has_expired() -> None:
    with pytest.raises(NotPermitted, match=r"our own certificate .* has expired"):
        fetch(1, CLUSTER.credentials(lifetime_s=-60))


def evil_source(
    cargo: socket.socket, misbehave: Callable[[socket.socket, StreamKeys], None]
) -> Callable[[socket.socket], None]:
    """A node of this cluster that greets, opens and announces as it should, and then misbehaves on its cargo stream."""

    def serve(connection: socket.socket) -> None:
        with context(NODE, server_side=True).wrap_socket(connection, server_side=True) as tls:
            buffer, told = MessageBuffer(), dict[type, messages.Message]()
            me, secret = NODE.identity, b"s" * 32
            hello = messages.Hello(versions=[1], cluster_id=me.cluster_id, node_id=me.id, software="", secret=secret)
            tls.sendall(encode(hello))
            while messages.Stream not in told:
                buffer.feed(tls.recv(65536))
                while (message := buffer.next_message()) is not None:
                    told[type(message)] = message
            theirs, stream = told[messages.Hello], told[messages.Stream]
            assert isinstance(theirs, messages.Hello) and isinstance(stream, messages.Stream)
            metadata = SHARD.frame.metadata
            port = cargo.getsockname()[1]
            tls.sendall(encode(messages.Frame(pull=0, offset=0, total=len(metadata), data=metadata)))
            tls.sendall(encode(messages.Have(pull=0, ranges=[(0, len(SHARD.chunks))])))
            tls.sendall(encode(messages.StreamReady(stream=stream.stream, nonce=NONCE, port=port)))
            keys = derive_keys(
                StreamContext(
                    theirs.secret, secret, CLUSTER.id, ME.identity.id, me.id, stream.stream, stream.nonce, NONCE
                )
            )
            for _ in range(QUICK.stream_losses_max + 1):
                with closing(cargo.accept()[0]) as line:
                    line.recv(72, socket.MSG_WAITALL)
                    misbehave(line, keys)
                    break
            while tls.recv(65536):
                pass

    return serve


def record(key: bytes, chunk: int, body: bytes) -> bytes:
    out = memoryview(bytearray(RECORD_BYTES_MAX))
    head = Head(RecordType.CHUNK, 0, chunk, len(body))
    return bytes(out[: RecordSealer(key, QUICK.rekey_bytes).seal_into(head, body, out)])


def unasked(line: socket.socket, keys: StreamKeys) -> None:
    time.sleep(0.1)
    line.sendall(record(keys.from_source, len(SHARD.chunks), SHARD.chunks[0]))
    line.recv(100)


def wrong_length(line: socket.socket, keys: StreamKeys) -> None:
    time.sleep(0.1)
    line.sendall(record(keys.from_source, 0, SHARD.chunks[0] + b"x"))
    line.recv(100)


def flipped(line: socket.socket, keys: StreamKeys) -> None:
    time.sleep(0.1)
    raw = bytearray(record(keys.from_source, 0, SHARD.chunks[0]))
    raw[1000] ^= 1
    line.sendall(raw)
    line.recv(100)


def trickle(line: socket.socket, keys: StreamKeys) -> None:
    raw = record(keys.from_source, 0, SHARD.chunks[0])
    for byte in raw:
        line.sendall(bytes([byte]))
        time.sleep(0.02)


def truncate(line: socket.socket, keys: StreamKeys) -> None:
    time.sleep(0.1)
    line.sendall(record(keys.from_source, 0, SHARD.chunks[0])[:5000])


@pytest.mark.parametrize(
    ("misbehave", "words"),
    [
        (unasked, "was not asked for"),
        (wrong_length, "it has 70000"),
        (flipped, "no chunk for 0.5 s"),  # the stream is given up, and this source answers for no other
        (trickle, "no chunk for 0.5 s"),
        (truncate, "no chunk for 0.5 s"),
    ],
)
def test_a_node_of_the_cluster_that_misbehaves(
    misbehave: Callable[[socket.socket, StreamKeys], None], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    sink, patient = MemorySink(SHARD), replace(QUICK, greeting_timeout_s=5)  # a busy machine shakes hands slowly
    with socket.create_server(("127.0.0.1", 0)) as cargo:
        cargo.settimeout(5)
        with listening(evil_source(cargo, misbehave)) as port, pytest.raises(RaylogError) as caught:
            address = Source(peer=PeerAddress(node_id=NODE.identity.id, host="127.0.0.1", control_port=port))
            pull(SHARD.frame.ref(), [address], sink, ME, deadline_s=20, bounds=patient, streams=1)
    assert words in str(caught.value), caught.value
    assert sink.verified == [] and not sink.is_committed and sink.closed == 1
    if misbehave in (unasked, wrong_length):
        assert NODE.identity.id in caplog.text and words in caplog.text
