"""How long a shipment will take: before it begins by what its nodes received lately, then by how it goes. Pure."""

import math
from collections import deque
from collections.abc import Mapping

import msgspec

from raylog.units import format_bytes, format_rate, format_seconds

WINDOW_S = 5.0  # over which the rate of what goes on is taken


class ShipForecast(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a shipment can meet its deadline, said before it begins. None: nothing is known of some node's links.

    `expected_s` is that of the slowest node; `holders` nodes have something to give, each over `streams` streams, in
    the traffic class `qos`. `reason` says all of it in words.
    """

    expected_s: float | None
    deadline_s: float
    can_meet: bool | None
    holders: int
    streams: int
    qos: str
    reason: str


def forecast(
    bytes_each: int,
    rates_bytes_per_s: Mapping[str, float | None],
    deadline_s: float,
    *,
    holders: int,
    streams: int,
    qos: str,
) -> ShipForecast:
    """For `bytes_each` sealed bytes to every node; `rates_bytes_per_s` is what each received at lately (None unknown).

    The nodes pass on to each other what they get, so all of them take one transfer's time, that of the slowest.
    """
    how = f"{holders} holder(s), {streams} stream(s) each, class {qos}"
    known = {node_id: rate for node_id, rate in rates_bytes_per_s.items() if rate}
    expected_s = can_meet = None
    if not rates_bytes_per_s:
        expected_s, can_meet, reason = 0.0, True, "every node holds all of it already"
    elif len(known) < len(rates_bytes_per_s):
        missing = len(rates_bytes_per_s) - len(known)
        reason = f"no rate is known yet of {missing} of {len(rates_bytes_per_s)} node(s), so no time is promised; {how}"
    else:
        slowest = min(known, key=known.__getitem__)
        expected_s = bytes_each / known[slowest]
        can_meet = expected_s <= deadline_s
        reason = (
            f"{format_bytes(bytes_each)} to node {slowest[:12]} at {format_rate(known[slowest])}, the slowest lately, "
            f"take {format_seconds(expected_s)}; {format_seconds(deadline_s)} are given; {how}"
        )
    return ShipForecast(
        expected_s=expected_s,
        deadline_s=deadline_s,
        can_meet=can_meet,
        holders=holders,
        streams=streams,
        qos=qos,
        reason=reason,
    )


class Pace:
    """The rate of something that grows, over the last seconds, and when it will be done at that rate."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._seen: deque[tuple[float, int]] = deque()

    def reach(self, done: int, now: float) -> None:
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[1][0] >= WINDOW_S:
            self._seen.popleft()

    def eta_s(self, now: float) -> float | None:
        """Seconds from `now` until it is done; None while nothing moves."""
        if not self._seen:
            return None
        (begun, first), (_, last) = self._seen[0], self._seen[-1]
        if last >= self._total:
            return 0.0
        rate = (last - first) / (now - begun) if now > begun else 0.0
        return (self._total - last) / rate if rate > 0 and math.isfinite(rate) else None
