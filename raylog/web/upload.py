"""A request's body into a version of one file: sealed as it comes where its length is known, by way of a sealed spool
where only its end will tell."""

import asyncio
import re
from collections.abc import Awaitable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from aiohttp import BodyPartReader, MultipartReader, web
from aiohttp.http import HttpProcessingError

from raylog.api.client import Client
from raylog.api.sources.content import FilesContent, SourceFile
from raylog.api.sources.spool import Spool
from raylog.errors import SourceError, UsageError
from raylog.spec import Version, parse_labels, parse_name
from raylog.units import format_bytes
from raylog.web.answers import NotAsItIs, TooLarge
from raylog.web.threads import PULL_BYTES, BodyStream, Loop

T = TypeVar("T")
FIELD = "file"
FILE_NAME_LABEL = "file_name"
FORM_BYTES_SPARE = 64 * 1024  # of a form, for what stands around its file
_PLAIN = {"binary", "identity", "7bit", "8bit"}
_FILE_NAME = re.compile(r"[^\x00-\x1f\x7f/\\]{1,255}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What an upload is to become, by its URL alone: nothing that the body says becomes a path."""

    name: str
    replicas: int
    labels: dict[str, str]

    @classmethod
    def of(cls, request: web.Request) -> "Wanted":
        """Raises `UsageError`."""
        unknown = sorted(set(request.query) - {"replicas", "label"})
        if unknown:
            raise UsageError(f"expected the parameters replicas and label, got {unknown[0][:80]!r}")
        replicas = request.query.get("replicas", "1")
        if not re.fullmatch("[0-9]{1,2}", replicas):
            raise UsageError(f"expected a number of replicas, got {replicas[:80]!r}")
        return cls(
            name=parse_name(request.match_info["target"]),
            replicas=int(replicas),
            labels=parse_labels(request.query.getall("label", [])),
        )

    @property
    def path(self) -> str:
        """How the file is called inside its version."""
        return self.name.rpartition("/")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Uploads:
    """Takes uploads into `client`, in threads of `pool`; `spool` is a folder for what is sealed before it is put."""

    client: Client
    pool: Executor
    spool: Path
    bytes_max: int
    stall_s: float

    async def put(self, request: web.Request) -> Version:
        """The body as the one file of a new version. Raises as `Client.put`, and `Stalled`, `TooLarge`, `NotAsItIs`."""
        wanted = Wanted.of(request)
        length = self._checked_length(request)
        stream = BodyStream(Loop(self.stall_s), partial(request.content.read, PULL_BYTES), self.bytes_max)
        await _let_it_come(request)
        take = self._put_unknown if length is None else partial(self._put_known, length_bytes=length)
        return await asyncio.get_running_loop().run_in_executor(self.pool, take, wanted, stream)

    async def post(self, request: web.Request) -> Version:
        """The field `file` of a form; the name that the client has for the file is kept as a label. Raises as `put`."""
        wanted = Wanted.of(request)
        self._checked_length(request, FORM_BYTES_SPARE)
        if request.content_type != "multipart/form-data":
            raise NotAsItIs(f"expected a form (curl -F {FIELD}=@PATH), got {request.content_type}: or PUT the body")
        form = await _well_formed(request.multipart())
        await _let_it_come(request)
        loop = Loop(self.stall_s)
        return await asyncio.get_running_loop().run_in_executor(self.pool, self._put_form, wanted, form, loop)

    def _checked_length(self, request: web.Request, spare_bytes: int = 0) -> int | None:
        """How long the body is, where the client says so; refused before any of it is read."""
        encoding = request.headers.get("Content-Encoding", "identity")
        if encoding != "identity":
            raise NotAsItIs(f"expected the bytes as they are to be kept, got Content-Encoding {encoding[:80]!r}")
        length = request.content_length
        if length is not None and length > self.bytes_max + spare_bytes:
            raise TooLarge(f"expected at most {format_bytes(self.bytes_max)}, got {format_bytes(length)}")
        return length

    def _put_known(self, wanted: Wanted, stream: BodyStream, length_bytes: int) -> Version:
        where = f"the upload of {wanted.name}"
        file = SourceFile(
            path=wanted.path, where=where, size_bytes=length_bytes, open=lambda: stream, check=lambda: None
        )
        return self._put_file(wanted, file)

    def _put_unknown(self, wanted: Wanted, stream: BodyStream) -> Version:
        with Spool(self.spool) as spool:
            spool.fill(stream)
            return self._put_file(wanted, spool.source(wanted.path, f"the upload of {wanted.name}"))

    def _put_form(self, wanted: Wanted, form: MultipartReader, loop: Loop) -> Version:
        with Spool(self.spool) as spool:
            part = _file_part(loop.wait_for(_well_formed(form.next())))
            label = _file_name_label(part.filename)
            spool.fill(BodyStream(loop, lambda: _well_formed(part.read_chunk(PULL_BYTES)), self.bytes_max))
            if loop.wait_for(_well_formed(form.next())) is not None:
                raise UsageError(f"expected a form with the one field {FIELD!r}, got another one after it")
            return self._put_file(wanted, spool.source(wanted.path, f"the upload of {wanted.name}"), label)

    def _put_file(self, wanted: Wanted, file: SourceFile, more_labels: dict[str, str] | None = None) -> Version:
        if not file.size_bytes:
            raise SourceError(f"{file.where} is empty: nothing to put")
        content = FilesContent(where=file.where, files=(file,))
        labels = wanted.labels | (more_labels or {})
        return self.client.put(wanted.name, content, replicas=wanted.replicas, labels=labels)


async def _let_it_come(request: web.Request) -> None:
    """Tells a client that waits for it (Expect: 100-continue) to send the body, now that it was found welcome."""
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer has not begun


def _file_part(part: MultipartReader | BodyPartReader | None) -> BodyPartReader:
    if part is None:
        raise UsageError(f"expected a form with the field {FIELD!r} (curl -F {FIELD}=@PATH), got one without fields")
    if isinstance(part, MultipartReader) or part.name != FIELD:
        name = "a form inside the form" if isinstance(part, MultipartReader) else repr(part.name)[:80]
        raise UsageError(f"expected a form with the one field {FIELD!r} (curl -F {FIELD}=@PATH), got {name}")
    encodings = [part.headers.get(f"Content-{what}", "binary") for what in ("Encoding", "Transfer-Encoding")]
    if not _PLAIN.issuperset(encodings):
        raise NotAsItIs(f"expected the bytes as they are to be kept, got a field encoded as {' '.join(encodings)[:80]}")
    if part.filename is None:
        raise UsageError(f"expected a file in the field {FIELD!r} (curl -F {FIELD}=@PATH), got a value")
    return part


def _file_name_label(name: str | None) -> dict[str, str]:
    """The client's name for the file, for those who look for it by label; never a path. Raises `UsageError`."""
    if not name:
        return {}
    if not _FILE_NAME.fullmatch(name) or name in (".", ".."):
        raise UsageError(f"expected a file name without '/', '\\' and control characters, got {name[:80]!r}")
    return {FILE_NAME_LABEL: name}


async def _well_formed(reading: Awaitable[T]) -> T:
    """What a form gives. Raises `UsageError` where aiohttp cannot read it."""
    try:
        return await reading
    except (ValueError, RuntimeError, HttpProcessingError) as error:
        what = error.message if isinstance(error, HttpProcessingError) else str(error)
        raise UsageError(f"expected a form as multipart/form-data: {what[:200]}") from error
