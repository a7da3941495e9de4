"""What a puller remembers of each pull and each cargo stream; puller.py decides by it. Pure."""

from collections import OrderedDict
from dataclasses import dataclass, field

from raylog.codec.frame import Frame
from raylog.spec import ShardRef
from raylog.wire.credit import Window
from raylog.wire.states import PULL, PULLER_STREAM, PullState, StreamState, step


@dataclass(slots=True, eq=False)
class Pull:
    """One shard that is pulled: what has come of its metadata, what is to be asked for, what is on its way."""

    number: int
    ref: ShardRef
    deadline: float
    window: Window
    progress_deadline: float
    state: PullState = PullState.FRAMING
    metadata: bytearray = field(default_factory=bytearray)
    frame: Frame | None = None
    offered: int = 0  # chunks
    todo: OrderedDict[int, None] = field(default_factory=OrderedDict)  # to be asked for, in order
    in_flight: set[int] = field(default_factory=set)  # asked for and not come
    unwanted: set[int] = field(default_factory=set)  # asked for; dropped when they come
    asked_again: int = 0

    @property
    def is_waiting(self) -> bool:
        """Whether the source owes us something."""
        return bool(self.todo or self.window.in_flight_bytes)

    def step(self, event: str) -> None:
        self.state = step(PULL, self.state, event, f"pull {self.number}")

    def sealed_bytes(self, chunk: int) -> int:
        assert self.frame is not None
        return self.frame.chunks[chunk].sealed_bytes


@dataclass(slots=True, eq=False)
class CargoStream:
    """One cargo stream, and what was asked for on it."""

    id: bytes
    nonce: bytes
    deadline: float  # to stand
    state: StreamState = StreamState.ANNOUNCED
    asked: dict[tuple[int, int], int] = field(default_factory=dict)  # (pull, chunk) -> sealed bytes
    abandoned: set[tuple[int, int]] = field(default_factory=set)  # asked for by pulls that have ended
    in_flight_bytes: int = 0

    def step(self, event: str) -> None:
        self.state = step(PULLER_STREAM, self.state, event, f"stream {self.id.hex()}")

    def settle(self, pull: int, chunk: int) -> None:
        self.in_flight_bytes -= self.asked.pop((pull, chunk))

    def abandon(self, pull: int) -> None:
        """The source may have sent some of what this pull asked for, and drops the rest."""
        for key in [key for key in self.asked if key[0] == pull]:
            self.settle(*key)
            self.abandoned.add(key)
