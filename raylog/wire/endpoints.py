"""What the wire needs of the two stores that it moves shards between. Called from many threads.

Every method may raise errors of raylog; `DamagedData`, `NotFound`, `NoSpace` and `Unavailable` mean what they mean to
the store. Views are right as long as they are held.
"""

from collections.abc import Iterable
from typing import Protocol

from raylog.codec.frame import Frame


class ShardReader(Protocol):
    """A pinned shard."""

    @property
    def frame(self) -> Frame: ...

    def chunk(self, number: int, /) -> memoryview:
        """The sealed bytes of a chunk, verified when they came to where they lie; raises `DamagedData`."""
        ...

    def close(self) -> None: ...


class ShardSource(Protocol):
    """Where a server finds shards."""

    def open(self, shard_id: str, /) -> ShardReader:
        """Raises `NotFound`, `DamagedData` for a shard that is not intact."""
        ...

    def mend(self, shard_id: str, numbers: Iterable[int], /) -> object:
        """Replaces damaged chunks by what the store itself has whole; raises `NotFound`, `DamagedData`."""
        ...


class ShardWriter(Protocol):
    """A shard on its way into a store."""

    def missing(self) -> list[tuple[int, int]]:
        """Ranges (first chunk, count) that are not verified here yet."""
        ...

    def chunk_buffer(self, number: int, /) -> memoryview | None:
        """The chunk's own place, to be filled and then committed; None: use `write_chunk`."""
        ...

    def commit_chunk(self, number: int, /) -> None:
        """Verifies what was put into the chunk's place; raises `DamagedData`."""
        ...

    def write_chunk(self, number: int, sealed: memoryview, /) -> None:
        """Verifies and stores a chunk; raises `DamagedData`."""
        ...

    def stored_chunk(self, number: int, /) -> memoryview:
        """A chunk that is verified here, read-only. Raises `UsageError` once the writing has ended."""
        ...

    def commit(self) -> None:
        """Makes the whole shard visible."""
        ...

    def close(self) -> None:
        """Ends the writing; what is verified is kept for a later attempt. After `commit` it does nothing."""
        ...


class ShardSink(Protocol):
    """Where a puller puts a shard."""

    def create(self, frame: Frame, /) -> ShardWriter: ...
