"""A disk tier: sealed shards as files, verified at every read, durable when committed. `layout.py` shows its directory.

A commit writes the trailer, fsyncs the file, renames it and fsyncs the directory: whatever moment the power goes, a
name under `shards/` means a whole file. Files are read with `pread`, never mapped: a shortened file or a bad sector is
an error of one read, not the end of the process.
"""

import logging
import os
import threading
import time
from functools import partial
from pathlib import Path

from raylog.buffers import BufferPool
from raylog.codec.frame import Frame
from raylog.errors import Conflict, DamagedData, NotFound
from raylog.spec import ShardRef, TierKind, new_id
from raylog.store.device_meter import DeviceMeter
from raylog.store.files import (
    Descriptor,
    fsync_directory,
    no_space,
    publish,
    read_bytes,
    storage_errors,
    write_exactly,
)
from raylog.store.layout import Layout
from raylog.store.measure import PROBE_BYTES, measure
from raylog.store.pin import Pin
from raylog.store.shard_file import DiskReader, DiskWriter

log = logging.getLogger(__name__)


class Staging:
    """A file that a putting process fills with one sealed shard. `descriptor` is open for reading and writing and
    belongs to the tier; a copy of it may be handed to another process."""

    def __init__(self, stage_id: str, descriptor: int, path: Path) -> None:
        self.stage_id, self.descriptor, self.path = stage_id, descriptor, path


class DiskTier:
    """Sealed shards in `directory`; keeps the promises of `Tier`.

    `kind` is SSD or HDD. The last `reserve_bytes` of the file system are never taken. Raises `UsageError` for a
    directory of another cluster or format, `Conflict` for one that another process has open, `Unavailable`.
    """

    def __init__(
        self, directory: Path, *, cluster_id: str, kind: TierKind = TierKind.SSD, reserve_bytes: int = 0
    ) -> None:
        self.kind = kind
        self.directory = directory
        self.meter = DeviceMeter()
        self._name = f"disk tier {directory}"
        self.reserve_bytes = reserve_bytes
        with storage_errors(self._name, "open the directory"):
            self._layout = Layout(directory, cluster_id)
        self._lock = threading.RLock()
        self._writing: set[str] = set()
        self._staged: dict[str, Staging] = {}
        self._listed: dict[str, ShardRef] = {}  # frames read so far; at most one small struct per shard
        self._buffers = BufferPool()

    @property
    def capacity_bytes(self) -> int:
        with storage_errors(self._name, "read its size"):
            status = os.statvfs(self.directory)
        return max(0, status.f_blocks * status.f_frsize - self.reserve_bytes)

    @property
    def free_bytes(self) -> int:
        with storage_errors(self._name, "read its size"):
            status = os.statvfs(self.directory)
        return max(0, status.f_bavail * status.f_frsize - self.reserve_bytes)

    def create(self, frame: Frame) -> "DiskWriter":
        shard_id = frame.header.shard_id
        with self._lock:
            self.refuse_present(frame)
            if shard_id in self._writing:
                raise Conflict(f"{self._where(shard_id)} is being written by another writer", shard_id=shard_id)
            self._writing.add(shard_id)
        try:
            path = self._layout.partial_path(shard_id)
            action = f"write shard {shard_id}"
            with storage_errors(self._name, action, frame.stored_bytes, self.free_bytes, meter=self.meter):
                resumed = self._resume(path, frame)
                descriptor = self._begin(path, frame) if resumed is None else resumed
            writer = DiskWriter(
                self._name,
                frame,
                path,
                Descriptor(descriptor),
                self._buffers,
                self.meter,
                publish=partial(self._publish, frame, path),
                ended=partial(self._end_writing, shard_id),
            )
            if resumed is not None:
                writer.find_chunks()
            return writer
        except BaseException:
            self._end_writing(shard_id)
            raise

    def open(self, shard_id: str) -> "DiskReader":
        path = self._layout.shard_path(shard_id)
        file = self._open_file(shard_id, path, os.O_RDONLY)
        return DiskReader(self._name, self._read_shard_frame(file, shard_id), file, self._buffers, self.meter)

    def pin(self, shard_id: str) -> Pin:
        """Holds the shard's file open for another process of this machine. Raises as `open`."""
        reader = self.open(shard_id)
        return Pin(
            frame=reader.frame,
            descriptor=reader.descriptor,
            offset=0,
            tier=self.kind,
            generation=Pin.NO_GENERATION,
            holder=reader,
        )

    def holds(self, shard_id: str) -> bool:
        try:
            return self._layout.shard_path(shard_id).exists()
        except OSError:  # a device that answers nothing holds nothing
            self.meter.failed()
            return False

    def delete(self, shard_id: str) -> None:
        path = self._layout.shard_path(shard_id)
        with self._lock, storage_errors(self._name, f"delete shard {shard_id}"):
            if not path.exists() and shard_id not in self._writing:
                path = self._layout.partial_path(shard_id)
            self._listed.pop(shard_id, None)
            try:
                path.unlink()
            except FileNotFoundError as error:
                raise self._not_found(shard_id) from error
            fsync_directory(path.parent)

    def mark_cached(self, shard_id: str) -> None:
        """Notes durably that the shard, which may be still to come, is promised to nobody. Raises `NoSpace`,
        `Unavailable`."""
        self._note(self._layout.cached_path(shard_id))

    def mark_kept(self, shard_id: str) -> None:
        """Takes that note back, durably; nothing to do where there is none."""
        self._take_back(self._layout.cached_path(shard_id))

    def mark_pinned(self, shard_id: str) -> None:
        """Notes durably that the node's copy of the shard does not give way. Raises `NoSpace`, `Unavailable`."""
        self._note(self._layout.pinned_path(shard_id))

    def mark_unpinned(self, shard_id: str) -> None:
        """Takes that note back, durably; nothing to do where there is none."""
        self._take_back(self._layout.pinned_path(shard_id))

    def pinned(self) -> list[str]:
        """Shards that are noted not to give way, whether they lie here or not."""
        with storage_errors(self._name, "read its directory"):
            return sorted(path.name for path in self._layout.pinned.iterdir())

    def _note(self, path: Path) -> None:
        with storage_errors(self._name, f"note {path}"):
            path.touch(mode=0o600)
            fsync_directory(path.parent)

    def _take_back(self, path: Path) -> None:
        with storage_errors(self._name, f"remove {path}"):
            if path.exists():
                path.unlink(missing_ok=True)
                fsync_directory(path.parent)

    def measure(self) -> None:
        """Tries what the device can do (measure.py). Raises `NoSpace`, `Unavailable`."""
        self._make_room(2 * PROBE_BYTES)
        self.meter.remeasured(measure(self.directory))

    def holds_partial(self, shard_id: str) -> bool:
        """Whether an earlier writer left some of the shard."""
        return self._layout.partial_path(shard_id).exists()

    def is_cached(self, shard_id: str) -> bool:
        """Whether the shard is noted to be promised to nobody."""
        return self._layout.cached_path(shard_id).exists()

    def cached(self) -> list[str]:
        """Shards that are promised to nobody, the oldest first."""
        with storage_errors(self._name, "read its directory"):
            marks = sorted(self._layout.cached.iterdir(), key=lambda path: path.stat().st_mtime)
        return [path.name for path in marks]

    def quarantine(self, shard_id: str) -> None:
        """As `Tier.quarantine`: the file moves to `quarantine/`, in place of an earlier one of the same shard."""
        path, target = self._layout.shard_path(shard_id), self._layout.quarantine_path(shard_id)
        with self._lock, storage_errors(self._name, f"quarantine shard {shard_id}"):
            self._listed.pop(shard_id, None)
            try:
                path.rename(target)
            except FileNotFoundError as error:
                raise self._not_found(shard_id) from error
            fsync_directory(target.parent)
            fsync_directory(path.parent)

    def put_aside(self) -> list[str]:
        """Shards of which nothing is left here but a damaged file that was put aside, earlier runs' among them."""
        with storage_errors(self._name, "read its directory"):
            return [path.name for path in self._layout.quarantine.iterdir() if not self.holds(path.name)]

    def replace_chunk(self, shard_id: str, number: int, sealed: memoryview) -> None:
        """As `Tier.replace_chunk`: written over the damaged bytes and fsynced.

        In place, since there is only one sequence of bytes that the frame accepts: a reader who catches it half-way, or
        a crash, finds a damaged chunk where a damaged chunk was, and its neighbours are only ever rewritten with
        themselves. A sector that cannot even be rewritten ends in `Unavailable`: quarantine the shard then.
        """
        path = self._layout.shard_path(shard_id)
        file = self._open_file(shard_id, path, os.O_RDWR)
        frame = self._read_shard_frame(file, shard_id)
        frame.verify_chunk(number, sealed)
        with storage_errors(self._name, f"repair chunk {number} of shard {shard_id}"):
            write_exactly(file.number, sealed, frame.chunks[number].offset)
            os.fsync(file.number)

    def shards(self) -> list[ShardRef]:
        """As `Tier.shards`. A file whose frame is not intact is never served: it goes to quarantine, with a warning."""
        with storage_errors(self._name, "read its directory"):
            present = self._layout.shard_ids()
        refs = []
        for shard_id in present:
            try:
                refs.append(self._listed.get(shard_id) or self._list(shard_id))
            except DamagedData as error:
                log.warning("%s goes to quarantine: %s", self._where(shard_id), error)
                self.quarantine(shard_id)
            except NotFound:
                continue  # deleted since the directory was read
        return refs

    def refuse_present(self, frame: Frame) -> None:
        """`Conflict` when the shard is here. One whose frame is not intact makes way: it would never be served."""
        shard_id = frame.header.shard_id
        if not self.holds(shard_id):
            return
        try:
            with self.open(shard_id) as reader:
                is_same = reader.frame.digest == frame.digest
        except DamagedData as error:
            log.warning("%s goes to quarantine: %s", self._where(shard_id), error)
            self.quarantine(shard_id)
            return
        state = "is here already" if is_same else "is here with another frame digest"
        raise Conflict(f"{self._where(shard_id)} {state}", shard_id=shard_id)

    def stage(self, expected_bytes: int = 0) -> Staging:
        """An empty file for a putting process. Raises `NoSpace` when `expected_bytes` do not fit now."""
        stage_id = new_id()
        path = self._layout.staging_path(stage_id)
        with storage_errors(self._name, "stage a shard", expected_bytes, self.free_bytes, meter=self.meter):
            self._make_room(expected_bytes)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        staging = Staging(stage_id, descriptor, path)
        with self._lock:
            self._staged[stage_id] = staging
        return staging

    def staged(self, stage_id: str, frame_digest: bytes) -> "DiskReader":
        """A reader over what was put into a staging file, its frame checked against `frame_digest` (32 bytes). Raises
        `DamagedData`, `NotFound`."""
        staging = self._staging(stage_id)
        with storage_errors(self._name, "read a staged shard"):
            file = Descriptor(os.dup(staging.descriptor))
        return DiskReader(
            self._name, self._read_frame(file, staging.path, frame_digest), file, self._buffers, self.meter
        )

    def adopt(self, stage_id: str, frame: Frame) -> None:
        """Makes a staged file, whose chunks the caller has verified, a durable shard of this tier; the staging ends.

        Raises `Conflict` when the shard is here already, `NotFound`, `NoSpace`, and `Unavailable` when the device
        fails; the staging has ended then too.
        """
        shard_id = frame.header.shard_id
        staging = self._staging(stage_id)
        with storage_errors(self._name, f"adopt shard {shard_id}", frame.stored_bytes, meter=self.meter):
            began_s = time.perf_counter()
            try:
                os.fsync(staging.descriptor)
            except OSError:
                self.discard(stage_id)  # see DiskWriter.commit: what was written cannot be trusted any more
                raise
            self._publish(frame, staging.path)
            sync_s = time.perf_counter() - began_s
            self.meter.wrote(frame.stored_bytes, sync_s, sync_s)
        self.discard(stage_id)

    def discard(self, stage_id: str) -> None:
        """Ends a staging and removes its file; nothing to do when it has ended."""
        with self._lock:
            staging = self._staged.pop(stage_id, None)
        if staging is not None:
            os.close(staging.descriptor)
            staging.path.unlink(missing_ok=True)

    def close(self) -> None:
        for stage_id in list(self._staged):
            self.discard(stage_id)
        self._layout.close()

    # What writers call.

    def _publish(self, frame: Frame, path: Path) -> None:
        shard_id = frame.header.shard_id
        with self._lock:
            self.refuse_present(frame)
            publish(path, self._layout.shard_path(shard_id))
            self._listed[shard_id] = frame.ref()

    def _end_writing(self, shard_id: str) -> None:
        with self._lock:
            self._writing.discard(shard_id)

    # Inside.

    def _begin(self, path: Path, frame: Frame) -> int:
        """A new partial file: whole length reserved, header and index written; nothing is left of it on failure."""
        self._make_room(frame.stored_bytes)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, frame.stored_bytes)
            write_exactly(descriptor, frame.header_bytes, 0)
            write_exactly(descriptor, frame.index_bytes, frame.stored_bytes - len(frame.tail_bytes))
        except BaseException:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise
        return descriptor

    def _resume(self, path: Path, frame: Frame) -> int | None:
        """The descriptor of an earlier partial of this very frame; any other leftover of the name is removed."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        index_offset = frame.stored_bytes - len(frame.tail_bytes)
        try:
            if os.fstat(descriptor).st_size == frame.stored_bytes:
                header = read_bytes(descriptor, 0, len(frame.header_bytes), str(path))
                index = read_bytes(descriptor, index_offset, len(frame.index_bytes), str(path))
                if (header, index) == (frame.header_bytes, frame.index_bytes):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        path.unlink()
        return None

    def _make_room(self, needed_bytes: int) -> None:
        """Gives up what nobody was promised (quarantined files, then abandoned partials) until `needed_bytes` fit."""
        if self.free_bytes >= needed_bytes:
            return
        with self._lock:
            idle = [path for path in self._layout.partial.iterdir() if path.stem not in self._writing]
            for path in [*self._layout.quarantine.iterdir(), *sorted(idle, key=lambda path: path.stat().st_mtime)]:
                log.warning("%s is short of room: removing %s", self._name, path)
                path.unlink(missing_ok=True)
                if self.free_bytes >= needed_bytes:
                    return
        raise no_space(self._name, "store a shard", needed_bytes, self.free_bytes)

    def _open_file(self, shard_id: str, path: Path, flags: int) -> Descriptor:
        with storage_errors(self._name, f"read shard {shard_id}"):
            try:
                return Descriptor(os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC))
            except FileNotFoundError as error:
                raise self._not_found(shard_id) from error

    def _read_shard_frame(self, file: Descriptor, shard_id: str) -> Frame:
        path = self._layout.shard_path(shard_id)
        frame = self._read_frame(file, path)
        if frame.header.shard_id != shard_id:
            raise DamagedData(
                f"{path}: expected shard {shard_id}, the file holds shard {frame.header.shard_id}; "
                "repair it from another replica",
                shard_id=shard_id,
            )
        return frame

    def _read_frame(self, file: Descriptor, path: Path, frame_digest: bytes | None = None) -> Frame:
        with storage_errors(self._name, f"read the frame of {path.name}"):
            read_at = partial(read_bytes, file.number, where=str(path))
            return Frame.read(read_at, os.fstat(file.number).st_size, frame_digest)

    def _list(self, shard_id: str) -> ShardRef:
        with self.open(shard_id) as reader:
            ref = reader.frame.ref()
        with self._lock:
            return self._listed.setdefault(shard_id, ref)

    def _staging(self, stage_id: str) -> Staging:
        with self._lock:
            staging = self._staged.get(stage_id)
        if staging is None:
            raise NotFound(f"{self._name}: no staging {stage_id}; it was adopted, discarded or never made")
        return staging

    def _where(self, shard_id: str) -> str:
        return f"{self._name}: shard {shard_id}"

    def _not_found(self, shard_id: str) -> NotFound:
        return NotFound(f"{self._where(shard_id)} is not here; fetch it from another tier or node", shard_id=shard_id)
