"""Windows, allowances and dealing: both ends count the same, nobody goes beyond, nobody starves."""

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylog.errors import PeerFault, UsageError
from raylog.units import MIB
from raylog.wire.bounds import Bounds
from raylog.wire.credit import CREDIT_BYTES_MAX, Allowance, Window
from raylog.wire.deal import deal

WINDOW = 1000


@given(st.lists(st.integers(1, WINDOW), min_size=1, max_size=60), st.randoms(use_true_random=False))
def test_any_chunks_pass_and_the_window_holds(sizes: list[int], random: object) -> None:
    window, allowance = Window(WINDOW), Allowance()
    waiting, flying = deque(sizes), []
    settled = 0
    while waiting or flying:
        total = window.grant()
        if total is not None:
            allowance.raise_to(total)
            assert total <= settled + WINDOW
        while waiting and waiting[0] <= window.room_bytes:
            window.ask(waiting[0])
            assert allowance.permits(waiting[0])
            is_lost = random.random() < 0.2  # type: ignore[attr-defined]
            (allowance.forfeit if is_lost else allowance.spend)(waiting[0])
            flying.append(waiting.popleft())
        assert flying, "nothing is under way and nothing may be asked for"
        assert sum(flying) == window.in_flight_bytes <= WINDOW
        settled += flying[0]
        window.settle(flying.pop(0))


def test_grants_wait_until_a_quarter_is_free() -> None:
    window = Window(WINDOW)
    assert window.grant() == WINDOW
    assert window.grant() is None
    for _ in range(10):
        window.ask(100)
    window.settle(100)
    window.settle(100)
    assert window.grant() is None
    window.settle(100)
    assert window.grant() == WINDOW + 300


@pytest.mark.parametrize("absurd", [99, 0, CREDIT_BYTES_MAX + 1, 2**62])
def test_credit_that_shrinks_or_is_absurd_is_refused(absurd: int) -> None:
    allowance = Allowance()
    allowance.raise_to(100)
    with pytest.raises(PeerFault, match=f"got {absurd}"):
        allowance.raise_to(absurd)
    assert allowance.permits(100) and not allowance.permits(101)


@given(
    st.lists(st.tuples(st.integers(0, 500), st.integers(1, 400)), unique_by=lambda pair: pair[0], max_size=40),
    st.lists(st.integers(0, 2000), min_size=1, max_size=5),
    st.integers(0, 3000),
)
def test_dealing(chunks: list[tuple[int, int]], loads: list[int], room: int) -> None:
    sizes = dict(chunks)
    in_flight = {bytes([number]): load for number, load in enumerate(loads)}
    ranges = deal(list(sizes), sizes.__getitem__, in_flight, room)
    dealt = [chunk for _, first, count in ranges for chunk in range(first, first + count)]
    assert dealt == list(sizes)[: len(dealt)], "in order, each once"
    total = sum(sizes[chunk] for chunk in dealt)
    assert total <= room
    assert len(dealt) == len(sizes) or total + sizes[list(sizes)[len(dealt)]] > room, "as much as fits"
    after = dict(in_flight)
    for stream, first, count in ranges:
        assert after[stream] == in_flight[stream] or after[stream] < (sum(loads) + total) / len(loads)
        after[stream] += sum(sizes[chunk] for chunk in range(first, first + count))


def test_dealing_fresh_streams_gives_each_one_range() -> None:
    ranges = deal(range(16), lambda _: 2 * MIB, {b"a": 0, b"b": 0}, 32 * MIB)
    assert ranges == [(b"a", 0, 8), (b"b", 8, 8)]


@pytest.mark.parametrize(
    "setting", [{"window_bytes": 4 * MIB}, {"pulls_max": 0}, {"greeting_timeout_s": 0.0}, {"ping_after_s": 15.0}]
)
def test_bounds_with_which_nothing_moves_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="expected"):
        Bounds(**setting)  # type: ignore[arg-type]
