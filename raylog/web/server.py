"""The gateway's socket: where it listens, its TLS, its bounds, and how it ends."""

import asyncio
import ipaddress
import logging
import signal
import ssl
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from raylog.api.client import Client
from raylog.errors import UsageError
from raylog.security.private_files import make_private_directory
from raylog.units import GIB
from raylog.web.gateway import THREADS, Gateway

HEADER_BYTES_MAX = 8190  # of one line: a URL, a header
HEADERS_MAX = 64
READ_BYTES = 256 * 1024  # of a body ahead of whoever takes it, of a connection; twice that at most
IDLE_S = 30.0  # that a connection may ask for nothing
LINGER_S = 5.0  # in which the rest of a refused upload is thrown away, so that the client gets to read the answer
STOP_GRACE_S = 5.0  # for requests under way, twice


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayOptions:
    """Where a gateway listens and what it takes. `spool` is a folder for uploads whose length is not known, sealed;
    a client from which nothing comes, or to which nothing goes, for `stall_s` is cut off."""

    token: str
    spool: Path
    host: str = "127.0.0.1"
    port: int = 8470
    tls: ssl.SSLContext | None = None
    upload_bytes_max: int = 64 * GIB
    stall_s: float = 30.0

    @property
    def is_exposed(self) -> bool:
        """Whether others than this machine may reach it."""
        return self.host != "localhost" and not ipaddress.ip_address(self.host).is_loopback


def check_host(text: str) -> str:
    """The address itself: an IP address or "localhost". Raises `UsageError`."""
    try:
        return text if text == "localhost" else str(ipaddress.ip_address(text))
    except ValueError:
        raise UsageError(f"expected an IP address of this machine to listen at, or localhost, got {text!r}") from None


def open_tls(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """TLS 1.3 and nothing older with this certificate chain and key (PEM); None without them. Raises `UsageError`."""
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise UsageError("expected a certificate and its key, got one of them: give both or neither")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ValueError) as error:
        raise UsageError(f"expected a PEM certificate and its key in {certificate} and {key}: {error}") from error
    return context


def _no_password() -> str:
    raise ValueError("the key asks for a password: give one without")  # OpenSSL would ask on the terminal


@asynccontextmanager
async def running(client: Client, options: GatewayOptions) -> AsyncIterator[str]:
    """A gateway while the context lasts; its URL. At the end requests under way have `STOP_GRACE_S`, then they are cut,
    and what was half uploaded is taken away. Raises `UsageError` where it cannot listen."""
    make_private_directory(options.spool)
    with ThreadPoolExecutor(THREADS, thread_name_prefix="gateway") as pool:
        gateway = Gateway(
            client,
            pool,
            token=options.token,
            spool=options.spool,
            upload_bytes_max=options.upload_bytes_max,
            stall_s=options.stall_s,
        )
        runner = web.AppRunner(
            gateway.application(),
            access_log=None,
            shutdown_timeout=STOP_GRACE_S,
            keepalive_timeout=IDLE_S,
            lingering_time=LINGER_S,
            max_line_size=HEADER_BYTES_MAX,
            max_field_size=HEADER_BYTES_MAX,
            max_headers=HEADERS_MAX,
            read_bufsize=READ_BYTES,
            auto_decompress=False,
        )
        await runner.setup()
        try:
            yield await _listen(runner, options)
        finally:
            await runner.cleanup()
            await gateway.ended(STOP_GRACE_S)
            await asyncio.to_thread(pool.shutdown)  # its threads need the loop to end


async def _listen(runner: web.AppRunner, options: GatewayOptions) -> str:
    site = web.TCPSite(runner, options.host, options.port, ssl_context=options.tls)
    try:
        await site.start()
    except OSError as error:
        raise UsageError(f"cannot listen at {options.host}, port {options.port}: {error.strerror}") from error
    host, port = runner.addresses[0][:2]
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if options.tls else 'http'}://{shown}:{port}"


def serve(client: Client, options: GatewayOptions, on_ready: Callable[[str], None]) -> None:
    """Runs a gateway until SIGTERM or Ctrl-C; `on_ready` gets its URL. Raises as `running`."""

    async def until_stopped() -> None:
        stopped, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopped.set)
        async with running(client, options) as url:
            on_ready(url)
            await stopped.wait()

    _log_requests()
    asyncio.run(until_stopped())


def _log_requests() -> None:
    """One line per request on standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log = logging.getLogger("raylog.gateway")
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    log.propagate = False
