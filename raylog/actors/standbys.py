"""Which machines may take an actor's place: those that have all it ever acknowledged. Pure, over a register.

The actor brings each thing to every standby in sync before it acknowledges it; one that does not take it is struck off
the register first. Whoever takes the place claims the next term, and only then looks whether it is on the register; the
actor strikes off, and only then looks whether a next term is claimed. So one of them always sees the other: either the
claimant finds itself struck off, or the actor that it replaces acknowledges nothing any more.
"""

import logging
import threading
from collections.abc import Callable, Collection
from typing import Protocol

from raylog.errors import RaylogError, Unavailable

log = logging.getLogger("raylog.standbys")


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
        """How often somebody has begun to take the actor's place."""
        ...

    def claim_term(self, what: str, term: int) -> bool:
        """Begins to take its place, as the one of that term; False when another one has."""
        ...


class Standbys:
    """The standbys of the actor `what`, on the side of the actor itself. Thread-safe."""

    def __init__(self, what: str, register: Register, own: str, when_superseded: Callable[[], None]) -> None:
        """`own` is the Ray node id of the actor's machine, which is no standby of its own; `when_superseded` ends the
        process, as another one has its place, or Ray starts it again."""
        self._what, self._register, self._own = what, register, own
        self._when_superseded = when_superseded
        self.term = register.term(what)
        self._lock = threading.RLock()
        # Those that were in sync have all that was acknowledged, and get what is to come.
        self._listed = {standby for standby in register.in_sync(what, self.term) if standby != own}
        self._copied_to = set(self._listed)
        register.set_in_sync(what, self.term, self._listed)
        self._told: dict[str, str] = {}  # standby -> why it was not in sync, the last time

    @property
    def in_sync(self) -> frozenset[str]:
        with self._lock:
            return frozenset(self._listed)

    def waiting(self) -> list[str]:
        """Standbys that are not in sync. To be asked now and then: it is seen here that this actor's place is taken."""
        self._check_not_superseded()
        return [one for one in self._register.standbys() if one != self._own and one not in self.in_sync]

    def admit(self, standby: str, catch_up: Callable[[str], None]) -> None:
        """Makes a standby one in sync; `catch_up` brings it all that is there when it is called, and raises."""
        with self._lock:
            self._copied_to.add(standby)  # from here on nothing is acknowledged that it does not have
        try:
            catch_up(standby)
        except RaylogError as error:
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

    def _strike_off(self, standby: str, why: RaylogError) -> None:
        """In this order: when a step raises, the standby is still one that has to have everything."""
        with self._lock:
            if standby not in self._copied_to:
                return
            if self._told.get(standby) != str(why):
                self._told[standby] = str(why)
                log.warning("standby %s cannot take the place of %s now: %s", standby[:12], self._what, why)
            self._register.set_in_sync(self._what, self.term, self._listed - {standby})
            self._check_not_superseded()
            self._listed.discard(standby)
            self._copied_to.discard(standby)

    def _check_not_superseded(self) -> None:
        if self._register.term(self._what) > self.term:
            self._when_superseded()
            raise Unavailable(f"another machine takes the place of this {self._what}: ask again in a moment")


def claim(what: str, register: Register, standby: str) -> int:
    """Begins to take the place of the actor `what`, which is gone; the term. Raises `Unavailable` when another standby
    does, or this one lacks something that was acknowledged."""
    term = register.term(what) + 1
    if not register.claim_term(what, term):
        raise Unavailable(f"another standby takes the place of {what}")
    if standby not in register.in_sync(what, term):
        raise Unavailable(
            f"this standby may lack what {what} has acknowledged, and does not take its place: bring the head back, or "
            "begin with 'raylog catalog rebuild' on a machine that has the keys"
        )
    return term
