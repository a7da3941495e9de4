"""Local files and folders as lists of `SourceFile`: what is walked, what is refused, what counts as changed."""

import io
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from raylog.api.sources.content import SourceFile, changed
from raylog.errors import SourceError

_SPECIAL = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


@dataclass(frozen=True, slots=True)
class Stamp:
    """What tells one state of a file from another without reading it."""

    device: int
    inode: int
    size_bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> "Stamp":
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)

    def __str__(self) -> str:
        return f"{self.size_bytes} bytes, inode {self.inode}, modified at {self.mtime_ns} ns"


def local_files(root: Path) -> list[SourceFile]:
    """The regular files at or below `root`, sorted by relative path; a single file goes by its own name.

    Symbolic links to regular files inside the folder are followed. Links that lead out of it, to folders or nowhere,
    pipes, sockets and devices are refused: silently leaving them out would not be the folder that was named.
    Raises `SourceError` naming the entry.
    """
    try:
        resolved = root.resolve(strict=True)
        status = resolved.stat()
    except (OSError, RuntimeError, ValueError) as error:
        raise unreadable(str(root), error) from error
    if stat.S_ISREG(status.st_mode):
        _check_name(root.name or resolved.name, str(root))
        return [_source_file(root.name or resolved.name, resolved, status, str(root))]
    if not stat.S_ISDIR(status.st_mode):
        raise SourceError(f"expected a regular file or a folder, got {_kind_text(status.st_mode)}: {root}")
    files = sorted(_walk(resolved, resolved, root), key=lambda file: file.path)
    if not files:
        raise SourceError(f"the folder {root} holds no files: nothing to put")
    return files


def _walk(folder: Path, top: Path, root: Path) -> Iterator[SourceFile]:
    pending = [folder]
    while pending:
        current = pending.pop()
        try:
            entries = list(os.scandir(current))
        except OSError as error:
            raise unreadable(str(current), error) from error
        for entry in entries:
            _check_name(entry.name, str(current))
            path = current / entry.name
            if entry.is_dir(follow_symlinks=False):
                pending.append(path)
                continue
            relative = path.relative_to(top).as_posix()
            target, status = _target(path, top)
            yield _source_file(relative, target, status, str(root / relative))


def _target(path: Path, top: Path) -> tuple[Path, os.stat_result]:
    """Where the bytes of the entry `path` lie and their status."""
    try:
        target = path.resolve(strict=True) if path.is_symlink() else path
        status = target.lstat()
    except (OSError, RuntimeError) as error:
        if path.is_symlink():
            raise SourceError(f"{path} is a symbolic link that leads nowhere or in a circle: remove it") from error
        raise unreadable(str(path), error) from error
    if path.is_symlink() and (not target.is_relative_to(top) or not stat.S_ISREG(status.st_mode)):
        raise SourceError(
            f"{path} is a symbolic link to {_kind_text(status.st_mode)} {target}: only links to regular files inside "
            f"{top} are followed; copy the folder with 'cp -rL' and put the copy"
        )
    if not stat.S_ISREG(status.st_mode):
        raise SourceError(f"expected regular files and folders only, got {_kind_text(status.st_mode)}: {path}")
    return target, status


def _source_file(relative: str, target: Path, status: os.stat_result, where: str) -> SourceFile:
    stamp = Stamp.of(status)
    return SourceFile(
        path=relative,
        where=where,
        size_bytes=status.st_size,
        open=partial(_open, target, stamp, where),
        check=partial(_check, target, stamp, where),
    )


def _open(target: Path, stamp: Stamp, where: str) -> io.BufferedIOBase:
    try:
        # O_NONBLOCK: a pipe put in the file's place since it was listed must not block the open.
        descriptor = os.open(target, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise unreadable(where, error) from error
    stream = os.fdopen(descriptor, "rb")
    found = Stamp.of(os.fstat(descriptor))
    if found != stamp:
        stream.close()
        raise changed(where, str(stamp), str(found))
    return stream


def _check(target: Path, stamp: Stamp, where: str) -> None:
    try:
        found = Stamp.of(target.stat())
    except OSError as error:
        raise changed(where, str(stamp), f"an error ({error.strerror})") from error
    if found != stamp:
        raise changed(where, str(stamp), str(found))


def _check_name(name: str, folder: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise SourceError(
            f"expected file names in UTF-8, got {os.fsencode(name)!r} in {os.fsencode(folder)!r}: rename the file"
        ) from error


def _kind_text(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    return _SPECIAL.get(stat.S_IFMT(mode), "a regular file")


def unreadable(where: str, error: Exception) -> SourceError:
    """The error for a path that cannot be opened, with what to do."""
    printable = where.encode("utf-8", "backslashreplace").decode()
    if isinstance(error, FileNotFoundError):
        return SourceError(f"there is no file or folder {printable}: check the path")
    if isinstance(error, PermissionError):
        return SourceError(f"no permission to read {printable}: change its mode or owner, or run as a user who may")
    return SourceError(f"{printable} cannot be read: {error}")
