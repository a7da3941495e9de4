"""Tensors in shards: name, dtype, shape and place of each, and their bytes, little-endian and row-major.

Types that numpy does not have travel as bytes with their name: `bfloat16` in uint16, both kinds of float8 in uint8.
A tensor may lie in parts, in one shard or several (FORMAT.md, "tensors"); `assemble.py` reads them.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from raylog.codec.open import ShardOpener
from raylog.codec.seal import ShardSealer
from raylog.errors import UsageError
from raylog.spec import SHARD_CONTENT_BYTES_MAX
from raylog.units import TIB

ALIGNMENT_BYTES = 64
DIMENSIONS_MAX = 64
NAME_CHARACTERS_MAX = 1024
TENSOR_BYTES_MAX = 16 * TIB
TAG_BYTES = 32
PAYLOADS = {"bfloat16": "uint16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}
"""The numpy dtype in which a type that numpy lacks is carried."""
_NUMPY_NAMES = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "float32", "float64", "complex64", "complex128",
)  # fmt: skip
STORED = {name: np.dtype(PAYLOADS.get(name, name)).newbyteorder("<") for name in (*_NUMPY_NAMES, *PAYLOADS)}
"""By name of a type: the numpy dtype of its bytes in a shard."""

Array = NDArray[np.generic]


class TensorSpec(NamedTuple):
    """A tensor to be stored. `dtype` is numpy's name or one of `PAYLOADS`."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class TensorEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A tensor, or a part of one, in a shard: `length` bytes at `offset` of the stream. `dtype` is numpy's name or one
    of `PAYLOADS`, `shape` the whole tensor's. Of a part, `first_byte` is its place among the tensor's bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int
    first_byte: int | None = None

    @property
    def begin(self) -> int:
        """The first of the tensor's bytes that lies here."""
        return self.first_byte or 0

    @property
    def end(self) -> int:
        """Where the tensor's bytes that lie here end."""
        return self.begin + self.length

    @property
    def tensor_bytes(self) -> int:
        """Length of the whole tensor."""
        return math.prod(self.shape) * self.item_bytes

    @property
    def item_bytes(self) -> int:
        return STORED[self.dtype].itemsize


class _Preamble(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    tensors: list[TensorEntry]
    tags: bytes = b""


def plan_tensors(specs: Iterable[TensorSpec], shard_bytes: int = SHARD_CONTENT_BYTES_MAX) -> list[list[TensorEntry]]:
    """Places tensors in shards of at most `shard_bytes`, in order. A tensor larger than that begins a shard and is cut
    into parts; what follows it may share the shard of the last part. Raises `UsageError` for types that have no stored
    form and for shapes, names and doubles that no shard may hold."""
    shards: list[list[TensorEntry]] = []
    names: set[str] = set()
    offset = 0
    for spec in specs:
        check_spec(spec)
        if spec.name in names:
            raise UsageError(f"expected every tensor once, got {spec.name[:80]!r} twice")
        names.add(spec.name)
        size_bytes = math.prod(spec.shape) * STORED[spec.dtype].itemsize
        for begin, length in _cut(size_bytes, shard_bytes):
            if not shards or begin or offset + length > shard_bytes:
                shards.append([])
                offset = 0
            first_byte = None if length == size_bytes else begin
            shards[-1].append(TensorEntry(**spec._asdict(), offset=offset, length=length, first_byte=first_byte))
            offset = aligned(offset + length)
    return shards


def _cut(size_bytes: int, shard_bytes: int) -> Iterator[tuple[int, int]]:
    """Begin and length of a tensor's parts; one where it fits. Parts begin at whole items of any type."""
    if size_bytes <= shard_bytes:
        yield 0, size_bytes
        return
    part_bytes = max(shard_bytes // ALIGNMENT_BYTES, 1) * ALIGNMENT_BYTES
    for begin in range(0, size_bytes, part_bytes):
        yield begin, min(part_bytes, size_bytes - begin)


def tensors_preamble(entries: Sequence[TensorEntry], tags: Sequence[bytes] = ()) -> bytes:
    """The preamble of a shard that holds these tensors; with the tag of every chunk that they lie in, if it is to be
    found again by them (`units.py`)."""
    return msgspec.msgpack.encode(_Preamble(list(entries), b"".join(tags)))


def add_tensors(sealer: ShardSealer, entries: Iterable[TensorEntry], arrays: Mapping[str, Array]) -> None:
    """Adds the entries of a planned shard; `arrays` hold their elements by name, of a part the part's alone.
    Contiguous little-endian ones are sealed from where they lie, without a copy. Raises `UsageError` for an array
    that is not what was planned."""
    for entry in entries:
        array = np.ascontiguousarray(arrays[entry.name])
        if (array.nbytes, array.dtype.itemsize) != (entry.length, entry.item_bytes) or array.dtype.hasobject:
            raise UsageError(
                f"expected {entry.length} bytes of {entry.dtype} for tensor {entry.name!r}, got {array.nbytes} of "
                f"{array.dtype}: convert it"
            )
        if array.dtype.byteorder == ">":
            array = array.byteswap()
        sealer.add_bytes(bytes(entry.offset - sealer.content_bytes))
        sealer.add_bytes(bytes_of(array), item_bytes=entry.item_bytes)


def read_entries(opener: ShardOpener) -> list[TensorEntry]:
    """The tensors of a shard, checked: known types, lengths that fit shape and stream. Raises `DamagedData`."""
    return read_tagged(opener)[0]


def read_tagged(opener: ShardOpener) -> tuple[list[TensorEntry], list[bytes]]:
    """The tensors of a shard as `read_entries`, and the tag of every chunk that they lie in, if they have any."""
    chunks = len(opener.frame.chunks) - opener.frame.units[0].chunks
    try:
        preamble = msgspec.msgpack.decode(opener.preamble(), type=_Preamble)
        entries, tags = preamble.tensors, preamble.tags
        _check_entries(entries)
        if tags and len(tags) != TAG_BYTES * chunks:
            raise UsageError(f"expected tags of {chunks} chunks, got {len(tags)} bytes")
    except (msgspec.DecodeError, UsageError) as error:
        raise opener.damaged(f"its list of tensors cannot be used: {error}") from None
    end = max((entry.offset + entry.length for entry in entries), default=0)
    if end != opener.frame.content_bytes:
        raise opener.damaged(f"its tensors end at {end}, its content at {opener.frame.content_bytes}")
    return entries, [tags[first : first + TAG_BYTES] for first in range(0, len(tags), TAG_BYTES)]


def bytes_of(array: Array) -> memoryview:
    """The memory of a contiguous array, uncopied."""
    return array.reshape(-1).view(np.uint8).data


def _check_entries(entries: Sequence[TensorEntry]) -> None:
    places, end = set(), 0
    for entry in entries:
        check_spec(TensorSpec(entry.name, entry.dtype, entry.shape))
        if (entry.name, entry.begin) in places:
            raise UsageError(f"expected every tensor once, got {entry.name[:80]!r} twice from byte {entry.begin} on")
        places.add((entry.name, entry.begin))
        fits = entry.length == entry.tensor_bytes if entry.first_byte is None else _is_part(entry)
        if not fits or entry.offset != aligned(end):
            raise UsageError(f"expected tensor {entry.name!r} at {aligned(end)} with its shape's length, got {entry}")
        end = entry.offset + entry.length


def _is_part(entry: TensorEntry) -> bool:
    """Whether the entry may be a part of its tensor."""
    is_proper = 0 <= entry.begin < entry.end <= entry.tensor_bytes and entry.length < entry.tensor_bytes
    return is_proper and entry.begin % entry.item_bytes == 0 == entry.length % entry.item_bytes


def check_spec(spec: TensorSpec) -> None:
    """Raises `UsageError` for a type that has no stored form, and for a shape or name that no shard may hold."""
    if len(spec.name) > NAME_CHARACTERS_MAX:
        raise UsageError(
            f"expected a tensor's name of at most {NAME_CHARACTERS_MAX} characters, got {spec.name[:80]!r}"
        )
    if spec.dtype not in STORED:
        raise UsageError(f"expected tensor {spec.name!r} of type {', '.join(STORED)}, got {spec.dtype}: convert it")
    if len(spec.shape) > DIMENSIONS_MAX or any(size < 0 for size in spec.shape):
        raise UsageError(f"expected a shape of at most {DIMENSIONS_MAX} sizes for {spec.name!r}, got {spec.shape}")
    # Zeros left out: numpy refuses such shapes too, though no byte of them is ever there.
    if math.prod(size or 1 for size in spec.shape) * STORED[spec.dtype].itemsize > TENSOR_BYTES_MAX:
        raise UsageError(f"expected at most {TENSOR_BYTES_MAX} bytes in tensor {spec.name!r}, got shape {spec.shape}")


def aligned(offset: int) -> int:
    """Where the next tensor begins."""
    return -(-offset // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
