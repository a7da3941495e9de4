"""Every state and transition of the wire's machines, as tables: `(state, event) -> state`.

A message of the other end that has no entry is its fault (`PeerFault`); an event of our own that has none is our bug
(`AssertionError`). Messages for a pull that has just ended may still be in flight: an ended pull passes over them.
"""

import enum
from collections.abc import Mapping
from typing import TypeVar

from raylog.errors import PeerFault


class SessionState(enum.Enum):
    NEW = "new"
    GREETING = "greeting"  # our hello is sent, theirs not yet here
    OPEN = "open"
    CLOSED = "closed"


class PullState(enum.Enum):
    """At the puller."""

    FRAMING = "framing"  # opened; the frame's pieces come
    CREATING = "creating"  # the frame is good; our sink makes room
    MOVING = "moving"
    COMPLETE = "complete"  # nothing more is wanted of this source
    FAILED = "failed"


class ServeState(enum.Enum):
    """A pull at the source."""

    OPENING = "opening"  # our store looks for the shard
    SERVING = "serving"
    ENDED = "ended"


class StreamState(enum.Enum):
    """A cargo stream, at either end."""

    ANNOUNCED = "announced"  # puller: waits for `StreamReady`; source: waits for the connection
    CONNECTING = "connecting"  # puller only
    LIVE = "live"
    ENDED = "ended"


State = TypeVar("State", bound=enum.Enum)
Table = Mapping[tuple[State, str], State]

# Quoted names are events of our own shell, bare ones messages of the other end.
SESSION: Table[SessionState] = {
    (SessionState.NEW, "'start'"): SessionState.GREETING,
    (SessionState.NEW, "'close'"): SessionState.CLOSED,
    (SessionState.GREETING, "Hello"): SessionState.OPEN,
    (SessionState.GREETING, "Bye"): SessionState.CLOSED,
    (SessionState.GREETING, "'close'"): SessionState.CLOSED,
    **{
        (SessionState.OPEN, message): SessionState.OPEN
        for message in (
            *("Ping", "Pong"),
            *("Open", "Stream", "Want", "Credit", "Done"),  # to a source
            *("Frame", "Have", "StreamReady", "Advise", "Refused"),  # to a puller
        )
    },
    (SessionState.OPEN, "Bye"): SessionState.CLOSED,
    (SessionState.OPEN, "'close'"): SessionState.CLOSED,
}

PULL: Table[PullState] = {
    (PullState.FRAMING, "Frame"): PullState.FRAMING,
    (PullState.FRAMING, "'frame whole'"): PullState.CREATING,
    (PullState.CREATING, "'created'"): PullState.MOVING,
    (PullState.MOVING, "'arrived'"): PullState.MOVING,
    (PullState.MOVING, "'verified'"): PullState.MOVING,
    (PullState.MOVING, "'damaged'"): PullState.MOVING,
    **{(state, "'finish'"): PullState.COMPLETE for state in (PullState.FRAMING, PullState.CREATING, PullState.MOVING)},
    **{(state, "Have"): state for state in (PullState.CREATING, PullState.MOVING)},
    **{
        (state, event): PullState.FAILED
        for state in (PullState.FRAMING, PullState.CREATING, PullState.MOVING)
        for event in ("Refused", "'fail'")
    },
}

SERVE: Table[ServeState] = {
    (ServeState.OPENING, "'opened'"): ServeState.SERVING,
    (ServeState.OPENING, "Done"): ServeState.ENDED,
    (ServeState.OPENING, "'refuse'"): ServeState.ENDED,
    (ServeState.SERVING, "Credit"): ServeState.SERVING,
    (ServeState.SERVING, "Want"): ServeState.SERVING,
    (ServeState.SERVING, "Done"): ServeState.ENDED,
    (ServeState.SERVING, "'refuse'"): ServeState.ENDED,
}

PULLER_STREAM: Table[StreamState] = {
    (StreamState.ANNOUNCED, "StreamReady"): StreamState.CONNECTING,
    (StreamState.CONNECTING, "'connected'"): StreamState.LIVE,
    **{(state, "'lost'"): StreamState.ENDED for state in StreamState},
}

SOURCE_STREAM: Table[StreamState] = {
    (StreamState.ANNOUNCED, "'attached'"): StreamState.LIVE,
    **{(state, "Want"): state for state in (StreamState.ANNOUNCED, StreamState.LIVE)},
    **{(state, "'lost'"): StreamState.ENDED for state in StreamState},
}


def step(table: Table[State], state: State, event: str, what: str) -> State:
    """The state after `event`. Raises `PeerFault` for a message that does not belong here."""
    following = table.get((state, event))
    if following is not None:
        return following
    assert not event.startswith("'"), f"{what}: event {event} in state {state.value}"
    expected = [known for at, known in table if at is state and not known.startswith("'")]
    raise PeerFault(f"{what} is {state.value}: expected {' or '.join(expected) or 'nothing'}, got {event}")
