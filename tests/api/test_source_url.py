"""Sources by URL: over a real HTTP server, fsspec's memory store and file URLs; what fails names no credential."""

import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raylog.api.source import open_source
from raylog.api.sources.url import open_url, printable_url
from raylog.errors import SourceError, UsageError

TABLE = pa.table({"n": range(5000), "w": ["word"] * 5000})
RANGE = re.compile(r"bytes=(\d+)-(\d+)")


class Handler(BaseHTTPRequestHandler):
    """Serves `server.files` by path: bytes, or a status to answer with. `/ranges/…` gives parts of a file too."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        self.server.seen.append((self.command, self.headers.get("Range")))
        found = self.server.files.get(self.path.partition("?")[0], 404)
        if isinstance(found, int):
            self.send_response(found)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        wanted = RANGE.fullmatch(self.headers.get("Range", ""))
        body = found
        if wanted and self.path.startswith("/ranges"):
            first, last = int(wanted[1]), min(int(wanted[2]), len(found) - 1)
            body = found[first : last + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(found)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", str(hash(found)))
        self.end_headers()
        if with_body:
            half = len(body) // 2 if "/cut/" in self.path else len(body)
            with suppress(ConnectionError):  # who only wanted to see the first bytes has gone
                self.wfile.write(body[:half])
            self.close_connection = half != len(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        running.files, running.seen = {}, []
        running.url = f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield running
        finally:
            running.shutdown()
            thread.join(10)


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    store = fsspec.filesystem("memory")
    store.store.clear()
    yield store
    store.store.clear()


def parquet(table: pa.Table = TABLE) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def contents(url: str) -> dict[str, bytes]:
    content = open_source(url)
    found = {file.path: b"".join(file.pieces(1000)) for file in content.files}
    content.check_unchanged()
    return found


def test_an_opaque_file_over_http_is_one_request_for_its_content(server):
    server.files["/a%20file.bin"] = bytes(range(256)) * 10_000
    content = open_source(server.url + "/a%20file.bin?token=x", as_files=True)
    (file,) = content.files
    assert (file.path, file.size_bytes) == ("a file.bin", 2_560_000)
    assert b"".join(file.pieces(1 << 20)) == server.files["/a%20file.bin"]
    content.check_unchanged()
    assert not [part for _, part in server.seen if part]


def test_tables_over_http(server):
    server.files["/ranges/t.parquet"] = parquet()
    server.files["/t.csv"] = b"n\n" + b"\n".join(b"%d" % number for number in range(5000))
    for path, columns in (("/ranges/t.parquet", ["n", "w"]), ("/t.csv", ["n"])):
        content = open_source(server.url + path)
        assert pa.Table.from_batches(content.batches(), content.schema).equals(TABLE.select(columns))
        content.check_unchanged()


def test_a_format_that_needs_parts_from_a_server_that_gives_none(server):
    words = [secrets.token_hex(1000) for _ in range(4000)]
    server.files["/t.parquet"] = parquet(pa.table({"w": words}))
    assert len(server.files["/t.parquet"]) > 6 << 20
    with pytest.raises(SourceError, match=r"t\.parquet: its server gives no parts of a file"):
        open_source(server.url + "/t.parquet")


def test_a_change_over_http_is_noticed(server):
    server.files["/x"] = b"one"
    content = open_source(server.url + "/x")
    server.files["/x"] = b"two"
    with pytest.raises(SourceError, match=r"/x changed while it was read"):
        content.check_unchanged()


def test_a_connection_that_ends_early_is_an_error(server):
    server.files["/cut/x"] = b"0123456789" * 100_000
    with pytest.raises(SourceError, match=r"http://.*/cut/x"):
        contents(server.url + "/cut/x")


@pytest.mark.parametrize(
    ("status", "words"), [(404, "there is nothing at"), (403, "no permission to read"), (500, "with status 500")]
)
def test_statuses_are_told_apart(server, status, words):
    server.files["/x"] = status
    with pytest.raises(SourceError, match=words):
        open_source(server.url + "/x")


def test_no_server_is_an_error_and_no_wait(server):
    server.server_close()
    with pytest.raises(SourceError, match=r"http://127\.0\.0\.1:\d+/x cannot be read: ClientConnectorError"):
        open_source(server.url + "/x")


def test_credentials_are_in_no_message(server):
    server.files["/x"] = 500
    url = server.url.replace("//", "//user:hunter2@") + "/x?signature=hunter2#hunter2"
    with pytest.raises(SourceError) as caught:
        open_source(url)
    error: BaseException | None = caught.value
    assert "/x" in str(error) and error.__cause__ is None and error.__suppress_context__
    assert "hunter2" not in str(error) and "user" not in str(error)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://bucket/key?versionId=1", "s3://bucket/key"),
        ("https://u:p@ss@host:1/a/b#c", "https://host:1/a/b"),
        ("ftp://u:p@host", "ftp://host"),
    ],
)
def test_printable_url(url, shown):
    assert printable_url(url) == shown


def test_a_folder_of_a_store(memory):
    memory.pipe({"/in/b/x": b"1", "/in/x": b"2", "/other": b"3"})
    assert contents("memory://in") == contents("memory://in/") == {"b/x": b"1", "x": b"2"}
    assert contents("memory://in/b/x") == {"x": b"1"}


def test_a_table_of_a_store(memory):
    memory.pipe({"/in/a.parquet": parquet(TABLE.slice(0, 9)), "/in/b.parquet": parquet(TABLE.slice(9))})
    content = open_source("memory://in")
    assert pa.Table.from_batches(content.batches(), content.schema).equals(TABLE)
    content.check_unchanged()
    memory.pipe("/in/b.parquet", parquet(TABLE))
    with pytest.raises(SourceError, match=r"memory://in/b\.parquet changed"):
        content.check_unchanged()


def test_damage_in_a_store_is_named(memory):
    memory.pipe("/in/a.parquet", parquet()[:-1])
    with pytest.raises(SourceError, match=r"memory://in/a\.parquet cannot be read as Parquet"):
        open_source("memory://in/a.parquet")


def test_what_lies_behind_a_url_may_be_nothing(memory):
    memory.mkdir("/empty")
    with pytest.raises(SourceError, match="memory://empty holds no files"):
        open_source("memory://empty")
    with pytest.raises(SourceError, match="there is nothing at memory://gone"):
        open_source("memory://gone")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nope://x/y", "fsspec knows no such protocol"),
        ("raylog://name", "is no source: it is in raylog already"),
        ("zip://a::s3://bucket/z.zip", "plain URL, got the chained one"),
    ],
)
def test_urls_that_are_refused(url, words):
    with pytest.raises(UsageError, match=words):
        open_url(url)


def test_a_url_without_a_name_is_refused(server):
    server.files["/"] = b"a page"
    with pytest.raises(SourceError, match=r"expected the URL of a file, got .*, which ends without a name"):
        open_source(server.url + "/")


def test_names_that_leave_their_folder_are_refused(memory):
    memory.store["/in/../up"] = fsspec.filesystem("memory").open("/x", "wb")
    with pytest.raises(SourceError, match=r"expected a relative path without empty, \. or \.\. parts"):
        open_source("memory://in")


def test_a_file_url_is_a_path(tmp_path):
    (tmp_path / "with space").write_bytes(b"1")
    assert contents((tmp_path / "with space").as_uri()) == {"with space": b"1"}
