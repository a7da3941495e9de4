"""Files and folders: what is kept, what is refused, and that no change while reading goes unseen."""

import os
import socket
import stat
from pathlib import Path

import pytest

from raylog.api.source import open_source
from raylog.api.sources.content import FilesContent
from raylog.errors import SourceError, UsageError
from raylog.spec import Kind


def contents(source: object) -> dict[str, bytes]:
    content = open_source(source)
    assert isinstance(content, FilesContent)
    found = {file.path: b"".join(file.pieces(7)) for file in content.files}
    content.check_unchanged()
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "top" / "deep" / "er").mkdir(parents=True)
    (tmp_path / "top" / "same.bin").write_bytes(b"one")
    (tmp_path / "top" / "deep" / "same.bin").write_bytes(b"two" * 100)
    (tmp_path / "top" / "deep" / "er" / "empty").touch()
    return tmp_path / "top"


def test_a_folder_keeps_every_file_by_its_relative_path(folder):
    expected = {"same.bin": b"one", "deep/same.bin": b"two" * 100, "deep/er/empty": b""}
    assert contents(folder) == contents(str(folder)) == contents(folder.as_uri()) == expected
    assert list(contents(folder)) == sorted(expected)
    assert open_source(folder).bytes == 303


def test_a_single_file_goes_by_its_own_name(folder):
    assert contents(folder / "same.bin") == {"same.bin": b"one"}


def test_a_path_given_as_a_link_is_followed(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "linked.bin").symlink_to(folder / "same.bin")
    assert len(contents(tmp_path / "link")) == 3
    assert contents(tmp_path / "linked.bin") == {"linked.bin": b"one"}


def test_extents_of_a_file(folder):
    (file,) = open_source(folder / "deep" / "same.bin").files
    assert b"".join(file.pieces(100, offset=1, length=7)) == b"wotwotw"


@pytest.mark.parametrize("source", [b"abc", bytearray(b"abc"), memoryview(b"xabcx")[1:4]])
def test_bytes_are_a_file_named_data(source):
    assert contents(source) == {"data": b"abc"}
    assert open_source(source).kind is Kind.FILES


@pytest.mark.parametrize("source", [b"", bytearray(), memoryview(b"")])
def test_empty_bytes_are_refused(source):
    with pytest.raises(SourceError, match="bytes are empty"):
        open_source(source)


def test_strided_bytes_are_refused():
    with pytest.raises(UsageError, match="contiguous"):
        open_source(memoryview(b"abcd")[::2])


# Links and special files


def test_links_to_files_inside_are_followed(folder):
    (folder / "link.bin").symlink_to("deep/same.bin")
    assert contents(folder)["link.bin"] == b"two" * 100


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("../outside", "symbolic link to a regular file"),
        ("deep", "symbolic link to a folder"),
        (".", "symbolic link to a folder"),
        ("gone", "leads nowhere"),
        ("link", "leads nowhere or in a circle"),
        ("/dev/zero", "symbolic link to a character device"),
    ],
)
def test_other_links_are_refused_by_name(folder, target, words):
    (folder.parent / "outside").write_bytes(b"secret")
    (folder / "link").symlink_to(target)
    with pytest.raises(SourceError, match=rf"link is a .*{words}|link is a {words}"):
        open_source(folder)


def test_pipes_sockets_and_devices_are_refused(folder, monkeypatch):
    os.mkfifo(folder / "pipe")
    with pytest.raises(SourceError, match=r"named pipe: .*top/pipe"):
        open_source(folder)
    with pytest.raises(SourceError, match=r"named pipe: .*top/pipe"):
        open_source(folder / "pipe")
    with pytest.raises(SourceError, match="character device: /dev/null"):
        open_source("/dev/null")
    (folder / "pipe").unlink()
    monkeypatch.chdir(folder)  # the whole path may be longer than a socket's may be
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("sock")
        with pytest.raises(SourceError, match=r"a socket: .*sock"):
            open_source(folder)


# Bad input


def test_a_missing_path_is_named(tmp_path):
    with pytest.raises(SourceError, match=r"there is no file or folder .*gone\.parquet"):
        open_source(tmp_path / "gone.parquet")


def test_a_folder_without_files_is_refused(tmp_path):
    (tmp_path / "empty" / "deeper").mkdir(parents=True)
    with pytest.raises(SourceError, match=r"folder .*empty holds no files"):
        open_source(tmp_path / "empty")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["same.bin", "deep"])
def test_what_may_not_be_read_is_named(folder, name):
    mode = stat.S_IMODE((folder / name).stat().st_mode)
    (folder / name).chmod(0)
    try:
        with pytest.raises(SourceError, match=rf"no permission to read .*{name}"):
            contents(folder)
    finally:
        (folder / name).chmod(mode)


def test_a_refused_open_names_the_file(folder, monkeypatch):
    """What root cannot try with modes: the operating system says no."""
    real = os.open

    def refuse(path, flags, *rest, **options):
        if str(path).endswith("same.bin"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(SourceError, match=r"no permission to read .*same\.bin"):
        open_source(folder / "same.bin")


def test_a_name_that_is_not_utf8_is_shown(folder):
    (Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9"))).touch()
    with pytest.raises(SourceError, match=r"file names in UTF-8, got b'caf\\xe9' in b'.*top'"):
        open_source(folder)


@pytest.mark.parametrize("source", ["", "a\0b", "file://elsewhere/x"])
def test_paths_that_are_none(source):
    with pytest.raises(SourceError):
        open_source(source)


@pytest.mark.parametrize("source", [None, 3, [b"x"], {1, 2}, object(), iter([])])
def test_other_objects_are_refused_with_what_is_accepted(source):
    with pytest.raises(UsageError, match=rf"cannot put {type(source).__name__}: expected a path or URL, bytes"):
        open_source(source)


def test_as_files_is_for_files_only():
    with pytest.raises(UsageError, match="as_files, got dict"):
        open_source({}, as_files=True)


# Changes while reading


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_bytes(b"x" * 20),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
        lambda path: (path.with_name("new").write_bytes(path.read_bytes()), path.with_name("new").rename(path)),
        lambda path: os.utime(path, ns=(1, 1)),
    ],
    ids=["grown", "emptied", "removed", "replaced", "touched"],
)
def test_a_change_after_opening_is_noticed(tmp_path, change):
    path = tmp_path / "log.bin"
    path.write_bytes(b"0123456789")
    content = open_source(path)
    assert b"".join(content.files[0].pieces(4)) == b"0123456789"
    content.check_unchanged()
    change(path)
    with pytest.raises(SourceError, match=r"log\.bin changed while it was read"):
        content.check_unchanged()
    with pytest.raises(SourceError, match=r"log\.bin (changed while it was read|)|no file"):
        b"".join(content.files[0].pieces(4))


def test_a_file_cut_off_between_two_reads_is_noticed(tmp_path):
    path = tmp_path / "log.bin"
    path.write_bytes(bytes(1 << 20))
    pieces = open_source(path).files[0].pieces(1 << 16)
    next(pieces)
    os.truncate(path, 1 << 16)
    with pytest.raises(SourceError, match=r"log\.bin changed while it was read: expected 1048576 bytes"):
        list(pieces)


def test_a_table_that_changes_while_it_is_read_is_not_called_damaged(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a\n1\n2\n")
    content = open_source(path)
    path.write_text("a\nx\n")
    with pytest.raises(SourceError, match=r"t\.csv changed while it was read"):
        list(content.batches())
    with pytest.raises(SourceError, match=r"t\.csv changed while it was read"):
        content.check_unchanged()
