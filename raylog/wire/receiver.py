"""Between whoever pulls a shard and a session with one of its sources (client_session.py, same_machine.py)."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from raylog.codec.frame import Frame
from raylog.errors import DamagedData, RaylogError
from raylog.wire.endpoints import ShardWriter

Range = tuple[int, int]


class Puller(Protocol):
    """How a shard that was opened somewhere is asked for, chunk by chunk."""

    def ready(self, pull: int) -> None:
        """There is room for the shard."""
        ...

    def ask(self, pull: int, chunks: Iterable[int]) -> None: ...

    def recall(self, pull: int, chunks: Iterable[int]) -> None:
        """Do not ask for these if you have not yet."""
        ...

    def cancel(self, pull: int, chunks: Iterable[int]) -> None:
        """These came from elsewhere."""
        ...

    def leave(self, pull: int) -> None:
        """Nothing more is wanted of it."""
        ...


class Receiver(Protocol):
    """Whoever pulls a shard over a session.

    `opened`, `framed`, `offered` and `failed` are called under the session's lock: they take note and do not call back.
    The others are called by the threads of cargo streams, several at once.
    """

    def opened(self, session: Puller, pull: int) -> None:
        """Before anything else."""
        ...

    def framed(self, frame: Frame) -> None: ...

    def offered(self, ranges: Sequence[Range]) -> None: ...

    def failed(self, error: RaylogError) -> None: ...

    def finished(self, asked_again: int) -> None:
        """`leave` was heard; so many chunks had to be asked for again, since a stream was lost."""
        ...

    def take(self) -> ShardWriter | None:
        """Where a chunk that comes now goes, until `put_down`; None: nowhere any more."""
        ...

    @property
    def is_alone(self) -> bool:
        """Whether no other source may bring the same chunks. Then a body may be received to where the writer keeps it,
        which takes as long as the source likes; else another's copy could be overwritten after it was verified."""
        ...

    def put_down(self) -> None: ...

    def stored(self, chunk: int, sealed_bytes: int) -> None:
        """Verified and in its place."""
        ...

    def damaged(self, chunk: int, error: DamagedData) -> None: ...

    def broken(self, error: RaylogError) -> None:
        """The sink failed."""
        ...

    def dropped(self, sealed_bytes: int) -> None:
        """Came, but was not wanted any more."""
        ...
