"""Tensors read back from the shards of a version, in their order: each into one array, also where it lies in parts."""

from collections.abc import Iterable, Mapping

import numpy as np

from raylog.codec.open import ShardOpener
from raylog.codec.stream import ContentStream
from raylog.codec.tensors import STORED, Array, TensorEntry, bytes_of, read_entries
from raylog.errors import UsageError


class TensorAssembly:
    """Gathers the named tensors (all for None) from shard after shard; only the chunks they lie in are opened.

    Types of `PAYLOADS` come as their numpy dtype; `dtypes` tells the type. A tensor named in `into` is read into that
    array: contiguous, little-endian, of the stored shape and item size; after an error it is partly filled.
    """

    def __init__(self, names: Iterable[str] | None = None, into: Mapping[str, Array] | None = None) -> None:
        self.dtypes: dict[str, str] = {}
        self._wanted = None if names is None else set(names)
        self._into = into or {}
        self._arrays: dict[str, Array] = {}
        self._begun: tuple[TensorEntry, ShardOpener] | None = None  # the last part read of a tensor that goes on

    def add(self, opener: ShardOpener) -> None:
        """Reads the version's next shard. Raises `DamagedData`, also for parts that do not follow one another, and
        `UsageError` for an array of `into` that does not fit."""
        entries = read_entries(opener)
        if self._begun and (not entries or entries[0].name != self._begun[0].name):
            raise self._unfinished(*self._begun)
        stream = ContentStream(opener)
        for entry in entries:
            if self._wanted is None or entry.name in self._wanted:
                array = self._array(entry, opener)
                stream.read_into(entry.offset, bytes_of(array)[entry.begin : entry.end])
                self._begun = (entry, opener) if entry.end < entry.tensor_bytes else None

    def finish(self) -> dict[str, Array]:
        """The tensors in the order in which they were put in. Raises `DamagedData` when one has no end, `UsageError`
        for names that are not there."""
        if self._begun:
            raise self._unfinished(*self._begun)
        missing = sorted((self._wanted or set()) - set(self._arrays))
        if missing:
            raise UsageError(f"there are no tensors named {', '.join(missing[:8])}")
        return self._arrays

    def _array(self, entry: TensorEntry, opener: ShardOpener) -> Array:
        """Where the entry's bytes go: a new array, or the one in which the part before ended."""
        if self._begun:
            before = self._begun[0]
            if (entry.begin, entry.dtype, entry.shape) != (before.end, before.dtype, before.shape):
                raise opener.damaged(
                    f"expected tensor {entry.name!r} to go on at byte {before.end} of {before.dtype} "
                    f"{list(before.shape)}, got byte {entry.begin} of {entry.dtype} {list(entry.shape)}"
                )
            return self._arrays[entry.name]
        if entry.begin or entry.name in self._arrays:
            found = f"a part from byte {entry.begin} on" if entry.begin else "it once more"
            raise opener.damaged(f"expected tensor {entry.name!r} once, from its first byte on, got {found}")
        self.dtypes[entry.name] = entry.dtype
        self._arrays[entry.name] = array = _target(entry, self._into.get(entry.name))
        return array

    @staticmethod
    def _unfinished(last: TensorEntry, opener: ShardOpener) -> Exception:
        return opener.damaged(
            f"expected {last.tensor_bytes} bytes of tensor {last.name!r}, the next shard does not go on at {last.end}"
        )


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
