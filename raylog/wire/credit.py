"""Flow control of one pull in bytes of sealed chunks (PROTOCOL.md, "Credit"). Pure.

Both ends count the same thing. A chunk that was asked for is *settled* when it has come, good or bad, and also when
the stream that it was asked on has ended before: then the source counts it as sent. So a lost stream loses no credit.
"""

from raylog.errors import PeerFault

CREDIT_BYTES_MAX = 1 << 40
GRANT_SHARE = 4  # a grant waits until this part of the window is free, so that control messages stay few


class Window:
    """The puller's side: how much it may ask for, and when it grants more."""

    def __init__(self, window_bytes: int) -> None:
        self._window_bytes = window_bytes
        self._granted_bytes = self._asked_bytes = self._settled_bytes = 0

    @property
    def room_bytes(self) -> int:
        """What may be asked for now."""
        return self._granted_bytes - self._asked_bytes

    @property
    def in_flight_bytes(self) -> int:
        return self._asked_bytes - self._settled_bytes

    def ask(self, sealed_bytes: int) -> None:
        assert sealed_bytes <= self.room_bytes
        self._asked_bytes += sealed_bytes

    def settle(self, sealed_bytes: int) -> None:
        assert sealed_bytes <= self.in_flight_bytes
        self._settled_bytes += sealed_bytes

    def grant(self) -> int | None:
        """The new total to tell the source, None while it is not worth a message. Never more than the window beyond
        what is settled."""
        total_bytes = self._settled_bytes + self._window_bytes
        more_bytes = total_bytes - self._granted_bytes
        if more_bytes * GRANT_SHARE < self._window_bytes and (self.in_flight_bytes or not more_bytes):
            return None
        self._granted_bytes = total_bytes
        return total_bytes


class Allowance:
    """The source's side: how much it may send."""

    def __init__(self) -> None:
        self._granted_bytes = self._sent_bytes = 0

    def raise_to(self, total_bytes: int) -> None:
        """Takes a `Credit`; raises `PeerFault` when it shrinks or is absurd."""
        if not self._granted_bytes <= total_bytes <= CREDIT_BYTES_MAX:
            raise PeerFault(
                f"expected a credit from {self._granted_bytes} (it never shrinks) to {CREDIT_BYTES_MAX} bytes, "
                f"got {total_bytes}"
            )
        self._granted_bytes = total_bytes

    def permits(self, sealed_bytes: int) -> bool:
        return self._sent_bytes + sealed_bytes <= self._granted_bytes

    def spend(self, sealed_bytes: int) -> None:
        assert self.permits(sealed_bytes)
        self._sent_bytes += sealed_bytes

    def forfeit(self, sealed_bytes: int) -> None:
        """Counts what will not be sent, since its stream has ended."""
        self._sent_bytes += sealed_bytes
