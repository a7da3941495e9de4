"""A cap in bytes per second, kept by a token bucket. Pure: times are passed in."""

import math
from dataclasses import dataclass

BURST_S = 0.1  # what an idle bucket saves up: 5 % of two seconds, and time enough for a busy machine to wake a thread


@dataclass(slots=True)
class TokenBucket:
    """Lets a chunk pass once all before it is paid for, however large it is: a chunk borrows.

    So over any window of T seconds at most `rate_bytes_per_s * (T + BURST_S)` bytes pass, and one chunk more. Rate 0
    is no cap. Kept as the one time at which the debt is paid (the generic cell rate algorithm, ITU-T I.371), so
    nothing has to be filled up.
    """

    rate_bytes_per_s: int
    _paid_at: float = -math.inf

    def ready_at(self) -> float:
        """When the next chunk may pass; in the past when it may now."""
        return self._paid_at

    def spend(self, chunk_bytes: int, now: float) -> None:
        if self.rate_bytes_per_s:
            self._paid_at = max(self._paid_at, now - BURST_S) + chunk_bytes / self.rate_bytes_per_s
