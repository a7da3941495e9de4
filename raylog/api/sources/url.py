"""Source URLs through fsspec: what lies behind one, read as streams. Credentials in a URL appear in no message."""

import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from io import BufferedReader, RawIOBase
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from fsspec.core import url_to_fs

from raylog.api.sources.content import SourceFile, changed
from raylog.errors import SourceError, UsageError
from raylog.units import MIB

BLOCK_BYTES = 4 * MIB  # asked of a remote store at once
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 20.0, 60.0
_HTTP = ("http", "https")
_REFUSED_SCHEMES = {"raylog": "it is in raylog already: read it with client.get or client.download"}
_STATE_KEYS = {
    "size", "etag", "last-modified", "lastmodified", "mtime", "created", "updated", "generation", "content-md5",
}  # fmt: skip
T = TypeVar("T")


def open_url(url: str) -> list[SourceFile]:
    """The files behind `url`: the one it names, or all below it, sorted by relative path.

    Any protocol of fsspec that is installed; over HTTP a URL is always one file. Nothing is read yet but names and
    sizes, and nothing is cached on a disk. Raises `SourceError` naming the URL without its user, password and query.
    """
    where = printable_url(url)
    scheme = url.partition("://")[0].lower()
    if scheme in _REFUSED_SCHEMES:
        raise UsageError(f"{where} is no source: {_REFUSED_SCHEMES[scheme]}")
    if "::" in url.partition("?")[0]:
        raise UsageError(f"expected a plain URL, got the chained one {where}: fetch or unpack it first")
    filesystem, path = _attempt(where, lambda: url_to_fs(url, **_options(scheme)))
    details = _attempt(where, lambda: _details(filesystem, path, scheme))
    if not details:
        raise SourceError(f"{where} holds no files: nothing to put")
    alone = len(details) == 1 and path in details
    return [
        _remote_file(filesystem, name, detail, _relative(name, path, alone, where), where, alone)
        for name, detail in sorted(details.items())
    ]


def _options(scheme: str) -> dict[str, Any]:
    """Storage options that bound every wait over HTTP; those of S3 are botocore's, a minute per read.

    `identity`: a size is of the bytes as they travel, so they must travel as they are.
    """
    if scheme not in _HTTP:
        return {}
    import aiohttp  # only who names such a URL pays for it

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S)
    return {"client_kwargs": {"timeout": timeout, "headers": {"Accept-Encoding": "identity"}}}


def _details(filesystem: Any, path: str, scheme: str) -> dict[str, dict[str, Any]]:
    """What the store says about every file, by its full name."""
    if scheme in _HTTP:  # a listing there would be links guessed from a page
        return {path: filesystem.info(path)}
    filesystem.invalidate_cache()
    detail = filesystem.info(path)
    if detail["type"] == "file":
        return {path: detail}
    return {name: found for name, found in filesystem.find(path, detail=True).items() if found["type"] == "file"}


def _relative(name: str, top: str, alone: bool, where: str) -> str:
    """The path that a remote file is kept under, refused when it would leave its folder."""
    if not alone:
        relative = name.removeprefix(top.rstrip("/")).lstrip("/")
    elif "://" in name:
        relative = unquote(urlsplit(name).path.rpartition("/")[2])
    else:
        relative = name.rpartition("/")[2]
    if not relative:
        raise SourceError(f"expected the URL of a file, got {where}, which ends without a name")
    if "\0" in relative or any(part in ("", ".", "..") for part in relative.split("/")):
        raise SourceError(f"{where} names a file {relative!r}: expected a relative path without empty, . or .. parts")
    return relative


def _remote_file(
    filesystem: Any, name: str, detail: Mapping[str, Any], relative: str, where: str, alone: bool
) -> SourceFile:
    label = where if alone else f"{where.rstrip('/')}/{relative}"
    if not isinstance(detail.get("size"), int):
        raise SourceError(f"{label}: its server does not say how long it is; download it and put the file")
    state = _state(detail)
    return SourceFile(
        path=relative,
        where=label,
        size_bytes=detail["size"],
        open=partial(_open, filesystem, name, detail["size"], label),
        check=partial(_check, filesystem, name, state, label),
    )


def _state(detail: Mapping[str, Any]) -> dict[str, str]:
    """What the store says of a file that differs when the file does."""
    return {
        key.lower(): str(value.timestamp() if isinstance(value, datetime) else value)
        for key, value in detail.items()
        if key.lower().replace("_", "-") in _STATE_KEYS
    }


def _open(filesystem: Any, name: str, size_bytes: int, where: str) -> BufferedReader:
    def ranged() -> Any:
        return filesystem.open(name, "rb", block_size=BLOCK_BYTES, cache_type="readahead", size=size_bytes)

    def streamed() -> Any:
        return filesystem.open(name, "rb", block_size=0)

    is_http = name.partition("://")[0].lower() in _HTTP
    return BufferedReader(RemoteStream(streamed if is_http else ranged, ranged, size_bytes, where), buffer_size=MIB)


def _check(filesystem: Any, name: str, state: dict[str, str], where: str) -> None:
    def ask() -> Any:
        filesystem.invalidate_cache()
        return filesystem.info(name)

    found = _state(_attempt(where, ask))
    both = sorted(state.keys() & found.keys())  # stores say less about a file alone than in a listing, or more
    if any(state[key] != found[key] for key in both):
        raise changed(where, str({key: state[key] for key in both}), str({key: found[key] for key in both}))


class RemoteStream(RawIOBase):
    """A stream of fsspec whose failures are `SourceError`s that name the URL, without credentials.

    It begins with `first`, which may only go forward (over HTTP one request for the whole file: not every server
    gives parts), and turns to `ranged` at the first jump.
    """

    def __init__(self, first: Callable[[], Any], ranged: Callable[[], Any], size_bytes: int, where: str) -> None:
        self._ranged, self._size_bytes, self._where = ranged, size_bytes, where
        self._can_jump = first is ranged
        self._position = 0
        self._stream = _attempt(where, first)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        target = offset + (0, self._position, self._size_bytes)[whence]
        if target != self._position and not self._can_jump:
            self._stream.close()
            self._stream = _attempt(self._where, self._ranged)
            self._can_jump = True
        if target != self._position:
            _attempt(self._where, lambda: self._stream.seek(target))
        self._position = target
        return target

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        wanted = min(len(view), max(0, self._size_bytes - self._position))
        data = _attempt(self._where, lambda: self._stream.read(wanted)) if wanted else b""
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()


def _attempt(where: str, action: Callable[[], T]) -> T:
    """`action`, its failures as `SourceError`s. The causes are cut off: their texts hold whole URLs."""
    try:
        return action()
    except _failures() as error:
        raise _source_error(where, error) from None


def _failures() -> tuple[type[Exception], ...]:
    """What the protocols in use raise; a library that was never imported raises nothing."""
    kinds: list[type[Exception]] = [OSError, ValueError, ImportError, RuntimeError, NotImplementedError]
    for module, names in (
        ("aiohttp", ("ClientError",)),
        ("botocore.exceptions", ("BotoCoreError", "ClientError")),
    ):
        found = sys.modules.get(module)
        kinds += [getattr(found, name) for name in names if found is not None]
    return tuple(kinds)


def _source_error(where: str, error: BaseException) -> SourceError:
    if isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        return _source_error(where, error.__cause__)  # fsspec calls every failure over HTTP a missing file
    status = getattr(error, "status", None)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return SourceError(f"there is nothing at {where}: check the URL")
    if isinstance(error, PermissionError) or status in (401, 403):
        return SourceError(f"no permission to read {where}: check the credentials that this protocol uses")
    if isinstance(error, TimeoutError):
        return SourceError(f"{where} did not answer in time: try again, or download it and put the file")
    if isinstance(error, ImportError):
        return SourceError(f"{where}: fsspec needs another package for this protocol: {error.name or error.msg}")
    if "rotocol not known" in str(error):
        return SourceError(f"{where}: fsspec knows no such protocol; it knows s3, http, https, file, gs and others")
    if "range requests" in str(error):
        return SourceError(f"{where}: its server gives no parts of a file, which this format needs; download it first")
    status_text = f" with status {status}" if status is not None else ""
    return SourceError(f"{where} cannot be read: {type(error).__name__}{status_text}")


def printable_url(url: str) -> str:
    """`url` without what may be secret: user, password, query and fragment."""
    scheme, _, rest = url.partition("://")
    rest = rest.partition("?")[0].partition("#")[0]
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
