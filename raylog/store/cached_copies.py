"""Copies on a node's disks that are promised to nobody: they give way when room is needed, unless pinned or read."""

import logging
import math
import threading
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar
from weakref import WeakSet

from raylog.codec.frame import Frame
from raylog.errors import NoSpace, NotFound
from raylog.spec import TierKind
from raylog.store.arena_policy import ArenaPolicy
from raylog.store.disks import Disks
from raylog.store.pin import Pin
from raylog.store.policy import has_room_to_spare
from raylog.store.shard_file import DiskWriter

log = logging.getLogger(__name__)
T = TypeVar("T")


class CachedCopies:
    """Which copies on `disk` are cached, and which of them are pinned or read now. Thread-safe.

    What is cached and what is pinned is noted on the disks, and known again after a restart.
    """

    def __init__(self, disk: Disks, arena: ArenaPolicy) -> None:
        self._disk, self._arena = disk, arena
        self._cached = dict.fromkeys(disk.cached())  # oldest first
        self._pinned: set[str] = set()
        self._files_read: defaultdict[str, WeakSet[Pin]] = defaultdict(WeakSet)  # of cached copies, by local processes
        self._lock = threading.Lock()  # of these: what is promised, pinned or read at this moment does not give way
        for shard_id in disk.pinned():
            if disk.holds(shard_id):
                self._pinned.add(shard_id)
                arena.pin(shard_id)
            else:
                disk.mark_unpinned(shard_id)

    def __contains__(self, shard_id: str) -> bool:
        with self._lock:
            return shard_id in self._cached

    def kept_on(self, shard_id: str) -> TierKind | None:
        """The kind of disk with a copy that stays until it is deleted."""
        with self._lock:
            is_kept = self._disk.holds(shard_id) and shard_id not in self._cached
            return self._disk.kind_of(shard_id) if is_kept else None

    def create(self, frame: Frame) -> DiskWriter:
        """A writer of a cached copy. Raises `NoSpace`, `Conflict` as `Tier.create`."""
        shard_id = frame.header.shard_id
        self._disk.mark_cached(frame)
        try:
            writer = self._disk.create(frame)
        except BaseException:
            self._disk.mark_kept(shard_id)
            raise
        with self._lock:
            self._cached[shard_id] = None
        return writer

    def create_beside(self, frame: Frame) -> DiskWriter | None:
        """A writer of a cached copy of what is in the arena too: below the high watermark, and for it only what is
        worth less gives way."""
        while not has_room_to_spare(self._disk.states(), frame.stored_bytes):
            if not self.give_way(self._arena.worth_on_disk(frame.header.shard_id)):
                return None
        try:
            return self.create(frame)
        except NoSpace:
            return None

    def promise(self, shard_id: str) -> None:
        """A copy on disk, here or to come, does not give way from here on."""
        with self._lock:
            if shard_id in self._cached:
                self._disk.mark_kept(shard_id)
                del self._cached[shard_id]
            self._files_read.pop(shard_id, None)

    def pin(self, shard_id: str, is_here: Callable[[], bool]) -> bool:
        """The copy does not give way, be it cached, until `unpin`. False, and nothing is pinned, unless it `is_here`:
        that is asked while none can give way."""
        with self._lock:
            if not is_here():
                return False
            self._disk.mark_pinned(shard_id)
            self._pinned.add(shard_id)
        self._arena.pin(shard_id)
        return True

    def is_pinned(self, shard_id: str) -> bool:
        with self._lock:
            return shard_id in self._pinned

    def unpin(self, shard_id: str) -> None:
        """It may give way again, if it is cached; nothing to do where it is not pinned."""
        with self._lock:
            if shard_id in self._pinned:
                self._disk.mark_unpinned(shard_id)
                self._pinned.discard(shard_id)
        self._arena.unpin(shard_id)

    def read_by(self, shard_id: str, pin: Pin) -> None:
        """A local process holds the file open: while it does, the copy does not give way."""
        with self._lock:
            if shard_id in self._cached:
                self._files_read[shard_id].add(pin)

    def with_room(self, action: Callable[[], T]) -> T:
        """Does what needs room on disk; cached copies there give way, unless pinned."""
        while True:
            try:
                return action()
            except NoSpace:
                if not self.give_way():
                    raise

    def give_way(self, worth: float = math.inf) -> bool:
        """Drops the cached copy that is worth least, if that is less than `worth`; of equals the oldest."""
        with self._lock:
            able = [one for one in self._cached if self._may_go(one) and not self._is_read(one)]
        least = min(able, key=self._arena.worth_on_disk, default=None)
        if least is None or self._arena.worth_on_disk(least) >= worth:
            return False
        self.drop(least)
        return True

    def drop(self, shard_id: str) -> None:
        """The cached copy goes, unless it was promised or pinned meanwhile."""
        with self._lock:
            if not self._may_go(shard_id):
                return
            del self._cached[shard_id]
            self._files_read.pop(shard_id, None)
            with suppress(NotFound):
                self._disk.delete(shard_id)
            self._disk.mark_kept(shard_id)
        log.info("shard %s, a cached copy on disk, gave way", shard_id)

    def _may_go(self, shard_id: str) -> bool:
        """Whether it is a cached copy that is whole: one that is still written would come back as one that is kept."""
        return shard_id in self._cached and shard_id not in self._pinned and self._disk.holds(shard_id)

    def _is_read(self, shard_id: str) -> bool:
        """Whether a process holds the file open: its deletion would free nothing yet."""
        if any(pin.is_held for pin in self._files_read.get(shard_id, ())):
            return True
        self._files_read.pop(shard_id, None)
        return False
