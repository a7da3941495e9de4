"""ISA-L's arithmetic as FORMAT.md names it: any k pieces give all others, the same as PyECLib's and a plain
computation."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyeclib.ec_iface import ECDriver

from raylog.codec.reed_solomon import Coder, coder
from raylog.errors import UsageError

HEADER_BYTES = 80  # that PyECLib puts before a fragment


def views(pieces: list[bytes]) -> list[memoryview]:
    return [memoryview(piece) for piece in pieces]


def encoded(data: int, parity: int, pieces: list[bytes]) -> list[bytes]:
    made = [bytearray(len(pieces[0])) for _ in range(parity)]
    coder(data, parity).encode(views(pieces), [memoryview(one) for one in made])
    return [*pieces, *map(bytes, made)]


def multiplied(left: int, right: int) -> int:
    """In GF(2^8) with the polynomial 0x11D, bit by bit."""
    product = 0
    while right:
        if right & 1:
            product ^= left
        left = left << 1 ^ (0x11D if left & 0x80 else 0)
        right >>= 1
    return product


def inverse(value: int) -> int:
    return next(one for one in range(1, 256) if multiplied(value, one) == 1)


SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 6))


@given(shape=SHAPES, seed=st.integers(0, 2**32), length=st.sampled_from([64, 128, 640]))
def test_any_k_pieces_give_the_others(shape: tuple[int, int], seed: int, length: int) -> None:
    (data, parity), source = shape, random.Random(seed)
    whole = encoded(data, parity, [source.randbytes(length) for _ in range(data)])
    present = source.sample(range(data + parity), data)
    wanted = [number for number in range(data + parity) if number not in present]
    source.shuffle(wanted)
    out = {number: bytearray(length) for number in wanted}
    coder(data, parity).rebuild(
        {number: memoryview(whole[number]) for number in present},
        {number: memoryview(piece) for number, piece in out.items()},
    )
    assert {number: bytes(piece) for number, piece in out.items()} == {number: whole[number] for number in wanted}


@pytest.mark.parametrize(("data", "parity"), [(4, 2), (10, 4), (2, 1), (1, 3)])
def test_parity_is_what_the_format_says(data: int, parity: int) -> None:
    pieces = [random.Random(number).randbytes(64) for number in range(data)]
    whole = encoded(data, parity, pieces)
    for row in range(data, data + parity):
        expected = bytes(64)
        for column, piece in enumerate(pieces):
            factor = inverse(row ^ column)
            expected = bytes(a ^ multiplied(factor, b) for a, b in zip(expected, piece, strict=True))
        assert whole[row] == expected


@pytest.mark.parametrize(("data", "parity"), [(4, 2), (10, 4)])
def test_it_is_pyeclibs(data: int, parity: int) -> None:
    pieces = [random.Random(number).randbytes(4096) for number in range(data)]
    driver = ECDriver(k=data, m=parity, ec_type="isa_l_rs_cauchy")
    fragments = driver.encode(b"".join(pieces))
    assert [one[HEADER_BYTES:] for one in fragments] == encoded(data, parity, pieces)


def test_too_few_pieces_and_pieces_that_differ_in_length() -> None:
    pieces = views([bytes(64), bytes(64), bytes(128)])
    out = {3: memoryview(bytearray(64))}
    with pytest.raises(UsageError, match="expected 3 pieces"):
        coder(3, 1).rebuild({0: pieces[0], 1: pieces[1]}, out)
    with pytest.raises(UsageError, match="one length"):
        coder(3, 1).rebuild(dict(enumerate(pieces)), out)
    for data, parity in ((0, 1), (1, 0), (60, 5)):
        with pytest.raises(UsageError):
            Coder(data, parity)
