"""Tensors through sealed shards."""

from typing import Any

import numpy as np
import pytest
from codec_shards import Sealed, open_shard, seal_shard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from raylog.codec.tensors import (
    PAYLOADS,
    add_tensors,
    group_tensors,
    open_tensors,
    plan_tensors,
    read_entries,
    tensors_preamble,
)
from raylog.errors import DamagedData, UsageError
from raylog.spec import Codec, Kind


def seal_tensors(tensors: dict[str, Any], dtypes: dict[str, str] | None = None, **options: Any) -> Sealed:
    entries = plan_tensors(tensors, dtypes)
    return seal_shard(Kind.TENSORS, tensors_preamble(entries), lambda s: add_tensors(s, entries, tensors), **options)


DTYPES = st.sampled_from(["bool", "i1", "<i8", ">i4", "u2", "<f2", ">f8", "f4", "<c8", ">c16"])
ARRAYS = npst.arrays(DTYPES, npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6))


@settings(max_examples=80, deadline=None)
@given(
    tensors=st.dictionaries(st.text(max_size=8), ARRAYS, max_size=6),
    chunk_bytes=st.integers(16, 500),
    codec=st.sampled_from([None, *Codec]),
)
def test_tensors_round_trip(tensors: dict[str, Any], chunk_bytes: int, codec: Codec | None) -> None:
    shard = seal_tensors(tensors, chunk_bytes=chunk_bytes, codec=codec)
    opened = open_tensors(shard.opener())
    assert list(opened) == list(tensors)
    for name, array in tensors.items():
        assert (opened[name].shape, opened[name].dtype) == (array.shape, array.dtype.newbyteorder("<"))
        assert opened[name].tobytes() == array.astype(array.dtype.newbyteorder("<")).tobytes()
    assert all(entry.offset % 64 == 0 for entry in read_entries(shard.opener()))


def test_strides_and_types_that_numpy_lacks() -> None:
    base = np.arange(60, dtype="<u2").reshape(6, 10)
    tensors = {"transposed": base.T, "sliced": base[::2, 1::3], "f8": base.astype("u1"), "e5": base.astype("u1")}
    names = {"transposed": "bfloat16", "f8": "float8_e4m3fn", "e5": "float8_e5m2"}
    shard = seal_tensors(tensors, names)
    opened = open_tensors(shard.opener())
    for name, array in tensors.items():
        np.testing.assert_array_equal(opened[name], array)
    entries = {entry.name: entry.dtype for entry in read_entries(shard.opener())}
    assert entries == {"sliced": "uint16", **names}
    assert opened["transposed"].dtype.name == PAYLOADS["bfloat16"]


def test_a_selection_opens_only_its_chunks_and_into_given_memory() -> None:
    tensors = {f"layer.{n}": np.full((100,), n, "<f4") for n in range(20)}
    shard, read = seal_tensors(tensors, chunk_bytes=448, codec=Codec.NONE), []
    opener = open_shard(shard.data, shard.keys, read.append)
    into = np.zeros(100, "<f4")
    opened = open_tensors(opener, ["layer.9", "layer.3"], into={"layer.3": into})
    assert opened["layer.3"] is into and into.tolist() == [3.0] * 100
    assert opened["layer.9"].tolist() == [9.0] * 100
    preamble_chunks = shard.frame.units[0].chunks
    assert sorted(set(read)) == [*range(preamble_chunks), preamble_chunks + 3, preamble_chunks + 9]


def test_chunks_without_compression_are_decrypted_in_place() -> None:
    array = np.random.default_rng(1).integers(0, 256, 4096, dtype=np.uint8)
    shard, into = seal_tensors({"w": array}, chunk_bytes=1024, codec=Codec.NONE), np.zeros(4096, np.uint8)
    opener, outs = shard.opener(), []
    chunk = opener.chunk
    opener.chunk = lambda number, out=None: outs.append(out) or chunk(number, out)  # type: ignore[method-assign]
    np.testing.assert_array_equal(open_tensors(opener, into={"w": into})["w"], array)
    straight = [out for out in outs if out is not None and np.shares_memory(np.asarray(out), into)]
    assert len(straight) == 4


def test_what_does_not_fit_is_refused() -> None:
    shard = seal_tensors({"w": np.zeros((2, 3), "<f4")})
    read_only = np.zeros((2, 3), "<f4")
    read_only.flags.writeable = False
    for array in (
        np.zeros((3, 2), "<f4"),
        np.zeros((2, 3), "<f8"),
        np.zeros((3, 2), "<f4").T,
        np.zeros((2, 3), ">f4"),
        read_only,
    ):
        with pytest.raises(UsageError, match="'w'"):
            open_tensors(shard.opener(), into={"w": array})
    with pytest.raises(UsageError, match="nothing"):
        open_tensors(shard.opener(), ["nothing"])
    for array in (np.array(["text"]), np.array([object()]), np.array([0], "M8[s]"), np.zeros(1, "f4,i2")):
        with pytest.raises(UsageError, match="'w'"):
            plan_tensors({"w": array})
    with pytest.raises(UsageError, match="bfloat16"):
        plan_tensors({"w": np.zeros(3, "<f4")}, {"w": "bfloat16"})


def test_too_much_for_one_shard() -> None:
    huge = np.broadcast_to(np.zeros(1, np.uint8), (3 << 30,))
    with pytest.raises(UsageError, match="several shards"):
        plan_tensors({"a": huge, "b": huge})
    sizes = {"a": 50, "b": 100, "c": 500, "d": 10, "e": 20}
    tensors = {name: np.zeros(size, np.uint8) for name, size in sizes.items()}
    assert group_tensors({name: one.nbytes for name, one in tensors.items()}, 256) == [["a", "b"], ["c"], ["d", "e"]]


def test_entries_are_checked_before_memory_is_taken() -> None:
    import msgspec

    good = {"name": "w", "dtype": "uint8", "shape": [3], "offset": 0, "length": 3}
    for change in ({"shape": [1 << 60], "length": 1 << 60}, {"shape": [-1, -3]}, {"dtype": "object"}, {"offset": 1},
                   {"length": 4}, {"shape": [1] * 65 + [3]}, {"more": 1}, {"shape": [1 << 62, 1 << 62]}):  # fmt: skip
        preamble = msgspec.msgpack.encode({"tensors": [{**good, **change}]})
        shard = seal_shard(Kind.TENSORS, preamble, lambda s: s.add_bytes(b"abc"))
        with pytest.raises(DamagedData) as caught:
            open_tensors(shard.opener())
        assert caught.value.check == "content"
