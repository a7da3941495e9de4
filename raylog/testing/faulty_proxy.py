"""An HTTP proxy in front of a real server, that answers as bad servers and networks do: errors, silence, cut bodies,
flipped bits. For tests of what has to go on all the same."""

import http.client
import threading
from collections import Counter, deque
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import ClassVar, Self
from urllib.parse import urlsplit

TIMEOUT_S = 30.0
STALL_S = 20.0


class FaultyProxy:
    """Passes requests on to `target` (`http://host:port`) as they are; each of `faults` strikes one request, in order:

    "500", "503": that answer. "cut": half of the body, then the connection ends. "stall": silence for 20 s. "reset": no
    answer at all. "flip": a bit of the request's body is turned on its way. Thread-safe.
    """

    def __init__(self, target: str) -> None:
        self._faults: deque[str] = deque()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self.struck: Counter[str] = Counter()
        address = urlsplit(target)

        class Handler(_Handler):
            proxy = self
            server_address = (str(address.hostname), int(address.port or 80))

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, name="faulty-proxy", daemon=True).start()

    def strike(self, faults: Iterable[str]) -> None:
        """The next requests get these."""
        with self._lock:
            self._faults.extend(faults)

    def heal(self) -> None:
        with self._lock:
            self._faults.clear()

    def next_fault(self, has_body: bool) -> str:
        with self._lock:
            if not self._faults or (self._faults[0] == "flip" and not has_body):
                return ""
            fault = self._faults.popleft()
            self.struck[fault] += 1
            return fault

    def stall(self) -> None:
        self._closed.wait(STALL_S)

    def close(self) -> None:
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Handler(BaseHTTPRequestHandler):
    proxy: ClassVar[FaultyProxy]
    server_address: ClassVar[tuple[str, int]]
    protocol_version = "HTTP/1.1"

    def _pass_on(self) -> None:
        if self.headers.get("Expect", "").lower() == "100-continue":
            pass  # answered by `handle_expect_100` before
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.proxy.next_fault(bool(body))
        if fault in ("500", "503"):
            self._refuse(int(fault))
            return
        if fault in ("stall", "reset"):
            if fault == "stall":
                self.proxy.stall()
            self.close_connection = True
            return
        if fault == "flip":
            body = bytes([body[0] ^ 1]) + body[1:]
        self._answer(body, is_cut=fault == "cut")

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass_on

    def _answer(self, body: bytes, *, is_cut: bool) -> None:
        connection = http.client.HTTPConnection(*self.server_address, timeout=TIMEOUT_S)
        try:
            headers = {key: value for key, value in self.headers.items() if key.lower() != "expect"}
            connection.request(self.command, self.path, body=body or None, headers=headers)
            answer = connection.getresponse()
            data = answer.read()
            self.send_response_only(answer.status, answer.reason)
            for key, value in answer.getheaders():
                if key.lower() not in ("transfer-encoding", "connection", "content-length"):
                    self.send_header(key, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
            self.send_header("Content-Length", length or "0")
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if is_cut else data)
            if is_cut:
                self.close_connection = True
        finally:
            connection.close()

    def _refuse(self, status: int) -> None:
        code = "SlowDown" if status == 503 else "InternalError"
        data = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>struck</Message></Error>".encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""
