"""What the wire's machines ask their shells to do, in this order and as soon as possible."""

from dataclasses import dataclass

from raylog.codec.frame import Frame
from raylog.errors import RaylogError
from raylog.wire.messages import Message
from raylog.wire.probe import ProbeKeys
from raylog.wire.record import StreamKeys


@dataclass(frozen=True, slots=True)
class Send:
    """Over the control connection, after everything sent before."""

    message: Message


@dataclass(frozen=True, slots=True)
class Close:
    """The session is over: let go of everything of it. `error` is None when it ended as it should."""

    error: RaylogError | None


@dataclass(frozen=True, slots=True)
class CloseStream:
    """Disconnect a cargo stream; the machine is told nothing more of it."""

    stream: bytes


# The puller's.


@dataclass(frozen=True, slots=True)
class CallProbes:
    """Ask for probes at this UDP port of the source, and echo them, until `Close`."""

    port: int
    keys: ProbeKeys


@dataclass(frozen=True, slots=True)
class ConnectStream:
    """Connect to the source's cargo port and prove the stream; then `stream_connected`, or `stream_lost`."""

    stream: bytes
    port: int
    keys: StreamKeys


@dataclass(frozen=True, slots=True)
class CreateShard:
    """The frame is here and right: make room, then `shard_created` and `ask`, or `fail`."""

    pull: int
    frame: Frame


@dataclass(frozen=True, slots=True)
class Offered:
    """The source has these chunks, ranges (first chunk, count): they may be asked for from now on."""

    pull: int
    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class TakeChunk:
    """Receive this body and verify it; then `chunk_verified`, `chunk_damaged` or `fail`."""

    pull: int
    chunk: int


@dataclass(frozen=True, slots=True)
class DropChunk:
    """Receive this body and forget it: its pull has ended, or the chunk came from another source meanwhile."""


@dataclass(frozen=True, slots=True)
class Complete:
    """This pull was finished as its owner wished. `asked_again` counts chunks that were, since a stream was lost."""

    pull: int
    asked_again: int


@dataclass(frozen=True, slots=True)
class Fail:
    """This pull is over without its shard being whole; what was verified stays good."""

    pull: int
    error: RaylogError


# The source's.


@dataclass(frozen=True, slots=True)
class ExpectProbes:
    """Answer the probes of this session until `Close`."""

    keys: ProbeKeys


@dataclass(frozen=True, slots=True)
class OpenShard:
    """Open and pin; then `shard_opened` or `refuse`. A patient puller waits for a shard that is still to come here."""

    pull: int
    shard_id: str
    is_patient: bool


@dataclass(frozen=True, slots=True)
class ReleaseShard:
    """Let go of the pin."""

    pull: int


@dataclass(frozen=True, slots=True)
class ExpectStream:
    """A cargo connection with this id may come, and proves itself by these keys; then `stream_attached`."""

    stream: bytes
    keys: StreamKeys


@dataclass(frozen=True, slots=True)
class SendChunk:
    """On this stream, which has nothing else to send; then `chunk_sent`, `refuse` or `stream_lost`."""

    stream: bytes
    pull: int
    chunk: int


Effect = (
    Send
    | Close
    | CloseStream
    | CallProbes
    | ExpectProbes
    | ConnectStream
    | CreateShard
    | Offered
    | TakeChunk
    | DropChunk
    | Complete
    | Fail
    | OpenShard
    | ReleaseShard
    | ExpectStream
    | SendChunk
)
