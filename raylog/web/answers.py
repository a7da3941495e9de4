"""What the gateway answers: JSON, and each error as a status with the words that raylog has for it."""

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec
from aiohttp import web

from raylog.errors import (
    Cancelled,
    Conflict,
    DeadlineExceeded,
    NoSpace,
    NotFound,
    NotPermitted,
    PeerFault,
    RaylogError,
    Unavailable,
    Unsatisfiable,
    UsageError,
)

RETRY_AFTER_S = 2
_STATUS: Mapping[type[RaylogError], int] = {
    UsageError: 400,
    NotPermitted: 403,
    NotFound: 404,
    Conflict: 409,
    Unsatisfiable: 409,
    PeerFault: 502,
    Cancelled: 503,
    Unavailable: 503,
    DeadlineExceeded: 504,
    NoSpace: 507,
}


class Refused(UsageError):
    """A request that cannot be served as it is, with the status that HTTP has for that."""

    status: ClassVar[int]
    headers: Mapping[str, str] = {}


class Unauthorized(Refused):
    status = 401
    headers: Mapping[str, str] = {"WWW-Authenticate": 'Bearer realm="raylog"'}


class NotAcceptable(Refused):
    status = 406


class Stalled(Refused):
    status = 408


class TooLarge(Refused):
    status = 413


class NotAsItIs(Refused):
    status = 415


class OutsideFile(Refused):
    """A range that begins behind the end of its file."""

    status = 416


class Busy(Unavailable):
    """As many requests as the gateway serves at once are under way."""


def json_answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    body = msgspec.json.encode(value) + b"\n"
    return web.Response(body=body, status=status, content_type="application/json", headers=headers)


def error_answer(error: RaylogError) -> web.Response:
    """`{"error": class, "message": what was expected, what came and what to do, "is_retryable": bool}`."""
    status = status_of(error)
    headers = dict(error.headers) if isinstance(error, Refused) else {}
    if error.is_retryable:
        headers["Retry-After"] = str(RETRY_AFTER_S)
    described = {"error": type(error).__name__, "message": str(error), "is_retryable": error.is_retryable}
    return json_answer(described, status, headers)


def http_error_answer(error: web.HTTPException) -> web.Response:
    """What aiohttp refuses by itself, an unknown path or method, in the same form."""
    headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
    described = {"error": type(error).__name__, "message": f"{error.reason}: see 'raylog gateway --help'"}
    return json_answer({**described, "is_retryable": False}, error.status, headers)


def status_of(error: RaylogError) -> int:
    """The status for an error; 500 for damaged data and what has no other."""
    if isinstance(error, Refused):
        return error.status
    return next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), 500)
