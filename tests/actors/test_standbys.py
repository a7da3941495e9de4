"""What was acknowledged is on every standby that may take over: at whatever moment one begins to, whatever fails."""

import itertools
from collections.abc import Callable
from contextlib import suppress

import pytest

from raylog.actors.requests import Position
from raylog.actors.standby import check_follows
from raylog.actors.standbys import AGAIN_S, Standbys
from raylog.errors import NotPermitted, Unavailable
from raylog.testing.register import MemoryRegister

ITEMS = 4


class Ended(Exception):
    """The actor's process has."""


class Machine:
    """A standby's machine: what was brought to it, until it begins to take over."""

    def __init__(self) -> None:
        self.has: set[int] = set()
        self.is_taking_over = False

    def take(self, items: set[int]) -> None:
        if self.is_taking_over:
            raise Unavailable("it takes over")
        self.has |= items


def run_on(machine: str, register: MemoryRegister, when_superseded: Callable[[], object] = lambda: None) -> Standbys:
    """A run of the actor on a machine and its state."""
    return Standbys(
        "it",
        register,
        machine=machine,
        state_id=f"state of {machine}",
        when_superseded=lambda: when_superseded() and None,
        clock=lambda: 0.0,
    )


class World:
    """An actor that makes items, one standby, and a register at whose `claim_at`th call the standby takes over, and
    whose `fail_at`th fails, before or after it has had its effect."""

    def __init__(self, claim_at: int, lost_item: int, fail_at: int, is_late: bool) -> None:
        self.register = MemoryRegister(self._before_each)
        self.machine = Machine()
        self.calls, self.claim_at, self.fail_at, self.is_late = 0, claim_at, fail_at, is_late
        self.lost_item = lost_item
        self.made: set[int] = set()
        self.acknowledged: set[int] = set()
        self.has_claimed = False
        self._is_inside = False

    def _before_each(self) -> None:
        if self._is_inside:
            return
        self.calls += 1
        if self.calls == self.claim_at:
            self._inside(self._take_over)
        if self.calls == self.fail_at and not self.is_late:
            raise Unavailable("the GCS does not answer")

    def _inside(self, action: Callable[[], None]) -> None:
        self._is_inside = True
        try:
            action()
        finally:
            self._is_inside = False

    def _take_over(self) -> None:
        if not self.register.holder("it"):
            return  # the actor has not begun yet: there is nothing to take
        self.machine.is_taking_over = True
        try:
            run_on("standby", self.register)
            self.has_claimed = True
        except Unavailable:
            self.machine.is_taking_over = False

    def bring(self, _: str) -> None:
        if self.lost_item in self.made and self.lost_item not in self.machine.has:
            raise Unavailable("it was too slow")
        self.machine.take(set(self.made))

    def run(self) -> None:
        """Up to the end of the actor's process."""

        def end() -> None:
            raise Ended

        late = self.register.set_in_sync

        def set_in_sync(what: str, term: int, standbys: frozenset[str]) -> None:
            late(what, term, standbys)
            if self.is_late and self.calls == self.fail_at:
                raise Unavailable("the answer was lost")

        self.register.set_in_sync = set_in_sync  # type: ignore[method-assign, assignment]
        self._inside(lambda: self.register.enlist("standby"))
        standbys = run_on("head", self.register, end)
        for item in range(ITEMS):
            self.made.add(item)
            with suppress(Unavailable):
                standbys.acknowledge(self.bring)
                self.acknowledged |= self.made
            with suppress(Unavailable):
                for standby in standbys.waiting():
                    standbys.admit(standby, self.bring)


def count_calls() -> int:
    world = World(0, -1, 0, False)
    world.run()
    return world.calls


@pytest.mark.parametrize("lost_item", range(-1, ITEMS))
def test_nobody_takes_over_who_lacks_something(lost_item: int) -> None:
    takeovers = 0
    most = count_calls() + 10
    for claim_at, fail_at, is_late in itertools.product(range(1, most), range(most), (False, True)):
        world = World(claim_at, lost_item, fail_at, is_late)
        with suppress(Ended, Unavailable):
            world.run()
        if world.has_claimed:
            takeovers += 1
            assert world.acknowledged <= world.machine.has, (claim_at, fail_at, is_late)
    assert takeovers == 0 if lost_item == 0 else takeovers > most  # without the first it never is in sync


def nothing(_: str) -> None:
    """It has it."""


def gone(standby: str) -> None:
    raise Unavailable(f"{standby} is gone")


def test_a_standby_in_sync_takes_over_and_the_old_actor_ends() -> None:
    register, machine = MemoryRegister(), Machine()
    register.enlist("standby")
    ended: list[bool] = []
    actor = run_on("head", register)
    with pytest.raises(Unavailable, match="may lack"):
        run_on("standby", register)
    actor = run_on("head", register, lambda: ended.append(True))
    assert actor.waiting() == ["standby"]
    actor.admit("standby", nothing)
    assert actor.waiting() == [] and actor.in_sync == {"standby"}
    assert actor.acknowledge(lambda _: machine.take({1}))
    successor = run_on("standby", register)
    machine.is_taking_over = True
    for _ in range(2):
        with pytest.raises(Unavailable, match="takes the place of this it"):
            actor.acknowledge(lambda _: machine.take({2}))
    with pytest.raises(Unavailable, match="takes the place of this it"):
        actor.waiting()
    assert ended
    assert successor.in_sync == frozenset() and not successor.acknowledge(nothing)
    with pytest.raises(Unavailable, match="may lack"):
        run_on("head", register)  # it was not brought what its successor may have acknowledged
    run_on("standby", register)


def test_what_is_acknowledged_while_a_standby_catches_up_is_brought_too() -> None:
    register, made, has = MemoryRegister(), {1}, set[int]()
    register.enlist("standby")
    actor = run_on("head", register)

    def catch_up(_: str) -> None:
        has.update(made)
        if 2 not in made:
            made.add(2)
            actor.acknowledge(lambda _: has.update(made))

    actor.admit("standby", catch_up)
    assert has == made == {1, 2}


def begun_and_acknowledged(moment: int) -> tuple[bool, bool]:
    """A standby begins; at that call of its to the register the actor acknowledges something without it."""
    calls, has_acknowledged, has_begun = 0, False, False

    def at_each_call() -> None:
        nonlocal calls, has_acknowledged
        calls += 1
        if calls == moment:
            with suppress(Unavailable):
                actor.acknowledge(gone)
                has_acknowledged = True

    register = MemoryRegister()
    register.enlist("standby")
    actor = run_on("head", register)
    actor.admit("standby", nothing)
    register._before_each = at_each_call
    with suppress(Unavailable):
        run_on("standby", register)
        has_begun = True
    return has_begun, has_acknowledged


def test_an_actor_that_acknowledges_while_a_standby_begins() -> None:
    outcomes = {begun_and_acknowledged(moment) for moment in range(1, 9)}
    assert {(True, False), (False, True)} <= outcomes and (True, True) not in outcomes


def test_what_the_old_actor_lists_later_does_not_count() -> None:
    register = MemoryRegister()
    old = run_on("head", register)
    for standby in ("first", "second", "third"):
        register.enlist(standby)
        old.admit(standby, nothing)
    new = run_on("first", register)
    assert new.in_sync == {"second", "third"}
    assert not new.acknowledge(gone)
    with pytest.raises(Unavailable, match="takes the place"):
        old.acknowledge(lambda standby: gone(standby) if standby == "first" else None)
    assert register.in_sync("it", register.term("it")) == frozenset()
    with pytest.raises(Unavailable, match="may lack"):
        run_on("second", register)


def test_the_head_that_is_quicker_keeps_its_place() -> None:
    """A standby prepares to take over; meanwhile the head runs again, strikes it off, and is lost for good."""
    register = MemoryRegister()
    register.enlist("standby")
    run_on("head", register).admit("standby", nothing)
    again = run_on("head", register)
    assert not again.acknowledge(gone), "something is acknowledged that the standby does not have"
    with pytest.raises(Unavailable, match="may lack"):
        run_on("standby", register)
    run_on("head", register)


def test_one_that_fails_to_take_over_leaves_it_to_another() -> None:
    register = MemoryRegister()
    actor = run_on("head", register)
    for standby in ("first", "second"):
        register.enlist(standby)
    actor.admit("second", nothing)
    with pytest.raises(Unavailable, match="may lack"):
        run_on("first", register)
    for _ in range(2):  # its start may fail later
        run_on("second", register)


def test_a_restarted_actor_goes_on_with_those_in_sync() -> None:
    register = MemoryRegister()
    register.enlist("standby")
    run_on("head", register).admit("standby", nothing)
    brought: list[str] = []
    again = run_on("head", register)
    assert again.in_sync == {"standby"} and again.acknowledge(brought.append) and brought == ["standby"]


def test_one_that_does_not_catch_up_is_not_in_sync_and_tried_later() -> None:
    register, now_s, asked = MemoryRegister(), [0.0], []
    register.enlist("standby")
    actor = Standbys("it", register, machine="head", state_id="h", when_superseded=lambda: None, clock=lambda: now_s[0])
    with pytest.raises(Unavailable, match="gone"):
        actor.admit("standby", gone)
    assert actor.in_sync == register.in_sync("it", actor.term) == frozenset()
    assert actor.waiting() == []
    assert not actor.acknowledge(asked.append) and not asked, "nobody waits for it"
    now_s[0] = AGAIN_S
    assert actor.waiting() == ["standby"]


def test_rows_of_keys_follow_each_other() -> None:
    first = Position(term=2, stream=4)
    at = Position(term=2, stream=4, authority=10, envelopes=7)
    for after in (at, Position(term=2, stream=5), Position(term=3, stream=0)):
        check_follows(at, after)
    check_follows(first, first)
    for after in (first, Position(term=2, stream=5, envelopes=1), Position(term=2, stream=4, authority=9, envelopes=7)):
        with pytest.raises(Unavailable, match="begin with the first"):
            check_follows(at, after)
    for after in (Position(term=2, stream=3), Position(term=1, stream=9), Position(term=1, stream=9, envelopes=7)):
        with pytest.raises(NotPermitted, match="superseded"):
            check_follows(at, after)
