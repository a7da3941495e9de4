"""`raylog://` as its users have it: pandas, pyarrow, torch; what is written whole or not at all; what a path may be."""

import gc
import gzip
import io
import lzma
import os
import pickle
import random
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import torch
from pyarrow.fs import FSSpecHandler, PyFileSystem
from three_nodes import Machine, lying, wait_until
from torch.distributed.checkpoint import load, save
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter

import raylog
from raylog.api.files.tree import FILE_LABEL
from raylog.api.filesystem import RaylogFileSystem
from raylog.errors import Conflict, NotFound, NotPermitted, UsageError
from raylog.units import MIB


@pytest.fixture
def fs(client: raylog.Client) -> Iterator[RaylogFileSystem]:
    found = RaylogFileSystem(client=client)
    yield found
    if found.exists("files"):
        found.rm("files", recursive=True)


@pytest.fixture(scope="module")
def big() -> bytes:
    """More than four shards."""
    return np.random.default_rng(1).bytes(18 * MIB + 12_345)


def test_pandas(fs: RaylogFileSystem) -> None:
    frame = pd.DataFrame({"n": range(1000), "word": [f"w{n}" for n in range(1000)]})
    frame.to_parquet("raylog://files/frame.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet("raylog://files/frame.parquet"), frame)
    frame.to_csv("raylog://files/frame.csv", index=False)
    pd.testing.assert_frame_equal(pd.read_csv("raylog://files/frame.csv"), frame)


def test_pyarrow(fs: RaylogFileSystem, client: raylog.Client) -> None:
    table = pa.table({"n": range(1000), "group": [n % 3 for n in range(1000)]})
    pq.write_table(table, "files/table.parquet", filesystem=fs)
    assert pq.read_table("files/table.parquet", filesystem=fs).equals(table)
    assert pq.read_table(io.BytesIO(client.get("files/table.parquet"))).equals(table)
    pq.write_to_dataset(table, "files/parts", partition_cols=["group"], filesystem=fs)
    assert sorted(one.rpartition("/")[2] for one in fs.ls("files/parts", detail=False)) == [
        f"group={group}" for group in range(3)
    ]
    found = pyarrow.dataset.dataset("files/parts", filesystem=fs, partitioning="hive").to_table()
    assert sorted(found["n"].to_pylist()) == list(range(1000))


def test_torch_distributed_checkpoint(fs: RaylogFileSystem) -> None:
    state = {"weight": torch.randn(1000, 300), "step": torch.tensor(7)}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning)  # that this is one process
        save(dict(state), storage_writer=FsspecWriter("raylog://files/dcp"))
        assert sorted(fs.ls("files/dcp", detail=False)) == ["files/dcp/.metadata", "files/dcp/__0_0.distcp"]
        loaded = {"weight": torch.zeros(1000, 300), "step": torch.tensor(0)}
        load(loaded, storage_reader=FsspecReader("raylog://files/dcp"))
    assert torch.equal(loaded["weight"], state["weight"]) and loaded["step"] == 7


def test_any_part_of_a_file(fs: RaylogFileSystem, big: bytes, client: raylog.Client) -> None:
    fs.pipe_file("files/big", big)
    assert client.stat("files/big").shards == 5
    assert fs.size("files/big") == len(big) and fs.cat_file("files/big") == big == client.get("files/big")
    chance = random.Random(1)
    spots = sorted(chance.randrange(len(big)) for _ in range(20))
    with fs.open("files/big") as file:
        for spot in [*spots, *reversed(spots), len(big) - 1, len(big), len(big) + 5]:
            length = chance.choice([0, 1, 1000, 300_000, 5 * MIB])
            file.seek(spot)
            assert file.read(length) == big[spot : spot + length]
    starts, ends = [0, -10, 5, 4 * MIB - 1], [3, None, 5, 4 * MIB + 1]
    expected = [big[start:end] for start, end in zip(starts, ends, strict=True)]
    assert fs.cat_ranges(["files/big"] * 4, starts, ends) == expected
    found = fs.cat_ranges(["files/big", "files/none", "files/big"], 0, 2)
    assert found[::2] == [big[:2]] * 2 and isinstance(found[1], FileNotFoundError)
    assert [fs.cat_file("files/big", start, end) for start, end in zip(starts, ends, strict=True)] == expected


def test_a_stream_of_many_writes(fs: RaylogFileSystem, big: bytes, tmp_path: Path, client: raylog.Client) -> None:
    with fs.open("files/stream", "wb") as file:
        for start in range(0, len(big), 700_000):
            assert file.write(big[start : start + 700_000]) == len(big[start : start + 700_000])
            assert file.tell() == min(start + 700_000, len(big))
        assert not fs.exists("files/stream")
    assert fs.cat_file("files/stream") == big
    [path] = client.download("files/stream", tmp_path / "there")
    assert path.name == "stream" and path.read_bytes() == big
    with fs.open("files/exact", "wb") as file:
        file.write(big[: 8 * MIB])
    assert fs.cat_file("files/exact") == big[: 8 * MIB] and client.stat("files/exact").shards == 2
    fs.cp_file("files/stream", "files/copy")
    fs.mv("files/copy", "files/moved")
    assert fs.cat_file("files/moved") == big and not fs.exists("files/copy")


def test_text(fs: RaylogFileSystem) -> None:
    with fs.open("files/lines.txt", "w", encoding="utf-8") as file:
        file.writelines(f"ä{n}\n" for n in range(10_000))
    with fs.open("files/lines.txt", "r", encoding="utf-8") as file:
        assert [line.strip() for line in file] == [f"ä{n}" for n in range(10_000)]


@pytest.mark.parametrize("size", [10, 10 * MIB])
def test_what_was_not_finished_leaves_nothing(fs: RaylogFileSystem, client: raylog.Client, size: int) -> None:
    fs.pipe_file("files/there", b"before")
    before = lying(client)
    with pytest.raises(RuntimeError, match="no more"), fs.open("files/there", "wb") as file:
        file.write(bytes(size))
        raise RuntimeError("no more")
    file = fs.open("files/there", "wb")
    file.write(bytes(size))
    with pytest.warns(ResourceWarning, match="files/there was not closed"):
        del file
    assert fs.cat_file("files/there") == b"before" and len(client.versions("files/there")) == 1
    assert lying(client) <= before


def half_by_url(fs: RaylogFileSystem, path: str, data: bytes) -> None:
    with fsspec.open(f"raylog://{path}", "wb") as file:
        file.write(data)
        raise RuntimeError("no more")


def half_packed_by_url(fs: RaylogFileSystem, path: str, data: bytes) -> None:
    with fsspec.open(f"raylog://{path}", "wb", compression="gzip") as file:
        file.write(data)
        raise RuntimeError("no more")


def half_as_text(fs: RaylogFileSystem, path: str, data: bytes) -> None:
    with fs.open(path, "w", encoding="latin-1") as file:
        file.write(data.decode("latin-1"))
        raise RuntimeError("no more")


def half_packed(fs: RaylogFileSystem, path: str, data: bytes) -> None:
    with fs.open(path, "wb", compression="gzip") as file:
        file.write(data)
        raise RuntimeError("no more")


def half_a_table(fs: RaylogFileSystem, path: str, data: bytes) -> None:
    table = pa.table({"data": [data]})
    with pq.ParquetWriter(path, table.schema, filesystem=PyFileSystem(FSSpecHandler(fs))) as writer:
        writer.write_table(table)
        raise RuntimeError("no more")


@pytest.mark.parametrize("write", [half_by_url, half_packed_by_url, half_as_text, half_packed, half_a_table])
def test_what_wraps_a_file_leaves_nothing_of_half_of_it(
    fs: RaylogFileSystem, client: raylog.Client, big: bytes, write: Callable[[RaylogFileSystem, str, bytes], None]
) -> None:
    fs.pipe_file("files/whole", b"before")
    for size in (10, 9 * MIB):
        with pytest.raises(RuntimeError, match="no more"):
            write(fs, "files/whole", big[:size])
        assert fs.cat_file("files/whole") == b"before" and len(client.versions("files/whole")) == 1


def test_compression(fs: RaylogFileSystem, big: bytes) -> None:
    with fs.open("files/some.gz", "wb", compression="infer") as file:
        file.write(big)
    with fs.open("files/some.gz", compression="infer") as file:
        assert file.read() == big
    assert gzip.decompress(fs.cat_file("files/some.gz")) == big
    with fs.open("files/lines.bz2", "x", compression="bz2", encoding="utf-8") as file:
        file.write("ä\n")
    assert fs.read_text("files/lines.bz2", compression="bz2", encoding="utf-8") == "ä\n"
    with fs.transaction, fs.open("files/later.xz", "wb", compression="xz") as file:
        file.write(b"later")
    assert lzma.decompress(fs.cat_file("files/later.xz")) == b"later"
    file = fs.open("files/never.gz", "wb", compression="gzip")
    file.write(b"never closed")
    with pytest.warns(ResourceWarning, match="files/never.gz was not closed"):
        del file
        gc.collect()  # a packer may refer to itself
    assert not fs.exists("files/never.gz")


def test_transactions(fs: RaylogFileSystem) -> None:
    with fs.transaction:
        fs.pipe_file("files/one", b"1")
        fs.pipe_file("files/two", b"2" * 9 * MIB)
        assert not fs.exists("files/one")
    assert fs.cat(["files/one", "files/two"]) == {"files/one": b"1", "files/two": b"2" * 9 * MIB}
    with pytest.raises(RuntimeError), fs.transaction:
        fs.pipe_file("files/one", b"other")
        raise RuntimeError
    assert fs.cat_file("files/one") == b"1"


def test_versions(fs: RaylogFileSystem, client: raylog.Client) -> None:
    for text in (b"first", b"second"):
        fs.pipe_file("files/v.txt", text)
    assert [fs.cat_file(f"files/v.txt{at}") for at in ("", "@1", "@2")] == [b"second", b"first", b"second"]
    assert fs.info("files/v.txt@1")["size"] == 5 and fs.info("files/v.txt")["version"] == 2
    assert fs.ukey("files/v.txt") == fs.ukey("files/v.txt") != fs.ukey("files/v.txt@1")
    assert fs.checksum("files/v.txt@1") != fs.checksum("files/v.txt@2")
    assert fs.created("files/v.txt") == fs.modified("files/v.txt@1") < fs.modified("files/v.txt") <= datetime.now(UTC)
    fs.rm("files/v.txt@1")
    assert [version.number for version in client.versions("files/v.txt")] == [2]
    assert not fs.exists("files/v.txt@1")
    for path, mode in (("files/v.txt@2", "wb"), ("files/v.txt@7", "wb"), ("files/v.txt@2/x", "wb")):
        with pytest.raises(NotPermitted, match="never change"):
            fs.open(path, mode)
    with pytest.raises(NotFound):
        fs.open("files/v.txt@9")


def test_an_artifact_of_files_is_a_folder(fs: RaylogFileSystem, client: raylog.Client, tmp_path: Path) -> None:
    contents = {"a.txt": b"A", "sub/b.bin": os.urandom(5 * MIB), "sub/empty": b"", "sub/deep/c": b"C"}
    for name, data in contents.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(data)
    client.put("files/folder", tmp_path / "in", as_files=True)
    for top in ("files/folder", "files/folder@1"):
        sizes = {one: detail["size"] for one, detail in fs.find(top, detail=True).items()}
        assert sizes == {f"{top}/{name}": len(data) for name, data in contents.items()}
        assert fs.cat(list(sizes)) == {f"{top}/{name}": data for name, data in contents.items()}
        assert fs.ls(f"{top}/sub", detail=False) == [f"{top}/sub/b.bin", f"{top}/sub/deep", f"{top}/sub/empty"]
        assert fs.isdir(f"{top}/sub/deep") and not fs.exists(f"{top}/sub/de")
    fs.get("files/folder", str(tmp_path / "out"), recursive=True)
    assert (tmp_path / "out/sub/b.bin").read_bytes() == contents["sub/b.bin"]
    for path in ("files/folder/a.txt", "files/folder/new"):
        with pytest.raises(PermissionError, match="versions never change"):
            fs.pipe_file(path, b"x")
    with pytest.raises(PermissionError):
        fs.rm("files/folder/a.txt")
    with pytest.raises(IsADirectoryError):
        fs.rm("files/folder")
    fs.rm("files/folder", recursive=True)
    assert not fs.exists("files/folder")


def test_tables_are_no_files(fs: RaylogFileSystem, client: raylog.Client) -> None:
    version = client.put("files/table", pa.table({"n": [1, 2]}))
    entry = {"name": "files/table", "size": version.content_bytes, "type": "other", "version": 1}
    [found] = fs.ls("files")
    assert found == fs.info("files/table") == entry | {"digest": version.digest}
    for action in (fs.cat_file, lambda path: fs.pipe_file(path, b"x"), lambda path: fs.open(f"{path}/x", "wb")):
        with pytest.raises(raylog.RaylogError, match="files/table"):
            action("files/table")
    fs.rm("files/table")
    assert not fs.exists("files")


def test_paths_that_are_none(fs: RaylogFileSystem) -> None:
    fs.pipe_file("files/a/b", b"x")
    wrong: list[tuple[type[Exception], Any]] = [
        (UsageError, lambda: fs.exists("files/../x")),
        (UsageError, lambda: fs.pipe_file("a" * 300, b"x")),
        (FileNotFoundError, lambda: fs.open("files/a/c")),
        (FileNotFoundError, lambda: fs.ls("files/x")),
        (FileNotFoundError, lambda: fs.rm("files/x")),
        (IsADirectoryError, lambda: fs.open("files/a")),
        (IsADirectoryError, lambda: fs.open("files/a", "wb")),
        (IsADirectoryError, lambda: fs.rm("files/a")),
        (UsageError, lambda: fs.rm("/", recursive=True)),
        (PermissionError, lambda: fs.open("files/a/b/c", "wb")),
        (UsageError, lambda: fs.open("files/a/b", "ab")),
        (UsageError, lambda: fs.open("files/a/b", "r+b")),
    ]
    for expected, action in wrong:
        with pytest.raises(expected):
            action()
    assert fs.find("files") == ["files/a/b"]
    odd = ["files/.hidden", "files/ä ö", "files/a@b", "files/-", "files/#1?"]
    for path in odd:
        fs.pipe_file(path, path.encode())
    assert sorted(fs.find("files")) == sorted([*odd, "files/a/b"])
    assert fs.cat_file("files/ä ö") == "files/ä ö".encode()


def test_names_without_a_path_are_not_there(fs: RaylogFileSystem, client: raylog.Client) -> None:
    for text in (b"first", b"second", b"third"):
        fs.pipe_file("files/names/a", text)
    odd = [f"files/names/{part}" for part in ("0+a+403", "0+..", "0+a+2fb", "0++00")]
    for name in odd:
        client.put(name, b"odd", labels=FILE_LABEL)
    assert fs.find("files/names") == fs.ls("files/names", detail=False) == ["files/names/a"]
    assert fs.glob("files/names/*") == ["files/names/a"] and fs.exists("files/names/a@3")
    fs.rm("files/names", recursive=True)
    assert client.ls("files/names/") == []


def test_of_two_writers_one_wins(fs: RaylogFileSystem) -> None:
    one, other = fs.open("files/new", "xb"), fs.open("files/new", "xb")
    one.write(b"one")
    other.write(b"other")
    one.close()
    with pytest.raises(FileExistsError):
        other.close()
    assert fs.cat_file("files/new") == b"one"
    with fs.open("files/new", "wb") as late:  # its put begins with the second block
        late.write(bytes(9 * MIB))
        fs.pipe_file("files/new", b"between")
        with pytest.raises(Conflict):
            late.close()
    assert fs.cat_file("files/new") == b"between"


def test_another_process_connects_by_itself_and_may_be_killed(
    fs: RaylogFileSystem, client: raylog.Client, machine: Machine
) -> None:
    fs.pipe_file("files/hello", b"hello")
    before = lying(client)
    driver = Path(__file__).with_name("fsspec_writer.py")
    command = [sys.executable, str(driver), pickle.dumps(fs).hex(), "files/hello", "files/half"]
    environment = os.environ | {"RAY_ADDRESS": machine.cluster.address}  # another cluster may run on this machine
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "written\n"
            sealed = lying(client) - before
        finally:
            process.kill()
    assert sealed and not fs.exists("files/half")
    wait_until(lambda: not lying(client) & sealed, 20, "what the killed writer sealed is gone")


def test_not_in_a_forked_process(fs: RaylogFileSystem) -> None:
    child = os.fork()
    if not child:
        try:
            fs.exists("files/hello")
        except UsageError as error:
            os._exit(0 if "spawn" in str(error) else 1)
        os._exit(2)
    assert os.waitpid(child, 0)[1] == 0


def test_it_is_found_by_its_name(client: raylog.Client) -> None:
    fs = fsspec.filesystem("raylog", replicas=2)
    assert isinstance(fs, RaylogFileSystem) and fs is fsspec.filesystem("raylog", replicas=2)
    with fsspec.open("raylog://files/two", "wb", replicas=2) as file:
        file.write(b"twice")
    assert all(len(nodes) >= 2 for nodes in client.replicas("files/two").values())
    fs.rm("files/two")
