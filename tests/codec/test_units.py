"""Tensors in units: what is cut, sealed and named again by ranges comes back as it was."""

from functools import partial
from typing import Any

import numpy as np
import pytest
from codec_shards import Sealed, new_key, seal_shard
from hypothesis import given, settings
from hypothesis import strategies as st

from raylog.codec.assemble import TensorAssembly
from raylog.codec.keys import GroupKey, content_tag_key
from raylog.codec.open import ShardOpener
from raylog.codec.seal import ShardSealer
from raylog.codec.stream import ContentStream
from raylog.codec.tensors import STORED, TensorSpec, bytes_of, read_tagged
from raylog.codec.units import (
    Slice,
    Unit,
    add_units,
    plan_units,
    shard_tag,
    unit_bytes,
    unit_tag,
    units_of,
    units_preamble,
)
from raylog.errors import DamagedData, UsageError
from raylog.spec import Codec, Kind

Arrays = dict[str, Any]
ARRAYS = st.dictionaries(
    st.text(max_size=3), st.integers(1, 700).flatmap(lambda n: st.sampled_from([np.zeros(n, "<u1"), np.zeros(n,
    "<f4")])), min_size=1
)  # fmt: skip
UNIT_BYTES = 512


def specs(arrays: Arrays) -> list[TensorSpec]:
    return [TensorSpec(name, array.dtype.name, array.shape) for name, array in arrays.items()]


def loader(arrays: Arrays, one: Slice) -> memoryview:
    size = STORED[one.dtype].itemsize
    return bytes_of(arrays[one.name].reshape(-1)[one.begin // size : one.end // size])


def tags_of(arrays: Arrays, units: list[Unit], key: GroupKey) -> list[bytes]:
    return [unit_tag(content_tag_key(key), unit, partial(loader, arrays)) for unit in units]


def seal_units(arrays: Arrays, units: list[Unit], key: GroupKey, **options: Any) -> Sealed:
    add = partial(add_units, units=units, load=partial(loader, arrays))
    preamble = units_preamble(units, tags_of(arrays, units, key))
    options = {"chunk_bytes": UNIT_BYTES, **options}
    return seal_shard(Kind.TENSORS, preamble, add, keys=[key], **options)


def with_ranges(shard: Sealed, ranges: list[range]) -> ShardOpener:
    opener = shard.opener()
    opener.ranges = ranges
    return opener


@settings(max_examples=60, deadline=None)
@given(
    arrays=ARRAYS,
    changed=st.sets(st.integers(0, 30)),
    seed=st.integers(0, 9),
    codec=st.sampled_from([Codec.NONE, None]),
)
def test_a_second_version_of_old_ranges_and_new_units(
    arrays: Arrays, changed: set[int], seed: int, codec: Codec | None
) -> None:
    random, key = np.random.default_rng(seed), new_key()
    before = {name: random.integers(0, 99, array.shape).astype(array.dtype) for name, array in arrays.items()}
    after = {name: array + (number in changed) for number, (name, array) in enumerate(before.items())}
    after = {name: array.astype(before[name].dtype) for name, array in after.items()}
    units = plan_units(specs(before), UNIT_BYTES)
    assert all(unit_bytes(unit) <= UNIT_BYTES for unit in units)
    first = seal_units(before, units, key, codec=codec)
    skipped = len(first.frame.chunks) - len(units)
    same = [a == b for a, b in zip(tags_of(before, units, key), tags_of(after, units, key), strict=True)]
    fresh = [unit for unit, is_same in zip(units, same, strict=True) if not is_same]
    openers = [with_ranges(first, [range(skipped + n, skipped + n + 1) for n, is_same in enumerate(same) if is_same])]
    if fresh:
        openers.append(seal_units(after, fresh, key, codec=codec).opener())
    assembly = TensorAssembly()
    for opener in openers:
        assembly.add(opener)
    found = assembly.finish()
    assert found.keys() == after.keys()
    for name, array in after.items():
        np.testing.assert_array_equal(found[name], array)


def test_units_are_read_back_with_their_tags() -> None:
    arrays = {"a": np.arange(300, dtype="<f4"), "b": np.ones(3, "<f8"), "c": np.ones(5, "<u1")}
    key = new_key()
    units = plan_units(specs(arrays), UNIT_BYTES)
    assert [[(one.name, one.first_byte, one.length) for one in unit] for unit in units] == [
        [("a", 0, 512)], [("a", 512, 512)], [("a", 1024, 176)], [("b", None, 24), ("c", None, 5)]
    ]  # fmt: skip
    opener = seal_units(arrays, units, key).opener()
    entries, tags = read_tagged(opener)
    stream = ContentStream(opener)
    found = units_of(entries, lambda one: stream.chunks(one.offset, one.offset + one.length).start)
    first = opener.frame.units[0].chunks
    assert found == {first + number: unit for number, unit in enumerate(units)}
    assert tags == tags_of(arrays, units, key)
    assert len({*tags, *tags_of(arrays, units, new_key()), shard_tag(content_tag_key(key), b"x")}) == 9


def test_a_part_that_no_range_has_is_damage() -> None:
    arrays, key = {"a": np.arange(300, dtype="<f4")}, new_key()
    shard = seal_units(arrays, plan_units(specs(arrays), UNIT_BYTES), key)
    first = shard.frame.units[0].chunks
    for numbers in ((0, 1), (1, 2), (0, 2)):
        ranges = [range(first + number, first + number + 1) for number in numbers]
        assembly = TensorAssembly()
        assembly.add(with_ranges(shard, ranges))
        with pytest.raises(DamagedData, match="tensor 'a'"):
            assembly.finish()


def test_what_cannot_be_cut() -> None:
    for wrong in (
        [TensorSpec("a", "int8", (0,))],
        [TensorSpec("a", "int8", (1,))] * 2,
        [TensorSpec("a", "object", (1,))],
    ):
        with pytest.raises(UsageError):
            plan_units(wrong, UNIT_BYTES)

    def too_much(sealer: ShardSealer) -> None:
        for size in (0, UNIT_BYTES + 1):
            with pytest.raises(UsageError, match=f"1 to {UNIT_BYTES} bytes, got {size}"):
                sealer.add_chunk([bytes(size)])
        sealer.add_chunk([b"abc"])
        sealer.add_bytes(bytes(61) + b"x" * 600)  # what was held is not written over

    seal_shard(Kind.TENSORS, b"p", too_much, chunk_bytes=UNIT_BYTES).opener().chunk(1)
