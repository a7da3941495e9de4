"""Files that appear whole or not at all, never over another file and never through a link out of their folder."""

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from types import TracebackType

from raylog.errors import Conflict, NoSpace, RaylogError, UsageError
from raylog.spec import new_id

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@contextmanager
def landing_errors(where: str) -> Iterator[None]:
    """The operating system's refusals to write, in raylog's words."""
    try:
        yield
    except FileExistsError as error:
        raise Conflict(f"{where} exists already and is not overwritten: remove it, or name another path") from error
    except OSError as error:
        if error.errno in _FULL:
            raise NoSpace(f"no room left to write {where}: free some, or name a path on another device") from error
        raise UsageError(f"{where} cannot be written: {error.strerror or error}") from error


class PartialFile:
    """A file under a temporary name in its folder, `descriptor` open for writing, until `land` gives it its name."""

    def __init__(self, folder: int, name: str, where: str) -> None:
        self._folder, self._name, self._where = folder, name, where
        self._partial = f".raylog-{new_id()}.partial"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with landing_errors(where):
            self.descriptor = os.open(self._partial, flags, 0o666, dir_fd=folder)

    def write_at(self, offset: int, data: memoryview) -> None:
        """Writes all of `data` at `offset`. Raises `NoSpace`, `UsageError`."""
        done = 0
        with landing_errors(self._where):
            while done < data.nbytes:
                done += os.pwrite(self.descriptor, data[done:], offset + done)

    def land(self, *, durably: bool) -> None:
        """Gives the file its name in one step; `Conflict` when something has that name. `durably`: it then survives
        a power cut, and not only the end of this process."""
        with landing_errors(self._where):
            if durably:
                os.fsync(self.descriptor)
            _name_without_overwriting(self._folder, self._partial, self._name)
            if durably:
                os.fsync(self._folder)

    def close(self) -> None:
        """Removes whatever did not land."""
        os.close(self.descriptor)
        with suppress(FileNotFoundError):
            os.unlink(self._partial, dir_fd=self._folder)

    def __enter__(self) -> "PartialFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _name_without_overwriting(folder: int, partial: str, name: str) -> None:
    try:
        os.link(partial, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        # File systems without hard links: here a file made between these two lines would be replaced.
        with suppress(FileNotFoundError):
            os.stat(name, dir_fd=folder, follow_symlinks=False)
            raise FileExistsError(errno.EEXIST, "File exists", name) from None
        os.rename(partial, name, src_dir_fd=folder, dst_dir_fd=folder)


def refuse_existing(path: Path) -> None:
    """Raises `Conflict` when something has that name already, be it a link that leads nowhere."""
    if os.path.lexists(path):
        raise Conflict(f"{path} exists already and is not overwritten: remove it, or name another path")


@contextmanager
def landing_file(path: Path) -> Iterator[PartialFile]:
    """A file that will be `path`; the caller writes it and calls `land`. The folder must be there.

    Raises `Conflict` at once when `path` exists, `UsageError` when its folder cannot be written to.
    """
    refuse_existing(path)
    where = str(path)
    with landing_errors(where):
        folder = os.open(path.parent, _FOLDER_FLAGS)
    try:
        with PartialFile(folder, path.name, where) as partial:
            yield partial
    finally:
        os.close(folder)


class LandingFolder(AbstractContextManager["LandingFolder"]):
    """A folder that files land in by relative path. On an error everything that landed, and every folder made for it,
    is removed again; folders and files that were there before are never touched.

    Every step opens the next folder relative to the last and refuses links, so nothing is written outside, whoever
    changes the folder meanwhile.
    """

    def __init__(self, top: Path) -> None:
        self._top = top
        self._landed: list[tuple[str, ...]] = []
        self._made: list[tuple[str, ...]] = []
        self._made_top = False
        with landing_errors(str(top)):
            if not top.is_dir():
                top.mkdir()
                self._made_top = True
            self._descriptor = os.open(top, _FOLDER_FLAGS)

    @contextmanager
    def file(self, parts: Sequence[str]) -> Iterator[PartialFile]:
        """A file that will be `parts` joined, checked by the caller; it lands when the block ends well."""
        where = str(self._top.joinpath(*parts))
        folder = self._open_folder(tuple(parts[:-1]))
        try:
            with PartialFile(folder, parts[-1], where) as partial:
                yield partial
                partial.land(durably=False)
                self._landed.append(tuple(parts))
        finally:
            os.close(folder)

    def refuse_existing(self, parts: Sequence[str]) -> None:
        """Raises `Conflict` when something has the name that `parts` make."""
        refuse_existing(self._top.joinpath(*parts))

    def _open_folder(self, parts: tuple[str, ...]) -> int:
        descriptor = os.dup(self._descriptor)
        for depth, part in enumerate(parts, 1):
            try:
                descriptor = self._step(descriptor, parts[:depth], part)
            except OSError as error:
                os.close(descriptor)
                path = self._top.joinpath(*parts[:depth])
                raise UsageError(
                    f"expected a folder at {path}, got a link or a file ({error.strerror}): remove it, or name "
                    "another folder"
                ) from error
        return descriptor

    def _step(self, descriptor: int, parts: tuple[str, ...], part: str) -> int:
        with suppress(FileExistsError):
            os.mkdir(part, dir_fd=descriptor)
            self._made.append(parts)
        below = os.open(part, _FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=descriptor)
        os.close(descriptor)
        return below

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None:
            self._remove_all()
        os.close(self._descriptor)
        if kind is not None and self._made_top:
            with suppress(OSError):
                self._top.rmdir()

    def _remove_all(self) -> None:
        made = set(self._made)
        for parts in self._landed:
            with suppress(OSError, RaylogError):
                folder = self._open_folder(parts[:-1])
                os.unlink(parts[-1], dir_fd=folder)
                os.close(folder)
        for parts in sorted(made, key=len, reverse=True):
            with suppress(OSError):
                self._top.joinpath(*parts).rmdir()
