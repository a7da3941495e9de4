"""What is stored anew together, and when a delta still pays."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from raylog.api.weights.groups import (
    CHAIN_MAX,
    PAYS_SHARE,
    Step,
    changed_max,
    delta_units,
    group_units,
    room_bytes,
    specs_of,
)
from raylog.codec.delta import DeltaName, delta_of, find_changes, parse_delta_name
from raylog.codec.tensors import NAME_CHARACTERS_MAX, TensorSpec
from raylog.codec.units import plan_units, unit_bytes

UNIT_BYTES = 512


@given(st.lists(st.integers(1, 600), min_size=1, max_size=20))
def test_each_tensor_is_in_one_group(sizes: list[int]) -> None:
    specs = [TensorSpec(f"t{number}", "float32", (size,)) for number, size in enumerate(sizes)]
    units = plan_units(specs, UNIT_BYTES)
    groups = group_units(units)
    assert [unit for group in groups for unit in group] == units
    assert [spec for group in groups for spec in specs_of(group)] == specs
    assert all(len(group) == 1 or len(specs_of(group)) == 1 for group in groups)


def test_there_is_room_until_deltas_are_half_of_the_group_or_too_many() -> None:
    (group,) = group_units(plan_units([TensorSpec("w", "float32", (1000,))], UNIT_BYTES))
    size_bytes = sum(map(unit_bytes, group))
    assert room_bytes(Step(group)) == int(PAYS_SHARE * size_bytes)
    assert room_bytes(Step(group, chain=1, delta_bytes=1000)) == int(PAYS_SHARE * size_bytes) - 1000
    assert room_bytes(Step(group, chain=CHAIN_MAX)) == 0


def test_a_name_too_long_for_that_of_its_delta_leaves_no_room() -> None:
    for chain, longest in ((0, NAME_CHARACTERS_MAX - 14), (10, NAME_CHARACTERS_MAX - 15)):
        for length in (longest, longest + 1):
            name = "w" * length
            (group,) = group_units(plan_units([TensorSpec(name, "float32", (1000,))], UNIT_BYTES))
            fits = len(str(DeltaName("gaps", chain, name))) <= NAME_CHARACTERS_MAX
            assert fits == (length == longest) == (room_bytes(Step(group, chain=chain)) > 0)


@given(st.integers(0, 20_000), st.sampled_from(["float16", "float32", "float64", "int8"]))
def test_what_may_change_fits_into_the_room(room: int, dtype: str) -> None:
    before = np.zeros(4000, dtype)
    words = before.view(f"u{before.itemsize}")
    count = changed_max(room, TensorSpec("w", dtype, (4000,)), before.itemsize)
    after = words.copy()
    after[np.linspace(0, 3999, min(count, 4000)).astype(int)] = 1
    changes = find_changes(words, after, count)
    assert changes is not None
    delta = delta_of(changes, after)
    assert not count or delta.gaps.nbytes + delta.bits.nbytes <= room


def test_deltas_lie_in_units_of_their_own_gaps_first() -> None:
    before, after = np.zeros(5000, np.uint32), np.arange(5000, dtype=np.uint32)
    changes = find_changes(before, after, 5000)
    assert changes is not None
    delta = delta_of(changes, after)
    units, arrays = delta_units({"a": delta, "b": delta}, 3, 1 << 20)
    names = [parse_delta_name(one.name) for unit in units for one in unit]
    assert names == [("gaps", 3, "a"), ("gaps", 3, "b"), ("bits", 3, "a"), ("bits", 3, "b")]
    assert [str(name) for name in names] == list(arrays)


def test_a_step_that_does_not_change_has_all_of_its_units_from_before() -> None:
    (group,) = group_units(plan_units([TensorSpec("w", "float32", (10,))], UNIT_BYTES))
    old, new = (group[0], b"old"), (group[0], b"new")
    step = Step(group, older=[old], fresh=[new], arrays={"x": np.zeros(1)}, chain=2, delta_bytes=7)
    assert step.after() == Step(group, older=[old, new], chain=2, delta_bytes=7)
