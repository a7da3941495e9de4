"""Everything that `put` and `seal` take, opened as one of three kinds of content."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from raylog.api.sources.content import Content, FilesContent, SourceFile, TableContent
from raylog.api.sources.folder import local_files
from raylog.api.sources.formats import Format, sniff
from raylog.api.sources.memory import open_bytes, open_object
from raylog.api.sources.tables import open_tables
from raylog.api.sources.tensors import open_tensors
from raylog.api.sources.url import open_url, printable_url
from raylog.errors import SourceError, UsageError

ACCEPTED = (
    "a path or URL, bytes, a pyarrow Table, RecordBatch, RecordBatchReader or Dataset, a pandas DataFrame, a "
    "ray.data.Dataset, any object with __arrow_c_stream__, or a mapping of names to numpy arrays or torch tensors"
)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# What Spark and others leave beside tabular files: no part of the table.
_MARKERS = re.compile(r"(_SUCCESS|_metadata|_common_metadata|\.DS_Store|\..*\.crc)")


def open_source(source: Any, *, as_files: bool = False) -> Content:
    """Opens `source` for reading; nothing of its content is held in memory yet, apart from what already is.

    A file or URL is a table when its format is tabular (see `sources.formats`), else an opaque file. A folder is one
    table when all its files are of one tabular format (in the order of their relative paths), else opaque files.
    Bytes are an opaque file named `data`. `as_files=True` keeps files, folders and URLs opaque whatever their format.
    `FilesContent` is open already: it comes from callers whose bytes are in none of these.

    Raises `SourceError` when the source is missing, unreadable, empty or malformed, `UsageError` when it is of no
    kind that is accepted. What is found malformed only later is raised while the content is read.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return open_bytes(source)
    if isinstance(source, FilesContent):
        return source
    if isinstance(source, (str, os.PathLike)):
        where, files = files_of(source)
        return open_files(files, where, as_files=as_files)
    if as_files:
        raise UsageError(f"expected a path, URL or bytes with as_files, got {type(source).__name__}")
    table = open_object(source)
    if table is not None:
        return table
    if isinstance(source, Mapping):
        return open_tensors(source)
    raise UsageError(f"cannot put {type(source).__name__}: expected {ACCEPTED}")


def files_of(source: str | os.PathLike[str]) -> tuple[str, list[SourceFile]]:
    """How messages call a path or URL, and its files. Raises `SourceError`."""
    name = os.fspath(source)
    if not isinstance(name, str):
        raise UsageError(f"expected a path as text, got {type(name).__name__}: use os.fsdecode")
    if not name:
        raise SourceError("expected a path or URL, got an empty text")
    if isinstance(source, str) and _URL.match(name):
        if not name.lower().startswith("file://"):
            return printable_url(name), open_url(name)
        name = _local_path(name)
    return name, local_files(Path(name))


def _local_path(url: str) -> str:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise SourceError(f"expected file:///path, got a file URL of the host {parts.hostname!r}")
    return unquote(parts.path)


def open_files(files: list[SourceFile], where: str, *, as_files: bool) -> TableContent | FilesContent:
    """Files as one table, where all are of one tabular format, else as they are. Raises `SourceError`."""
    if not as_files:
        found, members = _tabular(files)
        if found is not None:
            return open_tables(members, found, where)
    if len(files) == 1 and not files[0].size_bytes:
        raise SourceError(f"{files[0].where} is empty: nothing to put")
    return FilesContent(where=where, files=tuple(files))


def _tabular(files: list[SourceFile]) -> tuple[Format | None, list[SourceFile]]:
    """The one tabular format of all files and the files that are of it; (None, []) when there is no such format."""
    members = [file for file in files if not _MARKERS.fullmatch(file.path.rsplit("/", 1)[-1])]
    common: Format | None = None
    for file in members:
        found = sniff(file)
        if found is Format.OPAQUE or common not in (None, found):
            return None, []
        common = found
    return common, members if common else []
