"""Whether bytes of floating-point numbers hold one that is none (NaN), at memory speed: by their bits (IEEE 754)."""

import numpy as np
from numpy.typing import NDArray

_Kind = type[np.uint16] | type[np.uint32] | type[np.uint64]
_LARGEST: dict[str, tuple[_Kind, int]] = {  # unsigned type, and the bits of infinity: a NaN has more, the sign left out
    "float16": (np.uint16, 0x7C00),
    "bfloat16": (np.uint16, 0x7F80),
    "float32": (np.uint32, 0x7F800000),
    "float64": (np.uint64, 0x7FF0000000000000),
    "complex64": (np.uint32, 0x7F800000),
    "complex128": (np.uint64, 0x7FF0000000000000),
}


def has_nan(content: memoryview, dtype: str) -> bool:
    """`content`: little-endian numbers of `dtype` as FORMAT.md names it; False for types that have no NaN, and for both
    float8, which have too few bits for the test to be worth it."""
    if dtype not in _LARGEST or not content.nbytes:
        return False
    kind, infinity = _LARGEST[dtype]
    bits: NDArray[np.unsignedinteger] = np.frombuffer(content, kind)
    without_sign = kind(np.iinfo(kind).max >> 1)
    return bool((bits & without_sign).max() > infinity)
