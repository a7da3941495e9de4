"""Which shards the arena keeps: those whose reads from memory save most time per byte (policy.py), by their reads so
far."""

import math
import threading
import time
from collections.abc import Callable, Sequence

from raylog.spec import TierKind
from raylog.store.access import AccessHistory
from raylog.store.device_meter import DeviceRates
from raylog.store.policy import Disk, admits, worth

ARRIVAL_READS = 3  # that a shard which was put or shipped here counts for before anybody reads it
FLOOR_S = 0.5  # how long a look at who would have to go is good for


class ArenaPolicy:
    """Counts reads and judges by them. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._history = AccessHistory()
        self._lies: dict[str, tuple[int, Disk]] = {}  # bytes and disk of shards that were read from disk
        self._origins: dict[str, tuple[int, Disk]] = {}  # bytes of shards that came from a backup, and how it does
        self._ranks: dict[str, float] = {}
        self._pinned: set[str] = set()
        self._floor = (0.0, -FLOOR_S)  # what the least of those who stayed was worth, and when
        self._lock = threading.Lock()

    def read(self, shard_id: str) -> None:
        """Somebody reads the shard, wherever it lies."""
        with self._lock:
            self._touch(shard_id)

    def arrived(self, shard_id: str) -> None:
        """Somebody brought the shard here, which is seldom done for nothing."""
        with self._lock:
            for _ in range(ARRIVAL_READS):
                self._touch(shard_id)

    def lies_on(self, shard_id: str, stored_bytes: int, kind: TierKind, rates: DeviceRates) -> None:
        """What reading a shard that was read costs where it is not in memory."""
        with self._lock:
            disk = Disk(kind=kind, capacity_bytes=0, free_bytes=0, rates=rates)
            if shard_id in self._ranks:
                self._lies[shard_id] = stored_bytes, disk
                self._rank(shard_id)

    def came_from(self, shard_id: str, stored_bytes: int, rates: DeviceRates) -> None:
        """The shard is had from a backup, and would be had from there again."""
        with self._lock:
            origin = Disk(kind=TierKind.REMOTE, capacity_bytes=0, free_bytes=0, rates=rates)
            self._origins[shard_id] = stored_bytes, origin

    def is_from_afar(self, shard_id: str) -> bool:
        """Whether it came from a backup."""
        with self._lock:
            return shard_id in self._origins

    def worth_on_disk(self, shard_id: str) -> float:
        """Seconds saved per byte by a cached copy on disk: what it took to have it from elsewhere."""
        with self._lock:
            stored_bytes, origin = self._origins.get(shard_id, _ELSEWHERE)
            return worth(self._history.count(shard_id, self._clock()), stored_bytes, origin)

    def reads(self, shard_id: str) -> float:
        """How often it was read lately, faded."""
        with self._lock:
            return self._history.count(shard_id, self._clock())

    def worth(self, shard_id: str) -> float:
        """Seconds saved per byte by keeping it in memory. Of a shard that never came from a disk here, as of a slow
        one's: it may have to come over the network. Pinned: infinite."""
        with self._lock:
            if shard_id in self._pinned:
                return math.inf
            stored_bytes, disk = self._next_copy(shard_id)
            return worth(self._history.count(shard_id, self._clock()), stored_bytes, disk)

    def _next_copy(self, shard_id: str) -> tuple[int, Disk]:
        """What reading the shard costs where it is not in memory."""
        return self._lies.get(shard_id) or self._origins.get(shard_id, _ELSEWHERE)

    def rank(self, shard_id: str) -> float:
        """Orders shards by `worth`, at any time alike and without asking it of each."""
        return math.inf if shard_id in self._pinned else self._ranks.get(shard_id, -math.inf)

    def pin(self, shard_id: str) -> None:
        """The shard goes into the arena when it is read, and stays there until `unpin` or `forget`."""
        with self._lock:
            self._pinned.add(shard_id)

    def unpin(self, shard_id: str) -> None:
        with self._lock:
            self._pinned.discard(shard_id)

    def _touch(self, shard_id: str) -> None:
        for one in self._history.touch(shard_id, self._clock()):
            self._ranks.pop(one, None)
            self._lies.pop(one, None)
            self._origins.pop(one, None)
        self._rank(shard_id)

    def _rank(self, shard_id: str) -> None:
        stored_bytes, disk = self._next_copy(shard_id)
        self._ranks[shard_id] = self._history.order(shard_id) + math.log(worth(1.0, stored_bytes, disk))

    def may_admit(self, shard_id: str) -> bool:
        """Whether it is worth looking who would have to go for this shard: False while it is worth less than the least
        of those who stayed a moment ago, which is most of what is read once."""
        floor, since_s = self._floor
        return self._clock() - since_s > FLOOR_S or self.worth(shard_id) > floor

    def admits(self, shard_id: str, stored_bytes: int, victims: Sequence[tuple[str, int]] | None) -> bool:
        """Whether a shard that is read from disk now takes the place of `victims` (id and bytes; None: there is no
        place)."""
        if victims is None:
            return False
        worths = [(self.worth(one), size) for one, size in victims]
        if worths:
            self._floor = min(value for value, _ in worths), self._clock()
        return not worths or admits(self.worth(shard_id), stored_bytes, worths)

    def forget(self, shard_id: str) -> None:
        """It was deleted."""
        with self._lock:
            self._history.forget(shard_id)
            self._pinned.discard(shard_id)
            self._lies.pop(shard_id, None)
            self._origins.pop(shard_id, None)
            self._ranks.pop(shard_id, None)


_ELSEWHERE = (
    1 << 20,
    Disk(
        kind=TierKind.SSD,
        capacity_bytes=0,
        free_bytes=0,
        rates=DeviceRates(read_bytes_per_s=100e6, write_bytes_per_s=100e6, sync_s=0.0),
    ),
)
