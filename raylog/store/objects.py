"""Objects in a store outside the cluster: what such a store promises, and how passing failures are outlived."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, Self, TypeVar

from raylog.errors import Cancelled, DeadlineExceeded, Unavailable

PAUSE_FIRST_S = 0.2
PAUSE_MAX_S = 10.0
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """Until when a call may go on: a time of `time.monotonic`, and an event that ends it before."""

    deadline: float
    cancel: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def within(cls, seconds: float) -> Self:
        return cls(deadline=time.monotonic() + seconds)

    @property
    def left_s(self) -> float:
        return max(self.deadline - time.monotonic(), 0.0)

    def check(self) -> None:
        """Raises `Cancelled` once it was, `DeadlineExceeded` once it is too late."""
        if self.cancel.is_set():
            raise Cancelled("the call was ended by whoever made it; make it again")
        if not self.left_s:
            raise DeadlineExceeded("not done by the deadline: try again, or with a later one")


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """Bytes to write: `parts(n)` gives them from the start, all but the last part `n` bytes long; it may be called
    again after a failure and gives the same."""

    size: int
    parts: Callable[[int], Iterator[bytes]]


class Objects(Protocol):
    """Named byte strings under one URL. Every call ends within its limit; passing failures are tried again until then.

    All raise `NotPermitted` for refused credentials, `Unavailable` when the store kept failing, `Cancelled`.
    """

    @property
    def url(self) -> str: ...

    def write(self, key: str, blob: Blob, limit: Limit) -> None:
        """The object is there, whole and compared with what was sent, when this returns; before, it is as it was.
        Raises `NotFound` (attribute `url`) when the bucket is not there."""
        ...

    def read(self, key: str, start: int, length: int, limit: Limit) -> bytes:
        """Exactly `length` bytes. Raises `NotFound` (attribute `url`), `DamagedData` when the object ends before."""
        ...

    def size(self, key: str, limit: Limit) -> int:
        """Raises `NotFound` (attribute `url`)."""
        ...

    def delete(self, key: str, limit: Limit) -> None:
        """Nothing to do where there is none."""
        ...


def whole(data: bytes) -> Blob:
    """A blob of bytes that are at hand."""
    return Blob(size=len(data), parts=lambda n: (data[at : at + n] for at in range(0, len(data), n)))


def persistently(action: Callable[[], T], limit: Limit, draw: Callable[[], float] = random.random) -> T:
    """Repeats `action` while it raises `Unavailable`, after pauses drawn evenly from below a bound that doubles ("full
    jitter", M. Brooker, AWS Architecture Blog, 2015), so that many callers do not come back at once. The last error is
    raised when the next pause would pass the deadline."""
    longest_s = PAUSE_FIRST_S
    limit.check()
    while True:
        try:
            return action()
        except DeadlineExceeded:
            raise
        except Unavailable:
            pause_s = longest_s * draw()
            if pause_s >= limit.left_s:
                raise
        limit.cancel.wait(pause_s)
        limit.check()
        longest_s = min(2 * longest_s, PAUSE_MAX_S)
