"""Which chunk is asked of whom: unit tests, and a small world of sources with rates for the properties."""

import heapq
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylog.units import KIB, MIB
from raylog.wire.schedule import (
    BACKOFF_S_MAX,
    HELP_S,
    LOOK_S,
    WHOLE,
    Ask,
    Recall,
    Schedule,
    Stripe,
)

WINDOW = 32 * MIB


def schedule(chunks: int, sources: int = 0, *, size: int = MIB, rate: float | None = None) -> Schedule:
    """A shard of equal chunks, all missing, and sources that offer them all."""
    made = Schedule([size] * chunks, range(chunks), WINDOW)
    for number in range(sources):
        made.add(number, 0.0, rate_bytes_per_s=rate)
        made.offer(number, range(chunks))
    return made


def asked(effects: list[Ask | Recall]) -> dict[int, list[int]]:
    return {effect.source: list(effect.chunks) for effect in effects if isinstance(effect, Ask)}


class Sources:
    """Sources that give a chunk after another, each at its rate (0: never a word)."""

    def __init__(self, made: Schedule, rates: list[float], sizes: list[int]) -> None:
        self.schedule, self.rates, self.sizes = made, rates, sizes
        self.now = 0.0
        self.given: list[tuple[float, int, int]] = []  # time, source, chunk
        self.hedged_bytes = 0
        self.dealt: Counter[int] = Counter()
        self._heap: list[tuple[float, int, int]] = []
        self._free_at = [0.0] * len(rates)
        self._cancelled: set[tuple[int, int]] = set()

    def deal(self) -> None:
        for effect in self.schedule.deal(self.now):
            for chunk in effect.chunks:
                if isinstance(effect, Recall) or not self.rates[effect.source]:
                    continue
                self._cancelled.discard((effect.source, chunk))
                begins = max(self.now, self._free_at[effect.source])
                self._free_at[effect.source] = begins + self.sizes[chunk] / self.rates[effect.source]
                heapq.heappush(self._heap, (self._free_at[effect.source], effect.source, chunk))
            if isinstance(effect, Ask):
                self.dealt.update(effect.chunks)

    def run(self, limit_s: float = 3600.0) -> None:
        self.deal()
        while not self.schedule.is_complete:
            at = min(self.schedule.next_deadline(), self._heap[0][0] if self._heap else float("inf"))
            assert at < limit_s, f"{self.schedule.missing} chunks wait for nothing"
            self.now = max(self.now, at)
            if self._heap and self._heap[0][0] <= self.now:
                _, source, chunk = heapq.heappop(self._heap)
                if (source, chunk) not in self._cancelled:
                    self.given.append((self.now, source, chunk))
                    for other in self.schedule.verified(source, chunk, self.now):
                        self._cancelled.add((other, chunk))
            self.deal()

    def seconds_of(self, source: int) -> float:
        return max((at for at, by, _ in self.given if by == source), default=0.0)


@given(
    sizes=st.lists(st.sampled_from([100, 64 * KIB, MIB, 4 * MIB]), min_size=1, max_size=60),
    rates=st.lists(st.sampled_from([1e5, 4e6, 1e8, 1e9]), min_size=1, max_size=5),
    data=st.data(),
)
def test_every_missing_chunk_comes_whatever_is_offered_by_whom(
    sizes: list[int], rates: list[float], data: st.DataObject
) -> None:
    """Whatever the rates, stripes and offers: nothing waits for ever, and nobody is asked for what it did not offer."""
    missing = data.draw(st.sets(st.integers(0, len(sizes) - 1)))
    made = Schedule(sizes, missing, WINDOW)
    offered: list[set[int]] = []
    for number in range(len(rates)):
        stripe = data.draw(st.sampled_from([WHOLE, Stripe(0, 2), Stripe(1, 2)]))
        made.add(number, 0.0, stripe=stripe, rate_bytes_per_s=data.draw(st.sampled_from([None, rates[number]])))
        some = data.draw(st.sets(st.integers(0, len(sizes) - 1)))
        offered.append(some if number else set(range(len(sizes))))
        made.offer(number, offered[number])
    world = Sources(made, rates, sizes)
    world.run()
    assert {chunk for _, _, chunk in world.given} == missing
    assert all(chunk in offered[source] for _, source, chunk in world.given)
    assert set(world.dealt) == missing


@given(st.integers(1, 80), st.integers(1, 5))
def test_without_hedging_each_chunk_is_asked_of_exactly_one(chunks: int, sources: int) -> None:
    made = schedule(chunks, sources)
    dealt = Counter(chunk for some in asked(made.deal(0.0)).values() for chunk in some)
    assert set(dealt.values()) <= {1}
    assert made.deal(0.0) == [], "nothing more until something comes"
    assert made.missing == chunks


@pytest.mark.parametrize("ratio", [2, 5, 20])
def test_rates_shape_the_shares_and_all_finish_together(ratio: int) -> None:
    rates = [100e6, 100e6 / ratio]
    world = Sources(schedule(256, 2), rates, [MIB] * 256)
    world.run()
    given = Counter(source for _, source, _ in world.given)
    assert given[0] / given[1] == pytest.approx(ratio, rel=0.5)
    best_s = 256 * MIB / sum(rates)
    a_slow_chunk_s = MIB / rates[1]
    assert world.now <= best_s * 1.1 + 1.5 * a_slow_chunk_s, (world.now, best_s)
    assert sum(world.dealt.values()) - 256 <= 9, "hedged within the bound"


def test_the_rarest_goes_first() -> None:
    made = schedule(64, 0)
    for number in (0, 1):
        made.add(number, 0.0, rate_bytes_per_s=16e6)
    made.offer(0, range(64))
    made.offer(1, range(32))
    assert min(asked(made.deal(0.0))[0]) >= 32, "what only this source has"


def test_what_has_become_frequent_waits() -> None:
    made = schedule(8, 0)
    made.add(0, 0.0, rate_bytes_per_s=4e6)
    made.offer(0, range(8))
    made.add(1, 0.0, rate_bytes_per_s=1.0)
    made.offer(1, range(6))
    assert asked(made.deal(0.0))[0] == [6]
    made.verified(0, 6, 0.1)
    assert asked(made.deal(0.1))[0] == [7]


def test_stripes_are_kept_until_one_has_nothing_else_to_do() -> None:
    made = schedule(64, 0)
    for number in (0, 1):
        made.add(number, 0.0, stripe=Stripe(number, 2), rate_bytes_per_s=1e9)
        made.offer(number, range(64))
    first = asked(made.deal(0.0))
    assert {chunk % 2 for chunk in first[0]} == {0} and {chunk % 2 for chunk in first[1]} == {1}
    made.drop(1)
    for chunk in first[0]:
        made.verified(0, chunk, 0.01)
    assert any(chunk % 2 for chunk in asked(made.deal(0.01))[0]), "nobody else is there for the other stripe now"


def test_two_nodes_that_wait_for_each_others_stripe_do_not_wait_for_ever() -> None:
    made = schedule(2, 0)
    for number in (0, 1):
        made.add(number, 0.0, stripe=Stripe(number, 2), rate_bytes_per_s=1e8)
    made.offer(0, [1])  # the other's stripe, and the other does not have it
    assert made.deal(0.0) == made.deal(HELP_S - 0.01) == []
    assert asked(made.deal(HELP_S)) == {0: [1]}


@pytest.mark.parametrize("rates", [(1e6, 1e6), (1e6, 2e6), (1e6, 1e6, 1e9)])
def test_the_last_chunk_is_always_taken_by_somebody(rates: tuple[float, ...]) -> None:
    """The third offers nothing; the first two would each be the last to finish."""
    made = schedule(1)
    for number, rate in enumerate(rates):
        made.add(number, 0.0, rate_bytes_per_s=rate)
        made.offer(number, [0] if number < 2 else [])
    assert list(asked(made.deal(0.0)).values()) == [[0]]


def test_a_stalled_source_loses_its_work_backs_off_and_comes_back() -> None:
    made = schedule(40, 2, rate=8e6)
    first = asked(made.deal(0.0))
    for step, chunk in enumerate(first[1], 1):
        made.verified(1, chunk, step * 0.1)
    recalls: list[Recall] = []
    now = 0.5
    while not recalls:
        now += LOOK_S
        effects = made.deal(now)
        recalls = [effect for effect in effects if isinstance(effect, Recall)]
        for chunk in asked(effects).get(1, []):
            made.verified(1, chunk, now)
        assert now < 3
    assert recalls == [Recall(0, tuple(sorted(first[0])))] and now >= 1.0
    assert 0 not in asked(effects), "passed over"
    made.verified(0, first[0][0], now + 0.1)  # it comes after all: it is well again
    assert 0 in asked(made.deal(now + 0.1))


def test_pauses_after_stalls_grow_to_a_bound() -> None:
    made = Schedule([MIB] * 400, range(400), WINDOW)
    for number in (0, 1):
        made.add(number, 0.0, rate_bytes_per_s=8e6)
        made.offer(number, range(400))
    now, resumed, asked_at = 0.0, [], -1.0
    while len(resumed) < 6 and now < 200:
        effects = made.deal(now)
        for effect in effects:
            if isinstance(effect, Recall) and effect.source == 0:
                asked_at = now
            if isinstance(effect, Ask) and effect.source == 0 and asked_at >= 0:
                assert len(effect.chunks) == 1, "one chunk shows whether it is back"
                resumed.append(now - asked_at)
                asked_at = -1.0
        # The other gives a chunk each half second, so that something is left.
        some = asked(effects).get(1, [])
        for chunk in some[:1]:
            made.verified(1, chunk, now)
        now += LOOK_S
    assert resumed == sorted(resumed) and resumed[0] == pytest.approx(1.0, abs=0.2)
    assert max(resumed) <= BACKOFF_S_MAX + 0.2


def test_hedging_stays_within_its_bytes() -> None:
    rates = [50e6, 2e6, 2e6]
    world = Sources(schedule(200, 3), rates, [MIB] * 200)
    world.run()
    assert sum(world.dealt.values()) - 200 <= 4 + 0.02 * 200 + 3 * 8, world.dealt.most_common(3)


def test_a_source_that_goes_returns_its_work() -> None:
    made = schedule(20, 2)
    first = asked(made.deal(0.0))
    made.drop(0)
    for chunk in first[1]:
        made.verified(1, chunk, 0.1)
    rest: set[int] = set()
    while not made.is_complete:
        for chunk in asked(made.deal(0.2)).get(1, []):
            rest.add(chunk)
            made.verified(1, chunk, 0.2)
    assert set(first[0]) <= rest
    made.drop(0)
    made.drop(7)  # never there


def relays(*stripes: Stripe, chunks: int = 64, rate: float = 16e6) -> Schedule:
    """Sources that get the shard themselves now and have nothing of it yet; with this rate 4 MB are asked of each."""
    made = schedule(chunks)
    for number, stripe in enumerate(stripes):
        made.add(number, 0.0, stripe=stripe, rate_bytes_per_s=rate, is_relay=True)
    return made


def test_a_relay_is_asked_ahead_for_its_stripe_and_refilled_by_quarters() -> None:
    made = relays(Stripe(0, 2), Stripe(1, 2))
    assert asked(made.deal(0.0)) == {0: [0, 2, 4, 6], 1: [1, 3, 5, 7]}
    assert made.deal(0.0) == []
    made.verified(0, 4, 0.1)
    assert made.deal(0.1) == [], "not chunk by chunk"
    made.verified(0, 0, 0.2)
    assert asked(made.deal(0.2)) == {0: [8, 10]}


def test_what_another_offers_is_not_asked_for_ahead_but_by_stripe() -> None:
    made = relays(WHOLE, chunks=8)
    made.add(1, 0.0, rate_bytes_per_s=1e6)
    made.offer(1, range(6))
    assert asked(made.deal(0.0))[0] == [6, 7]
    made = relays(Stripe(0, 2), chunks=8)
    made.add(1, 0.0, stripe=Stripe(1, 2), rate_bytes_per_s=1e9)
    made.offer(1, range(8))
    assert asked(made.deal(0.0)) == {0: [0, 2, 4, 6], 1: [1, 3, 5, 7]}, "the holder is there for the odd ones"


def test_what_a_relay_offers_is_asked_for_beside_what_it_has_still_to_get() -> None:
    """Its own order may be another one: then what it has comes meanwhile."""
    made = relays(WHOLE, rate=1e9)
    ahead = asked(made.deal(0.0))[0]
    assert ahead == list(range(WINDOW // 2 // MIB))
    made.offer(0, range(40, 64))
    assert asked(made.deal(0.0))[0] == list(range(40, 64))


def test_what_a_silent_relay_was_asked_for_goes_to_whoever_offers_it() -> None:
    made = relays(WHOLE, chunks=4)
    assert asked(made.deal(0.0)) == {0: [0, 1, 2, 3]}
    made.add(1, 0.5, rate_bytes_per_s=16e6)
    made.offer(1, range(3))
    effects = made.deal(2.0)
    assert effects[0] == Recall(0, (0, 1, 2, 3)) and asked(effects) == {1: [0, 1, 2]}
    assert made.verified(0, 3, 2.1) == [] and made.missing == 3, "it came after all"


def test_a_relay_has_what_came_damaged_from_it() -> None:
    made = relays(WHOLE, chunks=1)
    assert asked(made.deal(0.0)) == {0: [0]}
    made.damaged(0, 0, 0.1)
    assert asked(made.deal(0.1)) == {0: [0]}


def test_a_damaged_chunk_is_asked_for_again() -> None:
    made = schedule(1, 1)
    assert asked(made.deal(0.0)) == {0: [0]}
    made.damaged(0, 0, 0.1)
    assert made.missing == 1 and asked(made.deal(0.1)) == {0: [0]}
    assert made.verified(0, 0, 0.2) == [] and made.is_complete and made.next_deadline() == float("inf")


def test_a_chunk_that_comes_twice_is_told_to_the_others() -> None:
    made = schedule(1, 0)
    made.add(0, 0.0, rate_bytes_per_s=1e6)
    made.offer(0, [0])
    made.deal(0.0)
    made.add(1, 0.0, rate_bytes_per_s=1e9)
    made.offer(1, [0])
    assert asked(made.deal(0.0)) == {1: [0]}, "hedged: it would take a second"
    assert made.deal(0.1) == []
    assert made.verified(1, 0, 0.2) == [0] and made.is_complete


@pytest.mark.timeout(120)
@pytest.mark.parametrize("stripes", [False, True])
def test_many_small_chunks_take_steady_time(stripes: bool) -> None:
    """65,536 chunks, the most that a shard has: what is looked at per chunk does not grow with them."""
    chunks = 65_536
    made = Schedule([4 * KIB] * chunks, range(chunks), WINDOW)
    for number in (0, 1):
        made.add(number, 0.0, stripe=Stripe(number, 2) if stripes else WHOLE)
        made.offer(number, range(chunks))
    world = Sources(made, [300e6, 100e6], [4 * KIB] * chunks)
    world.run()
    assert len(world.given) == chunks
