"""What a puller remembers of each pull and each cargo stream; puller.py decides by it. Pure."""

from collections import OrderedDict
from dataclasses import dataclass, field

from raylog.codec.frame import METADATA_BYTES_MAX, Frame
from raylog.errors import DamagedData, PeerFault
from raylog.spec import ShardRef
from raylog.wire import messages
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

    def take_piece(self, piece: messages.Frame) -> None:
        """The next piece of header and index; `frame` is there with the last one. Raises `PeerFault` for one that does
        not follow, `DamagedData` when they are not what the manifest has pinned."""
        here, end = len(self.metadata), piece.offset + len(piece.data)
        if piece.offset != here or not end <= piece.total <= METADATA_BYTES_MAX:
            raise PeerFault(
                f"expected the frame of pull {piece.pull} from byte {here} on, of at most {METADATA_BYTES_MAX} bytes, "
                f"got {len(piece.data)} bytes at {piece.offset} of {piece.total}"
            )
        self.metadata += piece.data
        if end < piece.total:
            return
        try:
            frame = Frame.decode(bytes(self.metadata), self.ref.frame_digest)
        except DamagedData as error:
            raise DamagedData(f"its frame is not the manifest's: {error}") from None
        if frame.header.shard_id != self.ref.shard_id:
            raise DamagedData(f"the frame of its digest is shard {frame.header.shard_id}'s")
        self.frame, self.metadata = frame, bytearray()

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
