"""Byte planes: the first bytes of all items, then all second bytes, and so on (Parquet's BYTE_STREAM_SPLIT; ZipNN,
Hershcovitch et al. 2024). The exponents of floating-point numbers then stand together, where an entropy coder sees how
much alike they are. Bytes after the last whole item follow as they are."""

import numpy as np

PLANE_COUNTS = (2, 4, 8)


def split_into(content: bytes | memoryview, item_bytes: int, out: memoryview) -> None:
    """Writes the planes of `content` to `out`, of the same length; they may not overlap."""
    source, target = np.frombuffer(content, np.uint8), np.frombuffer(out, np.uint8)
    items = len(source) // item_bytes
    whole = items * item_bytes
    for plane in range(item_bytes):
        target[plane * items : (plane + 1) * items] = source[plane:whole:item_bytes]
    target[whole:] = source[whole:]


def join_into(planes: memoryview, item_bytes: int, out: memoryview) -> None:
    """Undoes `split_into`."""
    source, target = np.frombuffer(planes, np.uint8), np.frombuffer(out, np.uint8)
    items = len(source) // item_bytes
    whole = items * item_bytes
    for plane in range(item_bytes):
        target[plane:whole:item_bytes] = source[plane * items : (plane + 1) * items]
    target[whole:] = source[whole:]
