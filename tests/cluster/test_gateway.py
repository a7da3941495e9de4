"""The gateway over a real cluster: what goes in by HTTP comes out by HTTP and by the client, and what is bad leaves
nothing behind."""

import asyncio
import gzip
import http.client
import json
import random
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pytest
from three_nodes import lying, wait_until

import raylog
from raylog.api.filesystem import RaylogFileSystem
from raylog.errors import NotFound
from raylog.units import MIB
from raylog.web.access import open_token
from raylog.web.server import GatewayOptions, running

STALL_S = 1.0
BYTES_MAX = 24 * MIB
CONTENT = random.Random(1).randbytes(9 * MIB + 12_345)  # three shards
TEXT = b"a line that is small when it is packed\n" * 100_000
Answer = tuple[int, Mapping[str, str], bytes]


@dataclass(frozen=True)
class Site:
    host: str
    port: int
    token_path: Path
    spool: Path

    @property
    def authorization(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {open_token(self.token_path)}"}

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=30)
        try:
            connection.request(method, path, body, {**self.authorization, **(headers or {})})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def begin(self, *lines: str) -> socket.socket:
        """A connection that has sent these lines and the token."""
        connection = socket.create_connection((self.host, self.port), timeout=30)
        connection.sendall(self.request(*lines))
        return connection

    def request(self, *lines: str) -> bytes:
        """These lines and the token."""
        sent = [*lines, f"Host: {self.host}", f"Authorization: {self.authorization['Authorization']}", "", ""]
        return "\r\n".join(sent).encode()

    def curl(self, *words: str, path: str) -> bytes:
        curl = shutil.which("curl")
        if curl is None:
            pytest.skip("curl is not installed")
        url = f"http://{self.host}:{self.port}{path}"
        done = subprocess.run(
            [curl, "-sS", "-H", f"@{self.token_path}", *words, url], capture_output=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def site(client: raylog.Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("gateway")
    token_path, spool = folder / "token", folder / "spool"
    options = GatewayOptions(
        token=open_token(token_path), spool=spool, port=0, upload_bytes_max=BYTES_MAX, stall_s=STALL_S
    )
    urls: list[str] = []
    is_ready, stop = threading.Event(), threading.Event()

    async def run() -> None:
        async with running(client, options) as url:
            urls.append(url)
            is_ready.set()
            await asyncio.to_thread(stop.wait)

    with ThreadPoolExecutor(1) as thread:
        ended = thread.submit(asyncio.run, run())
        try:
            assert is_ready.wait(30)
            parts = urlsplit(urls[0])
            assert parts.hostname == "127.0.0.1" and parts.port
            yield Site(parts.hostname, parts.port, token_path, spool)
        finally:
            stop.set()
            ended.result(30)
    for latest in client.ls("web/"):
        client.delete(latest.name)


@pytest.fixture(scope="module")
def stored(site: Site) -> str:
    status, headers, body = site.ask("PUT", "/v1/artifacts/web/big?replicas=2&label=team=nlp", CONTENT)
    assert (status, json.loads(body)["version"], headers["Location"]) == (201, "web/big@1", "/v1/artifacts/web/big@1")
    return "/v1/artifacts/web/big@1"


def told(answer: Answer, status: int) -> str:
    """The message of an error in JSON."""
    assert answer[0] == status, answer
    message: str = json.loads(answer[2])["message"]
    return message


def test_what_is_put_comes_back(site: Site, stored: str, client: raylog.Client, tmp_path: Path) -> None:
    status, headers, body = site.ask("GET", stored)
    assert (status, body == CONTENT) == (200, True)
    assert headers["X-Raylog-Version"] == "web/big@1" and headers["Accept-Ranges"] == "bytes"
    assert client.get("web/big") == CONTENT and client.stat("web/big").shards == 3
    assert [path.name for path in client.download("web/big", tmp_path / "back")] == ["big"]
    assert len(client.nodes()) >= 2 and all(len(nodes) == 2 for nodes in client.replicas("web/big").values())
    assert [str(one) for one in client.ls("web/", labels={"team": "nlp"})] == ["web/big@1"]
    status, headed, nothing = site.ask("HEAD", stored)
    assert (status, nothing, headed["Content-Length"]) == (200, b"", str(len(CONTENT)))
    assert site.ask("GET", stored, headers={"If-None-Match": headers["ETag"]})[0] == 304
    assert json.loads(site.ask("GET", stored + "/files")[2]) == [{"path": "big", "size_bytes": len(CONTENT)}]
    assert site.ask("GET", stored + "/files/big", headers={"Range": "bytes=5-9"})[2] == CONTENT[5:10]


@pytest.mark.parametrize(
    ("text", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=4194000-4194999", 4_194_000, 4_195_000),  # over the end of the first shard
        ("bytes=1000-8400000", 1000, 8_400_001),
        ("bytes=9000000-", 9_000_000, len(CONTENT)),
        ("bytes=-17", len(CONTENT) - 17, len(CONTENT)),
        ("bytes=9000000-99999999999", 9_000_000, len(CONTENT)),
    ],
)
def test_ranges_are_slices(site: Site, stored: str, text: str, start: int, stop: int) -> None:
    status, headers, body = site.ask("GET", stored, headers={"Range": text, "Accept-Encoding": "gzip"})
    assert (status, headers["Content-Range"]) == (206, f"bytes {start}-{stop - 1}/{len(CONTENT)}")
    assert "Content-Encoding" not in headers and body == CONTENT[start:stop]


def test_a_range_outside_the_file_and_of_another_state(site: Site, stored: str) -> None:
    answer = site.ask("GET", stored, headers={"Range": f"bytes={len(CONTENT)}-"})
    assert "inside" in told(answer, 416) and answer[1]["Content-Range"] == f"bytes */{len(CONTENT)}"
    other = site.ask("GET", stored, headers={"Range": "bytes=0-9", "If-Range": '"another"'})
    assert (other[0], other[2] == CONTENT) == (200, True)
    same = site.ask("GET", stored, headers={"Range": "bytes=0-9", "If-Range": other[1]["ETag"]})
    assert (same[0], same[2]) == (206, CONTENT[:10])


def test_gzip_is_for_what_becomes_smaller(site: Site, stored: str) -> None:
    assert site.ask("PUT", "/v1/artifacts/web/text", TEXT)[0] == 201
    status, headers, body = site.ask("GET", "/v1/artifacts/web/text", headers={"Accept-Encoding": "br, gzip;q=0.5"})
    assert (status, headers["Content-Encoding"], headers["ETag"][:2]) == (200, "gzip", "W/")
    assert len(body) < len(TEXT) / 10 and gzip.decompress(body) == TEXT
    assert site.ask("GET", "/v1/artifacts/web/text", headers={"If-None-Match": headers["ETag"]})[0] == 304
    assert "Content-Encoding" not in site.ask("HEAD", stored, headers={"Accept-Encoding": "gzip"})[1]
    assert site.curl("--compressed", path="/v1/artifacts/web/text") == TEXT


def test_curl(site: Site, client: raylog.Client, tmp_path: Path) -> None:
    file = tmp_path / "a report.bin"
    file.write_bytes(CONTENT)
    put = json.loads(site.curl("-T", str(file), path="/v1/artifacts/web/curl"))
    form = json.loads(site.curl("-F", f"file=@{file}", path="/v1/artifacts/web/curl?replicas=2"))
    piped = json.loads(site.curl("-H", "Transfer-Encoding: chunked", "-T", str(file), path="/v1/artifacts/web/curl"))
    assert [one.get("number") for one in (put, form, piped)] == [1, 2, 3], (put, form, piped)
    assert {client.open(f"web/curl@{n}").manifest.labels.get("file_name") for n in (1, 2)} == {None, file.name}
    for number in (1, 2, 3):
        assert client.get(f"web/curl@{number}") == CONTENT
    site.curl("-o", str(tmp_path / "back"), path="/v1/artifacts/web/curl")
    assert (tmp_path / "back").read_bytes() == CONTENT
    assert site.curl("-r", "100-199", path="/v1/artifacts/web/curl@1") == CONTENT[100:200]
    listed = json.loads(site.curl(path="/v1/artifacts?prefix=web/cu"))
    assert [(one["version"], one["content_bytes"]) for one in listed] == [("web/curl@3", len(CONTENT))]
    assert len(json.loads(site.curl(path="/v1/versions/web/curl"))) == 3
    assert json.loads(site.curl("-X", "DELETE", path="/v1/artifacts/web/curl@2")) == {"deleted": ["web/curl@2"]}
    assert b"expected" in site.curl("-X", "DELETE", path="/v1/artifacts/web/curl@1/files/curl")
    assert not list(site.spool.iterdir())


def test_tables_and_folders(site: Site, client: raylog.Client, tmp_path: Path) -> None:
    table = pa.table({"n": range(50_000), "word": [f"w{n % 7}" for n in range(50_000)]})
    client.put("web/table", table)
    status, headers, body = site.ask("GET", "/v1/artifacts/web/table")
    assert (status, headers["Content-Type"]) == (200, "application/vnd.apache.arrow.stream")
    assert pa.ipc.open_stream(body).read_all() == table
    lines = site.ask("GET", "/v1/artifacts/web/table", headers={"Accept": "application/x-ndjson"})[2].splitlines()
    assert [json.loads(line) for line in lines] == table.to_pylist()
    text = site.curl("-H", "Accept: text/csv", path="/v1/artifacts/web/table")
    assert pa.csv.read_csv(pa.py_buffer(text)) == table
    assert site.curl("--compressed", "-H", "Accept: text/csv", path="/v1/artifacts/web/table") == text
    assert "text/csv" in told(site.ask("GET", "/v1/artifacts/web/table", headers={"Accept": "image/png"}), 406)
    assert "expected files" in told(site.ask("GET", "/v1/artifacts/web/table@1/files/n"), 400)
    client.put("web/nested", pa.table({"n": [[1], [2, 3]]}))
    assert "text/csv" in told(site.ask("GET", "/v1/artifacts/web/nested", headers={"Accept": "text/csv"}), 400)
    client.put("web/tensors", {"w": np.zeros(5)})
    assert "client.get" in told(site.ask("GET", "/v1/artifacts/web/tensors"), 400)

    files = {"a.bin": CONTENT[: 5 * MIB], "deep/ä b.txt": TEXT[:1000], "empty": b"", "z.bin": CONTENT[5 * MIB :]}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    client.put("web/folder", tmp_path, as_files=True)
    listed = json.loads(site.ask("GET", "/v1/artifacts/web/folder@1/files")[2])
    assert {one["path"]: one["size_bytes"] for one in listed} == {name: len(content) for name, content in files.items()}
    for name, content in {"a.bin": files["a.bin"], "deep/%C3%A4%20b.txt": TEXT[:1000], "empty": b""}.items():
        assert site.ask("GET", f"/v1/artifacts/web/folder@1/files/{name}")[2] == content
    part = site.ask("GET", "/v1/artifacts/web/folder@1/files/z.bin", headers={"Range": "bytes=100-3000000"})
    assert part[2] == files["z.bin"][100:3_000_001]
    assert "name the file" in told(site.ask("GET", "/v1/artifacts/web/folder"), 400)
    assert "list its files" in told(site.ask("GET", "/v1/artifacts/web/folder@1/files/none"), 404)


def test_a_file_written_as_a_stream(site: Site, client: raylog.Client, tmp_path: Path) -> None:
    """Its shards say its size so far, the last one its size."""
    RaylogFileSystem(client=client).pipe_file("web/stream", CONTENT)
    assert client.stat("web/stream").shards == 3
    listed = json.loads(site.ask("GET", "/v1/artifacts/web/stream@1/files")[2])
    assert listed == [{"path": "stream", "size_bytes": len(CONTENT)}]
    for path in ("/v1/artifacts/web/stream", "/v1/artifacts/web/stream@1/files/stream"):
        status, headers, body = site.ask("GET", path)
        assert (status, headers["Content-Length"], body == CONTENT) == (200, str(len(CONTENT)), True)
        part = site.ask("GET", path, headers={"Range": "bytes=4194000-9000000"})
        assert (part[0], part[2] == CONTENT[4_194_000:9_000_001]) == (206, True)
        assert site.ask("HEAD", path)[1]["Content-Length"] == str(len(CONTENT))
    assert "list its files" in told(site.ask("GET", "/v1/artifacts/web/stream@1/files/strea"), 404)


def test_without_the_token(site: Site, client: raylog.Client) -> None:
    for given in ("", "Bearer wrong", "Basic dTpw", f"Bearer {open_token(site.token_path)}x", "Bearer ä"):
        answer = site.ask("GET", "/v1/artifacts", headers={"Authorization": given})
        assert "token" in told(answer, 401) and answer[1]["WWW-Authenticate"].startswith("Bearer")
    assert site.ask("PUT", "/v1/artifacts/web/none", b"x", {"Authorization": "Bearer no"})[0] == 401
    assert site.ask("GET", "/other", headers={"Authorization": ""})[0] == 401
    assert client.ls("web/none") == []


def form(field: str, filename: str | None, content: bytes, boundary: str = "limit") -> tuple[bytes, dict[str, str]]:
    name = "" if filename is None else f'; filename="{filename}"'
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"{name}\r\n\r\n'
    body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
    return body, {"Content-Type": f"multipart/form-data; boundary={boundary}"}


def test_bad_requests_leave_nothing(site: Site, client: raylog.Client) -> None:
    before, target = lying(client), "/v1/artifacts/web/bad"
    assert "24.0 MiB" in told(site.ask("PUT", target, b"x", {"Content-Length": str(BYTES_MAX + 1)}), 413)
    two = form("file", "a", b"1")[0].removesuffix(b"--limit--\r\n") + form("file", "b", b"2")[0]
    for body, headers, status, word in [
        (b"", {}, 400, "empty"),
        (b"x", {"Content-Encoding": "gzip"}, 415, "gzip"),
        (*form("other", "a", b"x"), 400, "'file'"),
        (*form("file", None, b"x"), 400, "a value"),
        (*form("file", "../../etc/passwd", b"x"), 400, "file name"),
        (*form("file", "..", b"x"), 400, "file name"),
        (*form("file", "a\\\\b", b"x"), 400, "file name"),
        (*form("file", "a", b""), 400, "empty"),
        (
            form("file", "a", b"x")[0].replace(b"\r\n\r\n", b"\r\nContent-Transfer-Encoding: base64\r\n\r\n"),
            form("file", "a", b"")[1],
            415,
            "base64",
        ),
        (b"--limit--\r\n", form("file", "a", b"")[1], 400, "without fields"),
        (two, form("file", "a", b"")[1], 400, "another"),
        (form("file", "a", b"x")[0][:-9], form("file", "a", b"")[1], 400, "multipart"),
        (b"no form at all", form("file", "a", b"")[1], 400, "multipart"),
        (b"x", {"Content-Type": "multipart/form-data"}, 400, "boundary"),
        (b"file=x", {"Content-Type": "application/x-www-form-urlencoded"}, 415, "curl -F"),
    ]:
        method = "POST" if "Content-Type" in headers else "PUT"
        message = told(site.ask(method, target, body, headers), status)
        assert word in message, (message, word)
    for path in ("web/../../x", "web/%2e%2e/x", "web%2F..%2Fx", "/etc/x", "web/bad@2", "web/b%00d", "web/%C3%A4"):
        assert site.ask("PUT", f"/v1/artifacts/{path}", b"x")[0] == 400, path
    assert "replicas" in told(site.ask("PUT", f"{target}?replica=2", b"x"), 400)
    assert "number" in told(site.ask("PUT", f"{target}?replicas=two", b"x"), 400)
    assert "fewer replicas" in told(site.ask("PUT", f"{target}?replicas=9", b"x"), 409)
    assert "@0" in told(site.ask("GET", f"{target}@0"), 400)
    assert "'..'" in told(site.ask("GET", f"{target}@1/files/../../etc/passwd"), 400)
    assert "web/bad" in told(site.ask("GET", target), 404) and site.ask("DELETE", target)[0] == 404
    assert site.ask("PATCH", target)[0] == 405 and site.ask("GET", "/v2")[0] == 404
    assert site.ask("GET", f"/v1/artifacts/{'x' * 9000}")[0] == 400
    assert client.ls("web/bad") == [] and not list(site.spool.iterdir())
    wait_until(lambda: lying(client) <= before, 20, "no shard is left")


@pytest.mark.parametrize("how", ["length", "chunked", "form"])
def test_a_cut_upload_leaves_nothing(site: Site, client: raylog.Client, how: str) -> None:
    before = lying(client)
    headers = {"length": f"Content-Length: {len(CONTENT)}", "chunked": "Transfer-Encoding: chunked"}
    lines = ["PUT /v1/artifacts/web/cut HTTP/1.1", headers.get(how, headers["length"])]
    head = b""
    if how == "form":
        lines = [
            "POST /v1/artifacts/web/cut HTTP/1.1",
            headers["length"],
            "Content-Type: multipart/form-data; boundary=b",
        ]
        head = form("file", "a", b"", "b")[0].split(b"\r\n\r\n")[0] + b"\r\n\r\n"
    with site.begin(*lines) as connection:
        part = head + CONTENT[: 6 * MIB]
        connection.sendall(f"{len(part):x}\r\n".encode() + part + b"\r\n" if how == "chunked" else part)
        if how == "length":  # the first shard is sealed while the rest is to come
            wait_until(lambda: bool(lying(client) - before), 20, "something lies on a node")
    wait_until(lambda: lying(client) <= before, 20, "no shard is left")
    assert client.ls("web/cut") == []
    with pytest.raises(NotFound):
        client.get("web/cut")


def test_a_client_that_stalls_is_cut(site: Site, client: raylog.Client, stored: str) -> None:
    before = lying(client)
    with site.begin("PUT /v1/artifacts/web/stalled HTTP/1.1", "Content-Length: 9000000") as sender:
        sender.sendall(CONTENT[: 5 * MIB])
        answer = b"".join(iter(partial(_received, sender), b"")).decode()
        assert answer.startswith("HTTP/1.1 408 ") and "expected more of the body within 1 s" in answer
    wait_until(lambda: lying(client) <= before, 20, "no shard is left")
    with site.begin(f"GET {stored} HTTP/1.1") as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 256 * 1024)
        time.sleep(2 * STALL_S)
        got = 0
        while piece := _received(reader):
            got += len(piece)
        assert got < len(CONTENT), "it was cut, and not ended as if that were all"


def test_a_client_that_does_not_read_a_listing_is_cut(site: Site, client: raylog.Client, tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d" * 250] * 13)
    deep.mkdir(parents=True)
    for number in range(2500):
        (deep / f"{number}").touch()
    client.put("web/long", tmp_path, as_files=True)
    listing = site.ask("GET", "/v1/artifacts/web/long@1/files")[2]
    assert len(listing) > 7 * MIB and len(json.loads(listing)) == 2500
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        reader.settimeout(30)
        reader.connect((site.host, site.port))
        reader.sendall(site.request("GET /v1/artifacts/web/long@1/files HTTP/1.1"))
        assert reader.recv(12) == b"HTTP/1.1 200"
        time.sleep(2 * STALL_S)
        got = 0
        while piece := _received(reader):
            got += len(piece)
        assert got < len(listing), "it was cut, and not ended as if that were all"


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(MIB)
    except ConnectionResetError:
        return b""


def test_readers_that_leave_and_slow_ones(site: Site, stored: str) -> None:
    for _ in range(40):  # more than are served at once, if leaving did not end them
        with site.begin(f"GET {stored} HTTP/1.1") as reader:
            reader.recv(1000)
    with site.begin(f"GET {stored} HTTP/1.1", "Connection: close") as reader:
        got = bytearray()
        while piece := reader.recv(MIB):
            got += piece
            time.sleep(0.02)
    assert bytes(got).endswith(CONTENT[-1000:]) and CONTENT in got


def test_many_at_once(site: Site, client: raylog.Client, stored: str) -> None:
    def upload(number: int) -> int:
        content = CONTENT[number : MIB + number]
        status = site.ask("PUT", f"/v1/artifacts/web/many/{number}", content)[0]
        assert status != 201 or site.ask("GET", f"/v1/artifacts/web/many/{number}")[2] == content
        return status

    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(upload, range(6))) == [201] * 6
    assert len(client.ls("web/many/")) == 6
    waiting = [site.begin("PUT /v1/artifacts/web/wait HTTP/1.1", "Content-Length: 9") for _ in range(8)]
    try:
        answer = site.ask("PUT", "/v1/artifacts/web/ninth", b"x")
        assert "try again" in told(answer, 503) and answer[1]["Retry-After"]
        assert site.ask("GET", "/v1/artifacts")[0] == 200, "listing goes on"
    finally:
        for one in waiting:
            one.close()
