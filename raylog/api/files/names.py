"""Paths of files and the names of artifacts, each from the other.

A part of a path that may stand in an artifact's name stands there as it is. Any other (`.metadata`, `__0_0.distcp`, `my
file.txt`) is written as `0+`, then its letters, digits and `._=-`, and `+` with two hex digits for every other byte of
its UTF-8: `0+.metadata`, `0+__0_0.distcp`, `0+my+20file.txt`. So is a part that begins with `0+` itself.
"""

import re
from dataclasses import dataclass

from raylog.errors import UsageError
from raylog.spec import NAME_CHARACTERS_MAX, Reference, is_name_part

SCHEME = "raylog"
_MARK = "0+"
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._=-")
_ESCAPED = re.compile(rb"\+([0-9a-f]{2})")
_VERSIONED = re.compile(r"(.+)@([1-9][0-9]{0,11})")


@dataclass(frozen=True, slots=True)
class FilePath:
    """A parsed path: the parts up to where it says `@3`, if it does, and the parts after that."""

    parts: tuple[str, ...]
    number: int | None = None
    inner: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of the artifact that `parts` are the path of. Raises `UsageError` for a path too long for a name."""
        return name_of(self.parts)

    @property
    def reference(self) -> Reference:
        return Reference(self.name, self.number)

    def __str__(self) -> str:
        top = "/".join(self.parts) + ("" if self.number is None else f"@{self.number}")
        return "/".join((top, *self.inner))


def strip(path: str) -> str:
    """A path without `raylog://`, slashes at its ends and doubled ones. Raises `UsageError` for `.`, `..` and NUL."""
    for scheme in (f"{SCHEME}://", f"{SCHEME}::"):
        path = path.removeprefix(scheme)
    parts = [part for part in path.split("/") if part]
    if any(part in (".", "..") or "\0" in part for part in parts):
        raise UsageError(f"expected a path without '.', '..' and NUL, got {path!r}")
    return "/".join(parts)


def parse_path(path: str) -> FilePath:
    """The parts of a path, and the version where it names one. Raises as `strip`."""
    parts = tuple(part for part in strip(path).split("/") if part)
    for position, part in enumerate(parts):
        versioned = _VERSIONED.fullmatch(part)
        if versioned:
            return FilePath((*parts[:position], versioned[1]), int(versioned[2]), parts[position + 1 :])
    return FilePath(parts)


def name_of(parts: tuple[str, ...]) -> str:
    """The name of the artifact whose path has these parts. Raises `UsageError` where it would be too long."""
    name = "/".join(_encode(part) for part in parts)
    if len(name) > NAME_CHARACTERS_MAX:
        raise UsageError(
            f"expected a path of at most {NAME_CHARACTERS_MAX} characters, got {len(name)} (each byte beyond letters, "
            f"digits and ._+=- counts as three): {'/'.join(parts)!r}; shorten it"
        )
    return name


def parts_of(name: str) -> tuple[str, ...] | None:
    """The parts of an artifact's path; None for the few names with `0+` in them that belong to no path."""
    parts = tuple(_decode(part) for part in name.split("/"))
    found = tuple(part for part in parts if part is not None)
    return found if len(found) == len(parts) and _is_path_of(found) else None


def _is_path_of(parts: tuple[str, ...]) -> bool:
    """Whether the path that these parts make has them again: not `a@3`, which names a version, `..` or `b/c`."""
    try:
        return parse_path("/".join(parts)) == FilePath(parts)
    except UsageError:
        return False


def _encode(part: str) -> str:
    if is_name_part(part) and not part.startswith(_MARK):
        return part
    try:
        return _MARK + "".join(one if one in _PLAIN else _escape(one) for one in part)
    except UnicodeEncodeError as error:
        raise UsageError(f"expected a path in Unicode, got {part!r}") from error


def _escape(character: str) -> str:
    return "".join(f"+{byte:02x}" for byte in character.encode())


def _decode(part: str) -> str | None:
    if not part.startswith(_MARK):
        return part
    try:
        plain = _ESCAPED.sub(lambda found: bytes.fromhex(found[1].decode()), part.removeprefix(_MARK).encode()).decode()
    except UnicodeDecodeError:
        return None
    return plain if _encode(plain) == part else None
