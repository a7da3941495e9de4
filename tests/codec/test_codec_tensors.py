"""Tensors through sealed shards."""

from typing import Any

import numpy as np
import pytest
from codec_shards import Sealed, open_shard, plan_arrays, seal_parts, seal_shard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from raylog.codec.assemble import TensorAssembly, open_tensors
from raylog.codec.open import ShardOpener
from raylog.codec.tensors import PAYLOADS, TensorEntry, add_tensors, read_entries, tensors_preamble
from raylog.errors import DamagedData, UsageError
from raylog.spec import Codec, Kind


def seal_tensors(tensors: dict[str, Any], dtypes: dict[str, str] | None = None, **options: Any) -> Sealed:
    (entries,) = plan_arrays(tensors, dtypes) or [[]]
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
            plan_arrays({"w": array})
    with pytest.raises(UsageError, match="bfloat16"):
        seal_tensors({"w": np.zeros(3, "<f4")}, {"w": "bfloat16"})


def test_tensors_by_shard() -> None:
    sizes = {"a": 50, "b": 100, "c": 600, "d": 10, "e": 40, "f": 0, "g": 256, "h": 1}
    shards = plan_arrays({name: np.zeros(size, np.uint8) for name, size in sizes.items()}, shard_bytes=256)
    placed = [[(e.name, e.offset, e.begin, e.end) for e in entries] for entries in shards]
    assert placed == [
        [("a", 0, 0, 50), ("b", 64, 0, 100)],
        [("c", 0, 0, 256)],
        [("c", 0, 256, 512)],
        [("c", 0, 512, 600), ("d", 128, 0, 10), ("e", 192, 0, 40), ("f", 256, 0, 0)],
        [("g", 0, 0, 256)],
        [("h", 0, 0, 1)],
    ]
    assert [e.name for entries in shards for e in entries if e.first_byte is not None] == ["c"] * 3
    huge = np.broadcast_to(np.zeros(1, np.uint16), (3 << 30,))
    assert [e.length for (e,) in plan_arrays({"a": huge})] == [4 << 30, 2 << 30]
    with pytest.raises(UsageError, match="at most 17592186044416 bytes in tensor 'a'"):
        plan_arrays({"a": np.broadcast_to(huge[:1], (9 << 40,))})


@settings(max_examples=60, deadline=None)
@given(
    tensors=st.dictionaries(st.text(max_size=4), ARRAYS, min_size=1, max_size=6),
    shard_bytes=st.integers(64, 400),
    chunk_bytes=st.integers(16, 100),
    names=st.none() | st.integers(0, 5),
)
def test_parts_round_trip(tensors: dict[str, Any], shard_bytes: int, chunk_bytes: int, names: int | None) -> None:
    shards = seal_parts(tensors, shard_bytes, chunk_bytes=chunk_bytes)
    assert all(shard.frame.content_bytes <= shard_bytes for shard in shards)
    wanted = list(tensors) if names is None else list(tensors)[names : names + 1]
    opened = assembled([shard.opener() for shard in shards], wanted)
    assert list(opened) == wanted
    for name in wanted:
        np.testing.assert_array_equal(opened[name], tensors[name])
        assert opened[name].shape == tensors[name].shape


def assembled(openers: list[ShardOpener], names: list[str] | None = None, **into: Any) -> dict[str, Any]:
    assembly = TensorAssembly(names, into)
    for opener in openers:
        assembly.add(opener)
    return assembly.finish()


def test_parts_are_decrypted_into_one_array() -> None:
    array, into = np.arange(5000, dtype="<u4").reshape(50, 100), np.zeros((50, 100), "<u4")
    shards, outs = seal_parts({"w": array}, 6400, chunk_bytes=1024, codec=Codec.NONE), []
    openers = [shard.opener() for shard in shards]
    for opener in openers:
        chunk = opener.chunk
        opener.chunk = lambda number, out=None, chunk=chunk: outs.append(out) or chunk(number, out)  # type: ignore[method-assign]
    assert assembled(openers, w=into)["w"] is into
    np.testing.assert_array_equal(into, array)
    straight = [out for out in outs if out is not None and np.shares_memory(np.asarray(out), into)]
    assert len(openers) == 4 and len(straight) == sum(len(shard.frame.units) - 1 for shard in shards)


def test_parts_that_do_not_follow_one_another_are_damage() -> None:
    openers = [shard.opener() for shard in seal_parts({"w": np.arange(150), "x": np.zeros(9)}, 512)]
    other = [shard.opener() for shard in seal_parts({"w": np.arange(300, dtype="i4")}, 512)]
    assert len(openers) == len(other) == 3
    one, two, three = openers
    for wrong in (
        [one, three], [two, three], [one, two], [one, two, two, three], [one, one, two, three], [three], [one],
        [one, two, three, one], [one, two, three, three], [one, other[1], three], [one, two, *other],
    ):  # fmt: skip
        with pytest.raises(DamagedData, match="'w'") as caught:
            assembled(wrong)
        assert caught.value.check == "content"
    with pytest.raises(UsageError, match="no tensors named y"):
        assembled(openers, ["w", "y"])
    assert list(assembled([two, three], ["x"])) == ["x"]


@pytest.mark.parametrize(
    "change",
    [
        {"first_byte": 0, "length": 400}, {"first_byte": -8}, {"length": 0}, {"first_byte": 240, "length": 248},
        {"first_byte": 4}, {"length": 100}, {"first_byte": 1 << 62}, {"shape": [1 << 61]}, {"shape": [31]},
    ],
)  # fmt: skip
def test_parts_are_checked(change: dict[str, Any]) -> None:
    import msgspec

    good = {"name": "w", "dtype": "int64", "shape": [50], "offset": 0, "length": 248, "first_byte": 0}
    for more, is_good in (({}, True), (change, False)):
        entry = {**good, **more}
        preamble = msgspec.msgpack.encode({"tensors": [entry]})
        shard = seal_shard(Kind.TENSORS, preamble, lambda s, n=entry["length"]: s.add_bytes(bytes(n)))
        if is_good:
            assert read_entries(shard.opener()) == [TensorEntry(**{**entry, "shape": (50,)})]
            continue
        with pytest.raises(DamagedData) as caught:
            read_entries(shard.opener())
        assert caught.value.check == "content"


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
