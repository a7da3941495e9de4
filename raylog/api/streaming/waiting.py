"""How long this process has waited for batches of its datasets: `raylog.report` tells it."""

import time
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")


class Waiting:
    """Seconds so far. Two threads that add at the same moment may lose one addition: it is a figure to look at."""

    def __init__(self) -> None:
        self.total_s = 0.0

    def over(self, batches: Iterator[T]) -> Iterator[T]:
        """The same batches; what each of them was waited for is added."""
        clock = time.perf_counter
        while True:
            began_s = clock()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self.total_s += clock() - began_s
            yield batch


WAITING = Waiting()  # of this process
