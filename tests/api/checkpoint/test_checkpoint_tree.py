"""States taken apart and put together again; numbers that are none are seen by their bits."""

import enum
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylog.api.checkpoint.finite import has_nan
from raylog.api.checkpoint.tree import names_in, put_together, subtree, take_apart
from raylog.errors import DamagedData, UsageError

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 130), 1 << 130)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
)
STATES = st.recursive(
    LEAVES | st.integers(0, 3).map(lambda n: np.arange(n, dtype="f4")),
    lambda below: (
        st.lists(below) | st.lists(below).map(tuple) | st.dictionaries(st.text() | st.integers(0, 1 << 40), below)
    ),
    max_leaves=12,
)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and bool(one == other)


@given(STATES)
def test_round_trip(state: Any) -> None:
    try:
        taken = take_apart(state)
    except UsageError as error:
        assert "both called" in str(error)  # 1 beside "1"
        return
    assert same(state, put_together(taken.document, lambda name, is_torch: taken.arrays[name]))
    assert sorted(names_in(taken.document)) == sorted(taken.arrays)


def test_names_are_json_pointers() -> None:
    taken = take_apart({"a/b": {"~": [np.ones(1), np.ones(2)]}, 0: np.ones(3)})
    assert list(taken.arrays) == ["/a~1b/~0/0", "/a~1b/~0/1", "/0"]
    below = subtree(taken.document, "/a~1b/~0")
    assert [len(one) for one in put_together(below, lambda name, is_torch: taken.arrays[name])] == [1, 2]
    with pytest.raises(UsageError, match="there is no '/a': the state has a~1b, 0"):
        subtree(taken.document, "/a")
    with pytest.raises(UsageError, match="expected a key such as"):
        subtree(taken.document, "a")


def test_tied_weights_are_stored_once() -> None:
    torch = pytest.importorskip("torch")
    weight = torch.ones(4, 2)
    taken = take_apart({"embed": weight, "head": weight.detach(), "part": weight[:2], "turned": weight.T})
    assert list(taken.arrays) == ["/embed", "/part", "/turned"]
    again = put_together(taken.document, lambda name, is_torch: taken.arrays[name])
    assert again["head"] is again["embed"]


@pytest.mark.parametrize("value", [object(), {1, 2}, lambda: 0, complex(1, 2)])
def test_what_cannot_be_saved_is_named(value: Any) -> None:
    with pytest.raises(UsageError, match="at /model/1/x"):
        take_apart({"model": [0, {"x": value}]})
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(UsageError, match="hold itself"):
        take_apart(loop)
    with pytest.raises(UsageError, match="both called"):
        take_apart({1: np.ones(1), "1": np.ones(1)})


def test_a_document_that_is_none() -> None:
    for document in (b"", b"\xc1", b"\x81\xa2is\xa4lots", b"\x93" * 100):
        with pytest.raises(DamagedData):
            put_together(document, lambda name, is_torch: None)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64", "bfloat16"])
def test_nan_by_its_bits(dtype: str) -> None:
    kind = {"bfloat16": "float32"}.get(dtype, dtype)
    values = np.array([0, -0.0, 1, -1, np.inf, -np.inf, 3e4], kind)

    def content(values: Any) -> memoryview:
        if dtype == "bfloat16":
            values = np.ascontiguousarray(values.view("<u2")[1::2])
        return memoryview(values.tobytes())

    assert not has_nan(content(values), dtype)
    for nan in (np.nan, -np.nan):
        values[3] = nan
        assert has_nan(content(values), dtype)
    assert not has_nan(memoryview(b"\xff" * 8), "int64") and not has_nan(memoryview(b""), "float32")


class Colour(enum.IntEnum):
    RED = 1


class Word(str):
    __slots__ = ()


def test_values_are_saved_as_what_they_are_without_their_class() -> None:
    state = {"n": Colour.RED, "w": Word("x"), "f": np.float64(1.5), np.float64(2.0): 1}
    found = put_together(take_apart(state).document, lambda name, is_torch: None)
    assert found == {"n": 1, "w": "x", "f": 1.5, 2.0: 1} and {type(one) for one in found.values()} == {int, str, float}
    for wrong in ({"\ud800": 1}, {"x": "\ud800"}, {1 << 70: 1}):
        with pytest.raises(UsageError, match="in Unicode"):
            take_apart(wrong)


def test_what_looks_tied_and_is_not() -> None:
    torch = pytest.importorskip("torch")
    value = torch.ones(3, dtype=torch.complex64)
    assert list(take_apart({"x": value, "y": value.conj(), "z": value}).arrays) == ["/x", "/y"]
