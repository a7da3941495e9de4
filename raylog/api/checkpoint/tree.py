"""A nested state taken apart into tensors by name and a document that says how they go together again. Pure.

Names are JSON pointers (RFC 6901): `state["model"]["w"]` is `/model/w`. The document is msgpack of the nodes below: no
pickle, so nothing is run that a checkpoint says.
"""

import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from raylog.errors import DamagedData, UsageError

DEPTH_MAX = 64
DOCUMENT = "document"
"""The name under which the document is stored; no pointer, since it does not begin with a slash."""
_INT64_MIN, _INT64_MAX = -(1 << 63), (1 << 63) - 1


def prefix_of(rank: int) -> str:
    """What the names of a rank's own begin with: nothing for the first, so that they are the state's keys."""
    return f"rank{rank}:" if rank else ""


class _Node(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="is"):
    pass


class _Value(_Node, frozen=True, tag="value"):
    value: bool | int | float | str | None


class _Bytes(_Node, frozen=True, tag="bytes"):
    value: bytes


class _Large(_Node, frozen=True, tag="int"):
    """A whole number of more than 64 bits, such as a random generator's state, in decimal."""

    digits: str


class _List(_Node, frozen=True, tag="list"):
    items: list["Node"]


class _Tuple(_Node, frozen=True, tag="tuple"):
    items: list["Node"]


class _Map(_Node, frozen=True, tag="map"):
    items: list[tuple[str | int | float | bool | None, "Node"]]


class _Array(_Node, frozen=True, tag="array"):
    """A tensor under its own name: torch's, or numpy's. One without elements is not stored, and has its type and shape
    here."""

    torch: bool
    name: str
    dtype: str = ""
    shape: tuple[int, ...] = ()


Give = Callable[[str, bool, str], Any]
"""Of a name, whether torch's, and where in the state: the array."""
Node = _Value | _Bytes | _Large | _List | _Tuple | _Map | _Array


@dataclass(slots=True)
class Taken:
    """A state taken apart: what `put_together` needs, and the arrays and tensors by name."""

    document: bytes = b""
    arrays: dict[str, Any] = field(default_factory=dict)
    _names: dict[Hashable, str] = field(default_factory=dict)  # of the tensors taken, by where they lie

    def add(self, name: str, value: Any) -> str:
        """Takes an array out; the name that it has, another's if that is the same memory (tied weights)."""
        place = _place(value)
        known = self._names.setdefault(place, name) if place else name
        if known == name and name in self.arrays:
            raise UsageError(f"two keys of the state are both called {name}: rename one, such as 1 beside '1'")
        self.arrays.setdefault(known, value)
        return known


def take_apart(state: Any, prefix: str = "") -> Taken:
    """Names begin with `prefix`. Raises `UsageError` naming the key of what is neither tensor, array, number, text,
    bytes, None, nor a list, tuple or mapping of such."""
    taken = Taken()
    root = _node(state, prefix, 0, taken)
    try:
        taken.document = msgspec.msgpack.encode(root)
    except (UnicodeEncodeError, OverflowError) as error:
        raise UsageError(f"expected text in Unicode and keys of at most 64 bits in the state: {error}") from None
    return taken


def put_together(document: bytes, array: Callable[[str, bool], Any]) -> Any:
    """The state again; `array(name, is_torch)` gives each that was taken out. Raises `DamagedData`."""
    return put_at(document, lambda name, is_torch, _: array(name, is_torch), "")


def put_at(document: bytes, array: Give, key: str) -> Any:
    """As `put_together`, of the part of a state at the JSON pointer `key`; `array` is told where each belongs, too."""
    return _build(_decode(document), array, key)


def names_in(document: bytes) -> list[str]:
    """Of all arrays that are stored. Raises `DamagedData`."""
    names: list[str] = []

    def note(name: str, is_torch: bool) -> None:
        names.append(name)

    put_together(document, note)
    return names


def subtree(document: bytes, key: str) -> bytes:
    """The document of what lies at the JSON pointer `key`; "" is all. Raises `UsageError` saying what there is."""
    node = _decode(document)
    for depth, part in enumerate(key.split("/")[1:], 1):
        below = _below(node)
        if part not in below:
            where = "/".join(key.split("/")[:depth]) or "the state"
            raise UsageError(f"there is no {key!r}: {where} has {', '.join(list(below)[:12]) or 'nothing below it'}")
        node = below[part]
    if key and not key.startswith("/"):
        raise UsageError(f"expected a key such as /model/weight, got {key!r}")
    return msgspec.msgpack.encode(node)


def _below(node: Node) -> dict[str, Node]:
    """By the last part of their pointers."""
    match node:
        case _Map(items):
            return {_join("", key)[1:]: one for key, one in items}
        case _List(items) | _Tuple(items):
            return {str(number): one for number, one in enumerate(items)}
    return {}


def is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _is_spread(value: Any) -> bool:
    distributed = sys.modules.get("torch.distributed.tensor")
    return distributed is not None and isinstance(value, distributed.DTensor)


def _decode(document: bytes) -> Node:
    try:
        node: Node = msgspec.msgpack.decode(document, type=Node)
    except (msgspec.DecodeError, RecursionError) as error:
        raise DamagedData(f"the checkpoint's document cannot be used: {error}") from None
    return node


def _node(value: Any, pointer: str, depth: int, taken: Taken) -> Node:
    if depth > DEPTH_MAX:
        raise UsageError(
            f"expected a state of at most {DEPTH_MAX} levels, got more at {pointer[:200]!r}: does it hold itself?"
        )
    if isinstance(value, Mapping):
        return _Map(
            [(_key(key, pointer), _node(one, _join(pointer, key), depth + 1, taken)) for key, one in value.items()]
        )
    if isinstance(value, (list, tuple)):
        items = [_node(one, _join(pointer, number), depth + 1, taken) for number, one in enumerate(value)]
        return _Tuple(items) if isinstance(value, tuple) else _List(items)
    if isinstance(value, np.generic):
        value = value.item()
    if _is_spread(value):
        raise UsageError(
            f"{pointer or '/'} is a DTensor, spread over ranks: save such states by dcp.save(state, "
            "storage_writer=raylog.RaylogStorageWriter(name)), or its to_local()"
        )
    if is_tensor(value) or isinstance(value, np.ndarray):
        return _array(value, pointer or "/", taken)
    plain = _plain(value)
    if isinstance(plain, int) and not _INT64_MIN <= plain <= _INT64_MAX:
        return _Large(str(plain))
    if isinstance(plain, bytes):
        return _Bytes(plain)
    if value is None or plain is not None:
        return _Value(plain)
    raise UsageError(
        f"expected tensors, arrays, numbers, text, bytes or None, and lists, tuples and mappings of them, got "
        f"{type(value).__name__} at {pointer or '/'}: leave it out, or save what it is made of"
    )


def _plain(value: Any) -> bool | int | float | str | bytes | None:
    """What a value is without the class that it may have of its own, such as an enumeration's; None if it is no
    such."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, str):
        return str.__str__(value)
    return bytes(value) if isinstance(value, bytes) else None


def _array(value: Any, name: str, taken: Taken) -> _Array:
    torch = is_tensor(value)
    if not (value.numel() if torch else value.size):
        dtype = str(value.dtype).removeprefix("torch.") if torch else value.dtype.name
        return _Array(torch, name, dtype, tuple(value.shape))
    return _Array(torch, taken.add(name, value))


def _place(value: Any) -> Hashable:
    """What two tensors have in common that are one and the same memory; nothing for what has no address."""
    if not is_tensor(value) or value.is_meta or value.layout != sys.modules["torch"].strided or not value.data_ptr():
        return None
    seen_as = value.is_conj(), value.is_neg()
    return value.device, value.data_ptr(), tuple(value.shape), value.stride(), value.dtype, seen_as


def _key(key: Any, pointer: str) -> str | int | float | bool | None:
    plain = _plain(key)
    if isinstance(plain, bytes) or (plain is None and key is not None):
        raise UsageError(f"expected text, numbers or None as keys, got {key!r} at {pointer or '/'}")
    return plain


def _join(pointer: str, key: Any) -> str:
    return f"{pointer}/{str(key).replace('~', '~0').replace('/', '~1')}"


def _build(node: Node, array: Give, pointer: str) -> Any:
    match node:
        case _Value(value) | _Bytes(value):
            return value
        case _Large(digits):
            return int(digits)
        case _List(items):
            return [_build(one, array, _join(pointer, number)) for number, one in enumerate(items)]
        case _Tuple(items):
            return tuple(_build(one, array, _join(pointer, number)) for number, one in enumerate(items))
        case _Map(items):
            return {key: _build(one, array, _join(pointer, key)) for key, one in items}
        case _Array(torch, name, dtype, shape):
            return _empty(torch, dtype, shape) if dtype else array(name, torch, pointer or "/")


def _empty(torch: bool, dtype: str, shape: Sequence[int]) -> Any:
    if not torch:
        return np.empty(shape, dtype)
    import torch as library

    found = getattr(library, dtype, None)
    if not isinstance(found, library.dtype):
        raise DamagedData(f"the checkpoint's document names a tensor type {dtype!r} that torch does not have")
    return library.empty(tuple(shape), dtype=found)
