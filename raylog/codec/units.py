"""Tensors cut into units of one chunk each, so that a later version can name the chunks that hold what it has too
(FORMAT.md, "tags"). The cut follows from the tensors' names, types and shapes alone."""

import math
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec
from blake3 import blake3

from raylog.codec.seal import ShardSealer
from raylog.codec.tensors import (
    ALIGNMENT_BYTES,
    STORED,
    TensorEntry,
    TensorSpec,
    aligned,
    check_spec,
    tensors_preamble,
)
from raylog.errors import UsageError

_LENGTH = struct.Struct("<I")
_SHARD_LABEL = b"raylog/1 units"
Load = Callable[["Slice"], memoryview]
"""The bytes of a slice, which stay as they are."""


class Slice(NamedTuple):
    """A tensor, or `length` bytes of one from `first_byte` on (None: all of it)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    first_byte: int | None
    length: int

    @property
    def begin(self) -> int:
        return self.first_byte or 0

    @property
    def end(self) -> int:
        return self.begin + self.length


Unit = tuple[Slice, ...]
"""What lies in one chunk."""
TaggedUnit = tuple[Unit, bytes]


def plan_units(specs: Iterable[TensorSpec], unit_bytes_max: int) -> list[Unit]:
    """Cuts tensors larger than `unit_bytes_max` and bundles smaller ones, in order. Raises `UsageError` for tensors
    that no shard may hold, for empty ones and doubles."""
    units: list[Unit] = []
    bundle: list[Slice] = []
    names: set[str] = set()
    for spec in specs:
        check_spec(spec)
        size_bytes = size_of(spec)
        if spec.name in names or not size_bytes:
            raise UsageError(f"expected every tensor once and none empty, got {spec.name[:80]!r} of {spec.shape}")
        names.add(spec.name)
        if bundle and unit_bytes(tuple(bundle)) + aligned(size_bytes) > unit_bytes_max:
            units.append(tuple(bundle))
            bundle = []
        if aligned(size_bytes) > unit_bytes_max:
            units += _cut(spec, size_bytes, unit_bytes_max)
        else:
            bundle.append(Slice(*spec, None, size_bytes))
    return [*units, tuple(bundle)] if bundle else units


def size_of(spec: TensorSpec) -> int:
    """Bytes of the tensor."""
    return math.prod(spec.shape) * STORED[spec.dtype].itemsize


def unit_bytes(unit: Unit) -> int:
    """With the zeros that follow each tensor."""
    return sum(aligned(one.length) for one in unit)


def unit_tag(key: bytes, unit: Unit, load: Load) -> bytes:
    """32 bytes, equal for units that hold the same tensors (or parts) with the same content; `key` is a
    `content_tag_key`."""
    described = msgspec.msgpack.encode([list(one) for one in unit])
    tag = blake3(_LENGTH.pack(len(described)) + described, key=key)
    for one in unit:
        tag.update(load(one))
    return tag.digest()


def shard_tag(key: bytes, preamble: bytes) -> bytes:
    """The content tag of a shard of units: what its preamble says, the units' tags among it; `key` as for these."""
    return blake3(_SHARD_LABEL + preamble, key=key).digest()


def units_preamble(units: Sequence[Unit], tags: Sequence[bytes]) -> bytes:
    """The preamble of a shard with these units, each in one chunk."""
    return tensors_preamble(list(_entries(units)), tags)


def units_of(entries: Sequence[TensorEntry], chunk_of: Callable[[TensorEntry], int]) -> dict[int, Unit]:
    """By chunk, what lies in it; the other way round from `units_preamble`."""
    units: dict[int, list[Slice]] = {}
    for one in entries:
        found = Slice(one.name, one.dtype, one.shape, one.first_byte, one.length)
        units.setdefault(chunk_of(one), []).append(found)
    return {chunk: tuple(unit) for chunk, unit in units.items()}


def add_units(sealer: ShardSealer, units: Sequence[Unit], load: Load) -> None:
    """Seals each unit as one chunk, from where it lies if it is one slice."""
    for position, unit in enumerate(units):
        is_last = position == len(units) - 1
        parts: list[bytes | memoryview] = []
        for number, one in enumerate(unit):
            parts.append(load(one))
            if not (is_last and number == len(unit) - 1):
                parts.append(bytes(-one.length % ALIGNMENT_BYTES))
        sealer.add_chunk(parts, item_bytes=STORED[unit[-1].dtype].itemsize)


def _entries(units: Sequence[Unit]) -> Iterator[TensorEntry]:
    offset = 0
    for one in (one for unit in units for one in unit):
        yield TensorEntry(**one._asdict(), offset=offset)
        offset = aligned(offset + one.length)


def _cut(spec: TensorSpec, size_bytes: int, unit_bytes_max: int) -> Iterator[Unit]:
    part_bytes = unit_bytes_max // ALIGNMENT_BYTES * ALIGNMENT_BYTES
    for begin in range(0, size_bytes, part_bytes):
        first_byte = begin if size_bytes > part_bytes else None
        yield (Slice(*spec, first_byte, min(part_bytes, size_bytes - begin)),)
