"""What a request asks for, decided from its words alone: which artifact or file, which part, in what form."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from raylog.codec.files import check_path
from raylog.errors import UsageError
from raylog.spec import Reference, parse_reference
from raylog.web.answers import NotAcceptable, OutsideFile

_RANGE = re.compile(r"bytes=\s*([0-9]{0,18})\s*-\s*([0-9]{0,18})\s*", re.IGNORECASE)
FILES = "files"


@dataclass(frozen=True, slots=True)
class Target:
    """An artifact or version, or below `NAME@N/files` the list of its files (path "") or one of them."""

    reference: Reference
    path: str | None = None


def parse_target(text: str) -> Target:
    """`NAME`, `NAME@3`, `NAME@3/files` or `NAME@3/files/PATH`. Raises `UsageError`; no path leads out of a version."""
    name, at, rest = text.partition("@")
    number, slash, below = rest.partition("/")
    reference = parse_reference(f"{name}{at}{number}")
    if not slash:
        return Target(reference)
    folder, _, path = below.partition("/")
    if folder != FILES:
        raise UsageError(f"expected NAME@NUMBER/{FILES}/PATH, got {text[:200]!r}")
    return Target(reference, check_path(path) if path else "")


def is_unchanged(if_none_match: str, etag: str) -> bool:
    """Whether the client has this state already (RFC 9110, 13.1.2: compared without regard to weakness)."""
    known = [one.strip().removeprefix("W/") for one in if_none_match.split(",")]
    return etag in known or "*" in known


def wanted_range(header: str, if_range: str, etag: str, size_bytes: int) -> tuple[int, int] | None:
    """First byte and the one after the last that are asked for; None for the whole file.

    As RFC 9110 has it, what is no single range of bytes, or holds for another state of the file, is as if it were not
    there. Raises `OutsideFile`.
    """
    found = _RANGE.fullmatch(header.strip())
    if not found or (if_range and if_range.strip() != etag) or not (found[1] or found[2]):
        return None
    if found[1]:
        start, stop = int(found[1]), int(found[2]) + 1 if found[2] else size_bytes
        if found[2] and stop <= start:
            return None
    else:
        start, stop = max(size_bytes - int(found[2]), 0), size_bytes
    stop = min(stop, size_bytes)
    if start >= stop:
        message = f"expected a range inside the {size_bytes} bytes of the file, got {header[:80]!r}"
        raise OutsideFile(message, headers={"Content-Range": f"bytes */{size_bytes}"})
    return start, stop


def takes_gzip(accept_encoding: str) -> bool:
    """Whether gzip, named or by `*`, has a weight above 0."""
    weights = _weights(accept_encoding)
    return weights.get("gzip", weights.get("*", 0.0)) > 0


def chosen_type(accept: str, offered: Sequence[str]) -> str:
    """The one of the media types `offered` (the default first) that the client likes best. Raises `NotAcceptable`."""
    weights = _weights(accept or "*/*")

    def weight(kind: str) -> float:
        return weights.get(kind, weights.get(kind.partition("/")[0] + "/*", weights.get("*/*", 0.0)))

    best = max(offered, key=weight)
    if weight(best) <= 0:
        raise NotAcceptable(f"expected Accept to name one of {', '.join(offered)}, got {accept[:200]!r}")
    return best


def _weights(header: str) -> dict[str, float]:
    """`"gzip;q=0.5, *"` -> `{"gzip": 0.5, "*": 1.0}`; a weight that is no number counts as 0."""
    found = {}
    for item in header.split(","):
        word, *parameters = [part.strip().lower() for part in item.split(";")]
        given = next((one.removeprefix("q=") for one in parameters if one.startswith("q=")), "1")
        found[word] = float(given) if re.fullmatch(r"[01](\.[0-9]{0,3})?", given) else 0.0
    return found
