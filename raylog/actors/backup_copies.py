"""A node's hands on backups: it writes its shards there, looks whether they are there, and has them back."""

import logging
import secrets
import threading
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

from raylog.actors.tiering import device_sample
from raylog.errors import Conflict, DamagedData, DeadlineExceeded, NotFound, UsageError
from raylog.monitor.samples import TierSample
from raylog.spec import ShardRef, TierKind, check_backup_allowed, parse_backup
from raylog.store.device_meter import DeviceRates
from raylog.store.objects import Limit, whole
from raylog.store.remote import RemoteObjects
from raylog.store.remote_shard import RemoteReader, ShardSource, folder, open_shard, shard_key, write_shard
from raylog.store.tiered import TieredStore

log = logging.getLogger("raylog.backup")
UPLOADS_AT_ONCE = 2
PROBE_BYTES = 32
PROBE_S = 20.0


class BackupCopies:
    """Thread-safe; at most `UPLOADS_AT_ONCE` write at a time, others wait within their deadline."""

    def __init__(self, store: TieredStore, cluster_id: str, node_id: str, allowed: Sequence[str]) -> None:
        """`allowed`: URLs below which backups may lie; none given: anywhere."""
        self._store, self._cluster_id, self._node_id = store, cluster_id, node_id
        self._allowed = allowed
        self._objects: dict[str, RemoteObjects] = {}
        self._lock = threading.Lock()
        self._uploads = threading.BoundedSemaphore(UPLOADS_AT_ONCE)

    def probe(self, url: str) -> None:
        """Writes a few bytes below `url`, as any object is written, and deletes them. Raises `UsageError` for a URL
        that is not served here or not allowed, `NotFound` when the bucket is not there, `NotPermitted`,
        `Unavailable`."""
        objects, limit = self._at(url), Limit.within(PROBE_S)
        key = f"{folder(self._cluster_id)}/probe/{self._node_id}-{secrets.token_hex(8)}"
        objects.write(key, whole(secrets.token_bytes(PROBE_BYTES)), limit)
        objects.delete(key, limit)

    def write(
        self,
        ref: ShardRef,
        url: str,
        limit: Limit,
        *,
        is_anew: bool,
        may_replace: bool,
        otherwise: Callable[[], ShardSource] | None = None,
    ) -> None:
        """Makes the shard lie below `url`: it does already, by its frame, or this node's copy is written there, or
        where there is none what `otherwise` opens. With `is_anew` what is there is written over; without `may_replace`
        nothing ever is: whoever is no more than a client could name another's shard. Raises `Conflict`, `NotFound` when
        it is neither here nor there, `DamagedData` when the copy here is, and as `probe`."""
        objects = self._at(url)
        if not (is_anew and may_replace) and self._is_there(objects, ref, limit, may_replace=may_replace):
            return
        with self._upload_slot(limit):
            try:
                self._write_own(objects, ref, limit)
            except NotFound as error:
                if otherwise is None or "url" in error.__dict__:
                    raise
                source = otherwise()
                if source.frame.digest != ref.frame_digest:
                    raise DamagedData(
                        f"shard {ref.shard_id}: what was found has another frame than the manifest's"
                    ) from None
                numbers = range(len(source.frame.chunks))
                write_shard(
                    objects,
                    self._cluster_id,
                    source.frame,
                    lambda: (sealed for _, sealed in source.chunks(numbers, limit)),
                    limit,
                )
        log.info("shard %s was written to %s", ref.shard_id, url)

    def open(self, ref: ShardRef, url: str, limit: Limit) -> RemoteReader:
        """Raises `NotFound`, `DamagedData` when it was truncated or replaced, and as `probe`."""
        return open_shard(self._at(url), self._cluster_id, ref, limit)

    def check(self, ref: ShardRef, url: str, limit: Limit) -> None:
        """Reads every chunk of the copy below `url`. Raises as `open` and `RemoteReader.chunks`."""
        with self.open(ref, url, limit) as reader:
            for _ in reader.chunks(range(ref.chunks), limit):
                pass

    def read(self, ref: ShardRef, url: str, start: int, length: int, limit: Limit) -> bytes:
        """Bytes of a shard's file in a backup, not verified."""
        return self._at(url).read(shard_key(self._cluster_id, ref.shard_id), start, length, limit)

    def rates(self, url: str) -> DeviceRates:
        """At which this node reads from there and writes, lately."""
        return self._at(url).meter.rates

    def samples(self) -> list[TierSample]:
        """The backups that this node has read from or written to."""
        with self._lock:
            known = list(self._objects.values())
        return [TierSample(kind=TierKind.REMOTE, path=one.url, device=device_sample(one.meter)) for one in known]

    def delete(self, shard_ids: Sequence[str], url: str, deadline_s: float) -> int:
        """Takes copies away, one after another; how many there was time for. Those that are not there are no error."""
        objects, limit = self._at(url), Limit.within(deadline_s)
        for done, shard_id in enumerate(shard_ids):
            if limit.left_s < deadline_s / 2:
                return done
            objects.delete(shard_key(self._cluster_id, shard_id), limit)
        return len(shard_ids)

    def _write_own(self, objects: RemoteObjects, ref: ShardRef, limit: Limit) -> None:
        with self._store.open(ref.shard_id) as reader:
            if reader.frame.digest != ref.frame_digest:
                raise DamagedData(f"shard {ref.shard_id} here has another frame than the manifest's")
            numbers = range(len(reader.frame.chunks))
            write_shard(objects, self._cluster_id, reader.frame, lambda: map(reader.chunk, numbers), limit)

    def _is_there(self, objects: RemoteObjects, ref: ShardRef, limit: Limit, *, may_replace: bool) -> bool:
        try:
            open_shard(objects, self._cluster_id, ref, limit)
        except NotFound:
            return False
        except DamagedData as error:
            if not may_replace:
                raise Conflict(f"{objects.url} has another copy of shard {ref.shard_id}: {error}") from error
            log.warning("written anew: %s", error)
            return False
        return True

    def _at(self, url: str) -> RemoteObjects:
        if parse_backup(url) != url:
            raise UsageError(f"expected a backup's URL without a slash at its end, got {url!r}")
        check_backup_allowed(url, self._allowed)
        with self._lock:
            if url not in self._objects:
                self._objects[url] = RemoteObjects(url)
            return self._objects[url]

    @contextmanager
    def _upload_slot(self, limit: Limit) -> Any:
        if not self._uploads.acquire(timeout=limit.left_s):
            raise DeadlineExceeded(f"{UPLOADS_AT_ONCE} other uploads of this node took until the deadline")
        try:
            yield
        finally:
            self._uploads.release()
