"""One shard from many sources, event by event: who is connected when, and with which error it ends."""

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylog.errors import (
    Cancelled,
    DamagedData,
    DeadlineExceeded,
    NotFound,
    NotPermitted,
    PeerFault,
    RaylogError,
    Unavailable,
)
from raylog.testing.shards import sample_shard
from raylog.wire.fetch import (
    FAILURES_MAX,
    FALLBACK_S,
    SOURCES_AT_ONCE,
    Cancel,
    Complete,
    Connect,
    Create,
    Fail,
    Fetch,
    FetchEffect,
    Leave,
    Ready,
    SourceSpec,
)
from raylog.wire.schedule import Ask, Recall

SHARD = sample_shard(1, (1000, 2000, 3000, 4000))
SIZES = [1000, 2000, 3000, 4000]
WINDOW = 1 << 20


def fetch(*ranks: int, deadline: float = 100.0) -> Fetch:
    """Of a source per rank; their names are "0", "1", …"""
    sources = [SourceSpec(node_id=str(number), rank=rank) for number, rank in enumerate(ranks)]
    return Fetch(SHARD.frame.ref(), sources, deadline, WINDOW)


def connects(effects: list[FetchEffect]) -> dict[str, int]:
    return {effect.spec.node_id: effect.attempt for effect in effects if isinstance(effect, Connect)}


def asks(effects: list[FetchEffect]) -> dict[int, tuple[int, ...]]:
    return {effect.source: effect.chunks for effect in effects if isinstance(effect, Ask)}


def failure(effects: list[FetchEffect]) -> RaylogError:
    (error,) = (effect.error for effect in effects if isinstance(effect, Fail))
    return error


def moving(machine: Fetch) -> list[FetchEffect]:
    """Attempt 0 has shown the frame, there is room, and it offers everything."""
    machine.start(0.0)
    assert machine.framed(0, SHARD.frame, 0.0) == [Create(SHARD.frame)]
    assert Ready(0) in machine.created(SIZES, [(0, 4)], 0.0)
    return machine.offered(0, [(0, 4)], 0.0)


def test_a_whole_fetch() -> None:
    machine = fetch(0)
    assert asks(moving(machine)) == {0: (0, 1, 2, 3)}
    for chunk in range(3):
        assert machine.verified(0, chunk, 0.1) == []
    assert machine.verified(0, 3, 0.1) == [Leave(0), Complete()]
    assert machine.has_ended and machine.next_deadline() == float("inf")


def test_a_shard_that_is_here_is_complete_at_once() -> None:
    machine = fetch(0)
    machine.start(0.0)
    machine.framed(0, SHARD.frame, 0.0)
    assert machine.created(SIZES, [], 0.0)[-2:] == [Leave(0), Complete()]


def test_room_is_made_once_and_offers_that_came_before_count() -> None:
    machine = fetch(0, 0)
    machine.start(0.0)
    assert machine.framed(0, SHARD.frame, 0.0) == [Create(SHARD.frame)]
    assert machine.framed(1, SHARD.frame, 0.0) == machine.offered(1, [(2, 1)], 0.0) == []
    effects = machine.created(SIZES, [(1, 2)], 0.0)
    assert {Ready(0), Ready(1)} <= {effect for effect in effects if isinstance(effect, Ready)}
    assert asks(effects) == {1: (2,)} and asks(machine.offered(0, [(0, 4)], 0.0)) == {0: (1,)}


def test_the_lowest_rank_comes_first_and_the_next_when_nobody_is_left() -> None:
    machine = fetch(0, 0, 1, 2)
    assert set(connects(machine.start(0.0))) == {"0", "1"}
    assert machine.failed(0, NotFound("not here"), 0.1) == []
    assert set(connects(machine.failed(1, NotFound("not here"), 0.1))) == {"2"}
    assert set(connects(machine.failed(2, PeerFault("bad"), 0.1))) == {"3"}
    error = failure(machine.failed(3, Unavailable("x"), 0.1) or machine.on_tick(100.0))
    assert isinstance(error, DeadlineExceeded)


def test_the_next_rank_comes_when_nothing_has_come_for_a_while() -> None:
    machine = fetch(0, 1)
    moving(machine)
    assert machine.next_deadline() == FALLBACK_S
    assert machine.on_tick(FALLBACK_S - 0.01) == []
    machine.verified(0, 0, 1.0)
    assert connects(machine.on_tick(FALLBACK_S)) == {}, "something came"
    assert connects(machine.on_tick(1.0 + FALLBACK_S)) == {"1": 1}


def test_no_rank_is_taken_in_while_our_own_sink_makes_room() -> None:
    machine = fetch(0, 1)
    machine.start(0.0)
    machine.framed(0, SHARD.frame, 0.0)
    assert machine.on_tick(50.0) == [] and machine.next_deadline() == 100.0


def test_only_so_many_sources_at_once() -> None:
    machine = fetch(*[0] * (SOURCES_AT_ONCE + 2))
    assert len(connects(machine.start(0.0))) == SOURCES_AT_ONCE
    assert connects(machine.failed(3, NotFound("no"), 0.0)) == {str(SOURCES_AT_ONCE): SOURCES_AT_ONCE}


def test_a_source_out_of_reach_is_tried_again_after_growing_pauses_and_then_given_up() -> None:
    machine, now, pauses = fetch(0), 0.0, []
    effects = machine.start(now)
    for number in range(FAILURES_MAX):
        (attempt,) = connects(effects).values()
        assert attempt == number, "a number is used once"
        effects = machine.failed(attempt, Unavailable("cut"), now)
        if machine.has_ended:
            break
        assert effects == [] and machine.on_tick(machine.next_deadline() - 0.001) == []
        pauses.append(machine.next_deadline() - now)
        now = machine.next_deadline()
        effects = machine.on_tick(now)
    assert pauses == pytest.approx([0.1, 0.2, 0.4])
    assert str(failure(effects)) == "cut", "the one source's own words"


def test_a_chunk_that_came_forgives_what_was_before() -> None:
    machine = fetch(0)
    moving(machine)
    for attempt in range(3):
        machine.verified(attempt, attempt, 1.0)
        assert machine.failed(attempt, Unavailable("cut"), 1.0) == []
        assert connects(machine.on_tick(1.2)) == {"0": attempt + 1}
        machine.framed(attempt + 1, SHARD.frame, 1.2)
        assert asks(machine.offered(attempt + 1, [(0, 4)], 1.2))[attempt + 1][0] == attempt + 1


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ([NotFound, NotFound], NotFound),
        ([DamagedData, DamagedData], DamagedData),
        ([NotFound, DamagedData], Unavailable),
        ([PeerFault, PeerFault], Unavailable),
        ([NotPermitted, NotFound], Unavailable),
        ([NotPermitted], NotPermitted),
        ([PeerFault], PeerFault),
        ([DeadlineExceeded], DeadlineExceeded),
    ],
)
def test_when_all_have_said_no_the_error_says_what_they_said(
    said: list[type[RaylogError]], kind: type[RaylogError]
) -> None:
    machine = fetch(*[0] * len(said))
    machine.start(0.0)
    effects: list[FetchEffect] = []
    for number, error in enumerate(said):
        effects = machine.failed(number, error(f"words of {number}"), 0.0)
    error = failure(effects)
    assert type(error) is kind and all(f"words of {number}" in str(error) for number in range(len(said)))


def test_damage_twice_gives_the_source_up_and_names_it() -> None:
    machine = fetch(0, 1)
    moving(machine)
    again = machine.damaged(0, 2, DamagedData("wrong digest"), 0.1)
    assert asks(again) == {0: (2,)}
    effects = machine.damaged(0, 2, DamagedData("wrong digest"), 0.2)
    assert effects[0] == Leave(0) and connects(effects) == {"1": 1}, "the rest comes from another"
    machine.framed(1, SHARD.frame, 0.3)
    assert set(asks(machine.offered(1, [(0, 4)], 0.3))[1]) == {0, 1, 2, 3}
    alone = fetch(0)
    moving(alone)
    alone.damaged(0, 2, DamagedData("wrong digest"), 0.1)
    error = failure(alone.damaged(0, 3, DamagedData("wrong digest"), 0.1))
    assert isinstance(error, DamagedData)
    assert vars(error) == {"shard_id": SHARD.shard_id, "chunk": 3, "peer": "0"}


def test_the_deadline_says_what_is_missing() -> None:
    machine = fetch(0, deadline=5.0)
    moving(machine)
    machine.verified(0, 0, 4.0)
    assert machine.next_deadline() == 5.0
    effects = machine.on_tick(5.0)
    assert effects[0] == Leave(0) and "3 chunks missing" in str(failure(effects))
    assert isinstance(failure(effects), DeadlineExceeded)
    early = fetch(0, deadline=5.0)
    early.start(0.0)
    assert "all chunks missing" in str(failure(early.on_tick(5.0)))


def test_after_the_end_events_do_nothing() -> None:
    machine = fetch(0, 1)
    moving(machine)
    assert machine.give_up(Cancelled("enough"))[0] == Leave(0)
    late = [
        machine.give_up(Cancelled("again")),
        machine.framed(0, SHARD.frame, 1.0),
        machine.created(SIZES, [(0, 4)], 1.0),
        machine.offered(0, [(0, 1)], 1.0),
        machine.verified(0, 0, 1.0),
        machine.damaged(0, 0, DamagedData("x"), 1.0),
        machine.failed(0, Unavailable("x"), 1.0),
        machine.on_tick(1000.0),
    ]
    assert late == [[]] * len(late)


def test_events_of_an_attempt_that_has_failed_do_nothing_but_a_good_chunk_counts() -> None:
    machine = fetch(0, 0)
    moving(machine)
    machine.failed(0, Unavailable("cut"), 0.1)
    assert machine.framed(0, SHARD.frame, 0.1) == machine.offered(0, [(0, 4)], 0.1) == []
    assert machine.damaged(0, 0, DamagedData("x"), 0.1) == machine.failed(0, Unavailable("x"), 0.1) == []
    machine.framed(1, SHARD.frame, 0.1)
    machine.offered(1, [(0, 4)], 0.1)
    assert machine.verified(0, 1, 0.1) == [Cancel(1, 1)], "it was asked of the other meanwhile"


@given(st.lists(st.tuples(st.sampled_from("fodvxt"), st.integers(0, 5), st.integers(0, 3)), max_size=80))
def test_any_events_in_any_order_end_once_and_ask_only_who_is_there(events: list[tuple[str, int, int]]) -> None:
    """Whatever comes late, twice or never."""
    machine, now = fetch(0, 0, 1, deadline=10.0), 0.0
    effects = machine.start(now)
    alive: set[int] = set()
    ready: set[int] = set()
    ends = 0
    offered: set[tuple[int, int]] = set()
    for event, attempt, chunk in [*events, *[("t", 0, 0)] * 200]:
        now += 0.05
        pending = deque(effects)
        while pending:
            effect = pending.popleft()
            match effect:
                case Connect(started):
                    assert started not in alive
                    alive.add(started)
                case Create():
                    pending.extend(machine.created(SIZES, [(0, 4)], now))
                case Ready(one):
                    ready.add(one)
                case Ask(one, chunks):
                    assert one in alive & ready and all((one, some) in offered for some in chunks)
                case Recall(one) | Cancel(one) | Leave(one):
                    assert one in alive
                case Complete() | Fail():
                    ends += 1
        match event:
            case "f":
                effects = machine.framed(attempt, SHARD.frame, now)
            case "o":
                if attempt in alive:
                    offered.add((attempt, chunk))
                effects = machine.offered(attempt, [(chunk, 1)], now)
            case "d":
                effects = machine.damaged(attempt, chunk, DamagedData("bad"), now)
            case "v":
                effects = machine.verified(attempt, chunk, now)
            case "x":
                effects = machine.failed(attempt, Unavailable("cut"), now)
            case _:
                effects = machine.on_tick(now)
    assert machine.has_ended and ends <= 1
