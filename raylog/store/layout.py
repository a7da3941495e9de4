"""A disk tier's directory, and who may use it.

```
tier.json                marker: format version and cluster id, written once
lock                     locked (flock) by the process that has the tier open
shards/ab/<shard id>     committed shards, one sealed file each; ab = the id's first two digits
partial/<shard id>.part  a shard being received: whole length reserved, trailer missing until the commit
staging/<stage id>       files that putting processes write into; removed at every start
cached/<shard id>        empty: the shard of this name is a copy that was promised to nobody
pinned/<shard id>        empty: the node's copy of this shard, on any of its disks, does not give way
quarantine/<shard id>    the last damaged file of a shard, kept for inspection until its room is needed
```

A partial file carries no record of which chunks it has: a chunk is there if its bytes match its BLAKE3, and that is
looked at when the writing is resumed. So nothing that a crash leaves can claim more than what is on the disk.
"""

import fcntl
import os
from pathlib import Path

import msgspec

from raylog.errors import Conflict, UsageError
from raylog.spec import parse_id
from raylog.store.files import fsync_directory, make_directory, write_exactly

FORMAT_VERSION = 1
_MARKER = "tier.json"
_MARKER_BYTES_MAX = 4096
_TOLERATED = {"lost+found", "lock", _MARKER + ".new"}  # what a new tier's directory may already hold


class _Marker(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    raylog_tier_format: int
    cluster_id: str


class Layout:
    """The paths of a tier directory, opened for one process. Makes the directory when it is new.

    Raises `UsageError` when it belongs to another cluster or format version or holds something else, `Conflict` when
    another process has it open, `OSError` from the device.
    """

    def __init__(self, root: Path, cluster_id: str) -> None:
        self.root = root
        self.shards = root / "shards"
        self.partial = root / "partial"
        self.staging = root / "staging"
        self.quarantine = root / "quarantine"
        self.cached = root / "cached"
        self.pinned = root / "pinned"
        make_directory(root.absolute())
        self._lock = _lock(root)
        try:
            _claim(root, parse_id(cluster_id, "cluster id"))
            for path in (self.shards, self.partial, self.staging, self.quarantine, self.cached, self.pinned):
                make_directory(path)
            self._clear_leftovers()
        except BaseException:
            os.close(self._lock)
            raise

    def shard_path(self, shard_id: str) -> Path:
        shard_id = parse_id(shard_id, "shard id")
        return self.shards / shard_id[:2] / shard_id

    def partial_path(self, shard_id: str) -> Path:
        return self.partial / f"{parse_id(shard_id, 'shard id')}.part"

    def staging_path(self, stage_id: str) -> Path:
        return self.staging / parse_id(stage_id, "stage id")

    def quarantine_path(self, shard_id: str) -> Path:
        return self.quarantine / parse_id(shard_id, "shard id")

    def cached_path(self, shard_id: str) -> Path:
        return self.cached / parse_id(shard_id, "shard id")

    def pinned_path(self, shard_id: str) -> Path:
        return self.pinned / parse_id(shard_id, "shard id")

    def shard_ids(self) -> list[str]:
        """Ids of the files under `shards/`, by their names; other names are not ours and left alone."""
        found = []
        for directory in self.shards.iterdir():
            if directory.is_dir():
                found += [file.name for file in directory.iterdir() if file == self._place_of(file.name)]
        return sorted(found)

    def _place_of(self, name: str) -> Path | None:
        return self.shard_path(name) if _is_id(name) else None

    def _clear_leftovers(self) -> None:
        for path in self.staging.iterdir():
            path.unlink()
        for path in self.partial.iterdir():
            # A shard's partial name beside its committed one: the power went between rename and directory fsync.
            if not _is_id(path.stem) or self.shard_path(path.stem).exists():
                path.unlink()
        for path in self.cached.iterdir():
            if not _is_id(path.name) or not self.shard_path(path.name).exists():
                path.unlink()

    def close(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _is_id(text: str) -> bool:
    try:
        parse_id(text)
    except UsageError:
        return False
    return True


def _lock(root: Path) -> int:
    descriptor = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise Conflict(
            f"disk tier {root} is open in another process: stop that node or use another directory"
        ) from error
    return descriptor


def _claim(root: Path, cluster_id: str) -> None:
    """Checks the marker, or writes one into an empty directory."""
    path = root / _MARKER
    if path.exists():
        return _check(path, cluster_id)
    others = sorted({path.name for path in root.iterdir()} - _TOLERATED)
    if others:
        raise UsageError(
            f"disk tier {root}: expected an empty directory or a tier of raylog, found {others[0]!r} and no {_MARKER}: "
            "name another directory"
        )
    marker = _Marker(raylog_tier_format=FORMAT_VERSION, cluster_id=cluster_id)
    fresh = root / f"{_MARKER}.new"
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        write_exactly(descriptor, msgspec.json.encode(marker), 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    fresh.rename(path)
    fsync_directory(root)
    return None


def _check(path: Path, cluster_id: str) -> None:
    with path.open("rb") as file:
        data = file.read(_MARKER_BYTES_MAX)
    try:
        marker = msgspec.json.decode(data, type=_Marker)
    except msgspec.DecodeError as error:
        raise UsageError(f"{path}: expected the marker of a disk tier, got something else: {error}") from error
    if marker.raylog_tier_format != FORMAT_VERSION:
        raise UsageError(
            f"{path}: expected tier format version {FORMAT_VERSION}, got {marker.raylog_tier_format}: "
            "use the raylog that wrote it, or another directory"
        )
    if marker.cluster_id != cluster_id:
        raise UsageError(
            f"{path}: this directory belongs to cluster {marker.cluster_id!r}, not to {cluster_id!r}: "
            "name another directory, or join that cluster"
        )
