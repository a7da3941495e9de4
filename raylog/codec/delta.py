"""What changed in a tensor from one version to the next: which of its numbers, and which of their bits (FORMAT.md,
"Deltas"). Applied in any order, or twice, deltas do what exclusive or does. Pure."""

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from raylog.codec.tensors import Array, bytes_of
from raylog.errors import DamagedData

RESERVED = "raylog:"
"""How the names of tensors begin that are not a user's."""
DIGEST_BYTES = 32
_STEP = 255  # a byte of gaps that ends no gap
_BLOCK_WORDS = 1 << 18  # looked at together: they stay in a core's cache
_NAME = re.compile(r"raylog:(gaps|bits):(0|[1-9][0-9]{0,8}):(.*)", re.DOTALL)

Words = NDArray[np.unsignedinteger]
Positions = NDArray[np.int64]


class Delta(NamedTuple):
    """As stored. `gaps` (uint8): BLAKE3 of the tensor's bytes afterwards, then how many words lie before each changed
    one, since the one before; `bits`: exclusive or of each before and after."""

    gaps: Array
    bits: Array


class Changes(NamedTuple):
    """Positions of the words that differ, in order, and exclusive or of each before and after."""

    positions: Positions
    bits: Words

    def apply(self, words: Words) -> None:
        """Makes them what they are after, or before again."""
        words[self.positions] ^= self.bits


class DeltaName(NamedTuple):
    """Of one of the two tensors of a delta: the `number`-th of the tensor `of`."""

    part: str
    number: int
    of: str

    def __str__(self) -> str:
        return f"{RESERVED}{self.part}:{self.number}:{self.of}"


def parse_delta_name(name: str) -> DeltaName | None:
    """None for a tensor that is no delta."""
    found = _NAME.fullmatch(name)
    return DeltaName(found[1], int(found[2]), found[3]) if found else None


def words_of(array: Array) -> Words:
    """The memory of a contiguous array as unsigned numbers of its item size; complex128 in two each."""
    return array.reshape(-1).view(f"u{min(array.dtype.itemsize, 8)}")


def find_changes(before: Words, after: Words, count_max: int) -> Changes | None:
    """None when more than `count_max` words differ, found out without looking at all of them."""
    positions, bits = [np.empty(0, np.int64)], [np.empty(0, after.dtype)]
    count = 0
    for first in range(0, after.size, _BLOCK_WORDS):
        differ = before[first : first + _BLOCK_WORDS] ^ after[first : first + _BLOCK_WORDS]
        found = np.flatnonzero(differ)
        count += found.size
        if count > count_max:
            return None
        if found.size:
            positions.append(found + first)
            bits.append(differ[found])
    return Changes(np.concatenate(positions), np.concatenate(bits))


def write_gaps(positions: Positions) -> NDArray[np.uint8]:
    """A gap of g words is g // 255 bytes of 255 and one of g % 255. So a delta has at most a byte per changed word and
    one per 255 of the tensor."""
    gaps = np.diff(positions, prepend=-1) - 1
    steps, rest = np.divmod(gaps, _STEP)
    ends = np.cumsum(steps + 1) - 1
    written = np.full(int(ends[-1]) + 1 if ends.size else 0, _STEP, np.uint8)
    written[ends] = rest
    return written


def read_gaps(gaps: Array) -> Iterator[Positions]:
    """The positions, in runs of bounded size."""
    after = -1
    for first in range(0, gaps.size, _BLOCK_WORDS):
        block = gaps[first : first + _BLOCK_WORDS]
        reached = np.cumsum(np.where(block == _STEP, _STEP, block.astype(np.int64) + 1)) + after
        after = int(reached[-1])
        yield reached[block != _STEP]


def delta_of(changes: Changes, after: Words) -> Delta:
    """`after`: all of the tensor, as it is with them."""
    return Delta(np.concatenate([_digest(after), write_gaps(changes.positions)]), changes.bits)


def apply_delta(words: Words, delta: Delta, name: str) -> None:
    """Changes the tensor `name` in place. Raises `DamagedData` for a delta that is none of such a tensor, which has
    changed some of it then."""
    gaps, bits = delta
    fits = gaps.dtype == np.uint8 and gaps.ndim == bits.ndim == 1 and gaps.size >= DIGEST_BYTES
    first = 0
    for positions in read_gaps(gaps[DIGEST_BYTES:]) if fits and bits.dtype == words.dtype else ():
        changed: Words = bits[first : first + positions.size].view(words.dtype)
        if changed.size != positions.size or (positions.size and positions[-1] >= words.size):
            break
        words[positions] ^= changed
        first += positions.size
    if not first or first != bits.size:
        raise DamagedData(f"a delta of tensor {name!r} does not fit it: publish all of it anew", check="content")


def check_digest(words: Words, delta: Delta, name: str) -> None:
    """Raises `DamagedData` unless the tensor is what it was when its last delta was made."""
    if _digest(words).tobytes() != delta.gaps[:DIGEST_BYTES].tobytes():
        raise DamagedData(f"tensor {name!r} is not what was published: publish all of it anew", check="content")


def _digest(words: Words) -> NDArray[np.uint8]:
    return np.frombuffer(blake3(bytes_of(words)).digest(), np.uint8)
