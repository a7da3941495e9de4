"""`raylog://`: artifacts as an fsspec file system, for pandas, pyarrow, dask, duckdb, torch and whoever else takes one.

A file that is written is an artifact of its own, whose name is its path (`raylog.api.files.names` says how parts that
are no names are written); written again, it has another version. `raylog://ckpt/step-7/model.bin` is its latest,
`raylog://ckpt/step-7/model.bin@3` one version, which never changes. Folders are what names have in common: they come
and go with the files in them, and `mkdir` does nothing. An artifact that was put from files is a folder of these:
`raylog://corpora/wiki@3/part/0.txt`; listing it brings its shards to this machine, as its files' names lie sealed in
them. Tables and tensors are listed with the type "other" and are no files: `client.get` reads them.
"""

import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from itertools import groupby
from typing import Any

from fsspec.compression import compr
from fsspec.core import get_compression
from fsspec.spec import AbstractFileSystem
from fsspec.utils import stringify_path

from raylog.api.client import Client
from raylog.api.files.errors import FileGiven, FileMissing, FileProtected, FileThere, FolderGiven, file_errors
from raylog.api.files.names import SCHEME, FilePath, parse_path, strip
from raylog.api.files.read import FileReader
from raylog.api.files.tree import FILE_LABEL, Entry, EntryKind, Tree
from raylog.api.files.write import BLOCK_BYTES_MAX, FileWriter, PackedWriter
from raylog.api.put import Put
from raylog.api.put_options import PutOptions
from raylog.api.session import Session
from raylog.api.shared import check_not_forked, shared_client
from raylog.api.sources.content import StreamContent
from raylog.errors import RaylogError, UsageError
from raylog.spec import Reference, Version
from raylog.units import MIB

COPY_BYTES = 8 * MIB
DELETES_AT_ONCE = 4


class RaylogFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """The file system of `fsspec.filesystem("raylog")`.

    `client`: a connection that is there already; else the process has one for all file systems, made when it is first
    needed. What is written gets `replicas`, or `erasure`, and a copy in `backup`, as with `Client.put`. A copy in
    another process connects there by itself.

    A file becomes visible, whole, when it is closed; one whose `with` block is left by an exception, that is closed
    while one is on its way, is never closed or whose process ends, leaves nothing. Of two writers of a file the one
    that closes last has the latest version, or gets `Conflict` where its first 64 MiB were sealed before the other's
    version came. Bytes are sealed as they are written, in blocks of that size, and reads open only those chunks that
    they touch. `rm` deletes an artifact with all its versions; nothing is appended to a file or written into a version.

    Raises what Python raises for files where there is something (`FileNotFoundError`, `FileExistsError`,
    `IsADirectoryError`, `PermissionError`), which are raylog's own errors too, and those where there is none.
    """

    protocol = SCHEME
    root_marker = ""

    def __init__(
        self,
        *,
        client: Client | None = None,
        replicas: int = 1,
        erasure: str | None = None,
        backup: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._client = client
        self._options = PutOptions.parse(
            replicas=replicas, erasure=erasure, backup=backup, durability="disk", codec="auto", labels=FILE_LABEL
        )
        self._connected: tuple[Session, Tree] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        options = {name: value for name, value in self.storage_options.items() if name != "client"}
        return _remade, (options,)

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return [cls._strip_protocol(one) for one in path] if isinstance(path, list) else strip(_text(path))

    @property
    def _session(self) -> Session:
        check_not_forked()
        return (self._client or shared_client()).session

    @property
    def _tree(self) -> Tree:
        session = self._session
        if self._connected is None or self._connected[0] is not session:
            self._connected = session, Tree(session)
        return self._connected[1]

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """`name`, `size`, `type`, and of what belongs to one version its number, `version`, and its `digest`."""
        return _detail(self._entry(path))

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        """What lies in a folder, by name; of a file, itself. Raises `FileNotFoundError`."""
        parsed = parse_path(_text(path))
        with file_errors():
            found = self._tree.children(parsed)
        if not found and parsed.parts:
            entry = self._entry(path)
            found = [] if entry.kind is EntryKind.FOLDER else [entry]
        return [_detail(entry) if detail else entry.path for entry in found]

    def exists(self, path: str, **kwargs: Any) -> bool:
        """Whether there is a file or folder. Raises when that cannot be found out."""
        try:
            self._entry(path)
        except FileNotFoundError:
            return False
        return True

    def created(self, path: str) -> datetime:
        """When the oldest version was written that there still is."""
        version = self._version(path)
        is_latest = parse_path(_text(path)).number is None
        return self._written((self._tree.versions(version.name) if is_latest else [version])[0])

    def modified(self, path: str) -> datetime:
        """When the version was written that the path names or lies in."""
        return self._written(self._version(path))

    def rm_file(self, path: str) -> None:
        """Deletes a file with all its versions, or one version. Raises `IsADirectoryError` for a folder."""
        self._delete(self._named(path))

    def rm(self, path: str | list[str], recursive: bool = False, maxdepth: int | None = None) -> None:
        """Deletes files, and with `recursive` folders and what is in them, down to `maxdepth`. What can be a glob is
        one. Not atomic over several."""
        if recursive and maxdepth is None:
            doomed = [one for found in self.expand_path(path) for one in self._all_named(found)]
        else:
            found = self.expand_path(path, recursive=recursive, maxdepth=maxdepth)
            doomed = [self._named(one) for one in found if not (recursive and self.isdir(one))]
        with ThreadPoolExecutor(DELETES_AT_ONCE, thread_name_prefix="rm") as executor:
            for _ in executor.map(self._delete, dict.fromkeys(doomed)):
                pass

    def cp_file(self, path1: str, path2: str, **kwargs: Any) -> None:
        """Copies a file, sealed anew under its new name; of a folder nothing, as files bring their folders along."""
        entry = self._entry(path1)
        if entry.kind is not EntryKind.FOLDER:
            with self._reader(entry) as source, self._writer(parse_path(_text(path2)), is_new=False) as target:
                shutil.copyfileobj(source, target, COPY_BYTES)

    def cat_ranges(
        self,
        paths: list[str],
        starts: int | list[int],
        ends: int | list[int],
        max_gap: int | None = None,
        on_error: str = "return",
        **kwargs: Any,
    ) -> list[Any]:
        """As fsspec's, but ranges of one file that follow one another open it once."""
        if max_gap is not None or on_error not in ("return", "raise"):
            raise UsageError(f"expected max_gap None and on_error 'return' or 'raise', got {max_gap} and {on_error!r}")
        many = len(paths)
        wanted = zip(paths, _each(starts, many), _each(ends, many), strict=True)
        found: list[Any] = []
        for path, ranges in groupby(wanted, key=lambda one: one[0]):
            found += self._ranges(path, [(start, end) for _, start, end in ranges], on_error == "return")
        return found

    def _ranges(self, path: str, ranges: list[tuple[int, int]], returns_errors: bool) -> list[Any]:
        found: list[Any] = []
        try:
            with self._reader(self._entry(path)) as reader:
                for start, end in ranges:
                    first, stop, _ = slice(start, end).indices(reader.size)
                    reader.seek(first)
                    found.append(reader.read(max(0, stop - first)))
        except (OSError, RaylogError) as error:
            if not returns_errors:
                raise
            found += [error] * (len(ranges) - len(found))
        return found

    def open(
        self,
        path: Any,
        mode: str = "rb",
        block_size: int | None = None,
        cache_options: Any = None,
        compression: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """As fsspec's, but closing a file that is written with a `compression` closes all of it."""
        is_packed = "b" in mode and "r" not in mode
        packing = get_compression(self._strip_protocol(path), compression) if is_packed else None
        file = super().open(path, mode, block_size, cache_options, None if is_packed else compression, **kwargs)
        return file if packing is None else PackedWriter(compr[packing](file, mode=mode[0]), file)

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: Any = None,
        **kwargs: Any,
    ) -> FileReader | FileWriter:
        if mode == "rb":
            return self._reader(self._entry(path))
        if mode not in ("wb", "xb"):
            raise UsageError(
                f"expected a mode of rb, wb or xb to open {path}, got {mode!r}: a version never changes, so that "
                "nothing can be appended; read the file and write it whole"
            )
        return self._writer(parse_path(path), is_new=mode == "xb", commits_late=not autocommit)

    def _reader(self, entry: Entry) -> FileReader:
        if entry.kind is EntryKind.FOLDER:
            raise FolderGiven(f"expected a file, {entry.path or 'the root'} is a folder: name a file in it")
        if entry.kind is EntryKind.OTHER:
            raise FileGiven(f"{entry.path} is a table or tensors and no file: read it with client.get")
        with file_errors():
            return FileReader(entry.path, self._tree.open(entry), self._session.settings.chunk_bytes)

    def _writer(self, path: FilePath, *, is_new: bool, commits_late: bool = False) -> FileWriter:
        if path.number is not None:
            raise FileProtected(f"{path} names a version, and these never change: write to {'/'.join(path.parts)}")
        with file_errors():
            entry, version = self._tree.look(path)
        if entry is not None and entry.kind is EntryKind.FOLDER:
            raise FolderGiven(f"expected the path of a file to write, {path} is a folder")
        if entry is not None and entry.kind is EntryKind.OTHER:
            raise FileGiven(f"{path} is a table or tensors: write to another path, or put it with client.put")
        if version is not None and (entry is None or not entry.is_whole):
            raise FileProtected(f"{path} lies in {version}, and versions never change: write beside {version.name}")
        if entry is not None and is_new:
            raise FileThere(f"{path} exists already")
        block_bytes = min(self._session.settings.shard_bytes, BLOCK_BYTES_MAX)
        return FileWriter(str(path), partial(self._put, path, is_new), block_bytes, commits_late=commits_late)

    def _put(self, path: FilePath, is_new: bool, content: StreamContent) -> Version:
        tree = self._tree

        def check() -> None:
            if is_new and tree.versions(path.name):
                raise FileThere(f"{path} was written by another meanwhile, and was to be new")

        with file_errors():
            return Put(self._session, path.name, self._options, None, check=check).run(content)

    def _entry(self, path: str) -> Entry:
        parsed = parse_path(_text(path))
        with file_errors():
            entry = self._tree.look(parsed)[0]
        if entry is None:
            raise FileMissing(f"there is no file or folder {parsed}: check the path")
        return entry

    def _version(self, path: str) -> Version:
        entry = self._entry(path)
        if entry.version is None:
            raise FolderGiven(f"expected a file, {entry.path or 'the root'} is a folder of several: it has no date")
        return entry.version

    def _written(self, version: Version) -> datetime:
        with file_errors():
            return datetime.fromtimestamp(self._tree.written_us(version) / 1e6, UTC)

    def _named(self, path: str) -> Reference:
        """What goes when the file at `path` is deleted."""
        entry = self._entry(path)
        if entry.kind is EntryKind.FOLDER:
            raise FolderGiven(f"expected a file to delete, {entry.path or 'the root'} is a folder: say recursive=True")
        return _reference(entry)

    def _all_named(self, path: str) -> list[Reference]:
        """What goes when the file or folder at `path` is deleted with all that is in it."""
        entry, parsed = self._entry(path), parse_path(_text(path))
        if not parsed.parts:
            raise UsageError("expected a folder to delete, got the root, in which all of the cluster's artifacts are")
        own = [] if entry.version is None else [_reference(entry)]
        with file_errors():
            below = self._tree.names_below(parsed) if parsed.number is None else []
        return own + [Reference(name) for name in below]

    def _delete(self, reference: Reference) -> None:
        with file_errors():
            self._session.delete(reference)


def _reference(entry: Entry) -> Reference:
    if entry.version is None or not entry.is_whole:
        raise FileProtected(f"{entry.path} lies in {entry.version}, and versions never change: delete all of it")
    return parse_path(entry.path).reference


def _detail(entry: Entry) -> dict[str, Any]:
    found: dict[str, Any] = {"name": entry.path, "size": entry.size_bytes, "type": entry.kind.value}
    if entry.version is not None:
        found |= {"version": entry.version.number, "digest": entry.version.digest}
    return found


def _each(one: int | list[int], many: int) -> list[int]:
    return one if isinstance(one, list) else [one] * many


def _text(path: Any) -> str:
    text = stringify_path(path)
    if not isinstance(text, str):
        raise UsageError(f"expected a path as text, got {type(path).__name__}")
    return text


def _remade(options: dict[str, Any]) -> RaylogFileSystem:
    return RaylogFileSystem(**options)
