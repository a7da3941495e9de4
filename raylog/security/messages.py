"""Bytes off the network to typed structs: size first, then shape; and what makes a request fresh and single."""

import threading
from heapq import heappop, heappush
from typing import TypeVar

import msgspec

from raylog.errors import NotPermitted, Unavailable

REQUEST_BYTES_MAX = 64 << 10
FRESH_S = 300  # a request's time may differ from the receiver's clock by so much
NONCE_BYTES = 16
REPLAYS_REMEMBERED_MAX = 100_000  # some 20 MiB at most

Message = TypeVar("Message", bound=msgspec.Struct)


def encode(message: msgspec.Struct) -> bytes:
    return msgspec.msgpack.encode(message)


def decode(data: bytes, kind: type[Message], what: str, bytes_max: int) -> Message:
    """`data` as a `kind`; raises `NotPermitted` that names `what` for anything else."""
    if not isinstance(data, bytes):
        raise NotPermitted(f"expected {what} as bytes, got {type(data).__name__}")
    if len(data) > bytes_max:
        raise NotPermitted(f"expected {what} of at most {bytes_max} bytes, got {len(data)}")
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise NotPermitted(f"expected {what} in the form that this version of raylog writes: {error}") from None


def check_version(got: int, expected: int, what: str) -> None:
    """Raises `NotPermitted` that names both versions."""
    if got != expected:
        raise NotPermitted(f"{what} has version {got}, expected {expected}: install the same raylog on both machines")


def check_fresh(time_s: float, now_s: float, what: str) -> None:
    """Raises `NotPermitted` unless `time_s` is within `FRESH_S` of `now_s`."""
    ahead_s = time_s - now_s
    if abs(ahead_s) > FRESH_S:
        direction = "ahead of" if ahead_s > 0 else "behind"
        raise NotPermitted(
            f"{what} was made {abs(ahead_s):.0f} s {direction} this machine's clock, at most {FRESH_S} s are accepted: "
            "either it is old, or the clocks differ (clock skew): set both by NTP and ask again"
        )


class ReplayCache:
    """Remembers the digests of proven requests for as long as these are fresh. Bounded: when it is full, new requests
    are refused; forgetting old ones instead would let them be replayed. Thread-safe."""

    def __init__(self, remembered_max: int = REPLAYS_REMEMBERED_MAX) -> None:
        self._remembered_max = remembered_max
        self._seen: set[bytes] = set()
        self._expiries: list[tuple[float, bytes]] = []
        self._lock = threading.Lock()

    def check(self, digest: bytes, time_s: float, now_s: float, what: str) -> None:
        """Passes each digest once; raises `NotPermitted` the second time, `Unavailable` when full. Only for requests
        that proved themselves, by what the proof covers, so that strangers cannot fill it."""
        with self._lock:
            while self._expiries and self._expiries[0][0] < now_s:
                self._seen.remove(heappop(self._expiries)[1])
            if digest in self._seen:
                raise NotPermitted(f"{what} came a second time (replayed): make a new one, with a new nonce")
            if len(self._seen) >= self._remembered_max:
                raise Unavailable(f"more than {self._remembered_max} requests within {FRESH_S} s: ask again later")
            self._seen.add(digest)
            heappush(self._expiries, (time_s + FRESH_S, digest))
