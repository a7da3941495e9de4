"""Files that only their owner may read: modes checked on the open descriptor, written whole or not at all."""

import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path

from raylog.errors import Conflict, DamagedData, NotPermitted

PRIVATE_MODE = 0o600
PRIVATE_DIRECTORY_MODE = 0o700
_OTHERS = 0o077


def make_private_directory(path: Path) -> None:
    """Makes `path` with mode 0700 and checks that nobody else may look into it; raises `NotPermitted`."""
    path.mkdir(mode=PRIVATE_DIRECTORY_MODE, parents=True, exist_ok=True)
    check_private_directory(path)


def check_private_directory(path: Path) -> None:
    """Raises `NotPermitted` unless `path` is a directory of this user's alone."""
    descriptor = _open(path, os.O_RDONLY | os.O_DIRECTORY, "a directory")
    try:
        _check_owner_only(os.fstat(descriptor), path, PRIVATE_DIRECTORY_MODE)
    finally:
        os.close(descriptor)


def check_private_file(path: Path) -> None:
    """Raises `NotPermitted` unless `path` is a regular file of this user's alone; `FileNotFoundError`."""
    os.close(_open_private(path))


def read_private(path: Path, bytes_max: int) -> bytes:
    """The whole file. Raises `FileNotFoundError`, `NotPermitted` for laxer modes or another owner (with what to run),
    `DamagedData` when it is longer than `bytes_max`."""
    with os.fdopen(_open_private(path), "rb") as file:
        data = file.read(bytes_max + 1)
    if len(data) > bytes_max:
        raise DamagedData(f"{path}: expected at most {bytes_max} bytes, got more: this is another file")
    return data


def write_private(path: Path, data: bytes, *, replace: bool) -> None:
    """Makes `path` hold `data`, mode 0600, durably and at once: a crash leaves the old file or the new one. Without
    `replace` an existing file is never touched; raises `Conflict`."""

    def fill(temporary: Path) -> None:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE_MODE)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, PRIVATE_MODE)
            file.write(data)
            file.flush()
            os.fsync(descriptor)

    publish_private(path, fill, replace=replace)


def publish_private(path: Path, fill: Callable[[Path], None], *, replace: bool) -> None:
    """Lets `fill` make and fsync a file of a temporary name beside `path`, then gives it its name."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")
    try:
        fill(temporary)
        if replace:
            temporary.rename(path)
        else:
            os.link(temporary, path)  # unlike rename, fails where there is one already
    except FileExistsError:
        raise Conflict(f"{path} exists already and is never overwritten: use it, or move it away first") from None
    finally:
        temporary.unlink(missing_ok=True)
    _fsync_directory(path.parent)


def _open_private(path: Path) -> int:
    descriptor = _open(path, os.O_RDONLY | os.O_NONBLOCK, "a regular file, not a link")
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise NotPermitted(f"{path}: expected a regular file, got mode {stat.filemode(found.st_mode)}")
        _check_owner_only(found, path, PRIVATE_MODE)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _open(path: Path, flags: int, expected: str) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise NotPermitted(f"{path}: expected {expected} that this user may read: {error.strerror}") from error


def _check_owner_only(found: os.stat_result, path: Path, mode: int) -> None:
    if found.st_uid != os.geteuid():
        raise NotPermitted(
            f"{path} belongs to user {found.st_uid}, this process runs as user {os.geteuid()}: run it as its owner, or "
            f"chown {os.geteuid()} {path}"
        )
    if found.st_mode & _OTHERS:
        raise NotPermitted(
            f"{path} has mode {stat.S_IMODE(found.st_mode):04o}, expected {mode:04o}: others on this machine could "
            f"read the keys in it, or replace them; run: chmod {mode:o} {path} "
            "(and replace keys that others may have seen)"
        )


def _fsync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
