"""The gateway: raylog's artifacts over HTTP, for whoever has the token. Which request goes where, and how many at
once."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import msgspec
from aiohttp import web

from raylog.api.client import Client
from raylog.errors import RaylogError, UsageError
from raylog.spec import Version, parse_labels, parse_name
from raylog.web.access import is_permitted
from raylog.web.answers import Busy, Unauthorized, error_answer, http_error_answer, json_answer
from raylog.web.download import Downloads
from raylog.web.negotiation import parse_target
from raylog.web.upload import Uploads

log = logging.getLogger("raylog.gateway")
REQUESTS_AT_ONCE = 64
UPLOADS_AT_ONCE, DOWNLOADS_AT_ONCE = 8, 16
THREADS = 2 * (UPLOADS_AT_ONCE + DOWNLOADS_AT_ONCE)  # an upload keeps one; listing never waits for all of them
ENDED_POLL_S = 0.02
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _Room:
    """How many may still begin."""

    def __init__(self, places: int, what: str) -> None:
        self._free = self._places = places
        self._what = what

    @property
    def is_taken(self) -> bool:
        return self._free < self._places

    @contextmanager
    def place(self) -> Iterator[None]:
        """Raises `Busy`."""
        if not self._free:
            raise Busy(f"as many {self._what} are under way as the gateway serves at once: try again in a moment")
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1


class Gateway:
    """The routes over one client. Everything asks for the token first."""

    def __init__(
        self, client: Client, pool: Executor, *, token: str, spool: Path, upload_bytes_max: int, stall_s: float
    ) -> None:
        self._client, self._pool, self._token = client, pool, token
        self._uploads = Uploads(client=client, pool=pool, spool=spool, bytes_max=upload_bytes_max, stall_s=stall_s)
        self._downloads = Downloads(client=client, pool=pool, stall_s=stall_s)
        self._requests = _Room(REQUESTS_AT_ONCE, "requests")
        self._upload_room = _Room(UPLOADS_AT_ONCE, "uploads")
        self._download_room = _Room(DOWNLOADS_AT_ONCE, "downloads")

    def application(self) -> web.Application:
        """To be served by aiohttp."""
        application = web.Application(middlewares=[self._guard])
        artifact, router = "/v1/artifacts/{target:.+}", application.router
        router.add_get("/v1/artifacts", self._list)
        router.add_get("/v1/versions/{name:.+}", self._versions)
        router.add_get(artifact, self._get)  # and HEAD
        router.add_put(artifact, self._put, expect_handler=_not_yet)
        router.add_post(artifact, self._post, expect_handler=_not_yet)
        router.add_delete(artifact, self._delete)
        return application

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Around every request, until its answer is sent: token, number, errors in raylog's words, one line of log."""
        began_s, answer = time.monotonic(), None
        try:
            with self._requests.place():
                answer = await self._downloads.finish(request, await self._answered(request, handler))
        except Busy as error:
            answer = await self._downloads.finish(request, error_answer(error))
        finally:
            said = answer.status if answer is not None else "cut off"
            seconds = time.monotonic() - began_s
            log.info("%s %s %s: %s, %.3f s", request.remote, request.method, request.rel_url.raw_path, said, seconds)
        return answer

    async def _answered(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if not is_permitted(request.headers.get("Authorization", ""), self._token):
                raise Unauthorized("expected the gateway's token as 'Authorization: Bearer TOKEN', got another one")
            return await handler(request)
        except RaylogError as error:
            return error_answer(error)
        except web.HTTPException as error:
            return http_error_answer(error)

    async def ended(self, timeout_s: float) -> None:
        """Waits until no request is under way, so that none needs the pool any more; for `timeout_s` at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._requests.is_taken:
                    await asyncio.sleep(ENDED_POLL_S)

    async def _list(self, request: web.Request) -> web.Response:
        _refuse_unknown(request, {"prefix", "label"})
        labels = parse_labels(request.query.getall("label", []))
        prefix = request.query.get("prefix", "")
        found = await self._in_thread(partial(self._client.ls, prefix, labels=labels))
        return json_answer([_described(one) for one in found])

    async def _versions(self, request: web.Request) -> web.Response:
        name = parse_name(request.match_info["name"])
        found = await self._in_thread(self._client.versions, name)
        return json_answer([_described(one) for one in found])

    async def _get(self, request: web.Request) -> web.StreamResponse:
        target = parse_target(request.match_info["target"])
        with self._download_room.place():
            return await self._downloads.get(request, target)

    async def _put(self, request: web.Request) -> web.Response:
        with self._upload_room.place():
            return _created(await self._uploads.put(request))

    async def _post(self, request: web.Request) -> web.Response:
        with self._upload_room.place():
            return _created(await self._uploads.post(request))

    async def _delete(self, request: web.Request) -> web.Response:
        target = parse_target(request.match_info["target"])
        if target.path is not None:
            raise UsageError(f"expected a version or an artifact to delete, got a file of {target.reference}")
        deleted = await self._in_thread(self._client.delete, str(target.reference))
        return json_answer({"deleted": [str(version) for version in deleted]})

    async def _in_thread(self, call: Callable[..., list[Version]], *arguments: str) -> list[Version]:
        return await asyncio.get_running_loop().run_in_executor(self._pool, call, *arguments)


async def _not_yet(_request: web.Request) -> None:
    """A client that asks first (Expect: 100-continue) is told to send once its upload was found welcome, not here."""


def _created(version: Version) -> web.Response:
    return json_answer(_described(version), 201, {"Location": f"/v1/artifacts/{version}"})


def _described(version: Version) -> dict[str, object]:
    return {"version": str(version), **msgspec.structs.asdict(version)}


def _refuse_unknown(request: web.Request, known: set[str]) -> None:
    unknown = sorted(set(request.query) - known)
    if unknown:
        raise UsageError(f"expected the parameters {' and '.join(sorted(known))}, got {unknown[0][:80]!r}")
