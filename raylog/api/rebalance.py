"""Copies moved between nodes until these are filled alike, and waiting for it."""

import time

import msgspec

from raylog.api.session import Session
from raylog.errors import DeadlineExceeded

POLL_S = 0.5


class RebalanceReport(msgspec.Struct, frozen=True, kw_only=True):
    """`planned` copies were to be moved at first; `stored_bytes` is what each node keeps now, by id."""

    planned: int
    stored_bytes: dict[str, int]
    seconds: float


def rebalance(session: Session, timeout_s: float) -> RebalanceReport:
    """As `Client.rebalance`."""
    began_s = time.monotonic()
    planned = session.rebalance()
    while session.retried("catalog", "is_rebalancing"):
        if time.monotonic() - began_s > timeout_s:
            raise DeadlineExceeded(f"copies still move after {timeout_s:.0f} s; it goes on by itself")
        time.sleep(POLL_S)
    stored: dict[str, int] = session.retried("catalog", "stored_on_nodes")
    return RebalanceReport(planned=planned, stored_bytes=stored, seconds=time.monotonic() - began_s)
