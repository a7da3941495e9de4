"""Which chunk of a shard is asked of which source. Pure: what came and when in, asks out.

- A source is given as much as its measured rate covers for `HORIZON_S`: fast sources take more by themselves, and
  little is lost with one that fails.
- Of what a source offers, the chunks that the fewest sources offer go first, so that receivers of one shard soon have
  something for each other.
- A *relay*, which gets the shard itself now, is also asked ahead: for chunks of its stripe that it has still to get.
- Near the end a chunk goes only to a source that would not be the last to finish; one that is overdue is asked for a
  second time elsewhere (hedged), within a bound on the bytes that may come twice.
- A source that has stalled is passed over for a growing time, and what it was asked for goes to the others.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from raylog.units import MIB

HORIZON_S = 0.25  # of work asked of a source at once
REFILL_SHARE = 4  # it is asked for more when this part of that has come
START_BYTES = 8 * MIB  # asked of a source whose rate is not known yet
SAMPLE_S = 0.05  # a rate is measured over at least this time
EWMA_SHARE = 0.3  # of the newest sample
HELP_S = 0.5  # without work in its own stripe, then a source helps with the others'
STALL_S = 1.0  # without a chunk, when others could give it
BACKOFF_S_MAX = 8.0
LOOK_S = 0.1  # how often overdue chunks are looked for
HEDGE_LOOK = 64  # of the chunks that a late source was asked for last, those that are looked at
HEDGE_SHARE = 0.02  # of the shard's bytes, at most, are asked for twice without a stall; and four chunks


@dataclass(frozen=True, slots=True)
class Stripe:
    """The chunks whose number is `index` modulo `count`: what a source is there for first, when a shard goes to many
    nodes over several trees."""

    index: int
    count: int

    def __contains__(self, chunk: int) -> bool:
        return chunk % self.count == self.index


WHOLE = Stripe(0, 1)


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask this source for these chunks."""

    source: int
    chunks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Recall:
    """Do not ask this source for these chunks if you have not yet. What is on its way may still come."""

    source: int
    chunks: tuple[int, ...]


@dataclass(slots=True, eq=False)
class _Source:
    stripe: Stripe
    window_bytes: int
    offered: bytearray  # by chunk
    rate_bytes_per_s: float | None
    heard: float  # when it last gave a chunk, or began to owe one
    busy: float  # when it last was asked for a chunk of its stripe, or gave one
    lanes: list[dict[int, deque[int]]]  # its stripe first: what may be asked of it, by rarity when noted
    ahead: Iterator[int]  # what a relay may have later, of its stripe
    asked: dict[int, None] = field(default_factory=dict)  # in order
    asked_bytes: int = 0
    awaited_bytes: int = 0  # of these, what it had not offered when it was asked
    awaited: set[int] = field(default_factory=set)
    owed: set[int] = field(default_factory=set)  # recalled when it stalled; may still come
    sample_seconds: float = 0.0
    sample_bytes: int = 0
    suspended_until: float = 0.0
    stalls: int = 0

    @property
    def budget_bytes(self) -> int:
        """How much may be asked of it at once."""
        if self.rate_bytes_per_s is None:
            return min(START_BYTES, self.window_bytes)
        return int(min(max(self.rate_bytes_per_s * HORIZON_S, 1), self.window_bytes))

    @property
    def ahead_budget_bytes(self) -> int:
        """How much may be asked of a relay, on top, of what it has still to get; half of the window is for what it has,
        should it get its chunks in another order."""
        return min(self.budget_bytes, self.window_bytes // 2)

    @property
    def room_bytes(self) -> int:
        """How much more may be asked of it now, of what it has."""
        return self.budget_bytes - (self.asked_bytes - self.awaited_bytes)

    @property
    def is_hungry(self) -> bool:
        """Whether so much has come that it is worth asking for more."""
        return self.room_bytes * REFILL_SHARE >= self.budget_bytes

    def seconds_for(self, more_bytes: int, now: float) -> float:
        """Until it has given what it was asked for and `more_bytes`, at the rate that it shows."""
        rate = self.rate_bytes_per_s or self.sample_bytes / max(self.sample_seconds, 0.001)
        silent_s = now - self.heard
        if self.asked and rate and silent_s > SAMPLE_S:
            rate = min(rate, self.asked_bytes / silent_s)
        return (self.asked_bytes + more_bytes) / rate if rate else math.inf

    def is_free(self, chunk_bytes: int, now: float) -> bool:
        """Whether it has had nothing to do for its own stripe for a while, and not just waits for its next chunk."""
        expected_s = chunk_bytes / self.rate_bytes_per_s if self.rate_bytes_per_s else 0.0
        return now - self.busy >= max(HELP_S, 4 * expected_s)

    def is_late(self, now: float) -> bool:
        """Whether it has been silent for much longer than what it was asked for should take."""
        expected_s = self.asked_bytes / self.rate_bytes_per_s if self.rate_bytes_per_s else STALL_S
        return bool(self.asked) and now - self.heard >= max(STALL_S, 4 * expected_s)


class Schedule:
    """One shard's fetch: `sealed_bytes` by chunk, and which chunks are `missing`. Sources are named by numbers that are
    used once. Times are seconds of one clock."""

    def __init__(self, sealed_bytes: Sequence[int], missing: Iterable[int], window_bytes: int) -> None:
        self._bytes = sealed_bytes
        self._window_bytes = window_bytes
        self._todo = set(missing)  # asked of nobody
        self._todo_bytes = sum(sealed_bytes[chunk] for chunk in self._todo)
        self._asked: dict[int, list[int]] = {}  # chunk -> sources that were asked for it
        self._offers = [0] * len(sealed_bytes)
        self._sources: dict[int, _Source] = {}
        self._looked = 0.0
        self._hedge_bytes = max(int(HEDGE_SHARE * self._todo_bytes), 4 * max(sealed_bytes, default=0))

    @property
    def is_complete(self) -> bool:
        return not self._todo and not self._asked

    @property
    def missing(self) -> int:
        """How many chunks are not here."""
        return len(self._todo) + len(self._asked)

    def rate_of(self, number: int) -> float | None:
        """Bytes/s that a source was last seen to give; None while nothing was measured."""
        source = self._sources.get(number)
        return source.rate_bytes_per_s if source else None

    # Sources.

    def add(
        self,
        number: int,
        now: float,
        *,
        stripe: Stripe = WHOLE,
        rate_bytes_per_s: float | None = None,
        is_relay: bool = False,
    ) -> None:
        """A source that chunks may be asked of; `rate_bytes_per_s` is what is known of it from before."""
        chunks = len(self._bytes)
        lanes = [dict[int, deque[int]]() for _ in range(stripe.count)]
        ahead = iter(range(stripe.index, chunks if is_relay else 0, stripe.count))
        self._sources[number] = _Source(
            stripe, self._window_bytes, bytearray(chunks), rate_bytes_per_s, now, now, lanes, ahead
        )

    def offer(self, number: int, chunks: Iterable[int]) -> None:
        """The source has these chunks."""
        source = self._sources[number]
        for chunk in chunks:
            self._offers[chunk] += not source.offered[chunk]
            source.offered[chunk] = 1
            if chunk in self._todo:
                self._lane(source, chunk).append(chunk)

    def drop(self, number: int) -> None:
        """The source is gone; what it was asked for goes to the others."""
        source = self._sources.pop(number, None)
        if source is None:
            return
        self._release(number, source)
        for chunk, is_offered in enumerate(source.offered):
            self._offers[chunk] -= is_offered

    # What came.

    def verified(self, number: int, chunk: int, now: float) -> list[int]:
        """A chunk is here. Returns the other sources that were asked for it too: tell them."""
        if number in self._sources:
            source = self._sources[number]
            self._measure(source, self._bytes[chunk], now)
            source.busy = now if chunk in source.stripe else source.busy
        others = []
        self._asked.pop(chunk, None)
        for other, source in self._sources.items():
            if chunk in source.asked or chunk in source.owed:
                self._settle(source, chunk)
                others += [other] if other != number else []
        if chunk in self._todo:  # a stalled source gave it after all
            self._todo.discard(chunk)
            self._todo_bytes -= self._bytes[chunk]
        return others

    def damaged(self, number: int, chunk: int, now: float) -> None:
        """What came was not the chunk: it is to be had elsewhere, or here once more."""
        source = self._sources.get(number)
        if source is not None:
            if chunk in source.awaited:
                self.offer(number, [chunk])  # it has it now
            self._settle(source, chunk)
            source.heard = now
        self._unask(number, chunk)

    # What to ask for.

    def deal(self, now: float) -> list[Ask | Recall]:
        """What to ask for now; where a source has stalled, what not to ask it for any more."""
        recalls = self._look(now)
        dealt: dict[int, list[int]] = {}
        well = {number: source for number, source in self._sources.items() if now >= source.suspended_until}
        open_sources = {number: source for number, source in well.items() if source.is_hungry or not source.asked}
        while open_sources:
            for number, source in list(open_sources.items()):
                chunk = self._next(source, now)
                if chunk is None:
                    del open_sources[number]
                    continue
                self._ask(number, source, chunk, now)
                dealt.setdefault(number, []).append(chunk)
        for number, source in well.items():
            for chunk in self._ahead(source):
                self._ask(number, source, chunk, now)
                dealt.setdefault(number, []).append(chunk)
        return [*recalls, *(Ask(number, tuple(chunks)) for number, chunks in dealt.items())]

    def next_deadline(self) -> float:
        """When `deal` may have something to do though nothing came."""
        if len(self._sources) < 2 or self.is_complete:
            return math.inf
        return self._looked + LOOK_S

    # Choosing.

    def _next(self, source: _Source, now: float) -> int | None:
        room_bytes = source.room_bytes
        if source.stalls and source.asked:
            return None  # after a stall one chunk shows whether it is back
        if room_bytes <= 0 and source.asked:
            return None
        chunk = self._rarest(source, now)
        if chunk is None:
            return self._hedge(source, now) if not self._todo else None
        has_room = not source.asked or self._bytes[chunk] <= room_bytes
        if has_room and self._is_timely(source, chunk, now):
            return chunk
        self._lane(source, chunk).appendleft(chunk)
        return None

    def _ahead(self, source: _Source) -> Iterator[int]:
        """Chunks to ask a relay for before it has them: none that another has who is there for it."""
        room_bytes = source.ahead_budget_bytes - source.awaited_bytes
        if source.stalls or room_bytes * REFILL_SHARE < source.ahead_budget_bytes:
            return
        for chunk in source.ahead:
            if chunk not in self._todo or self._is_had(chunk):
                continue
            yield chunk
            room_bytes -= self._bytes[chunk]
            if room_bytes <= 0:
                return

    def _is_had(self, chunk: int) -> bool:
        return any(one.offered[chunk] and chunk in one.stripe for one in self._sources.values())

    def _rarest(self, source: _Source, now: float) -> int | None:
        """The chunk to ask of it next, by rarity, its own stripe first. It is taken out of the source's lanes."""
        for place, lane in enumerate(source.lanes):
            while lane:
                level = min(lane)
                chunk = self._first(source, lane, level)
                if chunk is None:
                    lane.pop(level, None)
                elif place and not self._is_for(source, chunk, now):
                    self._lane(source, chunk).appendleft(chunk)
                    break
                else:
                    return chunk
        return None

    def _first(self, source: _Source, lane: dict[int, deque[int]], level: int) -> int | None:
        """Takes a chunk from the bucket of one rarity. Those that are no longer to be had are dropped (`_unask` notes
        them again), those that have become rarer or more frequent go where they belong."""
        bucket = lane[level]
        while bucket:
            chunk = bucket.popleft()
            if chunk not in self._todo:
                continue
            if self._offers[chunk] == level:
                return chunk
            self._lane(source, chunk).append(chunk)
            if self._offers[chunk] < level:
                return self._first(source, lane, self._offers[chunk])
        return None

    def _lane(self, source: _Source, chunk: int) -> deque[int]:
        """Where a chunk that may be asked of a source is noted."""
        stripe = source.stripe
        return source.lanes[(chunk - stripe.index) % stripe.count].setdefault(self._offers[chunk], deque())

    def _is_for(self, source: _Source, chunk: int, now: float) -> bool:
        """Whether a source is there for a chunk: one of its stripe; or of another's when nobody who is well is there
        for that, or this source has nothing else to do (two nodes might wait for each other's stripe for ever)."""
        if chunk in source.stripe or source.is_free(self._bytes[chunk], now):
            return True
        return not any(
            chunk in one.stripe and one.stripe.count > 1 and not one.stalls for one in self._sources.values()
        )

    def _is_timely(self, source: _Source, chunk: int, now: float) -> bool:
        """Whether this source would not be the one that everything waits for at the end. Whoever would have the chunk
        first always is, or nobody might take it."""
        if self._offers[chunk] < 2 or source.rate_bytes_per_s is None:
            return True
        well = [one for one in self._sources.values() if one.rate_bytes_per_s and not one.stalls]
        own_s = source.seconds_for(self._bytes[chunk], now)
        rivals = [one for one in well if one.offered[chunk] and self._is_for(one, chunk, now)]
        if all(own_s <= one.seconds_for(self._bytes[chunk], now) for one in rivals):
            return True
        left_bytes = self._todo_bytes + sum(one.asked_bytes for one in self._sources.values() if not one.stalls)
        return own_s <= max(1.25 * left_bytes / sum(one.rate_bytes_per_s or 0 for one in well), SAMPLE_S)

    def _hedge(self, source: _Source, now: float) -> int | None:
        """A chunk that another source is late with and that this one would have sooner: the last that it was asked
        for, which may not have left yet."""
        if source.asked or math.isinf(source.seconds_for(1, now)):
            return None
        worst, worst_s = None, SAMPLE_S
        for other in self._sources.values():
            late_s = other.seconds_for(0, now)
            if other is source or late_s <= worst_s:
                continue
            for chunk in islice(reversed(other.asked), HEDGE_LOOK):
                if not self._may_hedge(source, chunk):
                    continue
                if late_s > 2 * source.seconds_for(self._bytes[chunk], now) + SAMPLE_S:
                    worst, worst_s = chunk, late_s
                break
        if worst is not None:
            self._hedge_bytes -= self._bytes[worst]
        return worst

    def _may_hedge(self, source: _Source, chunk: int) -> bool:
        is_asked_once = len(self._asked[chunk]) == 1
        return is_asked_once and bool(source.offered[chunk]) and self._bytes[chunk] <= self._hedge_bytes

    def _look(self, now: float) -> list[Ask | Recall]:
        """Passes over sources that have stalled while others could give what they owe."""
        recalls: list[Ask | Recall] = []
        if now < self._looked + LOOK_S:
            return recalls
        self._looked = now
        for number, source in self._sources.items():
            if source.is_late(now) and any(self._offers[chunk] > source.offered[chunk] for chunk in source.asked):
                recalls.append(Recall(number, tuple(sorted(source.asked))))
                source.stalls += 1
                source.suspended_until = now + min(STALL_S * 2 ** (source.stalls - 1), BACKOFF_S_MAX)
                owed = source.owed | source.asked.keys()
                self._release(number, source)
                source.owed = owed
        return recalls

    # Bookkeeping.

    def _ask(self, number: int, source: _Source, chunk: int, now: float) -> None:
        if not source.asked:
            source.heard = now
        if chunk in source.stripe:
            source.busy = now
        source.owed.discard(chunk)
        source.asked[chunk] = None
        source.asked_bytes += self._bytes[chunk]
        if not source.offered[chunk]:
            source.awaited.add(chunk)
            source.awaited_bytes += self._bytes[chunk]
        if chunk in self._todo:
            self._todo.discard(chunk)
            self._todo_bytes -= self._bytes[chunk]
        self._asked.setdefault(chunk, []).append(number)

    def _settle(self, source: _Source, chunk: int) -> None:
        source.owed.discard(chunk)
        if chunk in source.asked:
            del source.asked[chunk]
            source.asked_bytes -= self._bytes[chunk]
        if chunk in source.awaited:
            source.awaited.discard(chunk)
            source.awaited_bytes -= self._bytes[chunk]

    def _unask(self, number: int, chunk: int) -> None:
        """Back to what is asked of nobody, unless another source was asked for it too."""
        asked_of = self._asked.get(chunk)
        if asked_of is None or number not in asked_of:
            return
        asked_of.remove(number)
        if not asked_of:
            del self._asked[chunk]
            self._todo.add(chunk)
            self._todo_bytes += self._bytes[chunk]
            for source in self._sources.values():
                if source.offered[chunk]:
                    self._lane(source, chunk).appendleft(chunk)

    def _release(self, number: int, source: _Source) -> None:
        for chunk in reversed(list(source.asked)):
            self._settle(source, chunk)
            self._unask(number, chunk)

    @staticmethod
    def _measure(source: _Source, chunk_bytes: int, now: float) -> None:
        source.sample_seconds += now - source.heard
        source.sample_bytes += chunk_bytes
        source.heard, source.stalls, source.suspended_until = now, 0, 0.0
        if source.sample_seconds < SAMPLE_S:
            return
        sample = source.sample_bytes / source.sample_seconds
        known = source.rate_bytes_per_s
        source.rate_bytes_per_s = sample if known is None else known + EWMA_SHARE * (sample - known)
        source.sample_seconds, source.sample_bytes = 0.0, 0
