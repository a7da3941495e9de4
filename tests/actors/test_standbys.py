"""What was acknowledged is on every standby that may take over: at whatever moment one begins to, whatever fails."""

import itertools
from collections.abc import Callable
from contextlib import suppress

import pytest

from raylog.actors.standbys import Standbys, claim
from raylog.errors import Unavailable
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
        self.machine.is_taking_over = True
        try:
            claim("it", self.register, "standby")
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
        standbys = Standbys("it", self.register, "head", when_superseded=end)
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


def test_a_standby_in_sync_takes_over_and_the_old_actor_ends() -> None:
    register, machine = MemoryRegister(), Machine()
    register.enlist("standby")
    ended = []
    actor = Standbys("it", register, "head", when_superseded=lambda: ended.append(True))
    with pytest.raises(Unavailable, match="may lack"):
        claim("it", register, "standby")
    actor = Standbys("it", register, "head", when_superseded=lambda: ended.append(True))
    assert actor.waiting() == ["standby"]
    actor.admit("standby", lambda _: None)
    assert actor.waiting() == [] and actor.in_sync == {"standby"}
    assert actor.acknowledge(lambda _: machine.take({1}))
    assert claim("it", register, "standby") == 2
    machine.is_taking_over = True
    for _ in range(2):
        with pytest.raises(Unavailable, match="takes the place of this it"):
            actor.acknowledge(lambda _: machine.take({2}))
    assert ended
    with pytest.raises(Unavailable, match="takes the place of this it"):
        actor.waiting()
    successor = Standbys("it", register, "standby", when_superseded=lambda: None)
    assert successor.in_sync == frozenset() and not successor.acknowledge(lambda _: None)


def test_what_the_old_actor_lists_later_does_not_count() -> None:
    register = MemoryRegister()
    old = Standbys("it", register, "head", when_superseded=lambda: None)
    for standby in ("first", "second", "third"):
        register.enlist(standby)
        old.admit(standby, lambda _: None)

    def gone(standby: str) -> None:
        raise Unavailable(f"{standby} is gone")

    assert claim("it", register, "first") == 1
    new = Standbys("it", register, "first", when_superseded=lambda: None)
    assert new.in_sync == {"second", "third"}
    assert not new.acknowledge(gone)
    with pytest.raises(Unavailable, match="takes the place"):
        old.acknowledge(lambda standby: gone(standby) if standby == "first" else None)
    assert register.in_sync("it", register.term("it")) == frozenset()
    with pytest.raises(Unavailable, match="may lack"):
        claim("it", register, "second")


def test_one_that_fails_to_take_over_leaves_it_to_another() -> None:
    register = MemoryRegister()
    actor = Standbys("it", register, "head", when_superseded=lambda: None)
    for standby in ("first", "second"):
        register.enlist(standby)
    actor.admit("second", lambda _: None)
    with pytest.raises(Unavailable, match="may lack"):
        claim("it", register, "first")
    assert claim("it", register, "second") == 2
    assert claim("it", register, "second") == 3  # again, after its start has failed


def test_a_restarted_actor_goes_on_with_those_in_sync() -> None:
    register = MemoryRegister()
    register.enlist("standby")
    Standbys("it", register, "head", when_superseded=lambda: None).admit("standby", lambda _: None)
    brought: list[str] = []
    again = Standbys("it", register, "head", when_superseded=lambda: None)
    assert again.in_sync == {"standby"} and again.acknowledge(brought.append) and brought == ["standby"]


def test_one_that_does_not_catch_up_is_not_in_sync() -> None:
    register = MemoryRegister()
    register.enlist("standby")
    actor = Standbys("it", register, "head", when_superseded=lambda: None)

    def slow(_: str) -> None:
        raise Unavailable("later")

    with pytest.raises(Unavailable, match="later"):
        actor.admit("standby", slow)
    assert actor.in_sync == register.in_sync("it", 0) == frozenset()
    assert not actor.acknowledge(slow)  # nobody waits for it
