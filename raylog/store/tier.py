"""What a place for sealed shards promises. Memory and disk keep the same promises, checked by one suite.

A tier holds sealed bytes and frames and never a key. It knows shards by their id alone; which shard *should* be where,
and which frame digest is the true one, is the catalog's knowledge: whoever opens a shard compares `frame.digest` with
the manifest's.

Guarantees of every tier
- A shard is visible (`open`, `shards`) exactly from the return of `commit` on, with all of its chunks verified.
- No byte is served that did not match its BLAKE3 in the frame: disks are checked at every read; memory is checked when
  the bytes arrive, nobody but the tier can write there afterwards.
- A reader, and every view that it gave, stays right until it is let go, whatever is deleted or evicted meanwhile.
- A failed call leaves what was committed before as it was.

Threads may share tiers, writers and readers. `close` of a reader or writer may be called twice.
"""

from types import TracebackType
from typing import Protocol, Self

from raylog.codec.frame import Frame
from raylog.spec import ShardRef, TierKind


class ShardWriter(Protocol):
    """One shard on its way into a tier. Exactly one of `commit`, `abort` and `close` ends it.

    As a context manager it calls `close` on the way out: what was not committed stays resumable.
    """

    @property
    def frame(self) -> Frame: ...

    def missing(self) -> list[tuple[int, int]]:
        """Ranges (first chunk, count) of chunks not yet verified here, in order. Empty: ready to commit."""
        ...

    def write_chunk(self, number: int, sealed: memoryview) -> None:
        """Stores one sealed chunk of `frame.chunks[number].sealed_bytes` bytes. A chunk that is here already is left as
        it is, so sending one twice is harmless.

        Raises `DamagedData` (and stores nothing) when the bytes do not match the frame, `NoSpace`, `Unavailable`.
        """
        ...

    def chunk_buffer(self, number: int) -> memoryview | None:
        """The chunk's own place, to receive into without a copy; follow with `commit_chunk`. None when the tier has no
        such place or the chunk is here already: then use `write_chunk`.

        Misuse: after `commit_chunk` the view must not be written to; readers may be looking at it.
        """
        ...

    def commit_chunk(self, number: int) -> None:
        """Verifies what was put into `chunk_buffer(number)`; raises `DamagedData` and the chunk stays missing."""
        ...

    def stored_chunk(self, number: int) -> memoryview:
        """A chunk that is verified here, read-only, to pass it on before the shard is whole: from memory as it lies
        there, from a disk verified again. Raises `UsageError` once the writing has ended, `DamagedData`."""
        ...

    def commit(self) -> None:
        """Makes the shard visible, all or nothing; a disk tier has fsynced file and directory before it returns.

        Raises `UsageError` while chunks are missing, `NoSpace` or `Unavailable` when the device fails; then the shard
        is not there.
        """
        ...

    def abort(self) -> None:
        """Ends the writing and keeps nothing."""
        ...

    def close(self) -> None:
        """Ends the writing and keeps verified chunks for a later `create` of the same frame, as far as room permits.
        After `commit` or `abort` it does nothing."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class ShardReader(Protocol):
    """One committed shard, pinned: until `close`, deleting or evicting it does not disturb this reader."""

    @property
    def frame(self) -> Frame: ...

    def chunk(self, number: int) -> memoryview:
        """The sealed bytes of a chunk, verified, read-only. The view stays right as long as it is held, also after
        `close`; let it go early, since it holds memory.

        Raises `DamagedData` with `shard_id` and `chunk`, `Unavailable` when the device fails.
        """
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Tier(Protocol):
    """A place for sealed shards of one kind of device."""

    @property
    def kind(self) -> TierKind: ...

    @property
    def capacity_bytes(self) -> int:
        """What the tier could hold in all."""
        ...

    @property
    def free_bytes(self) -> int:
        """What it could take now without evicting or deleting anything."""
        ...

    def create(self, frame: Frame) -> ShardWriter:
        """Reserves the shard's whole length and begins to write, or resumes what an earlier writer of the same frame
        left: what it left on a disk is verified again before it counts.

        Raises `NoSpace` (before anything is written) and `Conflict` when the shard is there already or is being
        written by another writer.
        """
        ...

    def open(self, shard_id: str) -> ShardReader:
        """A pinned reader. Raises `NotFound`, `DamagedData` when the shard's frame is not intact."""
        ...

    def holds(self, shard_id: str) -> bool:
        """Whether `open` would find the shard; says nothing about its bytes."""
        ...

    def delete(self, shard_id: str) -> None:
        """Takes the shard (or a partial one that nobody writes) away. Readers finish; their bytes go after them.
        Raises `NotFound`."""
        ...

    def quarantine(self, shard_id: str) -> None:
        """Takes a damaged shard out of sight so that it can be written anew. Raises `NotFound`."""
        ...

    def replace_chunk(self, shard_id: str, number: int, sealed: memoryview) -> None:
        """Repairs one chunk in place, durably on a disk. Only the bytes that the frame names are accepted, so a reader
        sees the chunk as damaged or as right, and a crash half-way leaves it as damaged as it was.

        Raises `DamagedData` when `sealed` does not match the frame, `NotFound`, `Unavailable`.
        """
        ...

    def shards(self) -> list[ShardRef]:
        """All committed shards, by reading frames only."""
        ...

    def close(self) -> None:
        """Lets the device go. Writers and readers must be closed before."""
        ...
