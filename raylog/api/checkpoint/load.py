"""A stored checkpoint read back: into new tensors, or into those that are there."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from raylog.api.checkpoint.snapshot import lies_ready
from raylog.api.checkpoint.tree import DOCUMENT, is_tensor, names_in, put_at, subtree, take_apart
from raylog.api.get import Reading
from raylog.api.sources.tensors import DTYPE_KEY
from raylog.codec.assemble import Reads, TensorAssembly
from raylog.codec.open import ShardOpener
from raylog.codec.stream import ContentStream
from raylog.codec.tensors import PAYLOADS, Array
from raylog.errors import UsageError
from raylog.spec import Kind

THREADS = 2


def load(reading: Reading, prefix: str, key: str, into: Any, positions: Sequence[int] | None = None) -> Any:
    """The state of the rank whose names begin with `prefix`, and whose shards are at `positions` (None: any): what lies
    at the pointer `key` in it. Raises `UsageError` for what is no checkpoint, for a key that is not there, and for
    tensors of `into` that do not fit or are not in it; `DamagedData`."""
    if reading.kind is not Kind.TENSORS:
        raise UsageError(f"expected a checkpoint, got {reading.manifest.name} with {reading.kind.name.lower()}")
    with reading.all_open(positions) as openers:
        document = subtree(document_of(openers, prefix, reading.manifest.name), key)
        targets = _Targets(into, prefix + key)
        targets.check_all_there(document, prefix + key)
        arrays = read_arrays(openers, names_in(document), targets)
        return put_at(document, partial(_value, arrays, targets, {}), prefix + key)


def document_of(openers: Sequence[ShardOpener], prefix: str, name: str) -> bytes:
    """The document of the rank whose names begin with `prefix`. Raises `UsageError` when `name` has none."""
    try:
        return read_arrays(openers, [prefix + DOCUMENT])[prefix + DOCUMENT][1].tobytes()
    except UsageError:
        raise UsageError(
            f"expected a checkpoint of a CheckpointManager, {name} is none, or that rank saved nothing"
        ) from None


class _Targets:
    """The tensors of a state that are to be filled, by the names of what fills them."""

    def __init__(self, into: Any, prefix: str) -> None:
        self.values: Mapping[str, Any] = {} if into is None else take_apart(into, prefix).arrays
        self.memory = {name: _memory(value) for name, value in self.values.items() if lies_ready(value)}

    def check_all_there(self, document: bytes, at: str) -> None:
        there: set[str] = set()
        put_at(document, lambda name, is_torch, pointer: there.add(pointer), at)
        lacking = sorted(self.values.keys() - there)
        if lacking:
            names = ", ".join(lacking[:8])
            raise UsageError(f"expected {names} in the state that is read, as in the target: read into what fits")

    def check(self, dtypes: Mapping[str, str]) -> None:
        for name, value in self.values.items():
            dtype = str(value.dtype).removeprefix("torch.")
            if name in dtypes and dtype not in (dtypes[name], PAYLOADS.get(dtypes[name])):
                raise UsageError(f"expected a target of {dtypes[name]} for {name}, got {dtype}: convert it")

    def fill(self, name: str, found: Any) -> Any:
        """Copies into a target that could not be read into, and gives it. Raises `UsageError` when it does not fit."""
        target = self.values[name]
        if tuple(target.shape) != tuple(found.shape):
            raise UsageError(f"expected a target of shape {tuple(found.shape)} for {name}, got {tuple(target.shape)}")
        if is_tensor(target):
            target.detach().copy_(found)
        else:
            target[...] = found
        return target


Arrays = dict[str, tuple[str, Array]]
"""By name, type and content."""


def read_arrays(openers: Sequence[ShardOpener], names: Sequence[str], targets: _Targets | None = None) -> Arrays:
    """The named tensors, those of `targets` into their memory. Raises `UsageError` for names that are not there."""
    targets = targets or _Targets(None, "")
    assembly = TensorAssembly(names, {name: targets.memory[name] for name in names if name in targets.memory})
    reads = [assembly.plan(opener) for opener in openers]
    targets.check(assembly.dtypes)
    with ThreadPoolExecutor(THREADS, thread_name_prefix="load") as executor:
        list(executor.map(_fill, openers, reads))
    return {name: (assembly.dtypes[name], array) for name, array in assembly.finish().items()}


def _fill(opener: ShardOpener, reads: Reads) -> None:
    stream = ContentStream(opener)
    for offset, out in reads:
        stream.read_into(offset, out)


def _memory(value: Any) -> Array:
    """The memory of a contiguous tensor or array, as numbers that numpy has."""
    if not is_tensor(value):
        return value  # type: ignore[no-any-return]
    import torch

    plain = value.detach()
    name = PAYLOADS.get(str(value.dtype).removeprefix("torch."))
    array: Array = (plain.view(getattr(torch, name)) if name else plain).numpy()
    return array


def _value(arrays: Arrays, targets: _Targets, made: dict[str, Any], name: str, is_torch: bool, pointer: str) -> Any:
    """The tensor or array of that name, at its place in the state: the target there, if there is one. One that is in
    several places is one object in all of them: `made` has those so far."""
    if name not in made:
        made[name] = tensor_of(*arrays[name]) if is_torch else _array(*arrays[name])
    found = made[name]
    if pointer not in targets.values:
        return targets.values.get(name, found) if pointer != name else found
    if pointer == name and name in targets.memory:
        return targets.values[name]
    return targets.fill(pointer, found)


def _array(dtype: str, array: Array) -> Array:
    return array.view(np.dtype(array.dtype, metadata={DTYPE_KEY: dtype})) if dtype in PAYLOADS else array


def tensor_of(dtype: str, array: Array) -> Any:
    """The array as a torch tensor of the type that FORMAT.md names so, sharing its memory."""
    import torch

    found = torch.from_numpy(array)
    return found.view(getattr(torch, dtype)) if dtype in PAYLOADS else found
