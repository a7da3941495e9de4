"""Bytes of unknown number: as they were, sealed on the disk, gone with their spool."""

import io
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylog.api.sources.spool import BLOCK_BYTES, Spool
from raylog.errors import DamagedData


@given(size=st.sampled_from([0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES + 5]), data=st.data())
def test_bytes_come_back_from_any_position(
    tmp_path_factory: pytest.TempPathFactory, size: int, data: st.DataObject
) -> None:
    content = (b"a line of plain text %d\n" * 5 % (1, 2, 3, 4, 5)) * (size // 100 + 1)
    content = content[:size]
    with Spool(tmp_path_factory.getbasetemp()) as spool:
        spool.fill(io.BytesIO(content))
        file = spool.source("name", "the test")
        assert file.size_bytes == size
        assert b"".join(file.pieces(300_000)) == content
        with file.open() as stream:
            for _ in range(3):
                start = data.draw(st.integers(0, size))
                stream.seek(start)
                assert stream.read(2 * BLOCK_BYTES) == content[start : start + 2 * BLOCK_BYTES]


def test_nothing_readable_lies_on_the_disk_and_nothing_stays(tmp_path: Path) -> None:
    content = b"plain text that nobody is to read" * 100_000
    with Spool(tmp_path) as spool:
        spool.fill(io.BytesIO(content))
        assert list(tmp_path.iterdir()) == [], "it has no name"
        path = Path(f"/proc/self/fd/{_descriptor_below(tmp_path)}")
        sealed = path.read_bytes()
        assert len(sealed) >= len(content) and b"plain" not in sealed and b"nobody" not in sealed
        with path.open("r+b") as file:
            file.seek(BLOCK_BYTES + 100)
            file.write(b"x")
        with pytest.raises(DamagedData, match="block 1"):
            list(spool.source("name", "the test").pieces(BLOCK_BYTES))
        with path.open("r+b") as file:
            file.truncate(BLOCK_BYTES)
        with pytest.raises(DamagedData, match="block 0"):
            list(spool.source("name", "the test").pieces(BLOCK_BYTES))


def _descriptor_below(folder: Path) -> int:
    """The open file of this process that lies, or lay, in a folder."""
    for one in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # what listed them
            if str(folder) in str(one.readlink()):
                return int(one.name)
    raise AssertionError(f"no file of {folder} is open")
