"""Tensors read back from the shards of a version: each into one array, also where it lies in parts."""

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from raylog.codec.delta import Delta, apply_delta, check_digest, parse_delta_name, words_of
from raylog.codec.open import ShardOpener
from raylog.codec.stream import ContentStream
from raylog.codec.tensors import STORED, Array, TensorEntry, bytes_of, read_entries
from raylog.errors import DamagedData, UsageError

Reads = list[tuple[int, memoryview]]
"""Where in a shard's stream, and where to in memory."""


class TensorAssembly:
    """Gathers the named tensors (all for None) from shard after shard; only the chunks they lie in are opened.

    Types of `PAYLOADS` come as their numpy dtype; `dtypes` tells the type. A tensor named in `into` is read into that
    array: contiguous, little-endian, of the stored shape and item size; after an error it is partly filled. Deltas are
    gathered with the tensors that they change, and applied to them.
    """

    def __init__(self, names: Iterable[str] | None = None, into: Mapping[str, Array] | None = None) -> None:
        self.dtypes: dict[str, str] = {}
        self._wanted = None if names is None else set(names)
        self._into = into or {}
        self._arrays: dict[str, Array] = {}
        self._parts: dict[str, dict[int, int]] = {}  # by name: where each part that was seen begins and ends

    def add(self, opener: ShardOpener) -> None:
        """Reads a shard of the version. Raises `DamagedData`, also for parts that do not fit one another, and
        `UsageError` for an array of `into` that does not fit."""
        stream = ContentStream(opener)
        for offset, out in self.plan(opener):
            stream.read_into(offset, out)

    def plan(self, opener: ShardOpener) -> Reads:
        """What `add` would read, for the caller to do; raises as it does."""
        belongs = _belonging(opener)
        return [
            (entry.offset, bytes_of(self._array(entry, opener))[entry.begin : entry.end])
            for entry in read_entries(opener)
            if belongs(entry) and self._wants(entry.name)
        ]

    def _wants(self, name: str) -> bool:
        changes = parse_delta_name(name)
        return self._wanted is None or (changes.of if changes else name) in self._wanted

    def finish(self) -> dict[str, Array]:
        """The tensors in the order in which they were met. Raises `DamagedData` when a part of one is missing, or when
        it is not what it should be after its deltas, `UsageError` for names that are not there."""
        for name, parts in self._parts.items():
            _check_whole(name, parts, self._arrays[name].nbytes)
        for name, deltas in self._take_deltas().items():
            if name not in self._arrays:
                raise _incomplete(f"expected tensor {name!r} beside its deltas, the version's shards do not hold it")
            words = words_of(self._arrays[name])
            for _, delta in sorted(deltas.items()):
                apply_delta(words, delta, name)
            check_digest(words, delta, name)
        missing = sorted((self._wanted or set()) - set(self._arrays))
        if missing:
            raise UsageError(f"there are no tensors named {', '.join(missing[:8])}")
        return self._arrays

    def _take_deltas(self) -> dict[str, dict[int, Delta]]:
        """By the tensor that they change, and their number."""
        names = {name: parse_delta_name(name) for name in self._arrays}
        found = {changes: self._arrays.pop(name) for name, changes in names.items() if changes}
        deltas: dict[str, dict[int, Delta]] = {}
        for changes, gaps in found.items():
            other = changes._replace(part="gaps" if changes.part == "bits" else "bits")
            if other not in found:
                raise _incomplete(
                    f"expected {str(other)!r} beside {str(changes)!r}, the version's shards do not hold it"
                )
            if changes.part == "gaps":
                deltas.setdefault(changes.of, {})[changes.number] = Delta(gaps, found[other])
        return deltas

    def _array(self, entry: TensorEntry, opener: ShardOpener) -> Array:
        """Where the entry's bytes go: a new array, or the one in which another part of it lies."""
        array = self._arrays.get(entry.name)
        if array is None:
            self.dtypes[entry.name] = entry.dtype
            self._arrays[entry.name] = array = _target(entry, self._into.get(entry.name))
        elif (array.shape, self.dtypes[entry.name]) != (entry.shape, entry.dtype):
            raise opener.damaged(
                f"expected a part of tensor {entry.name!r}, {self.dtypes[entry.name]} {list(array.shape)}, got one of "
                f"{entry.dtype} {list(entry.shape)}"
            )
        parts = self._parts.setdefault(entry.name, {})
        if entry.begin in parts:
            raise opener.damaged(f"expected tensor {entry.name!r} once, got it twice from byte {entry.begin} on")
        parts[entry.begin] = entry.end
        return array


def open_tensors(
    opener: ShardOpener, names: Iterable[str] | None = None, into: Mapping[str, Array] | None = None
) -> dict[str, Array]:
    """The tensors of one shard by name; arguments and errors are those of `TensorAssembly`."""
    assembly = TensorAssembly(names, into)
    assembly.add(opener)
    return assembly.finish()


def _target(entry: TensorEntry, given: Array | None) -> Array:
    stored = STORED[entry.dtype]
    if given is None:
        return _new_array(entry, stored)
    fits = given.shape == entry.shape and given.dtype.itemsize == stored.itemsize and not given.dtype.hasobject
    if not fits or not given.flags.c_contiguous or not given.flags.writeable or given.dtype.byteorder == ">":
        raise UsageError(
            f"expected a contiguous, writable, little-endian array of shape {entry.shape} for tensor {entry.name!r} "
            f"({entry.dtype}), got shape {given.shape} of {given.dtype}"
        )
    return given


def _new_array(entry: TensorEntry, stored: np.dtype[np.generic]) -> Array:
    try:
        return np.empty(entry.shape, stored)
    except MemoryError as error:
        raise UsageError(
            f"tensor {entry.name!r} has {entry.tensor_bytes} bytes, more than this process can have: read others by "
            "name, or read where there is more memory"
        ) from error


def _belonging(opener: ShardOpener) -> Callable[[TensorEntry], bool]:
    """Whether a tensor or part lies in what of the shard belongs to the version."""
    ranges = opener.ranges
    if ranges is None:
        return lambda entry: True
    stream = ContentStream(opener)

    def belongs(entry: TensorEntry) -> bool:
        chunks = stream.chunks(entry.offset, entry.offset + entry.length)
        return any(one.start <= chunks.start and chunks.stop <= one.stop for one in ranges)

    return belongs


def _check_whole(name: str, parts: Mapping[int, int], size_bytes: int) -> None:
    """Raises `DamagedData` unless the parts, each where it begins and ends, are all of the tensor, each byte once."""
    end = 0
    for begin in sorted(parts):
        if begin != end:
            raise _incomplete(f"expected tensor {name!r} to go on at byte {end}, its next part begins at {begin}")
        end = parts[begin]
    if end != size_bytes:
        raise _incomplete(f"expected {size_bytes} bytes of tensor {name!r}, the version's shards hold {end}")


def _incomplete(message: str) -> DamagedData:
    return DamagedData(message, check="content")
