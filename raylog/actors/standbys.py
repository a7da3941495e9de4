"""Which machines may take an actor's place: those that have all it ever acknowledged. Pure, over a register.

Every run of an actor claims a *term* of its own, the next one. It brings each thing to every standby in sync before it
acknowledges it; one that does not take it is struck off the register first. A run on another machine's state than the
last one's goes on only if that machine is on the register, and looks there after it has claimed; an actor strikes off,
and looks after that whether a later term is claimed. So one of them always sees the other: either the newcomer finds
itself struck off, or the actor that it replaces acknowledges nothing any more.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection
from typing import Protocol

from raylog.errors import RaylogError, Unavailable

log = logging.getLogger("raylog.standbys")
AGAIN_S = 10.0  # after a standby did not catch up


class Register(Protocol):
    """Who may take an actor's place. `what` is the actor's name, standbys are the Ray node ids of their machines. A
    call that raises may have had its effect."""

    def enlist(self, standby: str) -> None:
        """Says that there is a standby, for good: it may be gone by now."""
        ...

    def standbys(self) -> list[str]:
        """All that were ever enlisted."""
        ...

    def in_sync(self, what: str, term: int) -> frozenset[str]:
        """The standbys that have all that the actor of that term has acknowledged, as it says; until it has begun, as
        those before it said last."""
        ...

    def set_in_sync(self, what: str, term: int, standbys: Collection[str]) -> None: ...

    def term(self, what: str) -> int:
        """Of the actor's last run; 0 before the first."""
        ...

    def claim_term(self, what: str, term: int) -> bool:
        """Begins the run of that term; False when another one has."""
        ...

    def holder(self, what: str) -> str:
        """On whose state the actor ran last (`Settings.state_id_path`); "" where it never ran."""
        ...

    def set_holder(self, what: str, state_id: str) -> None: ...


class Standbys:
    """The standbys of the actor `what`, on the side of the actor itself. Thread-safe."""

    def __init__(
        self,
        what: str,
        register: Register,
        *,
        machine: str,
        state_id: str,
        when_superseded: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begins a run of the actor on `machine`, a Ray node id, with the state of that id; `when_superseded` ends the
        process. Raises `Unavailable` when another machine's state is newer, for all that is known."""
        self._what, self._register, self._machine = what, register, machine
        self._when_superseded, self._clock = when_superseded, clock
        self.term = _claimed_term(what, register)
        listed = register.in_sync(what, self.term)
        if register.holder(what) not in ("", state_id) and machine not in listed:
            raise Unavailable(
                f"this machine may lack what {what} has acknowledged on another one since: bring that one back, or "
                "restart Ray to begin with what is here"
            )
        register.set_holder(what, state_id)
        # Those that were in sync have all that was acknowledged, and get what is to come.
        self._listed = set(listed - {machine})
        self._copied_to = set(self._listed)
        register.set_in_sync(what, self.term, self._listed)
        self._lock = threading.RLock()
        self._told: dict[str, str] = {}  # standby -> why it was not in sync, the last time
        self._not_before: dict[str, float] = {}  # standby that did not catch up -> when it is tried again

    @property
    def in_sync(self) -> frozenset[str]:
        with self._lock:
            return frozenset(self._listed)

    def waiting(self) -> list[str]:
        """Standbys that are to be admitted. To be asked now and then: it is seen here that this run is superseded."""
        self._check_not_superseded()
        others = [one for one in self._register.standbys() if one != self._machine and one not in self.in_sync]
        return [one for one in others if self._clock() >= self._not_before.get(one, 0.0)]

    def admit(self, standby: str, catch_up: Callable[[str], None]) -> None:
        """Makes a standby one in sync; `catch_up` brings it all that is there when it is called, and raises."""
        try:
            catch_up(standby)  # most of it, while nobody waits
            with self._lock:
                self._copied_to.add(standby)  # from here on nothing is acknowledged that it does not have
            catch_up(standby)
        except RaylogError as error:
            self._not_before[standby] = self._clock() + AGAIN_S
            self._strike_off(standby, error)
            raise
        with self._lock:
            if standby in self._copied_to:
                self._register.set_in_sync(self._what, self.term, self._listed | {standby})
                self._listed.add(standby)
                self._told.pop(standby, None)
        log.info("standby %s has all that %s has", standby[:12], self._what)

    def acknowledge(self, bring: Callable[[str], None]) -> bool:
        """To be called before something is acknowledged: `bring` brings it to one standby, and raises. Whether one has
        it now.

        Raises `Unavailable` when that may not be acknowledged here: another machine takes this one's place.
        """
        with self._lock:
            members = sorted(self._copied_to)
        is_elsewhere = False
        for standby in members:
            try:
                bring(standby)
                is_elsewhere = True
            except RaylogError as error:
                self._strike_off(standby, error)
        return is_elsewhere

    def end_run(self) -> None:
        """Has Ray start the actor again, as the run of a later term."""
        self._when_superseded()

    def _strike_off(self, standby: str, why: RaylogError) -> None:
        """In this order: when a step raises, the standby is still one that has to have everything."""
        with self._lock:
            if self._told.get(standby) != str(why):
                self._told[standby] = str(why)
                log.warning("standby %s cannot take the place of %s now: %s", standby[:12], self._what, why)
            if standby not in self._copied_to:
                return
            self._register.set_in_sync(self._what, self.term, self._listed - {standby})
            self._check_not_superseded()
            self._listed.discard(standby)
            self._copied_to.discard(standby)

    def _check_not_superseded(self) -> None:
        if self._register.term(self._what) > self.term:
            self._when_superseded()
            raise Unavailable(f"another machine takes the place of this {self._what}: ask again in a moment")


def _claimed_term(what: str, register: Register) -> int:
    while not register.claim_term(what, term := register.term(what) + 1):
        pass  # another run has claimed it
    return term
