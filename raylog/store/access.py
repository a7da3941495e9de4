"""Which shards are read, how often lately: counts that fade. Pure: time is passed in."""

import heapq
import math

HALF_LIFE_S = 1800.0
SHARDS_MAX = 100_000  # remembered; beyond them the least read are forgotten


class AccessHistory:
    """A count per shard that halves every `half_life_s`. What is not remembered was not read."""

    def __init__(self, half_life_s: float = HALF_LIFE_S, shards_max: int = SHARDS_MAX) -> None:
        self._fading = math.log(2) / half_life_s
        self._shards_max = shards_max
        self._counts: dict[str, tuple[float, float]] = {}  # shard id -> count, and as of when

    def touch(self, shard_id: str, now_s: float) -> list[str]:
        """The shard was read; which others were forgotten to remember it."""
        self._counts[shard_id] = (self.count(shard_id, now_s) + 1.0, now_s)
        if len(self._counts) <= self._shards_max:
            return []
        least = heapq.nsmallest(self._shards_max // 10 + 1, self._counts, key=self.order)
        for one in least:
            del self._counts[one]
        return least

    def count(self, shard_id: str, now_s: float) -> float:
        """How often it was read, faded."""
        count, then_s = self._counts.get(shard_id, (0.0, now_s))
        return count * math.exp(-self._fading * (now_s - then_s))

    def order(self, shard_id: str) -> float:
        """What orders shards by their counts at any time alike, since all fade at one pace: the logarithm of the count
        at time 0. Minus infinity for one that was not read."""
        count, then_s = self._counts.get(shard_id, (0.0, 0.0))
        return math.log(count) + self._fading * then_s if count else -math.inf

    def forget(self, shard_id: str) -> None:
        """It was deleted."""
        self._counts.pop(shard_id, None)
