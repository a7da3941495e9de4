"""A YAML or JSON document as plain values, strictly: no doubled key, no NaN, bytes as numbers. Errors name file and
path."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import msgspec
import yaml

from raylog.errors import UsageError
from raylog.units import MIB, parse_bytes

FILE_BYTES_MAX = 64 * MIB
DEPTH_MAX = 16
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]")
_AT = re.compile(r" - at `(?:key` in `)?\$([^`]*)`$")

Struct = TypeVar("Struct")


def read_document(path: Path) -> Any:
    """The plain values of a file: JSON where its name ends so, YAML else. Raises `UsageError` naming file and line."""
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise UsageError(
                f"{path}: expected a placement file of at most {FILE_BYTES_MAX} bytes, got {path.stat().st_size}"
            )
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() == ".json":
            return json.loads(text, object_pairs_hook=_no_doubles)
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - _Loader is a SafeLoader
    except OSError as error:
        raise UsageError(f"{path}: expected a readable placement file (YAML or JSON): {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: expected text in UTF-8: {error.reason} at byte {error.start}") from error
    except (yaml.YAMLError, json.JSONDecodeError, _Doubled, RecursionError) as error:
        raise UsageError(f"{path}: expected YAML or JSON: {' '.join(str(error).split())}") from error
    except ValueError as error:  # a date of day 40, an integer of a million digits
        raise UsageError(f"{path}: expected plain values: {error}") from error


def convert(values: Any, into: type[Struct], where: str) -> Struct:
    """`values` as a msgspec struct, strictly typed, with texts such as "64GiB" in fields of bytes made numbers.

    Raises `UsageError` that names `where` (the file), the path inside it, what was expected and what came.
    """
    plain = _plain(values, "", where, is_bytes=False)
    try:
        return msgspec.convert(plain, into)
    except msgspec.ValidationError as error:
        path, problem = _place_of(error)
        path, value = _name_key(plain, path, into)
        got = "" if ", got " in problem else f", got {_shown(value)}"
        refuse(where, path, problem + got)


def refuse(where: str, path: str, problem: str) -> NoReturn:
    """Raises `UsageError` for the value at `path`."""
    raise UsageError(f"{where}: {path.lstrip('.') or 'top level'}: {problem}")


class _Doubled(Exception):
    """A mapping names one key twice."""


class _Loader(yaml.SafeLoader):
    """YAML's safe subset without doubled keys (plain YAML keeps the last one in silence)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As the base class, once every key is known to stand there once."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise _Doubled(f"key {key.value!r} stands twice in one mapping, line {key.start_mark.line + 1}")
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        doubled = next(name for name in names if names.count(name) > 1)
        raise _Doubled(f"key {doubled!r} stands twice in one object")
    return values


def _plain(value: Any, path: str, where: str, *, is_bytes: bool) -> Any:
    """The same values; numbers checked to be finite, texts of bytes read. `is_bytes`: a field that counts bytes."""
    if path.count(".") + path.count("[") > DEPTH_MAX:
        refuse(where, path, f"expected at most {DEPTH_MAX} levels")
    if isinstance(value, Mapping):
        return {
            key: _plain(
                item,
                f"{path}.{key}",
                where,
                is_bytes=(isinstance(key, str) and key.endswith("_bytes")) or path.endswith(".reads"),
            )
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{path}[{index}]", where, is_bytes=False) for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        refuse(where, path, f"expected a finite number, got {value}")
    if is_bytes and isinstance(value, str):
        try:
            return parse_bytes(value)
        except UsageError as error:
            refuse(where, path, str(error))
    return value


def _place_of(error: msgspec.ValidationError) -> tuple[str, str]:
    """Path and problem of msgspec's message, in the words that a user of YAML knows."""
    message = str(error)
    at = _AT.search(message)
    problem = (message[: at.start()] if at else message).replace("`", "")
    problem = problem.replace("array", "a list").replace("object", "a mapping").replace("float", "a number")
    if problem.startswith("Object contains unknown field "):
        problem = f"expected only known fields, got {problem.removeprefix('Object contains unknown field ')!r}"
    elif problem.startswith("Object missing required field "):
        problem = f"expected {problem.removeprefix('Object missing required field ')!r}, got none"
    return (at[1] if at else ""), problem[:1].lower() + problem[1:]


def _name_key(plain: Any, path: str, into: type[Any]) -> tuple[str, Any]:
    """msgspec says `[...]` for "some value of this mapping": the path with the key in it, and the value refused."""
    before, unnamed, after = path.partition("[...]")
    if not unnamed:
        return path, _at(plain, path)
    mapping = _at(plain, before)
    for key, value in dict(mapping).items():
        mapping.clear()
        mapping[key] = value
        try:
            msgspec.convert(plain, into)
        except msgspec.ValidationError as error:
            if _place_of(error)[0] == path:
                return f"{before}.{key}{after}", _at(value, after)
    raise AssertionError(f"msgspec refused a value at {path} of a mapping, but none by itself")


def _at(values: Any, path: str) -> Any:
    for name, index in _STEP.findall(path):
        values = values[name] if name else values[int(index)]
    return values


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
