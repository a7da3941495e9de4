"""A mapping of names to arrays or tensors: which element types are taken, and how they become plain bytes.

Torch is recognised only when the caller has imported it already: raylog itself never does.
"""

import math
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from raylog.api.sources.content import SourceTensor, TensorsContent
from raylog.codec.delta import RESERVED
from raylog.codec.tensors import PAYLOADS
from raylog.errors import SourceError, UsageError

DTYPE_KEY = "raylog_dtype"
"""In the metadata of a numpy dtype: what the unsigned integers are the bits of, such as `bfloat16`."""
_NUMPY_KINDS = "biufc"
_ITEM_BYTES_MAX = {"f": 8, "c": 16}  # longer floats differ from machine to machine

Array = np.ndarray[Any, Any]
Load = Callable[[int, int], Array]


def open_tensors(source: Mapping[Any, Any]) -> TensorsContent:
    """The arrays of `source` in its order. Raises `UsageError` naming the entry that is none, or of a type that
    cannot be stored. Tensors on an accelerator are copied to the CPU a shard's worth at a time, when they are read."""
    if not source:
        raise SourceError("the mapping is empty: expected at least one name with an array or tensor")
    return TensorsContent(where="the mapping", tensors=[source_tensor(name, value) for name, value in source.items()])


def source_tensor(name: Any, value: Any) -> SourceTensor:
    """One array. Raises as `open_tensors`."""
    if not isinstance(name, str) or not name or not _is_utf8(name):
        raise UsageError(f"expected non-empty text as the name of an array, got {name!r}")
    if name.startswith(RESERVED):
        raise UsageError(f"names of arrays that begin with {RESERVED} are raylog's own: rename {name!r}")
    torch = sys.modules.get("torch")
    if isinstance(value, (np.ndarray, np.generic)):
        dtype, load = _numpy(name, np.asarray(value))
    elif torch is not None and isinstance(value, torch.Tensor):
        dtype, load = _torch(name, value, torch)
    else:
        raise UsageError(
            f"expected a numpy array or a torch tensor under {name!r}, got {type(value).__name__}: flatten nested "
            "mappings into one, and wrap numbers in numpy.asarray"
        )
    shape = tuple(value.shape)
    item_bytes = np.dtype(PAYLOADS.get(dtype, dtype)).itemsize
    return SourceTensor(name=name, dtype=dtype, shape=shape, size_bytes=math.prod(shape) * item_bytes, load=load)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _numpy(name: str, array: Array) -> tuple[str, Load]:
    dtype = (array.dtype.metadata or {}).get(DTYPE_KEY, array.dtype.name)
    if dtype not in PAYLOADS and (
        array.dtype.kind not in _NUMPY_KINDS or array.dtype.itemsize > _ITEM_BYTES_MAX.get(array.dtype.kind, 8)
    ):
        raise UsageError(f"array {name!r}: expected numbers or booleans of fixed size, got dtype {array.dtype}")
    return dtype, partial(_load_numpy, array, PAYLOADS.get(dtype))


def _load_numpy(array: Array, bits: str | None, first: int, stop: int) -> Array:
    """Without a copy when the elements lie in a row and are little-endian."""
    items = _items(array, first, stop)
    little: Array = items.astype(items.dtype.newbyteorder("<"), copy=False)
    return little.view(bits) if bits else little


def _torch(name: str, tensor: Any, torch: Any) -> tuple[str, Load]:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.layout != torch.strided or tensor.is_meta:
        raise UsageError(f"tensor {name!r}: expected a dense tensor with data, got {tensor.layout} on {tensor.device}")
    if dtype not in PAYLOADS and (dtype not in np.sctypeDict or tensor.is_quantized):
        raise UsageError(f"tensor {name!r}: expected numbers or booleans that numpy or FORMAT.md name, got {dtype}")
    plain = tensor.detach()
    if plain.is_cpu and plain.is_contiguous() and not plain.is_conj() and not plain.is_neg():
        # Once for all loads: torch gives up the interpreter's lock in every call, so that threads wait for each other.
        return dtype, partial(_load_numpy, _shared(plain, dtype, torch), None)
    return dtype, partial(_load_torch, plain, dtype, torch)


def _load_torch(tensor: Any, dtype: str, torch: Any, first: int, stop: int) -> Array:
    return _shared(_items(tensor, first, stop).resolve_conj().resolve_neg().cpu().contiguous(), dtype, torch)


def _shared(tensor: Any, dtype: str, torch: Any) -> Array:
    """The memory of a tensor whose elements lie in a row on the CPU."""
    array: Array = (tensor.view(getattr(torch, PAYLOADS[dtype])) if dtype in PAYLOADS else tensor).numpy()
    return array


def _items(array: Any, first: int, stop: int) -> Any:
    """Elements of a numpy array or torch tensor, flat. Where it is not contiguous, only the rows that they lie in are
    copied: a tensor larger than a shard is read part by part."""
    row_items = math.prod(array.shape[1:])
    if not array.shape or not row_items:
        return array.reshape(-1)[first:stop]
    top = first // row_items
    rows = array[top : -(-stop // row_items)]
    return rows.reshape(-1)[first - top * row_items : stop - top * row_items]
