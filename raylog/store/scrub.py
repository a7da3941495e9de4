"""Reading what lies in a node's store and checking it: one shard, or all of them in rounds.

A disk forgets in silence: only what is read is known to be there. Every copy of every shard is read once in a round,
from the device and not from the page cache, and each chunk compared with its BLAKE3 in the frame.
"""

import logging
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass

from blake3 import blake3

from raylog.errors import DamagedData, NotFound
from raylog.store.shard_file import DiskReader
from raylog.store.tier import ShardReader, Tier
from raylog.store.tiered import TieredStore

log = logging.getLogger(__name__)
OnRead = Callable[[int], None]  # sealed bytes that were read and checked


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardCheck:
    """What was found of one shard. `damaged`: chunks that some copy has wrong. `lost_frames`: copies whose frame was
    damaged, out of sight now; `is_gone`: no other was left."""

    chunks_read: int
    damaged: tuple[int, ...]
    lost_frames: int
    is_gone: bool


def check_shard(store: TieredStore, shard_id: str, on_read: OnRead = lambda _: None) -> ShardCheck | None:
    """Reads and checks every chunk of every copy in the store; None when there is none. A copy without an intact frame
    cannot be repaired chunk by chunk: it goes to quarantine, and when the other copy was in memory alone, that one is
    made durable again. Raises `Unavailable` when a device fails."""
    damaged: set[int] = set()
    chunks_read = copies = lost_frames = 0
    for tier in store.tiers:
        try:
            opened = tier.open(shard_id)
        except NotFound:
            continue
        except DamagedData as error:
            _put_aside(tier, shard_id, error)
            lost_frames += 1
            continue
        copies += 1
        with opened as reader:
            chunks_read += len(reader.frame.chunks)
            damaged.update(_damaged_chunks(reader, on_read))
    if lost_frames and copies:
        store.persist(shard_id)
    if not copies and not lost_frames:
        return None
    return ShardCheck(
        chunks_read=chunks_read, damaged=tuple(sorted(damaged)), lost_frames=lost_frames, is_gone=not copies
    )


def _damaged_chunks(reader: ShardReader, on_read: OnRead) -> list[int]:
    if isinstance(reader, DiskReader):
        reader.forget_cached()
    found = []
    for number, entry in enumerate(reader.frame.chunks):
        try:
            reader.frame.verify_chunk(number, reader.chunk(number))
        except DamagedData:
            found.append(number)
        on_read(entry.sealed_bytes)
    return found


def _put_aside(tier: Tier, shard_id: str, error: DamagedData) -> None:
    log.warning("shard %s is taken out of sight in %s: %s", shard_id, tier.kind, error)
    try:
        tier.quarantine(shard_id)
    except NotFound:
        return  # deleted meanwhile


class Rounds:
    """Which shard is to be checked next. Pure. `seed` gives the order, another one at each start of a node, so that
    restarts do not keep the same shards waiting."""

    def __init__(self, period_s: float, seed: bytes, first_s: float) -> None:
        """The first round begins at `first_s`, each other one `period_s` after the one before began, or when that is
        done."""
        self.done = 0
        self.total = self.checked = 0  # shards of the round that runs, or ran last
        self._period_s, self._seed = period_s, seed
        self._next_s = first_s
        self._waiting: deque[str] = deque()

    def begins(self, now: float) -> bool:
        """Whether a round is to `begin`."""
        return not self._waiting and now >= self._next_s

    def begin(self, present: Collection[str], now: float) -> None:
        """A round over what is present now; what comes later waits for the next."""
        self._waiting = deque(sorted(present, key=self._place))
        self._next_s = now + self._period_s
        self.total, self.checked = len(present), 0

    def next(self) -> str | None:
        """The next shard, which counts as checked; None between rounds."""
        if not self._waiting:
            return None
        self.checked += 1
        self.done += self.checked == self.total
        return self._waiting.popleft()

    def _place(self, shard_id: str) -> bytes:
        return blake3(self._seed + shard_id.encode()).digest(8)
