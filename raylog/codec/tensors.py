"""Tensors in a shard: name, dtype, shape and place of each, and their bytes, little-endian and row-major.

Types that numpy does not have travel as bytes with their name: `bfloat16` in uint16, both kinds of float8 in uint8.
"""

import math
from collections.abc import Iterable, Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from raylog.codec.open import ShardOpener
from raylog.codec.seal import ShardSealer
from raylog.codec.stream import ContentStream
from raylog.errors import UsageError
from raylog.spec import SHARD_CONTENT_BYTES_MAX

ALIGNMENT_BYTES = 64
DIMENSIONS_MAX = 64
NAME_CHARACTERS_MAX = 1024
PAYLOADS = {"bfloat16": "uint16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}
"""The numpy dtype in which a type that numpy lacks is carried."""
_NUMPY_NAMES = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "float32", "float64", "complex64", "complex128",
)  # fmt: skip
_STORED = {name: np.dtype(PAYLOADS.get(name, name)).newbyteorder("<") for name in (*_NUMPY_NAMES, *PAYLOADS)}

Array = NDArray[np.generic]


class TensorEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One tensor: `length` bytes at `offset` of the stream. `dtype` is numpy's name or one of `PAYLOADS`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int


class _Preamble(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tensors: list[TensorEntry]


def plan_tensors(tensors: Mapping[str, Array], dtypes: Mapping[str, str] | None = None) -> list[TensorEntry]:
    """Places tensors in one shard, in the mapping's order. `dtypes` names the type of arrays that carry a payload,
    such as `{"w": "bfloat16"}` for a uint16 array. Raises `UsageError` for types that have no stored form and for
    more than 4 GiB."""
    entries, offset = [], 0
    for name, array in tensors.items():
        dtype = (dtypes or {}).get(name, array.dtype.name)
        if dtype not in _STORED or _STORED[dtype].itemsize != array.dtype.itemsize or array.dtype.hasobject:
            raise UsageError(
                f"expected tensor {name!r} of type {', '.join(_STORED)}, got {dtype} in {array.dtype}: convert it"
            )
        entries.append(TensorEntry(name=name, dtype=dtype, shape=array.shape, offset=offset, length=array.nbytes))
        offset = _aligned(offset + array.nbytes)
    _check_entries(entries)
    return entries


def group_tensors(sizes: Mapping[str, int], shard_bytes: int) -> list[list[str]]:
    """Names by shard, in order, at most `shard_bytes` in each; a larger tensor has a shard of its own. `sizes` are the
    tensors' bytes by name."""
    groups: list[list[str]] = []
    room = 0
    for name, size_bytes in sizes.items():
        if not groups or size_bytes > room:
            groups.append([])
            room = shard_bytes
        groups[-1].append(name)
        room -= _aligned(size_bytes)
    return groups


def tensors_preamble(entries: list[TensorEntry]) -> bytes:
    """The preamble of a shard that holds these tensors."""
    return msgspec.msgpack.encode(_Preamble(entries))


def add_tensors(sealer: ShardSealer, entries: Iterable[TensorEntry], tensors: Mapping[str, Array]) -> None:
    """Adds the tensors of a plan; contiguous little-endian ones are sealed from where they lie, without a copy."""
    for entry in entries:
        array = np.ascontiguousarray(tensors[entry.name])
        if array.dtype.byteorder == ">":
            array = array.byteswap()
        sealer.add_bytes(bytes(entry.offset - sealer.content_bytes))
        sealer.add_bytes(_bytes_of(array))


def read_entries(opener: ShardOpener) -> list[TensorEntry]:
    """The tensors of a shard, checked: known types, lengths that fit shape and stream. Raises `DamagedData`."""
    try:
        entries = msgspec.msgpack.decode(opener.preamble(), type=_Preamble).tensors
        _check_entries(entries)
    except (msgspec.DecodeError, UsageError) as error:
        raise opener.damaged(f"its list of tensors cannot be used: {error}") from None
    end = max((entry.offset + entry.length for entry in entries), default=0)
    if end != opener.frame.content_bytes:
        raise opener.damaged(f"its tensors end at {end}, its content at {opener.frame.content_bytes}")
    return entries


def open_tensors(
    opener: ShardOpener, names: Iterable[str] | None = None, into: Mapping[str, Array] | None = None
) -> dict[str, Array]:
    """The named tensors (all of them for None) by name; only the chunks they lie in are opened.

    Types of `PAYLOADS` come as their numpy dtype; `read_entries` tells the type. A tensor named in `into` is read
    into that array: contiguous, little-endian, of the stored shape and item size. Raises `UsageError` for unknown
    names and arrays that do not fit, `DamagedData` for damage; arrays of `into` are then partly filled.
    """
    by_name = {entry.name: entry for entry in read_entries(opener)}
    wanted = list(by_name) if names is None else list(names)
    unknown = [name for name in wanted if name not in by_name]
    if unknown:
        raise UsageError(f"expected tensors among {', '.join(list(by_name)[:20])}, got {', '.join(unknown[:20])}")
    arrays = {name: _target(by_name[name], (into or {}).get(name)) for name in wanted}
    stream = ContentStream(opener)
    for name in sorted(set(wanted), key=lambda name: by_name[name].offset):
        stream.read_into(by_name[name].offset, _bytes_of(arrays[name]))
    return arrays


def _target(entry: TensorEntry, given: Array | None) -> Array:
    stored = _STORED[entry.dtype]
    if given is None:
        return np.empty(entry.shape, stored)
    fits = given.shape == entry.shape and given.dtype.itemsize == stored.itemsize and not given.dtype.hasobject
    if not fits or not given.flags.c_contiguous or not given.flags.writeable or given.dtype.byteorder == ">":
        raise UsageError(
            f"expected a contiguous, writable, little-endian array of shape {entry.shape} for tensor {entry.name!r} "
            f"({entry.dtype}), got shape {given.shape} of {given.dtype}"
        )
    return given


def _check_entries(entries: Iterable[TensorEntry]) -> None:
    names, end = set(), 0
    for entry in entries:
        if entry.name in names or len(entry.name) > NAME_CHARACTERS_MAX:
            raise UsageError(f"expected every tensor once, named by at most 1024 characters, got {entry.name[:80]!r}")
        names.add(entry.name)
        if entry.dtype not in _STORED or len(entry.shape) > DIMENSIONS_MAX or any(size < 0 for size in entry.shape):
            raise UsageError(f"expected a known type and shape for tensor {entry.name!r}, got {entry}")
        if entry.length != math.prod(entry.shape) * _STORED[entry.dtype].itemsize or entry.offset != _aligned(end):
            raise UsageError(f"expected tensor {entry.name!r} at {_aligned(end)} with its shape's length, got {entry}")
        end = entry.offset + entry.length
        if end > SHARD_CONTENT_BYTES_MAX:
            raise UsageError(
                f"expected at most {SHARD_CONTENT_BYTES_MAX} bytes of tensors in a shard, got {end} with "
                f"{entry.name!r}: spread them over several shards"
            )


def _bytes_of(array: Array) -> memoryview:
    """The memory of a contiguous array, uncopied."""
    return array.reshape(-1).view(np.uint8).data


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
