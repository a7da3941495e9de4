"""TLS 1.3 between real sockets, both ends proven; and what does not get in."""

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from raylog.errors import NotPermitted
from raylog.security import join
from raylog.security.certs import Authority, Credentials, CurrentCredentials
from raylog.security.credentials import ALPN

JoinAs = Callable[..., Credentials]

TIMEOUT_S = 10.0


class Handshake:
    """One handshake over a socketpair, and one byte each way: a TLS 1.3 client is done before the server has looked at
    its certificate. `look` sees each end's connection while it is open."""

    def __init__(
        self,
        server: ssl.SSLContext,
        client: ssl.SSLContext,
        look: Callable[[str, ssl.SSLSocket], object] = lambda side, connection: None,
    ) -> None:
        self.errors: dict[str, Exception] = {}
        self._look = look
        near, far = socket.socketpair()
        thread = threading.Thread(target=self._run, args=("server", server, far))
        thread.start()
        self._run("client", client, near)
        thread.join(2 * TIMEOUT_S)
        assert not thread.is_alive()

    def _run(self, side: str, context: ssl.SSLContext, plain: socket.socket) -> None:
        plain.settimeout(TIMEOUT_S)
        try:
            with plain, context.wrap_socket(plain, server_side=side == "server") as connection:
                connection.sendall(b"x")
                if connection.recv(1) != b"x":
                    raise ssl.SSLEOFError("closed")
                self._look(side, connection)
        except (OSError, NotPermitted) as error:
            self.errors[side] = error


def test_both_ends_know_each_other(authority: Authority, join_as: JoinAs, now_s: float) -> None:
    ends = {"server": join_as(authority, "node"), "client": join_as(authority, "client")}
    seen = {}

    def look(side: str, connection: ssl.SSLSocket) -> None:
        assert connection.version() == "TLSv1.3"
        assert connection.selected_alpn_protocol() == ALPN
        assert not connection.session_reused
        assert connection.session is None or not connection.session.has_ticket
        seen[side] = ends[side].verify_peer(connection, now_s)

    handshake = Handshake(ends["server"].tls_context(True), ends["client"].tls_context(False), look)
    assert handshake.errors == {}
    assert seen["server"].identity == ends["client"].identity
    assert seen["client"].identity == ends["server"].identity
    assert seen["client"].not_after_s == ends["server"].not_after_s


def test_the_same_context_serves_no_second_cluster(authority: Authority, foreign: Authority, join_as: JoinAs) -> None:
    server, client = join_as(authority, "node"), join_as(foreign, "node")
    errors = Handshake(server.tls_context(True), client.tls_context(False)).errors
    assert isinstance(errors["client"], ssl.SSLCertVerificationError)
    # And where the client would believe anybody, the server does not.
    gullible = client.tls_context(False)
    gullible.verify_mode = ssl.CERT_NONE
    errors = Handshake(server.tls_context(True), gullible).errors
    assert isinstance(errors["server"], ssl.SSLCertVerificationError)


def test_no_certificate_is_refused(authority: Authority, join_as: JoinAs) -> None:
    anonymous = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anonymous.check_hostname = False
    anonymous.load_verify_locations(cadata=authority.ca_der)
    errors = Handshake(join_as(authority, "node").tls_context(True), anonymous).errors
    assert "PEER_DID_NOT_RETURN_A_CERTIFICATE" in str(errors["server"])


def chain_of(credentials: Credentials, directory: Path) -> Path:
    """Key and certificate where OpenSSL's own tools find them."""
    pem = credentials.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    (directory / "chain.pem").write_text(pem + ssl.DER_cert_to_PEM_cert(credentials.certificate_der))
    return directory / "chain.pem"


@pytest.mark.parametrize("side", ["server", "client"])
def test_tls_1_2_is_refused(authority: Authority, join_as: JoinAs, tmp_path: Path, side: str) -> None:
    ours, theirs = join_as(authority, "node"), join_as(authority, "node")
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if side == "client" else ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname = False
    old.verify_mode = ssl.CERT_REQUIRED
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    old.load_verify_locations(cadata=authority.ca_der)
    old.load_cert_chain(chain_of(theirs, tmp_path))
    contexts = {side: ours.tls_context(side == "server")}
    errors = Handshake(contexts.get("server", old), contexts.get("client", old)).errors
    assert set(errors) == {"server", "client"}
    assert "UNSUPPORTED_PROTOCOL" in str(errors["server"]) or "VERSION" in str(errors["server"])


def test_another_protocol_over_good_tls_is_refused(authority: Authority, join_as: JoinAs, now_s: float) -> None:
    server, client = join_as(authority, "node"), join_as(authority, "client")
    context = client.tls_context(False)
    context.set_alpn_protocols(["h2"])
    handshake = Handshake(
        server.tls_context(True),
        context,
        lambda side, connection: side == "server" and server.verify_peer(connection, now_s),
    )
    refusal = handshake.errors["server"]
    assert isinstance(refusal, (NotPermitted, ssl.SSLError))
    assert "no_application_protocol" in str(refusal).lower() or "expected TLSv1.3 and protocol raylog/1" in str(refusal)


def test_a_certificate_that_has_expired_meanwhile_is_refused_by_name(
    authority: Authority, join_as: JoinAs, now_s: float
) -> None:
    server, client = join_as(authority, "node"), join_as(authority, "client")
    handshake = Handshake(
        server.tls_context(True),
        client.tls_context(False),
        lambda side, connection: side == "client" and client.verify_peer(connection, now_s + 90000),
    )
    assert f"certificate of {server.identity} expired" in str(handshake.errors["client"])


def test_plain_http_and_garbage_are_refused(authority: Authority, join_as: JoinAs) -> None:
    context = join_as(authority, "node").tls_context(True)
    for greeting in (b"GET / HTTP/1.1\r\nHost: node\r\n\r\n", bytes(range(256))):
        near, far = socket.socketpair()
        with near, far:
            far.settimeout(TIMEOUT_S)
            near.sendall(greeting)
            with pytest.raises(ssl.SSLError):
                context.wrap_socket(far, server_side=True)


def test_a_renewed_certificate_serves_the_next_connection(authority: Authority, join_as: JoinAs, now_s: float) -> None:
    server, client = join_as(authority, "node"), join_as(authority, "client")
    current = CurrentCredentials(server)
    expiries = []

    def look(side: str, connection: ssl.SSLSocket) -> None:
        if side == "client":
            expiries.append(client.verify_peer(connection, now_s).not_after_s)

    assert Handshake(current().tls_context(True), client.tls_context(False), look).errors == {}
    pending = join.request_renewal(server, now_s + 200)
    current.replace(pending.accept(authority.admit(pending.request, now_s + 200), now_s + 200))
    assert Handshake(current().tls_context(True), client.tls_context(False), look).errors == {}
    assert expiries[1] - expiries[0] == pytest.approx(200, abs=1)


def test_session_keys_are_not_logged(
    authority: Authority, join_as: JoinAs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys.log"))
    server, client = join_as(authority, "node"), join_as(authority, "client")
    assert Handshake(server.tls_context(True), client.tls_context(False)).errors == {}
    assert not (tmp_path / "keys.log").exists()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
def test_openssl_itself_believes_the_chain(authority: Authority, join_as: JoinAs, tmp_path: Path) -> None:
    chain = chain_of(join_as(authority, "node"), tmp_path)
    (tmp_path / "ca.pem").write_text(ssl.DER_cert_to_PEM_cert(authority.ca_der))
    words = ["openssl", "verify", "-x509_strict", "-CAfile", str(tmp_path / "ca.pem"), str(chain)]
    result = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    assert result.stdout.strip().endswith("OK"), result.stdout + result.stderr
