"""Which chunks of a shard are verified here."""

import threading
from collections.abc import Iterable


class Progress:
    """The set of chunks still missing out of `count`. Thread-safe."""

    def __init__(self, count: int) -> None:
        self._missing = set(range(count))
        self._lock = threading.Lock()

    def is_missing(self, number: int) -> bool:
        return number in self._missing

    def is_complete(self) -> bool:
        return not self._missing

    def is_untouched(self, count: int) -> bool:
        return len(self._missing) == count

    def found(self, number: int) -> None:
        with self._lock:
            self._missing.discard(number)

    def lost(self, number: int) -> None:
        with self._lock:
            self._missing.add(number)

    def missing(self) -> list[tuple[int, int]]:
        with self._lock:
            return ranges(self._missing)


def ranges(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """{1, 2, 3, 7} -> [(1, 3), (7, 1)]: (first, count) in order."""
    runs: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if runs and sum(runs[-1]) == number:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((number, 1))
    return runs
