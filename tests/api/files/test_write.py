"""A file being written: blocks as they fill, the put's own failures, what is given up, a process that just ends."""

import gc
import gzip
import io
import os
import subprocess
import sys
import time
from gzip import GzipFile
from pathlib import Path
from typing import Any

import pytest

from raylog.api.files.write import FileWriter, PackedWriter
from raylog.api.sources.content import StreamContent
from raylog.errors import Cancelled, NoSpace, UsageError
from raylog.spec import Version

VERSION = Version(name="x", number=1, shards=1, rows=0, content_bytes=0, stored_bytes=0, digest="")


class Taken:
    """A put that keeps what it is given, block by block."""

    def __init__(self, fails_after: int = 99) -> None:
        self.blocks: list[bytes] = []
        self.error: BaseException | None = None
        self._fails_after = fails_after

    def __call__(self, content: StreamContent) -> Version:
        try:
            for block in content.read():
                self.blocks.append(bytes(block))
                if len(self.blocks) == self._fails_after:
                    raise NoSpace("full")
        except BaseException as error:
            self.error = error
            raise
        return VERSION


@pytest.mark.parametrize(("size", "blocks"), [(0, [0]), (1, [1]), (10, [10]), (11, [10, 1]), (30, [10] * 3)])
@pytest.mark.parametrize("step", [1, 7, 100])
def test_blocks(size: int, blocks: list[int], step: int) -> None:
    data, taken = os.urandom(size), Taken()
    with FileWriter("a/b", taken, 10) as file:
        for start in range(0, size, step):
            file.write(data[start : start + step])
        assert file.tell() == size
    assert b"".join(taken.blocks) == data and [len(block) for block in taken.blocks] == blocks
    with pytest.raises(UsageError, match="is closed"):
        file.write(b"more")


def test_a_put_that_fails_is_told_while_it_is_written_and_once() -> None:
    taken = Taken(fails_after=2)
    file = FileWriter("a/b", taken, 10)
    with pytest.raises(NoSpace):
        for _ in range(100):
            file.write(bytes(10))
    file.close()
    assert len(taken.blocks) == 2
    with pytest.raises(NoSpace), FileWriter("a/b", Taken(fails_after=1), 10) as file:
        file.write(b"x")


def test_what_is_given_up_ends_its_put() -> None:
    taken = Taken()
    file = FileWriter("a/b", taken, 10)
    file.write(bytes(35))
    file.discard()
    assert isinstance(taken.error, Cancelled)
    file.close()
    late = FileWriter("a/b", taken := Taken(), 10, commits_late=True)
    late.write(bytes(5))
    late.close()
    assert not taken.blocks
    late.commit()
    assert taken.blocks == [bytes(5)]


def test_closed_while_an_exception_is_on_its_way_it_keeps_nothing(caplog: pytest.LogCaptureFixture) -> None:
    taken = Taken()
    file = FileWriter("a/b", taken, 10)
    with pytest.raises(KeyError):
        try:
            file.write(bytes(35))
            raise KeyError("elsewhere")
        finally:
            file.close()
    assert isinstance(taken.error, Cancelled) and file.closed
    assert "a/b: closed while KeyError was on its way" in caplog.text and "elsewhere" not in caplog.text


def test_what_is_written_because_of_an_exception_is_kept() -> None:
    taken = Taken()
    try:
        raise KeyError
    except KeyError:
        file = FileWriter("a/b", taken, 10)
        file.write(b"what failed")
        file.close()
    assert b"".join(taken.blocks) == b"what failed"


@pytest.mark.parametrize("size", [5, 35])
def test_a_packer_is_closed_with_its_file(size: int) -> None:
    data, taken = os.urandom(size), Taken()
    file = FileWriter("a/b", taken, 10)
    with PackedWriter(GzipFile(fileobj=file, mode="wb"), file) as packed:
        assert packed.write(data) == packed.tell() == size
    assert gzip.decompress(b"".join(taken.blocks)) == data
    file = FileWriter("a/b", taken := Taken(), 10)
    with pytest.raises(KeyError), PackedWriter(GzipFile(fileobj=file, mode="wb"), file) as packed:
        packed.write(data)
        raise KeyError
    assert file.closed and (not taken.blocks or isinstance(taken.error, Cancelled))


@pytest.mark.parametrize("size", [5, 20_000])
@pytest.mark.parametrize("wrap", [io.BufferedWriter, io.TextIOWrapper, "packed", "packed text"])
def test_what_wraps_it_and_is_dropped_keeps_nothing(size: int, wrap: Any) -> None:
    taken = Taken()
    file: Any = FileWriter("a/b", taken, 1000)
    if isinstance(wrap, str):
        file = PackedWriter(GzipFile(fileobj=file, mode="wb"), file)
    if wrap != "packed":
        file = io.TextIOWrapper(file) if wrap == "packed text" else wrap(file)
    file.write("x" * size if isinstance(file, io.TextIOBase) else os.urandom(size))
    with pytest.warns(ResourceWarning, match="a/b was not closed"):
        del file
        gc.collect()
    assert not taken.blocks or isinstance(taken.error, Cancelled)


def test_a_process_that_never_closes_its_file_ends_at_once() -> None:
    code = (
        "from test_write import Taken\nfrom raylog.api.files.write import FileWriter\n"
        "file = FileWriter('a/b', Taken(), 10)\nfile.write(bytes(35))\n"
    )
    began_s = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent, timeout=20)
    assert time.monotonic() - began_s < 10
