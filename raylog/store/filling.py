"""How fast a tier fills up, by its free bytes over the last day. Pure: time is passed in."""

from collections import deque

WINDOW_S = 86_400.0
STEP_S = 60.0  # one point a minute at most
SPAN_S_MIN = 600.0  # below it nothing is said


class Filling:
    """Remembers at most a day of points."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, int]] = deque()

    def add(self, now_s: float, free_bytes: int) -> None:
        if self._points and now_s - self._points[-1][0] < STEP_S:
            return
        self._points.append((now_s, free_bytes))
        while now_s - self._points[0][0] > WINDOW_S:
            self._points.popleft()

    def days_to_full(self, free_bytes: int) -> float | None:
        """At the mean rate of what was seen (least squares); None while it does not fill, or too little was seen."""
        if len(self._points) < 3 or self._points[-1][0] - self._points[0][0] < SPAN_S_MIN:
            return None
        count = len(self._points)
        mean_s = sum(at for at, _ in self._points) / count
        mean_bytes = sum(free for _, free in self._points) / count
        spread = sum((at - mean_s) ** 2 for at, _ in self._points)
        slope = sum((at - mean_s) * (free - mean_bytes) for at, free in self._points) / spread
        return free_bytes / -slope / 86_400 if slope < -1 else None
