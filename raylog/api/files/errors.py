"""What callers of a file system catch: raylog's errors that are Python's errors of files as well."""

from collections.abc import Iterator
from contextlib import contextmanager

from raylog.errors import Conflict, NotFound, NotPermitted, UsageError


class FileMissing(NotFound, FileNotFoundError):
    """There is no such file or folder."""


class FileThere(Conflict, FileExistsError):
    """A file that was to be new exists already."""


class FolderGiven(UsageError, IsADirectoryError):
    """A file was expected, the path is a folder's."""


class FileGiven(UsageError, NotADirectoryError):
    """A folder was expected, the path is that of an artifact which is none."""


class FileProtected(NotPermitted, PermissionError):
    """This file may not be changed, or not be read by this process."""


@contextmanager
def file_errors() -> Iterator[None]:
    """raylog's `NotFound` and `NotPermitted` as errors of files; all others stay what they are."""
    try:
        yield
    except (FileMissing, FileProtected):
        raise
    except NotFound as error:
        raise FileMissing(str(error)) from error
    except NotPermitted as error:
        raise FileProtected(str(error)) from error
