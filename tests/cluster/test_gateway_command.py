"""`raylog gateway` as an operator starts and stops it."""

import http.client
import json
import os
import signal
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from three_nodes import Machine, lying, wait_until

import raylog
from raylog.units import MIB

RAYLOG = Path(sys.executable).with_name("raylog")


@pytest.fixture
def command(machine: Machine, tmp_path: Path) -> list[str]:
    config = tmp_path / "raylog.toml"
    config.write_text(f'state = "{machine.settings.state}"\n')
    return [str(RAYLOG), "--address", machine.cluster.address, "--config", str(config), "gateway", "--port", "0"]


@pytest.fixture
def identity(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "g")])
    alone = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=1))
    certificate = made.add_extension(alone, False).sign(key, hashes.SHA256())
    paths = tmp_path / "gateway.pem", tmp_path / "gateway.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    return paths


@contextmanager
def started(command: list[str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and the URL that it says."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            line = process.stdout.readline()
            assert line, process.stderr.read()
            yield process, line.split(": ")[0]
        finally:
            process.kill()


def test_https_and_a_stop_in_the_middle_of_an_upload(
    command: list[str], machine: Machine, client: raylog.Client, identity: tuple[Path, Path]
) -> None:
    certificate, key = identity
    token_path = machine.settings.state / "gateway" / "token"
    before = lying(client)
    with started([*command, "--certificate", str(certificate), "--key", str(key)]) as (process, url):
        assert url.startswith("https://127.0.0.1:")
        assert stat.S_IMODE(token_path.stat().st_mode) == 0o600
        name, value = token_path.read_text().strip().split(": ", 1)
        parts = urlsplit(url)
        assert parts.port is not None
        trusting = ssl.create_default_context(cafile=str(certificate))
        asking = http.client.HTTPSConnection("127.0.0.1", parts.port, timeout=30, context=trusting)
        asking.request("PUT", "/v1/artifacts/web/command", b"content", {name: value})
        assert json.loads(asking.getresponse().read())["version"] == "web/command@1"
        old = ssl.create_default_context(cafile=str(certificate))
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(ssl.SSLError):
            http.client.HTTPSConnection("127.0.0.1", parts.port, timeout=30, context=old).connect()
        asking.putrequest("PUT", "/v1/artifacts/web/stopped")
        asking.putheader(name, value)
        asking.putheader("Content-Length", str(40 * MIB))
        asking.endheaders(os.urandom(9 * MIB))
        wait_until(lambda: len(lying(client) - before) > 2, 20, "a part of the upload lies on a node")
        process.send_signal(signal.SIGTERM)
        began_s = time.monotonic()
        said, logged = process.communicate(timeout=60)
        assert process.returncode == 0 and time.monotonic() - began_s < 20
    asking.close()
    assert "PUT /v1/artifacts/web/command: 201" in logged
    assert value.split()[1] not in said + logged and "content" not in logged
    assert [str(one) for one in client.ls("web/")] == ["web/command@1"]
    client.delete("web/command")
    wait_until(lambda: lying(client) <= before, 20, "no shard is left")


def test_bad_usage_is_told_before_anything_is_started(command: list[str], tmp_path: Path) -> None:
    open_file = tmp_path / "open"
    open_file.write_text("x")
    for words, status, told in [
        (["--host", "example.org"], 2, "an IP address"),
        (["--token-file", str(open_file)], 4, "chmod"),
    ]:
        done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, told in done.stderr) == (status, True), (words, done.stderr)


def test_an_open_address_is_warned_of_and_a_taken_port_refused(command: list[str]) -> None:
    with started([*command, "--host", "0.0.0.0"]) as (process, url):
        port = str(urlsplit(url).port)
        done = subprocess.run([*command, "--port", port], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 2 and "cannot listen at 127.0.0.1" in done.stderr
        process.send_signal(signal.SIGINT)
        _, logged = process.communicate(timeout=30)
    assert process.returncode == 0 and "plain HTTP" in logged
