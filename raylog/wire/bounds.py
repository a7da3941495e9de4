"""What the wire waits for at most and holds at most: PROTOCOL.md, "Bounds"."""

from dataclasses import dataclass

from raylog.codec.chunk import TAG_BYTES
from raylog.errors import UsageError
from raylog.spec import CHUNK_CONTENT_BYTES_MAX
from raylog.units import GIB, MIB

SEALED_CHUNK_BYTES_MAX = CHUNK_CONTENT_BYTES_MAX + TAG_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Settings of one end of the wire. Raises `UsageError` for values with which nothing could move."""

    greeting_timeout_s: float = 10.0  # connect, TLS and hello, each
    stream_timeout_s: float = 10.0  # from the announcement of a cargo stream to the proof that it is the puller's
    progress_timeout_s: float = 15.0  # a pull without a new chunk, a record that does not come or go whole
    ping_after_s: float = 5.0  # of our own silence
    silence_timeout_s: float = 15.0  # of the other end's
    window_bytes: int = 32 * MIB  # credit beyond what has arrived, per pull
    pulls_max: int = 64  # per session
    streams_max: int = 16  # per session
    ranges_queued_max: int = 4096  # per session, at the source
    stream_losses_max: int = 3  # per session, then the source is given up
    sessions_max: int = 256  # served at once
    handshakes_max: int = 64  # control connections that have not proved themselves
    cargo_unproven_max: int = 32  # cargo connections that have not
    rekey_bytes: int = 64 * GIB  # under one record key; both ends must agree

    def __post_init__(self) -> None:
        if self.window_bytes < SEALED_CHUNK_BYTES_MAX:
            raise UsageError(
                f"expected a window of at least one chunk ({SEALED_CHUNK_BYTES_MAX} bytes), got {self.window_bytes}"
            )
        for name in self.__slots__:
            if getattr(self, name) <= 0:
                raise UsageError(f"expected {name} above 0, got {getattr(self, name)}")
        if self.ping_after_s >= self.silence_timeout_s:
            raise UsageError(
                f"expected pings ({self.ping_after_s} s) before silence ends a session ({self.silence_timeout_s} s)"
            )
