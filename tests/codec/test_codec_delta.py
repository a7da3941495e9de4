"""Deltas: what changed is found, written small, and gives the tensor back; what does not fit is refused."""

from typing import Any

import numpy as np
import pytest
from codec_shards import new_key
from hypothesis import given
from hypothesis import strategies as st
from test_units import seal_units

from raylog.codec.assemble import TensorAssembly
from raylog.codec.delta import (
    DIGEST_BYTES,
    Delta,
    DeltaName,
    apply_delta,
    check_digest,
    delta_of,
    find_changes,
    parse_delta_name,
    read_gaps,
    words_of,
    write_gaps,
)
from raylog.codec.tensors import TensorSpec
from raylog.codec.units import plan_units
from raylog.errors import DamagedData

NAMES = st.text(max_size=9)


def made(before: Any, after: Any) -> Delta:
    found = find_changes(words_of(before), words_of(after), after.size * 2)
    assert found is not None
    return delta_of(found, words_of(after))


@given(st.sets(st.integers(0, 5000)))
def test_positions_come_back(positions: set[int]) -> None:
    given = np.array(sorted(positions), np.int64)
    gaps = write_gaps(given)
    read = np.concatenate([np.empty(0, np.int64), *read_gaps(gaps)])
    np.testing.assert_array_equal(read, given)
    assert gaps.size <= len(positions) + 5001 // 255


def test_positions_of_many_runs_come_back() -> None:
    positions = np.sort(np.random.default_rng(1).choice(90_000_000, 700_000, replace=False))
    np.testing.assert_array_equal(np.concatenate(list(read_gaps(write_gaps(positions)))), positions)


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "float32", "float64", "complex64", "complex128"])
def test_a_chain_of_deltas_gives_the_tensor(dtype: str) -> None:
    random = np.random.default_rng(2)
    states = [random.integers(0, 2, (701, 1000)).astype(dtype)]
    deltas = []
    for _ in range(3):
        after = states[-1].copy()
        rows = random.integers(0, 701, 9)
        after[rows, random.integers(0, 1000, 9)] = random.integers(0, 2, 9).astype(dtype)
        after[700, 999] = not after[700, 999]  # the last word of all
        deltas.append(made(states[-1], after))
        states.append(after)
    rebuilt = states[0].copy()
    for delta in reversed(deltas):
        apply_delta(words_of(rebuilt), delta, "w")
    check_digest(words_of(rebuilt), deltas[-1], "w")
    np.testing.assert_array_equal(rebuilt, states[-1])


def test_too_many_changes_are_no_delta() -> None:
    before = np.zeros(1_000_000, np.float32)
    assert find_changes(words_of(before), words_of(before + 1), 999_999) is None
    positions, bits = find_changes(words_of(before), words_of(before), 0) or (None, None)
    assert positions is not None and bits is not None and not positions.size and not bits.size


def test_what_does_not_fit_is_refused() -> None:
    before = np.zeros(1000, np.float32)
    after = before.copy()
    after[[3, 999]] = 1
    gaps, bits = made(before, after)
    for wrong in (
        Delta(gaps[:-1], bits),
        Delta(gaps[:DIGEST_BYTES], bits),
        Delta(gaps[:5], bits),
        Delta(gaps, bits[:1]),
        Delta(gaps, bits.view(np.uint16)),
        Delta(gaps.astype(np.uint16), bits),
        Delta(gaps, bits.reshape(1, 2)),
        Delta(np.append(gaps, np.uint8(0)), np.append(bits, bits[:1])),  # beyond the end
    ):
        with pytest.raises(DamagedData, match="a delta of tensor 'w' does not fit it"):
            apply_delta(words_of(before.copy()), wrong, "w")
    with pytest.raises(DamagedData, match="tensor 'w' is not what was published"):
        check_digest(words_of(before), Delta(gaps, bits), "w")


@given(st.sampled_from(["gaps", "bits"]), st.integers(0, 10**9 - 1), NAMES)
def test_names_come_back(part: str, number: int, of: str) -> None:
    name = DeltaName(part, number, of)
    assert parse_delta_name(str(name)) == name


@given(NAMES)
def test_other_names_are_no_deltas(name: str) -> None:
    assert parse_delta_name(name) is None and parse_delta_name(f"raylog:gaps:01:{name}") is None


def assembled(arrays: dict[str, Any], **options: Any) -> dict[str, Any]:
    units = plan_units([TensorSpec(name, array.dtype.name, array.shape) for name, array in arrays.items()], 512)
    assembly = TensorAssembly(**options)
    assembly.add(seal_units(arrays, units, new_key()).opener())
    return assembly.finish()


def test_tensors_are_assembled_with_their_deltas() -> None:
    before, other = np.arange(600, dtype=np.uint16), np.arange(3.0)
    middle, after = before.copy(), before.copy()
    middle[5] = after[7] = 0
    first, second = made(before, middle), made(middle, after)
    stored = {
        "raylog:bits:1:w": second.bits,  # before what it changes, and before its gaps
        "w": before,
        "other": other,
        "raylog:gaps:1:w": second.gaps,
        "raylog:gaps:0:w": first.gaps,
        "raylog:bits:0:w": first.bits,
    }
    found = assembled(stored)
    assert list(found) == ["w", "other"]
    np.testing.assert_array_equal(found["w"], after)
    into = np.empty(600, np.uint16)
    assert assembled(stored, names=["w"], into={"w": into}).keys() == {"w"}
    np.testing.assert_array_equal(into, after)
    assert assembled(stored, names=["other"]).keys() == {"other"}
    for missing, message in (
        ("w", "expected tensor 'w' beside its deltas"),
        ("raylog:bits:0:w", "expected 'raylog:bits:0:w' beside"),
        ("raylog:gaps:0:w", "expected 'raylog:gaps:0:w' beside"),
    ):
        with pytest.raises(DamagedData, match=message):
            assembled({name: array for name, array in stored.items() if name != missing})
    with pytest.raises(DamagedData, match="tensor 'w' is not what was published"):
        assembled({name: array for name, array in stored.items() if ":0:" not in name})
