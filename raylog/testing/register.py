"""A register of standbys in memory, where nothing is lost and nobody is late."""

from collections.abc import Callable, Collection


class MemoryRegister:
    """`before_each` may raise, or let others act between any two calls."""

    def __init__(self, before_each: Callable[[], None] = lambda: None) -> None:
        self._before_each = before_each
        self._standbys: set[str] = set()
        self._in_sync: dict[tuple[str, int], frozenset[str]] = {}
        self._terms: dict[str, int] = {}
        self._holders: dict[str, str] = {}

    def enlist(self, standby: str) -> None:
        self._before_each()
        self._standbys.add(standby)

    def standbys(self) -> list[str]:
        self._before_each()
        return sorted(self._standbys)

    def in_sync(self, what: str, term: int) -> frozenset[str]:
        self._before_each()
        begun = [self._in_sync[what, one] for one in range(term, -1, -1) if (what, one) in self._in_sync]
        return begun[0] if begun else frozenset()

    def set_in_sync(self, what: str, term: int, standbys: Collection[str]) -> None:
        self._before_each()
        self._in_sync[what, term] = frozenset(standbys)

    def term(self, what: str) -> int:
        self._before_each()
        return self._terms.get(what, 0)

    def claim_term(self, what: str, term: int) -> bool:
        self._before_each()
        if term <= self._terms.get(what, 0):
            return False
        self._terms[what] = term
        return True

    def holder(self, what: str) -> str:
        self._before_each()
        return self._holders.get(what, "")

    def set_holder(self, what: str, state_id: str) -> None:
        self._before_each()
        self._holders[what] = state_id
