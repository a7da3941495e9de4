"""One sealed file by itself: what goes in comes out, what is wrong is refused, and nothing is left behind."""

import secrets
import signal
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylog.api import file as api_file
from raylog.api.file import seal, unseal
from raylog.api.landing import LandingFolder
from raylog.api.materialise import read_table, read_tensors, write_files
from raylog.api.seal_content import SealPlan, seal_content
from raylog.api.source import open_source
from raylog.codec.frame import Frame
from raylog.codec.keys import GroupKey
from raylog.codec.open import ShardOpener
from raylog.errors import Conflict, DamagedData, NotFound, NotPermitted, SourceError, UsageError
from raylog.spec import CHUNK_CONTENT_BYTES_MAX, new_id

KEY = secrets.token_bytes(32)
TABLE = pa.table({"n": range(1000), "w": pa.array(["ab", None] * 500).dictionary_encode()}, metadata={"k": "v"})


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "tree" / "deep").mkdir(parents=True)
    (tmp_path / "tree" / "a.bin").write_bytes(secrets.token_bytes(5_000_000))
    (tmp_path / "tree" / "deep" / "a.bin").write_bytes(b"text " * 1000)
    (tmp_path / "tree" / "deep" / "empty").touch()
    return tmp_path / "tree"


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("codec", ["auto", "none", "lz4", "zstd"])
def test_a_table(tmp_path, codec):
    ref = seal(TABLE, tmp_path / "t.sealed", KEY, codec=codec)
    assert (ref.rows, ref.stored_bytes) == (1000, (tmp_path / "t.sealed").stat().st_size)
    table = unseal(tmp_path / "t.sealed", KEY)
    assert table.equals(TABLE)
    assert table.schema.metadata == TABLE.schema.metadata


def test_a_parquet_file_is_a_table(tmp_path):
    pq.write_table(TABLE, tmp_path / "t.parquet")
    seal(str(tmp_path / "t.parquet"), str(tmp_path / "t.sealed"), KEY)
    assert unseal(str(tmp_path / "t.sealed"), KEY).equals(TABLE)


def test_a_table_without_rows(tmp_path):
    seal(TABLE.slice(0, 0), tmp_path / "t.sealed", KEY)
    assert unseal(tmp_path / "t.sealed", KEY).equals(TABLE.slice(0, 0))


@given(data=st.binary(min_size=1, max_size=4000), copies=st.integers(1, 3000))
@settings(max_examples=15, deadline=None)
def test_bytes(tmp_path_factory, data, copies):
    folder = tmp_path_factory.mktemp("seal")
    seal(data * copies, folder / "s", KEY)
    assert unseal(folder / "s", KEY) == data * copies
    assert names(folder) == ["s"]


def test_a_folder(tmp_path, tree):
    seal(tree, tmp_path / "s", KEY)
    paths = unseal(tmp_path / "s", KEY, to=tmp_path / "out")
    assert bytes_of(tmp_path / "out") == bytes_of(tree)
    assert sorted(paths) == sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())


def test_a_single_file_comes_as_bytes_or_under_its_name(tmp_path, tree):
    seal(tree / "a.bin", tmp_path / "s", KEY)
    assert unseal(tmp_path / "s", KEY) == (tree / "a.bin").read_bytes()
    assert unseal(tmp_path / "s", KEY, to=tmp_path) == [tmp_path / "a.bin"]


def test_arrays(tmp_path):
    arrays = {"w": np.random.default_rng(1).random((300, 401)), "one": np.float32(2), "none": np.ones((0, 3), bool)}
    seal({**arrays, "big": np.arange(5, dtype=">i4")}, tmp_path / "s", KEY)
    found = unseal(tmp_path / "s", KEY)
    assert list(found) == [*arrays, "big"]
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert (found[name].shape, found[name].dtype) == (np.shape(array), array.dtype)
    np.testing.assert_array_equal(found["big"], range(5))


def test_bfloat16_keeps_its_type_through_two_rounds(tmp_path):
    torch = pytest.importorskip("torch")
    tensor = torch.linspace(-1, 1, 100).to(torch.bfloat16)
    seal({"w": tensor}, tmp_path / "one", KEY)
    seal(unseal(tmp_path / "one", KEY), tmp_path / "two", KEY)
    found = unseal(tmp_path / "two", KEY)["w"]
    assert found.dtype.metadata == {"raylog_dtype": "bfloat16"}
    assert torch.equal(torch.from_numpy(found).view(torch.bfloat16), tensor)


# Keys


@pytest.mark.parametrize(
    "key", ["correct horse battery staple 321", b"four words of a passphrase, 32 b", b"pw", bytearray(KEY)]
)
def test_what_is_no_key_is_refused_and_not_shown(tmp_path, key):
    seal(b"data", tmp_path / "s", KEY)
    for call in (lambda: seal(b"data", tmp_path / "t", key), lambda: unseal(tmp_path / "s", key)):
        with pytest.raises(UsageError, match=r"32 random bytes.*not stretched.*make one with") as caught:
            call()
        assert "horse" not in str(caught.value) and "words" not in str(caught.value)
    assert not (tmp_path / "t").exists()


def test_another_key_is_not_permitted(tmp_path):
    seal(b"data", tmp_path / "s", KEY)
    with pytest.raises(NotPermitted, match=r"not the one that .* was sealed with"):
        unseal(tmp_path / "s", secrets.token_bytes(32))


def test_neither_content_nor_key_nor_names_stand_in_the_file(tmp_path, tree):
    (tree / "secret-name").write_bytes(b"plain words " * 9)
    seal(tree, tmp_path / "s", KEY, codec="none")
    stored = (tmp_path / "s").read_bytes()
    assert not [word for word in (b"plain words", b"secret-name", KEY) if word in stored]


# Damage


def test_any_flipped_bit_is_found(tmp_path):
    seal(pa.table({"n": range(50)}), tmp_path / "s", KEY)
    data = (tmp_path / "s").read_bytes()
    for position in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        (tmp_path / "d").write_bytes(damaged)
        with pytest.raises(DamagedData):
            unseal(tmp_path / "d", KEY)


@pytest.mark.parametrize(
    "change", [lambda data: data[:-1], lambda data: data + b"x", lambda data: b"", lambda data: b"PK" * 99]
)
def test_a_file_that_is_no_whole_shard_is_damaged(tmp_path, change):
    seal(b"data", tmp_path / "s", KEY)
    (tmp_path / "d").write_bytes(change((tmp_path / "s").read_bytes()))
    with pytest.raises(DamagedData):
        unseal(tmp_path / "d", KEY)


def test_a_damaged_file_leaves_nothing_of_what_was_written(tmp_path, tree):
    seal(tree, tmp_path / "s", KEY)
    data = bytearray((tmp_path / "s").read_bytes())
    frame = Frame.read(lambda offset, length: bytes(data[offset : offset + length]), len(data))
    data[frame.chunks[-1].offset] ^= 1
    (tmp_path / "d").write_bytes(data)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_bytes(b"stays")
    with pytest.raises(DamagedData):
        unseal(tmp_path / "d", KEY, to=tmp_path / "out")
    assert bytes_of(tmp_path / "out") == {"mine": b"stays"}
    with pytest.raises(DamagedData):
        unseal(tmp_path / "d", KEY, to=tmp_path / "new")
    assert not (tmp_path / "new").exists()


# Paths


def test_nothing_is_overwritten(tmp_path, tree):
    (tmp_path / "s").write_bytes(b"mine")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("s", "dangling", "tree"):
        with pytest.raises(Conflict, match=rf"{name} exists already and is not overwritten"):
            seal(b"data", tmp_path / name, KEY)
    assert (tmp_path / "s").read_bytes() == b"mine"
    seal(tree, tmp_path / "t", KEY)
    before = bytes_of(tree)
    with pytest.raises(Conflict, match=r"a\.bin exists already"):
        unseal(tmp_path / "t", KEY, to=tree)
    assert bytes_of(tree) == before


def test_two_writers_of_one_path(tmp_path, monkeypatch):
    """The second finds out when its file gets its name, long after it looked."""
    monkeypatch.setattr("raylog.api.landing.refuse_existing", lambda path: None)
    monkeypatch.setattr(api_file, "refuse_existing", lambda path: None)
    seal(b"first", tmp_path / "s", KEY)
    with pytest.raises(Conflict):
        seal(b"second", tmp_path / "s", KEY)
    assert unseal(tmp_path / "s", KEY) == b"first"
    assert names(tmp_path) == ["s"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"gone/s cannot be written: No such file"):
        seal(b"data", tmp_path / "gone" / "s", KEY)
    with pytest.raises(NotFound, match=r"there is no file .*gone"):
        unseal(tmp_path / "gone", KEY)
    with pytest.raises(UsageError):
        unseal(tmp_path, KEY)


def test_several_files_need_a_folder_and_a_table_has_none(tmp_path, tree):
    seal(tree, tmp_path / "s", KEY)
    with pytest.raises(UsageError, match=r"expected one file to return as bytes, got 'a\.bin' and 'deep/a\.bin'"):
        unseal(tmp_path / "s", KEY)
    seal(TABLE, tmp_path / "t", KEY)
    with pytest.raises(UsageError, match="expected files, got a table"):
        unseal(tmp_path / "t", KEY, to=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("is_link", [True, False])
def test_no_file_is_written_through_a_link(tmp_path, tree, is_link):
    seal(tree, tmp_path / "s", KEY)
    (tmp_path / "outside").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "deep").symlink_to(tmp_path / "outside") if is_link else (tmp_path / "out" / "deep").touch()
    with pytest.raises(UsageError, match=r"expected a folder at .*out/deep, got a link or a file"):
        unseal(tmp_path / "s", KEY, to=tmp_path / "out")
    assert names(tmp_path / "outside") == []
    assert names(tmp_path / "out") == ["deep"]


def test_a_full_device_is_said_and_left_clean(tmp_path):
    out = tmp_path / "out"
    code = (
        "import resource, signal, sys; from raylog.api.file import seal; from raylog.errors import NoSpace\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n    seal(bytes(range(256)) * 4096, sys.argv[1], bytes(range(200, 232)), codec='none')\n"
        "except NoSpace as error:\n    print(error)\n"
    )
    command = [sys.executable, "-c", code, str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "no room left to write" in done.stdout
    assert names(tmp_path) == []


# Sources


def test_content_for_more_than_one_shard_is_pointed_to_the_client(tmp_path, monkeypatch):
    with (tmp_path / "big").open("wb") as big:
        big.truncate((4 << 30) + 1)
    with pytest.raises(UsageError, match=r"big holds more than .* one sealed file: store it with client\.put"):
        seal(tmp_path / "big", tmp_path / "s", KEY)
    monkeypatch.setattr(api_file, "FILE_CONTENT_BYTES_MAX", CHUNK_CONTENT_BYTES_MAX)
    with pytest.raises(UsageError, match=r"the table holds more than .* client\.put"):
        seal(pa.table({"n": np.random.default_rng(1).random(2_000_000)}), tmp_path / "s", KEY)
    with pytest.raises(UsageError, match=r"the mapping holds more than .* client\.put"):
        seal({"w": np.zeros(2_000_000)}, tmp_path / "s", KEY)
    assert names(tmp_path) == ["big"]


def test_a_source_that_changes_while_it_is_sealed(tmp_path, tree, monkeypatch):
    real = api_file.seal_content

    def touched(content, plan, begin):
        stepping = real(content, plan, begin)
        first = next(stepping)
        (tree / "a.bin").write_bytes(b"other")
        yield first
        yield from stepping

    monkeypatch.setattr(api_file, "seal_content", touched)
    with pytest.raises(SourceError, match=r"a\.bin changed while it was read"):
        seal(tree, tmp_path / "s", KEY)
    assert names(tmp_path) == ["tree"]


@pytest.mark.parametrize("source", [b"", {}, "gone", pa.table({}), 7])
def test_a_refused_source_leaves_nothing(tmp_path, source):
    with pytest.raises(UsageError):
        seal(source, tmp_path / "s", KEY)
    assert names(tmp_path) == []


def test_an_unknown_codec(tmp_path):
    with pytest.raises(UsageError, match="codec of auto, none, lz4, zstd, got 'gzip'"):
        seal(b"data", tmp_path / "s", KEY, codec="gzip")


# Ctrl-C


@pytest.mark.parametrize("moment", ["seal", "unseal"])
def test_ctrl_c_leaves_nothing(tmp_path, tree, moment):
    """The signal comes while the source blocks half-way, or while the second file is written."""
    main = threading.main_thread().ident

    def batches():
        yield from TABLE.to_batches()
        signal.pthread_kill(main, signal.SIGINT)
        yield from TABLE.to_batches()

    if moment == "seal":
        with pytest.raises(KeyboardInterrupt):
            seal(pa.RecordBatchReader.from_batches(TABLE.schema, batches()), tmp_path / "s", KEY)
    else:
        seal(tree, tmp_path / "sealed", KEY)
        with pytest.raises(KeyboardInterrupt), LandingFolder(tmp_path / "out") as landing:
            with landing.file(["a", "b"]) as partial:
                partial.write_at(0, memoryview(b"whole"))
            with landing.file(["a", "c"]):
                assert (tmp_path / "out" / "a" / "b").read_bytes() == b"whole"
                signal.pthread_kill(main, signal.SIGINT)
                signal.sigtimedwait([], 1)
    assert {path.name for path in tmp_path.iterdir()} <= {"tree", "sealed"}


# Several shards, as the client reads them


class Memory:
    def __init__(self) -> None:
        self.data = bytearray()

    def write_at(self, offset: int, data: memoryview) -> None:
        self.data[offset : offset + data.nbytes] = data

    def discard(self) -> None:
        self.data.clear()

    def opener(self, frame: Frame, key: GroupKey) -> ShardOpener:
        def read_chunk(number: int) -> memoryview:
            entry = frame.chunks[number]
            return memoryview(self.data)[entry.offset : entry.offset + entry.sealed_bytes]

        return ShardOpener(frame, [key], read_chunk)


def shards(source: object, shard_bytes: int) -> list[ShardOpener]:
    key = GroupKey(new_id(), KEY)
    plan = SealPlan(
        tenant=new_id(), artifact_id=new_id(), version_id=new_id(), key=key, codec=None,
        shard_bytes=shard_bytes, chunk_bytes=65536,
    )  # fmt: skip
    return [one.place.opener(one.frame, key) for one in seal_content(open_source(source), plan, lambda _: Memory())]


def test_files_that_span_shards(tmp_path, tree):
    openers = shards(tree, 700_001)
    assert len(openers) == 8
    write_files(openers, tmp_path / "out")
    assert bytes_of(tmp_path / "out") == bytes_of(tree)


def test_a_missing_or_doubled_shard_of_a_file_is_found(tmp_path, tree):
    openers = shards(tree, 700_001)
    for wrong in (openers[:3] + openers[4:], openers[:4] + openers[3:], openers[1:], openers[:3]):
        with pytest.raises(DamagedData, match=r"a\.bin"):
            write_files(wrong, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_tables_and_arrays_in_several_shards():
    table = pa.table({"n": range(200_000), "m": range(200_000), "w": ["ab"] * 200_000})
    openers = shards(table, 1 << 20)
    assert len(openers) > 2
    assert read_table(openers).equals(table)
    assert read_table(openers, ["w", "n"]).equals(table.select(["w", "n"]))
    with pytest.raises(UsageError, match="'x'"):
        read_table(openers, ["x"])
    arrays = {name: np.full(100_000, number) for number, name in enumerate("abc")}
    parts = shards(arrays, 1 << 20)
    assert len(parts) == 3
    np.testing.assert_equal(read_tensors(parts), arrays)
    assert list(read_tensors(parts, ["c"])) == ["c"]
    with pytest.raises(UsageError, match="no tensors named x"):
        read_tensors(parts, ["c", "x"])
    with pytest.raises(UsageError, match="expected a table, got tensors"):
        read_table(parts)


def test_an_array_larger_than_a_shard_lies_in_parts():
    base = np.random.default_rng(2).random((700, 400))
    bits = np.dtype("<u2", metadata={"raylog_dtype": "bfloat16"})
    arrays = {
        "small": np.arange(7),
        "table": base,
        "turned": base.T,
        "big_endian": base[:300].astype(">f8"),
        "half": np.arange(500_000, dtype="<u4").view("<u2").view(bits),
        "last": np.float32(1),
    }
    parts = shards(arrays, 300_000)
    assert all(part.frame.content_bytes <= 300_000 for part in parts)
    assert len(parts) == 1 + 8 + 8 + 4 + 7
    found = read_tensors(parts)
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
    assert found["half"].dtype.metadata == {"raylog_dtype": "bfloat16"}
    np.testing.assert_array_equal(read_tensors(parts, ["turned"])["turned"], base.T)
    for wrong in (parts[:4] + parts[5:], parts[:4] + parts[3:], parts[:4]):
        with pytest.raises(DamagedData, match="'table'"):
            read_tensors(wrong)


def test_parts_of_an_array_that_is_not_contiguous_are_copied_one_by_one():
    """A transposed table of 64 MiB needs room for its parts, not for a whole copy."""
    turned = np.zeros((1024, 8192)).T
    content = open_source({"w": turned})
    key = GroupKey(new_id(), KEY)
    plan = SealPlan(
        tenant=new_id(), artifact_id=new_id(), version_id=new_id(), key=key, codec=None,
        shard_bytes=4 << 20, chunk_bytes=1 << 20,
    )  # fmt: skip
    tracemalloc.start()
    try:
        count = sum(1 for _ in seal_content(content, plan, lambda _: Nowhere()))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 16
    assert peak_bytes < 24 << 20


class Nowhere:
    def write_at(self, offset: int, data: memoryview) -> None:
        pass

    def discard(self) -> None:
        pass
