"""Opaque files through sealed shards."""

import gzip
import io
from typing import Any

import pytest
from codec_shards import Sealed, open_shard, seal_shard
from hypothesis import given, settings
from hypothesis import strategies as st

from raylog.codec.files import (
    FileExtent,
    add_extent,
    check_path,
    files_preamble,
    open_files,
    plan_files,
    read_extents,
)
from raylog.errors import SourceError, UsageError
from raylog.spec import Codec, Kind


def seal_files(files: dict[str, bytes], extents: list[FileExtent], **options: Any) -> Sealed:
    def add(sealer: Any) -> None:
        for extent in extents:
            add_extent(sealer, extent, io.BytesIO(files[extent.path]))

    return seal_shard(Kind.FILES, files_preamble(extents), add, **options)


NAMES = st.sampled_from(["a", "b/a", "c/a", "d e", "é/ü", "-", "x.tar.gz"])


@settings(max_examples=60, deadline=None)
@given(
    files=st.dictionaries(NAMES, st.binary(max_size=400), min_size=1),
    shard_bytes=st.integers(1, 600),
    chunk_bytes=st.integers(8, 300),
)
def test_files_round_trip_over_several_shards(files: dict[str, bytes], shard_bytes: int, chunk_bytes: int) -> None:
    plan = list(plan_files([(path, len(data)) for path, data in files.items()], shard_bytes))
    assert all(sum(extent.length for extent in extents) <= shard_bytes for extents in plan)
    assert {extent.path for extents in plan for extent in extents} == set(files)
    got = {path: bytearray(len(data)) for path, data in files.items()}
    for extents in plan:
        shard = seal_files(files, extents, chunk_bytes=chunk_bytes)
        assert shard.frame.content_bytes == sum(extent.length for extent in extents)
        for extent, pieces in open_files(shard.opener()):
            got[extent.path][extent.offset : extent.offset + extent.length] = b"".join(pieces)
    assert got == files


def test_one_file_is_read_without_opening_the_others() -> None:
    files = {f"part-{n}": bytes([n]) * 1000 for n in range(20)}
    (extents,) = plan_files([(path, len(data)) for path, data in files.items()], 1 << 20)
    shard, read = seal_files(files, extents, chunk_bytes=500), []
    opener = open_shard(shard.data, shard.keys, read.append)
    ((extent, pieces),) = open_files(opener, frozenset(["part-7"]))
    assert (extent.path, b"".join(pieces)) == ("part-7", files["part-7"])
    assert len(set(read)) == shard.frame.units[0].chunks + 2


def test_gzip_is_stored_as_it_is() -> None:
    files = {"log.gz": gzip.compress(b"a line of a log\n" * 20_000, 0), "log": b"a line of a log\n" * 2000}
    assert len(gzip.compress(files["log.gz"])) < len(files["log.gz"]) // 10  # sampling would have compressed it
    extents = [FileExtent(path=path, offset=0, length=len(data), size=len(data)) for path, data in files.items()]
    shard = seal_files(files, extents, chunk_bytes=4096, codec=Codec.ZSTD)
    codecs = [entry.codec for entry in shard.frame.chunks[shard.frame.units[0].chunks :]]
    inside = len(files["log.gz"]) // 4096
    assert set(codecs[:inside]) == {Codec.NONE} and set(codecs[inside:]) == {Codec.ZSTD}
    assert {e.path: b"".join(p) for e, p in open_files(shard.opener())} == files


@pytest.mark.parametrize(
    "path", ["", "/etc/passwd", "../x", "a/../b", "a//b", "./a", "a/.", "a\0b", "\ud800", "x" * 4097, "a/"]
)
def test_paths_that_could_leave_their_folder_are_refused(path: str) -> None:
    with pytest.raises(UsageError):
        check_path(path)
    with pytest.raises(UsageError):
        files_preamble([FileExtent(path=path, offset=0, length=0, size=0)])


def test_paths_that_are_fine() -> None:
    for path in ("a", "a/b.txt", "..a/b..", "with space", "日本語", "a\\b", "-rf"):
        assert check_path(path) == path


def test_a_file_given_twice_or_extents_that_overlap() -> None:
    with pytest.raises(UsageError, match="twice"):
        list(plan_files([("a", 1), ("a", 1)], 100))
    for pair in ((0, 5, 4, 5), (4, 5, 0, 5), (0, 0, 0, 0)):
        extents = [FileExtent(path="a", offset=o, length=n, size=20) for o, n in (pair[:2], pair[2:])]
        with pytest.raises(UsageError, match="overlap"):
            files_preamble(extents)
    for offset, length, size in ((0, 5, 4), (-1, 1, 5), (5, -1, 5), (0, 1 << 63, 1 << 63)):
        with pytest.raises(UsageError, match="inside"):
            files_preamble([FileExtent(path="a", offset=offset, length=length, size=size)])


def test_a_file_that_shrinks_while_it_is_read() -> None:
    extent = FileExtent(path="a", offset=0, length=100, size=100)
    with pytest.raises(SourceError, match=r"'a'.*ended at 60"):
        seal_files({"a": bytes(60)}, [extent])


def test_the_list_of_files() -> None:
    extents = [FileExtent(path="a", offset=0, length=3, size=3)]
    assert read_extents(seal_files({"a": b"abc"}, extents).opener()) == extents
    assert list(open_files(seal_files({}, []).opener())) == []
