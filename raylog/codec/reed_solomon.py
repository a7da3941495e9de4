"""Reed-Solomon over GF(2^8) by Intel's ISA-L: pieces in, pieces out, into buffers of the caller's.

The code is ISA-L's `gf_gen_cauchy1_matrix` (field polynomial 0x11D): the first k rows are the identity, row i >= k has
1 / (i XOR j) in column j. Any k of the k + m pieces give all others. The library comes inside PyECLib's wheel and is
called without PyECLib, whose own calls allocate every piece anew, which costs ten times the arithmetic.
"""

import ctypes
import functools
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np

from raylog.errors import Unavailable, UsageError

PIECES_MAX = 64
_TABLE_BYTES = 32  # of one coefficient, as ISA-L wants them
_Rows = tuple[tuple[int, ...], ...]


class Coder:
    """`data` and `parity` pieces. Thread-safe; the arithmetic runs without Python's lock."""

    def __init__(self, data: int, parity: int) -> None:
        if data < 1 or parity < 1 or data + parity > PIECES_MAX:
            raise UsageError(f"expected at least one piece of each kind and at most {PIECES_MAX}, got {data}+{parity}")
        self.data, self.parity = data, parity
        self._library = _isal()
        self._matrix = np.zeros((data + parity, data), np.uint8)
        self._library.gf_gen_cauchy1_matrix(self._matrix.ctypes.data, data + parity, data)
        self._tables = functools.lru_cache(maxsize=256)(self._make_tables)

    def encode(self, data: Sequence[memoryview], parity: Sequence[memoryview]) -> None:
        """Computes all parity pieces. Every buffer is equally long; `parity` is written."""
        self.rebuild(dict(enumerate(data)), {self.data + number: piece for number, piece in enumerate(parity)})

    def rebuild(self, present: Mapping[int, memoryview], wanted: Mapping[int, memoryview]) -> None:
        """Computes the `wanted` pieces, by number, from any `data` pieces of `present`. Raises `UsageError` when these
        are too few or differ in length."""
        sources = tuple(sorted(present))[: self.data]
        lengths = {len(piece) for piece in (*present.values(), *wanted.values())}
        if len(sources) < self.data or len(lengths) != 1:
            raise UsageError(
                f"expected {self.data} pieces of one length, got {len(present)} of {sorted(lengths)} bytes"
            )
        if wanted:
            tables = self._tables(sources, tuple(wanted))
            incoming, outgoing = _pointers([present[n] for n in sources]), _pointers(list(wanted.values()))
            self._library.ec_encode_data(lengths.pop(), self.data, len(wanted), tables, incoming[0], outgoing[0])

    def _make_tables(self, sources: tuple[int, ...], wanted: tuple[int, ...]) -> "ctypes.Array[ctypes.c_char]":
        chosen = np.ascontiguousarray(self._matrix[list(sources)])
        inverse = np.zeros((self.data, self.data), np.uint8)
        singular = self._library.gf_invert_matrix(chosen.ctypes.data, inverse.ctypes.data, self.data)
        assert not singular, "every square part of a Cauchy matrix can be inverted"
        rows = b"".join(self._row(number, inverse) for number in wanted)
        tables = ctypes.create_string_buffer(_TABLE_BYTES * self.data * len(wanted))
        self._library.ec_init_tables(self.data, len(wanted), rows, tables)
        return tables

    def _row(self, number: int, inverse: "np.ndarray[tuple[int, int], np.dtype[np.uint8]]") -> bytes:
        """The wanted piece as a combination of the sources: its row of the matrix times the inverse."""
        row = np.zeros(self.data, np.uint8)
        for column, factor in enumerate(self._matrix[number].tolist()):
            for position, other in enumerate(inverse[column].tolist()):
                row[position] ^= self._library.gf_mul(factor, other)
        return row.tobytes()


@functools.cache
def coder(data: int, parity: int) -> Coder:
    """The one for these numbers."""
    return Coder(data, parity)


def _pointers(pieces: Sequence[memoryview]) -> tuple["ctypes.Array[ctypes.c_void_p]", list[object]]:
    """Their addresses, and what keeps them alive."""
    arrays = [np.frombuffer(piece, np.uint8) for piece in pieces]
    return (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays)), list(arrays)


@functools.cache
def _isal() -> ctypes.CDLL:
    """Raises `Unavailable` where PyECLib's wheel is not the one that brings ISA-L."""
    files = metadata.files("pyeclib") or []
    for file in files:
        if file.name.startswith("libisal"):
            library = ctypes.CDLL(str(Path(str(file.locate()))))
            byte, pointer, number = ctypes.c_ubyte, ctypes.c_void_p, ctypes.c_int
            library.gf_mul.argtypes, library.gf_mul.restype = [byte, byte], byte
            library.gf_gen_cauchy1_matrix.argtypes = [pointer, number, number]
            library.gf_invert_matrix.argtypes = [pointer, pointer, number]
            library.ec_init_tables.argtypes = [number, number, ctypes.c_char_p, ctypes.c_char_p]
            library.ec_encode_data.argtypes = [number, number, number, ctypes.c_char_p, pointer, pointer]
            return library
    raise Unavailable("no ISA-L here, which erasure coding needs: install PyECLib's wheel (pip install pyeclib)")
