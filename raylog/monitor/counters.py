"""Counters that only grow, except when what counts them starts again: growth, rates, and increments for exporters."""

import itertools
from collections.abc import Iterable, Sequence

from raylog.monitor.metrics import Reading, SeriesKey


def growth_of(before: float, now: float) -> float:
    """What a counter grew by. One that went down was reset to zero in between (as in Prometheus' `increase`)."""
    return now - before if now >= before else now


def rate_per_s(points: Sequence[tuple[float, float]]) -> float | None:
    """The mean rate of a counter over `points` of (seconds, total), oldest first; None when they span no time."""
    span_s = points[-1][0] - points[0][0] if points else 0.0
    if span_s <= 0:
        return None
    return sum(growth_of(before[1], now[1]) for before, now in itertools.pairwise(points)) / span_s


class CounterIncrements:
    """Turns counters' totals into what they grew by, for exporters that only know how to add (Ray's Counter)."""

    def __init__(self) -> None:
        self._totals: dict[SeriesKey, float] = {}

    def take(self, found: Iterable[Reading]) -> list[Reading]:
        """The counters among `found`, each with its growth since it was last seen; those that did not grow are left
        out. A total below the last one began anew (a restart): all of it is growth. So is a first one."""
        grown = []
        for reading in found:
            if reading.metric.kind != "counter":
                continue
            growth = growth_of(self._totals.get(reading.series, 0.0), reading.value)
            self._totals[reading.series] = reading.value
            if growth > 0:
                grown.append(Reading(reading.metric, growth, reading.labels))
        return grown

    def forget(self, node_id: str) -> None:
        """Drops the series of a node that is gone, which bounds memory by the nodes there are."""
        gone = [series for series in self._totals if ("node_id", node_id) in series[1]]
        for series in gone:
            del self._totals[series]
