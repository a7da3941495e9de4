"""What raylog's transfers are measured against: the same bytes from one process to another by other means. Each peer is
a function that moves `payload` once, warm, and returns the seconds; both ends run on this machine."""

import contextlib
import datetime
import ipaddress
import multiprocessing
import socket
import ssl
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

BUFFER_BYTES = 2 << 20
spawn = multiprocessing.get_context("spawn")

Mover = Callable[[], float]


def _send_all(sending: socket.socket, payload: memoryview) -> None:
    for start in range(0, len(payload), BUFFER_BYTES):
        sending.sendall(payload[start : start + BUFFER_BYTES])


def _serve_socket(ready: Connection, path: str, certificates: str | None) -> None:
    """Sends the file's bytes to whoever connects, once per connection, from the page cache."""
    payload = memoryview(np.memmap(path, dtype=np.uint8, mode="r"))
    listener = socket.create_server(("127.0.0.1", 0))
    ready.send(listener.getsockname()[1])
    context = _context(certificates, server_side=True) if certificates else None
    while True:
        connection, _ = listener.accept()
        with contextlib.suppress(OSError), connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            wrapped = context.wrap_socket(connection, server_side=True) if context else connection
            _send_all(wrapped, payload)


@contextlib.contextmanager
def socket_peer(path: Path, target: memoryview, certificates: Path | None = None) -> Iterator[Mover]:
    """Python TCP into `target`, reused buffers at both ends; with `certificates` inside mutual TLS 1.3."""
    mine, theirs = spawn.Pipe()
    server = spawn.Process(target=_serve_socket, args=(theirs, str(path), str(certificates) if certificates else None))
    server.start()
    port = mine.recv()
    size = len(target)
    context = _context(str(certificates), server_side=False) if certificates else None

    def move() -> float:
        started_s = time.perf_counter()
        with socket.create_connection(("127.0.0.1", port)) as plain:
            connection: socket.socket = context.wrap_socket(plain) if context else plain
            done = 0
            while done < size:
                count = connection.recv_into(target[done : done + BUFFER_BYTES])
                if not count:
                    raise ConnectionError(f"the peer closed after {done} of {size} bytes")
                done += count
        return time.perf_counter() - started_s

    try:
        yield move
    finally:
        server.kill()
        server.join()


class _FlightServer(flight.FlightServerBase):  # type: ignore[misc]
    def __init__(self, path: str, **options: Any) -> None:
        super().__init__("grpc+tls://127.0.0.1:0" if options else "grpc://127.0.0.1:0", **options)
        whole = pa.memory_map(path).read_buffer()
        pieces = [whole.slice(start, BUFFER_BYTES) for start in range(0, whole.size, BUFFER_BYTES)]
        arrays = [pa.FixedSizeBinaryArray.from_buffers(pa.binary(piece.size), 1, [None, piece]) for piece in pieces]
        self._batches = [
            pa.record_batch([array], ["bytes"]) for array in arrays if array.type.byte_width == BUFFER_BYTES
        ]

    def do_get(self, context: Any, ticket: Any) -> Any:
        return flight.RecordBatchStream(pa.RecordBatchReader.from_batches(self._batches[0].schema, self._batches))


def _serve_flight(ready: Connection, path: str, certificates: str | None) -> None:
    options: dict[str, Any] = {}
    if certificates:
        folder = Path(certificates)
        options = {
            "tls_certificates": [((folder / "own.pem").read_bytes(), (folder / "own.key").read_bytes())],
            "verify_client": True,
            "root_certificates": (folder / "ca.pem").read_bytes(),
        }
    server = _FlightServer(path, **options)
    ready.send(server.port)
    server.serve()


@contextlib.contextmanager
def flight_peer(path: Path, size: int, certificates: Path | None = None) -> Iterator[Mover]:
    """Arrow Flight do_get of record batches of 2 MiB; with `certificates` inside mutual TLS."""
    mine, theirs = spawn.Pipe()
    server = spawn.Process(target=_serve_flight, args=(theirs, str(path), str(certificates) if certificates else None))
    server.start()
    port = mine.recv()
    options: dict[str, Any] = {}
    if certificates:
        options = {
            "tls_root_certs": (certificates / "ca.pem").read_bytes(),
            "cert_chain": (certificates / "own.pem").read_bytes(),
            "private_key": (certificates / "own.key").read_bytes(),
        }
    scheme = "grpc+tls" if certificates else "grpc"
    client = flight.connect(f"{scheme}://127.0.0.1:{port}", **options)

    def move() -> float:
        started_s = time.perf_counter()
        got = sum(chunk.data.nbytes for chunk in client.do_get(flight.Ticket(b"")))
        assert got == size // BUFFER_BYTES * BUFFER_BYTES, got
        return time.perf_counter() - started_s

    try:
        yield move
    finally:
        client.close()
        server.kill()
        server.join()


@contextlib.contextmanager
def certificates() -> Iterator[Path]:
    """A folder with an authority and one certificate for both ends (ECDSA P-256), as a mesh would use."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        ca_name, name = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in ("bench ca", "bench"))
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        authority = _builder(ca_name, ca_name, ca_key).add_extension(x509.BasicConstraints(True, 0), True)
        own = _builder(name, ca_name, key).add_extension(names, False)
        pem = serialization.Encoding.PEM
        (root / "ca.pem").write_bytes(authority.sign(ca_key, hashes.SHA256()).public_bytes(pem))
        (root / "own.pem").write_bytes(own.sign(ca_key, hashes.SHA256()).public_bytes(pem))
        (root / "own.key").write_bytes(
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        yield root


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    return builder.not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + datetime.timedelta(days=1))


def _context(folder: str, *, server_side: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(Path(folder) / "ca.pem")
    context.load_cert_chain(Path(folder) / "own.pem", Path(folder) / "own.key")
    return context


def random_bytes(size: int) -> bytes:
    """Bytes that no codec makes smaller."""
    return np.random.default_rng(1).bytes(size)
