"""LZ4 blocks from and into the caller's memory.

python-lz4 returns every result in fresh `bytes`, whose page faults take as long as LZ4 does; pyarrow's `lz4_raw` does
not tell how much it wrote. So the C functions of LZ4's stable block API (https://lz4.org, lz4.h) are called directly,
in the library that python-lz4 brings. They run without the GIL.
"""

import ctypes

import lz4.block
import pyarrow as pa

_library = ctypes.CDLL(lz4.block._block.__file__)
_compress = _library.LZ4_compress_default
_decompress = _library.LZ4_decompress_safe
for _function in (_compress, _decompress):  # (source, destination, source length, destination capacity) -> length
    _function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int)
    _function.restype = ctypes.c_int


def compress_into(content: bytes | memoryview, out: memoryview) -> int:
    """Compresses into the front of `out`; how many bytes that took, or 0 where they do not fit."""
    assert not out.readonly
    source, target = pa.py_buffer(content), pa.py_buffer(out)
    return int(_compress(source.address, target.address, source.size, target.size))


def decompress_into(body: bytes | memoryview, out: memoryview) -> int | None:
    """Decompresses into `out`; how many bytes that gave, or None where `body` is no block or gives more than fits.

    Neither reads nor writes past its arguments, whatever `body` holds.
    """
    assert not out.readonly
    source, target = pa.py_buffer(body), pa.py_buffer(out)
    length = int(_decompress(source.address, target.address, source.size, target.size))
    return None if length < 0 else length
