"""Who may use the gateway: whoever holds its token, a file that only its owner may read."""

import hmac
import re
import secrets
from contextlib import suppress
from pathlib import Path

from raylog.errors import Conflict, NotFound, NotPermitted, UsageError
from raylog.security.private_files import read_private, write_private

TOKEN_BYTES = 32
_FILE_BYTES_MAX = 4096
_LINE = re.compile(r"Authorization: Bearer ([A-Za-z0-9_-]{43,1024})\n?")


def open_token(path: Path) -> str:
    """The token in `path`, made there at the first start: 32 random bytes in the header line that sends them, which
    `curl -H @PATH` reads, so that the token is in no argument list. Raises `NotPermitted` where others may read the
    file, `NotFound`, `UsageError`."""
    if not path.parent.is_dir():
        raise NotFound(f"{path.parent} is no folder: make it, or name another place for the token")
    if not path.exists():
        _make_token(path)
    found = _LINE.fullmatch(read_private(path, _FILE_BYTES_MAX).decode("latin-1"))
    if not found:
        raise UsageError(
            f"{path}: expected the one line 'Authorization: Bearer TOKEN' with a token of at least 43 letters, digits, "
            "- and _: remove the file, and the next start makes one"
        )
    return found[1]


def _make_token(path: Path) -> None:
    line = f"Authorization: Bearer {secrets.token_urlsafe(TOKEN_BYTES)}\n"
    try:
        with suppress(Conflict):  # another gateway that starts beside this one was first
            write_private(path, line.encode(), replace=False)
    except OSError as error:
        raise NotPermitted(f"{path}: the token cannot be written there: {error.strerror}") from error


def is_permitted(authorization: str, token: str) -> bool:
    """Whether a request's Authorization header has the token; takes as long for a wrong one as for the right one."""
    scheme, _, given = authorization.partition(" ")
    matches = hmac.compare_digest(given.strip().encode("utf-8", "replace"), token.encode())
    return matches and scheme.lower() == "bearer"
