"""Files as they arrive in a folder or below a URL, a version per batch, each file exactly once across restarts.

What a batch consists of is committed first, as a version of `NAME.follow`; then the batch itself, as a version of NAME
that carries the batch's number as its label `follow`. Whoever starts again looks at both: a batch that was begun and
not committed is put from the files that it was begun with, one that was committed is not put again. Of several
followers with one name one commits each batch, the others get `Conflict`. The version of the last batch is what shows
that it was committed: whoever deletes it, and all versions before it, before the next batch begins, gets it once more.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import msgspec

from raylog.api.get import Reading
from raylog.api.materialise import read_bytes
from raylog.api.put import Put
from raylog.api.put_options import PutOptions
from raylog.api.session import Session
from raylog.api.source import files_of, open_files
from raylog.api.sources.content import SourceFile
from raylog.api.sources.memory import open_bytes
from raylog.errors import Conflict, DamagedData, NotFound, SourceError, UsageError
from raylog.spec import Reference, Version

log = logging.getLogger("raylog.follow")
LABEL = "follow"
UNFINISHED = (".part", ".tmp", ".crdownload", ".partial")


class Batch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Number `number`, from 1: these files (relative path -> bytes); `before` were in earlier ones."""

    number: int
    files: dict[str, int]
    before: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingested:
    """A batch that was committed."""

    version: Version
    files: int


class Follower:
    """One folder or URL into one name."""

    def __init__(
        self,
        session: Session,
        name: str,
        source: str,
        options: PutOptions,
        *,
        settle_s: float,
        as_files: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`settle_s`: how long a file must have kept its length before it is taken for whole. Names that begin with a
        dot, or end as unfinished downloads do, are left out."""
        if LABEL in options.labels:
            raise UsageError(f"the label {LABEL!r} is the follower's own")
        self._session, self._name, self._source, self._options = session, name, source, options
        self._settle_s, self._as_files, self._clock = settle_s, as_files, clock
        self._lengths: dict[str, tuple[int, float]] = {}  # of files that are not taken yet, and since when
        self._batch = self._last_batch()

    def step(self) -> Ingested | None:
        """One look: the batch that was begun before, if it was not committed, else whatever has arrived whole since the
        last one; None when there is nothing."""
        files = self._list()
        begun = self._batch
        if begun is not None and self._committed() < begun.number:
            return self._put(begun, self._again(begun, files))
        fresh = self._settled(files, set() if begun is None else {*begun.before, *begun.files})
        if not fresh:
            return None
        batch = Batch(
            number=1 if begun is None else begun.number + 1,
            files={path: file.size_bytes for path, file in sorted(fresh.items())},
            before=[] if begun is None else sorted({*begun.before, *begun.files}),
        )
        self._begin(batch)
        return self._put(batch, fresh)

    def _list(self) -> dict[str, SourceFile]:
        try:
            _, files = files_of(self._source)
        except SourceError as error:
            log.info("nothing to take yet: %s", error)
            return {}
        return {file.path: file for file in files if not _is_unfinished(file.path)}

    def _settled(self, files: Mapping[str, SourceFile], taken: set[str]) -> dict[str, SourceFile]:
        now_s = self._clock()
        waiting = {path: file for path, file in files.items() if path not in taken}
        before, self._lengths = self._lengths, {}
        for path, file in waiting.items():
            length, since_s = before.get(path, (-1, now_s))
            self._lengths[path] = (file.size_bytes, since_s if length == file.size_bytes else now_s)
        return {path: file for path, file in waiting.items() if now_s - self._lengths[path][1] >= self._settle_s}

    def _again(self, batch: Batch, files: Mapping[str, SourceFile]) -> dict[str, SourceFile]:
        for path, size_bytes in batch.files.items():
            found = files.get(path)
            if found is None or found.size_bytes != size_bytes:
                now = "is gone" if found is None else f"has {found.size_bytes} bytes"
                raise SourceError(
                    f"{self._source}: batch {batch.number} of {self._name} was begun with {path} of {size_bytes} "
                    f"bytes, which {now}: put it back, or delete {self._batches} to begin anew"
                )
        return {path: files[path] for path in batch.files}

    @property
    def _batches(self) -> str:
        return f"{self._name}.follow"

    def _begin(self, batch: Batch) -> None:
        copies = self._options.replicas or 1
        options = PutOptions.parse(replicas=copies, durability="disk", codec="auto", labels=None)
        begin = Put(self._session, self._batches, options, None, check=self._check_alone)
        begin.run(open_bytes(msgspec.json.encode(batch)))
        self._session.govern("keep", Reference(self._batches), {"versions": "2"})
        self._batch = batch

    def _put(self, batch: Batch, files: Mapping[str, SourceFile]) -> Ingested:
        content = open_files([files[path] for path in sorted(files)], self._source, as_files=self._as_files)
        options = self._options.labelled({LABEL: str(batch.number)})
        put = Put(self._session, self._name, options, None, check=partial(self._check_due, batch.number))
        return Ingested(version=put.run(content), files=len(files))

    def _check_alone(self) -> None:
        if self._last_batch() != self._batch:
            raise Conflict(f"another follower has begun a batch of {self._name}: start again, and one at a time")

    def _check_due(self, number: int) -> None:
        self._check_alone()
        if self._committed() >= number:
            raise Conflict(f"another follower has put batch {number} of {self._name}: start again, and one at a time")

    def _last_batch(self) -> Batch | None:
        try:
            openers = Reading(self._session, Reference(self._batches)).openers()
        except NotFound:
            return None
        try:
            return msgspec.json.decode(read_bytes(openers), type=Batch)
        except msgspec.MsgspecError as error:
            raise DamagedData(f"{self._batches} is no list of a follower's batches: {error}") from error
        finally:
            openers.close()

    def _committed(self) -> int:
        """The last batch of which there is a version."""
        try:
            versions: list[Version] = self._session.retried("catalog", "versions", self._name)
        except NotFound:
            return 0
        for version in reversed(versions):
            label = self._session.manifest(Reference(version.name, version.number)).labels.get(LABEL, "")
            if label.isdigit():
                return int(label)
        return 0


def _is_unfinished(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/")) or path.lower().endswith(UNFINISHED)
