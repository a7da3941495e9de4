"""A node's own scrub: all that it stores, read back and checked in rounds, at a set rate. What it finds damaged waits
here for the catalog's upkeep, which knows who else holds it."""

import logging
import os
import threading
import time

from raylog.errors import RaylogError
from raylog.monitor.meter import TransferMeter
from raylog.monitor.samples import ScrubSample
from raylog.store.scrub import Rounds, ShardCheck, check_shard
from raylog.store.tiered import TieredStore

log = logging.getLogger("raylog.scrub")
SETTLE_S = 60.0  # from a node's start to its first round
PAUSE_S = 1.0  # between two looks whether a round is to begin
BURST_S = 0.5  # of the rate, that may be read at once


class BackgroundScrub:
    """A thread of the node actor. `bytes_per_s` 0: it does nothing."""

    def __init__(self, store: TieredStore, meter: TransferMeter, bytes_per_s: int, period_s: float) -> None:
        self._store, self._meter, self._bytes_per_s = store, meter, bytes_per_s
        self._rounds = Rounds(period_s, os.urandom(16), time.monotonic() + min(SETTLE_S, period_s))
        self._lock = threading.Lock()  # of what follows
        self._damage: dict[str, set[int]] = {}
        self._checked_bytes = 0
        self._free_s = 0.0  # when what was read so far has taken its time
        self._stop = threading.Event()
        if bytes_per_s:
            threading.Thread(target=self._run, name="scrub", daemon=True).start()

    def close(self) -> None:
        """Ends it within a chunk's time."""
        self._stop.set()

    def damage(self) -> dict[str, list[int]]:
        """Shard id -> damaged chunks; empty for a shard of which no intact frame is left."""
        with self._lock:
            return {shard_id: sorted(numbers) for shard_id, numbers in self._damage.items()}

    def mended(self, shard_id: str, numbers: tuple[int, ...]) -> None:
        """These chunks are right again."""
        with self._lock:
            left = self._damage.get(shard_id, set()) - set(numbers)
            if left:
                self._damage[shard_id] = left
            else:
                self._damage.pop(shard_id, None)

    def sample(self) -> ScrubSample:
        with self._lock:
            return ScrubSample(
                rounds_done=self._rounds.done,
                shards_checked=self._rounds.checked,
                shards_total=self._rounds.total,
                checked_bytes=self._checked_bytes,
                damaged_shards=len(self._damage),
            )

    def _run(self) -> None:
        while not self._stop.wait(PAUSE_S):
            if self._rounds.begins(time.monotonic()):
                self._go_round()

    def _go_round(self) -> None:
        self._rounds.begin([ref.shard_id for ref in self._store.shards()], time.monotonic())
        while not self._stop.is_set() and (shard_id := self._rounds.next()) is not None:
            try:
                found = check_shard(self._store, shard_id, self._pace)
            except RaylogError as error:
                log.warning("shard %s could not be checked, it is again in the next round: %s", shard_id, error)
                continue
            if found is not None:
                self._note(shard_id, found)
        log.info("a round of the scrub is done: %d shards checked", self._rounds.checked)

    def _note(self, shard_id: str, found: ShardCheck) -> None:
        with self._lock:
            if found.damaged or found.is_gone:
                self._damage[shard_id] = set(found.damaged)
            else:
                self._damage.pop(shard_id, None)
        if found.damaged or found.lost_frames:
            self._meter.damaged(len(found.damaged) or 1)
            log.warning(
                "scrub found shard %s damaged: chunks %s, %d frames", shard_id, list(found.damaged), found.lost_frames
            )

    def _pace(self, read_bytes: int) -> None:
        """Sleeps until reading at the set rate would have come this far."""
        now = time.monotonic()
        with self._lock:
            self._checked_bytes += read_bytes
        self._free_s = max(self._free_s, now - BURST_S) + read_bytes / self._bytes_per_s
        self._stop.wait(max(0.0, self._free_s - now))
