"""What a disk holds after a power cut: file operations recorded as they happen, and every state that they may leave.

The model is harsher than journalling file systems are. Of what was not fsynced, any part may be there: each write not,
torn at a sector, or whole; each name made, removed or renamed, or not, in any combination, but that a rename never
loses the file (rename(2)). A file's fsync covers its bytes, not its name; a directory's covers the names in it.
"""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

SECTOR_BYTES = 512


@dataclass(frozen=True, slots=True)
class Write:
    file: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Allocate:
    file: int
    length: int


@dataclass(frozen=True, slots=True)
class SyncFile:
    file: int


@dataclass(frozen=True, slots=True)
class SyncNames:
    folder: str


@dataclass(frozen=True, slots=True)
class MakeFolder:
    path: str


@dataclass(frozen=True, slots=True)
class Name:
    """A file got this name; `was`: its name before."""

    path: str
    file: int
    was: str = ""


@dataclass(frozen=True, slots=True)
class Unname:
    path: str


@dataclass(frozen=True, slots=True)
class Said:
    """The program told somebody that something is so from here on."""

    what: object


Event = Write | Allocate | SyncFile | SyncNames | MakeFolder | Name | Unname | Said
Naming = MakeFolder | Name | Unname


@dataclass(slots=True)
class Trace:
    """File operations below one folder, in order. That the folder itself is there is taken for granted."""

    root: Path
    events: list[Event] = field(default_factory=list)
    _files: dict[str, int] = field(default_factory=dict)  # by path
    _open: dict[int, int | str] = field(default_factory=dict)  # descriptor -> file, or folder
    _count: int = 0

    def say(self, what: object) -> None:
        self.events.append(Said(what))

    @contextmanager
    def recording(self) -> Iterator[None]:
        """What this process does to files meanwhile is noted. One thread."""
        with mock.patch.multiple(
            os,
            open=self._opening(os.open),
            pwrite=self._pwriting(os.pwrite),
            posix_fallocate=self._allocating(os.posix_fallocate),
            fsync=self._syncing(os.fsync),
            rename=self._renaming(os.rename),
            unlink=self._unlinking(os.unlink),
            mkdir=self._making(os.mkdir),
        ):
            yield

    def _below(self, path: Any) -> str | None:
        """The path from the root on, None elsewhere."""
        try:
            return str(Path(path).absolute().relative_to(self.root))
        except (TypeError, ValueError):
            return None

    def _opening(self, real: Callable[..., int]) -> Callable[..., int]:
        def opened(path: Any, flags: int, *more: Any, **named: Any) -> int:
            descriptor = real(path, flags, *more, **named)
            below = self._below(path)
            self._open.pop(descriptor, None)
            if below is not None:
                if flags & os.O_DIRECTORY:
                    self._open[descriptor] = below
                else:
                    self._open[descriptor] = self._file_at(below, is_emptied=bool(flags & os.O_TRUNC))
            return descriptor

        return opened

    def _file_at(self, path: str, *, is_emptied: bool) -> int:
        if path not in self._files or is_emptied:
            self._count += 1
            self._files[path] = self._count
            self.events.append(Name(path, self._count))
        return self._files[path]

    def _pwriting(self, real: Callable[..., int]) -> Callable[..., int]:
        def written(descriptor: int, data: Any, offset: int) -> int:
            count = real(descriptor, data, offset)
            file = self._open.get(descriptor)
            if isinstance(file, int):
                self.events.append(Write(file, offset, bytes(memoryview(data)[:count])))
            return count

        return written

    def _allocating(self, real: Callable[..., None]) -> Callable[..., None]:
        def allocated(descriptor: int, offset: int, length: int) -> None:
            real(descriptor, offset, length)
            file = self._open.get(descriptor)
            if isinstance(file, int):
                self.events.append(Allocate(file, offset + length))

        return allocated

    def _syncing(self, real: Callable[..., None]) -> Callable[..., None]:
        def synced(descriptor: int) -> None:
            real(descriptor)
            what = self._open.get(descriptor)
            if what is not None:
                self.events.append(SyncNames(what) if isinstance(what, str) else SyncFile(what))

        return synced

    def _renaming(self, real: Callable[..., None]) -> Callable[..., None]:
        def renamed(source: Any, target: Any, **named: Any) -> None:
            real(source, target, **named)
            before, after = self._below(source), self._below(target)
            if before is not None and after is not None:
                self._files[after] = self._files.pop(before)
                self.events.append(Name(after, self._files[after], before))

        return renamed

    def _unlinking(self, real: Callable[..., None]) -> Callable[..., None]:
        def unlinked(path: Any, **named: Any) -> None:
            real(path, **named)
            below = self._below(path)
            if below is not None:
                self._files.pop(below, None)
                self.events.append(Unname(below))

        return unlinked

    def _making(self, real: Callable[..., None]) -> Callable[..., None]:
        def made(path: Any, *more: Any, **named: Any) -> None:
            real(path, *more, **named)
            below = self._below(path)
            if below not in (None, "."):
                self.events.append(MakeFolder(below))

        return made


@dataclass(frozen=True, slots=True)
class Left:
    """One state of the disk: folders, and files by path."""

    folders: tuple[str, ...]
    files: dict[str, bytes]

    def write(self, root: Path) -> None:
        """Makes it below `root`, which is made too."""
        root.mkdir()
        for folder in self.folders:
            (root / folder).mkdir(mode=0o700)
        for path, content in self.files.items():
            (root / path).write_bytes(content)


Luck = Callable[[Event], float]  # how much of a pending operation reached the disk: 0 none, 1 all


def states(events: list[Event], seed: int, random_states: int) -> Iterator[Left]:
    """What may be left when the power goes after `events`: nothing that is pending, all of it, the bytes without the
    names, the names without the bytes, and so many combinations by chance."""
    source = random.Random(seed)  # noqa: S311 - repeatable, no secrets
    yield _left(events, lambda _: 0.0)
    yield _left(events, lambda _: 1.0)
    yield _left(events, lambda event: float(isinstance(event, Write | Allocate)))
    yield _left(events, lambda event: float(not isinstance(event, Write | Allocate)))
    for _ in range(random_states):
        yield _left(events, lambda _: source.choice((0.0, 1.0, source.random())))


def _left(events: list[Event], luck: Luck) -> Left:
    contents: dict[int, bytearray] = {}
    pending_bytes: dict[int, list[Write | Allocate]] = {}
    folders: dict[str, None] = {}
    names: dict[str, int] = {}
    pending_names: list[Naming] = []
    for event in events:
        match event:
            case Write(file) | Allocate(file):
                pending_bytes.setdefault(file, []).append(event)
            case SyncFile(file):
                for one in pending_bytes.pop(file, []):
                    _store(contents, one, 1.0)
            case SyncNames(folder):
                pending_names = _sync_names(folder, pending_names, folders, names)
            case MakeFolder() | Name() | Unname():
                pending_names.append(event)
            case Said():
                pass
    for naming in pending_names:
        _apply(naming, luck(naming) >= 0.5, luck(naming) >= 0.5, folders, names)
    for writes in pending_bytes.values():
        for one in writes:
            _store(contents, one, luck(one))
    return Left(tuple(folders), {path: bytes(contents.get(file, b"")) for path, file in names.items()})


def _sync_names(folder: str, pending: list[Naming], folders: dict[str, None], names: dict[str, int]) -> list[Naming]:
    """Makes the names in a folder durable; what is still pending elsewhere."""
    left: list[Naming] = []
    for naming in pending:
        if _folder_of(naming.path) == folder:
            _apply(naming, True, False, folders, names)
            if isinstance(naming, Name) and naming.was:
                left.append(Unname(naming.was))
        elif isinstance(naming, Name) and naming.was and _folder_of(naming.was) == folder:
            _apply(naming, True, True, folders, names)  # the old name is gone for good, so the new one stands
        else:
            left.append(naming)
    return left


def _apply(naming: Naming, happens: bool, source_goes: bool, folders: dict[str, None], names: dict[str, int]) -> None:
    parent = _folder_of(naming.path)
    if not happens or (parent != "." and parent not in folders):
        return
    match naming:
        case MakeFolder(path):
            folders[path] = None
        case Name(path, file, was):
            names[path] = file
            if was and source_goes:
                names.pop(was, None)
        case Unname(path):
            names.pop(path, None)


def _store(contents: dict[int, bytearray], event: Write | Allocate, share: float) -> None:
    content = contents.setdefault(event.file, bytearray())
    if isinstance(event, Allocate):
        if share >= 0.5:
            content.extend(bytes(max(0, event.length - len(content))))
        return
    length = len(event.data)
    if share < 1.0:  # torn where a sector of the device ends
        length = max(0, int((event.offset + share * length) // SECTOR_BYTES * SECTOR_BYTES) - event.offset)
    if length:
        content.extend(bytes(max(0, event.offset + length - len(content))))
        content[event.offset : event.offset + length] = event.data[:length]


def _folder_of(path: str) -> str:
    return str(Path(path).parent)
