"""How far a put, a download, a shipment or a scrub is, told to whoever listens."""

from collections.abc import Callable

OnProgress = Callable[[int, int], None]


class Reporter:
    """Calls `on_progress(done, total)`, total 0 while unknown. `done` never falls, and is never told to exceed a known
    total; a total that proves too small grows with it. For one thread."""

    def __init__(self, on_progress: OnProgress | None, total: int = 0) -> None:
        self._on_progress = on_progress
        self._told: tuple[int, int] | None = None
        self._total = total

    def reach(self, done: int) -> None:
        """That much is done; said again, or less of it, nobody is told."""
        if self._told is None or done > self._told[0]:
            self._tell(done, max(self._total, done) if self._total else 0)

    def finish(self, total: int) -> None:
        """All of it is done, and this is how much it was."""
        self._tell(total, total)

    def _tell(self, done: int, total: int) -> None:
        if self._on_progress and (done, total) != self._told:
            self._told = done, total
            self._on_progress(done, total)
