"""A version, or one file of it, to a client: opened chunk by chunk in a thread, as fast as the client takes it."""

import asyncio
import logging
import zlib
from collections.abc import Generator, Mapping
from concurrent.futures import Executor
from contextlib import aclosing, closing
from dataclasses import dataclass
from urllib.parse import quote

from aiohttp import web

from raylog.api.client import Client
from raylog.api.get import Reading
from raylog.api.stored_files import StoredFile, find_file, list_files, only_file, read_range
from raylog.errors import RaylogError, UsageError
from raylog.spec import Codec, Kind, Version
from raylog.web.answers import json_answer
from raylog.web.negotiation import Target, chosen_type, is_unchanged, takes_gzip, wanted_range
from raylog.web.tables import MEDIA_TYPES, table_pieces
from raylog.web.threads import from_thread

log = logging.getLogger("raylog.gateway")
WRITE_BYTES = 256 * 1024  # given to a connection at once
GZIP_LEVEL = 1  # on Python sources 123 MB/s, 3.3 times smaller; level 6: 36 MB/s, 4.0 times


@dataclass(frozen=True, slots=True)
class _Opened:
    """What a request's target was found to be: a file, or a table (None) of which `media_type` is wanted."""

    reading: Reading
    file: StoredFile | None
    media_type: str
    is_zipped: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Downloads:
    """Gives what `client` has, by threads of `pool`; cuts a client that takes nothing for `stall_s`."""

    client: Client
    pool: Executor
    stall_s: float

    async def get(self, request: web.Request, target: Target) -> web.StreamResponse:
        """Answers GET and HEAD. Raises as `Client.get`, `OutsideFile`, `NotAcceptable`; after the answer has begun an
        error cuts the connection, so that what came is not taken for all."""
        loop = asyncio.get_running_loop()
        version = await loop.run_in_executor(self.pool, self.client.stat, str(target.reference))
        if target.path == "":
            found = await loop.run_in_executor(self.pool, self._list, version)
            return json_answer([{"path": path, "size_bytes": size} for path, size in found.items()])
        etag = f'"{version.digest}"'
        headers = {
            "Cache-Control": "private, no-cache",
            "X-Raylog-Version": str(version),
            "X-Content-Type-Options": "nosniff",
            "Vary": "Accept, Accept-Encoding",
        }
        if is_unchanged(request.headers.get("If-None-Match", ""), etag):  # tables, of several forms, go without
            return web.Response(status=304, headers={**headers, "ETag": etag})
        opened = await loop.run_in_executor(self.pool, self._open, version, target.path, request.headers)
        headers["Content-Type"] = opened.media_type
        if opened.file is not None:
            return await self._answer_file(request, opened, opened.file, etag, headers)
        pieces = table_pieces(opened.reading, opened.media_type)
        return await self._send(request, web.StreamResponse(headers=headers), pieces, is_zipped=opened.is_zipped)

    async def finish(self, request: web.Request, answer: web.StreamResponse) -> web.StreamResponse:
        """Sends an answer, or what is left of one that has begun, and gives what was sent; aiohttp would wait for
        the client without a deadline."""
        if request.transport is None or request.transport.is_closing():  # cut, or left by the client
            return answer
        sent = answer
        try:
            if isinstance(answer, web.Response) and isinstance(answer.body, bytes):
                sent = web.StreamResponse(status=answer.status, headers=answer.headers)
                sent.content_length = len(answer.body)
                await sent.prepare(request)
                if request.method != "HEAD":
                    await self._write(sent, memoryview(answer.body))
            async with asyncio.timeout(self.stall_s):
                await sent.prepare(request)
                await sent.write_eof()
        except TimeoutError:
            self._cut(request, f"the client took nothing for {self.stall_s:g} s")
        except ConnectionError:
            self._cut(request, "the client has gone")
        return sent

    def _list(self, version: Version) -> dict[str, int]:
        return list_files(self.client.open(str(version)))

    def _open(self, version: Version, path: str | None, asked: Mapping[str, str]) -> _Opened:
        reading = self.client.open(str(version))
        may_zip = takes_gzip(asked.get("Accept-Encoding", "")) and "Range" not in asked
        if path is None and reading.kind is Kind.ARROW:
            return _Opened(reading, None, chosen_type(asked.get("Accept", ""), MEDIA_TYPES), may_zip)
        if reading.kind is Kind.TENSORS:
            raise UsageError(f"{version} holds tensors, for which there is no form over HTTP: use client.get in Python")
        file = only_file(reading) if path is None else find_file(reading, path)
        return _Opened(reading, file, "application/octet-stream", may_zip and _is_compressible(reading, file))

    async def _answer_file(
        self, request: web.Request, opened: _Opened, file: StoredFile, etag: str, headers: dict[str, str]
    ) -> web.StreamResponse:
        asked = request.headers
        part = wanted_range(asked.get("Range", ""), asked.get("If-Range", ""), etag, file.size_bytes)
        start, stop = part or (0, file.size_bytes)
        name = quote(file.path.rpartition("/")[2], safe="")
        headers |= {"Accept-Ranges": "bytes", "Content-Disposition": f"attachment; filename*=UTF-8''{name}"}
        headers["ETag"] = f"W/{etag}" if opened.is_zipped else etag  # equal to the plain answer, not identical
        if not opened.is_zipped:
            headers["Content-Length"] = str(stop - start)
        if part:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size_bytes}"
        response = web.StreamResponse(status=206 if part else 200, headers=headers)
        pieces = read_range(opened.reading, file, start, stop)
        return await self._send(request, response, pieces, is_zipped=opened.is_zipped)

    async def _send(
        self, request: web.Request, response: web.StreamResponse, pieces: Generator[memoryview], *, is_zipped: bool
    ) -> web.StreamResponse:
        """The answer begins once there is a first piece, so that what cannot be had at all is an error with a status;
        one that comes later cuts the connection."""
        if is_zipped:
            response.headers["Content-Encoding"], pieces = "gzip", _gzipped(pieces)
        if request.method == "HEAD":
            await response.prepare(request)
            return response
        async with aclosing(from_thread(self.pool, pieces)) as coming:
            piece = await anext(coming, None)
            await response.prepare(request)
            try:
                while piece is not None:
                    await self._write(response, piece)
                    piece = await anext(coming, None)
            except (RaylogError, TimeoutError) as error:
                what = f"the client took nothing for {self.stall_s:g} s" if isinstance(error, TimeoutError) else error
                self._cut(request, what)
        return response

    @staticmethod
    def _cut(request: web.Request, why: object) -> None:
        log.warning("%s %s: cut, %s", request.method, request.rel_url.raw_path, why)
        if request.transport is not None:
            request.transport.abort()

    async def _write(self, response: web.StreamResponse, piece: memoryview) -> None:
        for first in range(0, len(piece), WRITE_BYTES):
            async with asyncio.timeout(self.stall_s):
                await response.write(piece[first : first + WRITE_BYTES])


def _is_compressible(reading: Reading, file: StoredFile) -> bool:
    """Whether what lies at the beginning of its first shard became smaller when it was sealed."""
    if not file.parts or not file.size_bytes:
        return False
    with closing(reading.openers(positions=[file.parts[0].shard])) as openers:
        opener = next(openers)
        chunk = opener.frame.chunks[opener.units[0].first]
        return chunk.codec is not Codec.NONE


def _gzipped(pieces: Generator[memoryview]) -> Generator[memoryview]:
    packer = zlib.compressobj(GZIP_LEVEL, wbits=31)
    with closing(pieces):
        for piece in pieces:
            packed = packer.compress(piece)
            if packed:
                yield memoryview(packed)
        yield memoryview(packer.flush())
