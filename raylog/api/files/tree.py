"""The folders that artifacts' names make, and what lies at a path.

An artifact that was written as a file is a file. One that was put from files is a folder of them, and its versions are
folders too, `corpora/wiki@3`. Tables and tensors are neither: they have their place among the others, and no bytes of a
file that could be read. Everything else is a folder as long as names begin with it.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

from raylog.api.files.names import FilePath, parts_of
from raylog.api.files.read import FileBytes, Span, list_files, only_file
from raylog.api.get import Reading
from raylog.api.session import Session
from raylog.errors import NotFound
from raylog.spec import Kind, Reference, Version

FILE_LABEL = {"layout": "file"}  # of versions that were written as a file
KINDS_MAX, LISTS_MAX = 4096, 32  # versions of which kind and list of files are remembered: these never change
T = TypeVar("T")


class EntryKind(StrEnum):
    """As fsspec names them."""

    FILE = "file"
    FOLDER = "directory"
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What lies at `path`. `version`: whose it is, None for a folder of several artifacts; `is_whole`: all of it, and
    not a file or folder in it. `spans`: where the bytes of a file in it are."""

    path: str
    kind: EntryKind
    size_bytes: int = 0
    version: Version | None = None
    is_whole: bool = False
    spans: list[Span] | None = field(default=None, repr=False)


class Tree:
    """What the catalog holds, as files and folders."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._kinds = OrderedDict[str, EntryKind]()
        self._files = OrderedDict[str, dict[str, list[Span]]]()

    def look(self, path: FilePath) -> tuple[Entry | None, Version | None]:
        """What lies at `path`, None for nothing; and the version in which it lies, or would lie."""
        if path.number is not None:
            version = self._stat(path.reference)
            return (None if version is None else self._inside(version, path, path.inner)), version
        if not path.parts:
            return Entry(path="", kind=EntryKind.FOLDER), None
        found = self._latest(path.name)
        exact = next((version for version in found if version.name == path.name), None)
        if exact is not None:
            return self._whole(exact, path, self._kind(exact)), exact
        if any(version.name.startswith(_prefix(path)) for version in found):
            return Entry(path=str(path), kind=EntryKind.FOLDER), None
        above = self._above(path)
        return (None, None) if above is None else (self._inside(above[0], path, above[1]), above[0])

    def children(self, path: FilePath) -> list[Entry]:
        """What lies in the folder at `path`, by path; an empty list for one that is none."""
        found: dict[str, Entry] = {}
        if path.number is not None:
            version = self._stat(path.reference)
            found = self._members(version, path, path.inner) if version else {}
        else:
            below = self._below(path)
            exact = self._stat(path.reference) if path.parts else None
            above = (exact, ()) if exact else None if below else self._above(path)
            if above is not None:
                found = self._members(above[0], path, above[1])
            found |= below
        return sorted(found.values(), key=lambda entry: entry.path)

    def versions(self, name: str) -> list[Version]:
        """Of an artifact, oldest first; none where there is none."""
        try:
            found: list[Version] = self._session.retried("catalog", "versions", name)
        except NotFound:
            return []
        return found

    def written_us(self, version: Version) -> int:
        """When it was put, in microseconds since 1970."""
        return self._session.manifest(_reference(version)).created_us

    def names_below(self, path: FilePath) -> list[str]:
        """Of all artifacts in the folder at `path` and the folders in it."""
        return [version.name for version in self._latest(_prefix(path))]

    def open(self, entry: Entry) -> FileBytes:
        """The bytes of a file. Raises `NotFound` when its version was deleted meanwhile."""
        assert entry.version is not None and entry.kind is EntryKind.FILE
        reading = Reading(self._session, _reference(entry.version))
        return FileBytes(reading, only_file(reading) if entry.spans is None else entry.spans)

    def _above(self, path: FilePath) -> tuple[Version, tuple[str, ...]] | None:
        """The artifact whose name is the path of the nearest folder above `path`, and the rest of the path."""
        for length in range(len(path.parts) - 1, 0, -1):
            version = self._stat(FilePath(path.parts[:length]).reference)
            if version is not None:
                return version, path.parts[length:]
        return None

    def _below(self, path: FilePath) -> dict[str, Entry]:
        prefix = _prefix(path)
        files = {version.name for version in self._latest(prefix, FILE_LABEL)}
        found: dict[str, Entry] = {}
        for version in self._latest(prefix):
            parts = parts_of(version.name)
            if parts is None:
                continue
            child = FilePath(parts[: len(path.parts) + 1])
            if len(parts) > len(child.parts):
                found.setdefault(str(child), Entry(path=str(child), kind=EntryKind.FOLDER))
            else:
                kind = EntryKind.FILE if version.name in files else self._kind(version)
                found[str(child)] = self._whole(version, child, kind)
        return found

    def _members(self, version: Version, path: FilePath, inner: tuple[str, ...]) -> dict[str, Entry]:
        """What lies in the folder `inner` of a version; `path` is what that is called."""
        if self._kind(version) is not EntryKind.FOLDER:
            return {}
        found: dict[str, Entry] = {}
        for name, spans in self._files_of(version).items():
            parts = tuple(name.split("/"))
            if parts[: len(inner)] == inner and len(parts) > len(inner):
                child = f"{path}/{parts[len(inner)]}"
                is_file = len(parts) == len(inner) + 1
                found[child] = _member(version, child, spans if is_file else None)
        return found

    def _inside(self, version: Version, path: FilePath, inner: tuple[str, ...]) -> Entry | None:
        kind = self._kind(version)
        if not inner:
            return self._whole(version, path, kind)
        if kind is not EntryKind.FOLDER:
            return None
        files, name = self._files_of(version), "/".join(inner)
        if name in files:
            return _member(version, str(path), files[name])
        if any(one.startswith(f"{name}/") for one in files):
            return _member(version, str(path), None)
        return None

    @staticmethod
    def _whole(version: Version, path: FilePath, kind: EntryKind) -> Entry:
        size_bytes = 0 if kind is EntryKind.FOLDER else version.content_bytes
        return Entry(path=str(path), kind=kind, size_bytes=size_bytes, version=version, is_whole=True)

    def _kind(self, version: Version) -> EntryKind:
        def ask() -> EntryKind:
            manifest = self._session.manifest(_reference(version))
            if manifest.kind is not Kind.FILES:
                return EntryKind.OTHER
            return EntryKind.FILE if manifest.labels.items() >= FILE_LABEL.items() else EntryKind.FOLDER

        return _remembered(self._kinds, KINDS_MAX, version, ask)

    def _files_of(self, version: Version) -> dict[str, list[Span]]:
        def ask() -> dict[str, list[Span]]:
            return list_files(Reading(self._session, _reference(version)))

        return _remembered(self._files, LISTS_MAX, version, ask)

    def _latest(self, prefix: str, labels: Mapping[str, str] | None = None) -> list[Version]:
        found: list[Version] = self._session.retried("catalog", "ls", prefix, dict(labels or {}))
        return found

    def _stat(self, reference: Reference) -> Version | None:
        try:
            version: Version = self._session.retried("catalog", "stat", reference)
        except NotFound:
            return None
        return version


def _member(version: Version, path: str, spans: list[Span] | None) -> Entry:
    """A file of a version; a folder in it where there are no spans."""
    if spans is None:
        return Entry(path=path, kind=EntryKind.FOLDER, version=version)
    return Entry(path=path, kind=EntryKind.FILE, size_bytes=spans[-1].end, version=version, spans=spans)


def _remembered(known: OrderedDict[str, T], most: int, version: Version, ask: Callable[[], T]) -> T:
    """What `ask` says about a version; the last answers are kept, `most` of them."""
    found = known.get(version.digest)
    if found is None:
        found = known[version.digest] = ask()
        if len(known) > most:
            known.popitem(last=False)
    return found


def _reference(version: Version) -> Reference:
    return Reference(version.name, version.number)


def _prefix(path: FilePath) -> str:
    return f"{path.name}/" if path.parts else ""
