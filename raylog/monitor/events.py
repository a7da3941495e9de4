"""What happened in this process: the last lines of raylog's own loggers, kept to be asked for.

So an event is said once, where it happens, and stands in the log as well.
"""

import logging
import re
import threading
from collections import deque
from functools import cache
from typing import Literal

import msgspec

EVENTS_MAX = 2048  # the oldest give way
MESSAGE_CHARS_MAX = 2000
ROOT = "raylog"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # a peer's words may stand in a message, and meet a terminal
Level = Literal["info", "warning", "error"]


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened, or was decided and why. `time_s` is of the wall clock of the machine it happened on;
    `actor` is "catalog", "launch", …, or the id of a node; `source` is the part of raylog that says it."""

    time_s: float
    level: Level
    source: str
    message: str
    actor: str = ""


class EventLog(logging.Handler):
    """The last `EVENTS_MAX` lines of level info and above. Thread-safe."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._events_lock = threading.Lock()  # not the handler's own, which is held while others format
        self._events: deque[Event] = deque(maxlen=EVENTS_MAX)

    @staticmethod
    @cache
    def of_process() -> "EventLog":
        """The one that listens to raylog's loggers, from the first call on."""
        listening = EventLog()
        logger = logging.getLogger(ROOT)
        logger.addHandler(listening)
        if logger.getEffectiveLevel() > logging.INFO:
            logger.setLevel(logging.INFO)
        return listening

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            message += f": {type(record.exc_info[1]).__name__}: {record.exc_info[1]}"
        event = Event(
            time_s=record.created,
            level=_level(record.levelno),
            source=record.name.removeprefix(f"{ROOT}."),
            message=_CONTROL.sub(" ", message[:MESSAGE_CHARS_MAX]),
        )
        with self._events_lock:
            self._events.append(event)

    def since(self, time_s: float, actor: str = "") -> list[Event]:
        """Those after `time_s`, oldest first, as `actor`'s."""
        with self._events_lock:
            found = [event for event in self._events if event.time_s > time_s]
        return [msgspec.structs.replace(event, actor=actor) for event in found]


def _level(number: int) -> Level:
    if number >= logging.ERROR:
        return "error"
    return "warning" if number >= logging.WARNING else "info"
