"""What a source remembers of each pull that it serves and of each cargo stream; source.py decides by it. Pure."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from raylog.codec.frame import Frame
from raylog.wire import messages
from raylog.wire.credit import Allowance
from raylog.wire.states import SERVE, SOURCE_STREAM, ServeState, StreamState, step


@dataclass(slots=True)
class Queued:
    """Chunks `next` to `end` - 1 of a pull, to be sent on one stream."""

    pull: int
    next: int
    end: int


@dataclass(slots=True, eq=False)
class Served:
    """One shard that is served: what of it is here, and what the puller has been told and waits for."""

    number: int
    opening: messages.Open
    patience_deadline: float  # to have the shard at all
    state: ServeState = ServeState.OPENING
    frame: Frame | None = None
    allowance: Allowance = field(default_factory=Allowance)
    held: list[tuple[int, int]] = field(default_factory=list)  # ranges that are here and not offered yet
    awaited: dict[int, list[bytes]] = field(default_factory=dict)  # chunk -> streams that it was asked for on, ahead
    _here: bytearray = field(default_factory=bytearray)  # by chunk

    def step(self, event: str) -> None:
        self.state = step(SERVE, self.state, event, f"pull {self.number}")

    def open(self, frame: Frame) -> None:
        self.frame, self._here = frame, bytearray(len(frame.chunks))

    def sealed_bytes(self, chunk: int) -> int:
        assert self.frame is not None
        return self.frame.chunks[chunk].sealed_bytes

    def come(self, ranges: Iterable[tuple[int, int]]) -> list[tuple[bytes, Queued]]:
        """These chunks are here. What was asked for ahead is to be sent, on which stream; the rest is `held`."""
        sends: list[tuple[bytes, Queued]] = []
        for first, count in ranges:
            for chunk in range(first, first + count):
                if self._here[chunk]:
                    continue
                self._here[chunk] = 1
                if (streams := self.awaited.pop(chunk, None)) is not None:
                    sends += [(stream, Queued(self.number, chunk, chunk + 1)) for stream in streams]
                elif self.held and sum(self.held[-1]) == chunk:
                    self.held[-1] = (self.held[-1][0], self.held[-1][1] + 1)
                else:
                    self.held.append((chunk, 1))
        return sends

    def ask(self, wanted: Queued, stream: bytes) -> list[Queued]:
        """What is here of a range; the rest is noted, to be sent on this stream as it comes."""
        chunks = range(wanted.next, wanted.end)
        if 0 not in self._here[wanted.next : wanted.end]:
            return [wanted]
        for chunk in chunks:
            if not self._here[chunk]:
                self.awaited.setdefault(chunk, []).append(stream)
        return [Queued(self.number, chunk, chunk + 1) for chunk in chunks if self._here[chunk]]

    def forfeit(self, queued: Queued) -> None:
        """Its stream has ended: it counts as sent (credit.py)."""
        self.allowance.forfeit(sum(self.sealed_bytes(chunk) for chunk in range(queued.next, queued.end)))

    def forfeit_awaited(self, stream: bytes) -> None:
        """As `forfeit`, for what was asked for ahead on that stream."""
        for chunk, streams in list(self.awaited.items()):
            while stream in streams:
                streams.remove(stream)
                self.forfeit(Queued(self.number, chunk, chunk + 1))
            if not streams:
                del self.awaited[chunk]


@dataclass(slots=True, eq=False)
class SourceStream:
    """One cargo stream, and what is to be sent on it."""

    id: bytes
    deadline: float  # to be proven
    state: StreamState = StreamState.ANNOUNCED
    queue: deque[Queued] = field(default_factory=deque)
    is_sending: bool = False

    def step(self, event: str) -> None:
        self.state = step(SOURCE_STREAM, self.state, event, f"stream {self.id.hex()}")
