"""A shard that no node gives whole: had from the pieces of an erasure-coded one, or from a backup; and a piece made
anew."""

import logging
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from types import TracebackType

import msgspec

from raylog.actors.backup_copies import BackupCopies
from raylog.buffers import BufferPool
from raylog.codec.frame import Frame
from raylog.codec.pieces import Erasure, Pieces, ShardOfPieces, encode_stripe
from raylog.errors import DamagedData, NotFound, RaylogError, Unavailable
from raylog.spec import ShardRef
from raylog.store.objects import Limit
from raylog.store.remote_shard import ShardSource
from raylog.store.tier import ShardWriter
from raylog.store.tiered import TieredStore
from raylog.wire.fetcher import Source

log = logging.getLogger("raylog.pull")
STRIPES_AT_ONCE = 16  # whose pieces are in memory together


class Elsewhere(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a shard may be had besides from nodes that hold it (catalog/pieces.py, `Whereabouts`); `sources`: nodes that
    hold each piece, piece by piece; `beside`: when a piece is made anew, these others are made of the same stripes, as
    copies in the cache that other nodes get them from."""

    backups: tuple[str, ...] = ()
    erasure: Erasure | None = None
    number: int | None = None
    sources: tuple[tuple[Source, ...], ...] = ()
    beside: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.backups or self.erasure)


NOWHERE = Elsewhere()
FetchChunks = Callable[[ShardRef, Sequence[int], Sequence[Source], Limit], dict[int, memoryview]]
"""Some chunks of a shard, verified, from nodes that hold it."""


def ways(
    ref: ShardRef, elsewhere: Elsewhere, store: TieredStore, backups: BackupCopies, fetch: FetchChunks, limit: Limit
) -> Iterator[Callable[[], ShardSource]]:
    """What to try in turn: pieces on nodes before backups. Opening one, and reading from it, raises what its nodes or
    its backup say."""
    erasure, number = elsewhere.erasure, elsewhere.number
    if erasure is not None:
        gathering = _Gathering(erasure, elsewhere.sources, store, fetch, limit)
        yield partial(_of_pieces, ref, elsewhere, erasure, gathering, store)
    for url in elsewhere.backups:
        if erasure is None or number is None:
            yield partial(_of_backup, ref, url, store, backups, limit)
        else:
            yield partial(_PieceOfBackup, erasure, number, backups, url, limit)


def _of_pieces(
    ref: ShardRef, elsewhere: Elsewhere, erasure: Erasure, gathering: "_Gathering", store: TieredStore
) -> ShardSource:
    shard = ShardOfPieces(erasure, gathering.stripe)
    if elsewhere.number is not None:
        beside = _Beside(erasure, elsewhere.beside, shard, store)
        return _PieceAnew(erasure, elsewhere.number, shard, beside, gathering)
    return _Whole(Frame.read(shard.read, erasure.shard.stored_bytes, ref.frame_digest), shard, gathering)


def _of_backup(ref: ShardRef, url: str, store: TieredStore, backups: BackupCopies, limit: Limit) -> ShardSource:
    source = backups.open(ref, url, limit)
    store.arena.came_from(ref.shard_id, ref.stored_bytes, backups.rates(url))
    return source


class _Whole:
    """The shard itself, put together of pieces."""

    def __init__(self, frame: Frame, shard: ShardOfPieces, gathering: "_Gathering") -> None:
        self.frame, self._shard, self._gathering, self._buffers = frame, shard, gathering, BufferPool()

    def chunks(self, numbers: Sequence[int], limit: Limit) -> Iterator[tuple[int, memoryview]]:
        chunks = [self.frame.chunks[number] for number in numbers]
        self._gathering.expect_bytes((entry.offset, entry.sealed_bytes) for entry in chunks)
        for number in sorted(numbers):
            limit.check()
            entry = self.frame.chunks[number]
            sealed = self._buffers.take(entry.sealed_bytes)
            self._shard.read_into(sealed, entry.offset)
            self.frame.verify_chunk(number, sealed)
            yield number, sealed


class _PieceAnew:
    """A piece, computed stripe by stripe."""

    def __init__(
        self, erasure: Erasure, number: int, shard: ShardOfPieces, beside: "_Beside", gathering: "_Gathering"
    ) -> None:
        self.frame = erasure.frames()[number]
        self._number, self._shard, self._beside, self._gathering = number, shard, beside, gathering

    def chunks(self, numbers: Sequence[int], limit: Limit) -> Iterator[tuple[int, memoryview]]:
        self._gathering.expect(numbers)
        with self._beside:
            for stripe in sorted(numbers):
                limit.check()
                made = self._shard.piece(self._number, stripe)
                self.frame.verify_chunk(stripe, made)
                self._beside.make(stripe)
                yield stripe, made


class _Beside:
    """Other pieces of the same shard, made along the way into the cache. Where that fails they are missing there, and
    whoever is to have them makes them itself."""

    def __init__(self, erasure: Erasure, numbers: Sequence[int], shard: ShardOfPieces, store: TieredStore) -> None:
        self._frames = {number: erasure.frames()[number] for number in numbers}
        self._shard, self._store = shard, store
        self._writers: dict[int, ShardWriter] = {}

    def make(self, stripe: int) -> None:
        for number, writer in list(self._writers.items()):
            with self._given_up_on(number):
                writer.write_chunk(stripe, self._shard.piece(number, stripe))

    @contextmanager
    def _given_up_on(self, number: int) -> Iterator[None]:
        try:
            yield
        except RaylogError as error:
            log.info("piece %d is not made beside another one: %s", number, error)
            writer = self._writers.pop(number, None)
            if writer is not None:
                writer.abort()

    def __enter__(self) -> None:
        for number, frame in self._frames.items():
            with self._given_up_on(number):
                self._writers[number] = self._store.create_cached(frame)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, writer in list(self._writers.items()):
            with self._given_up_on(number):
                if writer.missing():  # of a piece some stripes of which were there already
                    writer.abort()
                else:
                    writer.commit()
            writer.close()


class _PieceOfBackup:
    """A piece of a shard that lies whole in a backup."""

    def __init__(self, erasure: Erasure, number: int, backups: BackupCopies, url: str, limit: Limit) -> None:
        self.frame = erasure.frames()[number]
        self._erasure, self._number = erasure, number
        self._read = partial(backups.read, erasure.shard, url)
        backups.open(erasure.shard, url, limit)  # what is there is the manifest's, by its frame

    def chunks(self, numbers: Sequence[int], limit: Limit) -> Iterator[tuple[int, memoryview]]:
        erasure = self._erasure
        for stripe in sorted(numbers):
            size, start = erasure.piece_bytes(stripe), stripe * erasure.parity.stripe_bytes
            length = min(erasure.parity.stripe_bytes, erasure.shard.stored_bytes - start)
            whole = bytearray(size * erasure.parity.data_pieces)
            whole[:length] = self._read(start, length, limit)
            parity = memoryview(bytearray(size * erasure.parity.parity_pieces))
            made = encode_stripe(erasure, stripe, memoryview(whole), parity)[self._number]
            self.frame.verify_chunk(stripe, made)
            yield stripe, made


class _Gathering:
    """Any k pieces of each stripe: those here, else from nodes, a few of the expected stripes at a time. A piece that
    fails once is not asked for again. For one thread."""

    def __init__(
        self,
        erasure: Erasure,
        sources: Sequence[Sequence[Source]],
        store: TieredStore,
        fetch: FetchChunks,
        limit: Limit,
    ) -> None:
        self._erasure, self._sources, self._store, self._fetch, self._limit = erasure, sources, store, fetch, limit
        self._expected: Sequence[int] = ()
        self._failures: dict[int, str] = {}
        self._stripes: dict[int, dict[int, memoryview]] = {}
        self._lock = threading.Lock()

    def expect(self, stripes: Iterable[int]) -> None:
        """Which stripes will be asked for: nothing else comes with them."""
        self._expected = sorted(set(stripes))

    def expect_bytes(self, ranges: Iterable[tuple[int, int]]) -> None:
        """As `expect`, by ranges (start, length) of the shard's file."""
        size = self._erasure.parity.stripe_bytes
        self.expect(
            stripe for start, length in ranges for stripe in range(start // size, (start + length - 1) // size + 1)
        )

    def stripe(self, stripe: int) -> Pieces:
        """Raises `Unavailable` that says which pieces could not be had, and why."""
        if stripe not in self._stripes:
            at = bisect_left(self._expected, stripe)
            coming = self._expected[at : at + STRIPES_AT_ONCE]
            self._stripes = self._load(coming if coming[:1] == [stripe] else [stripe])
        return self._stripes[stripe]

    def _load(self, stripes: Sequence[int]) -> dict[int, dict[int, memoryview]]:
        needed = self._erasure.parity.data_pieces
        had: dict[int, Mapping[int, memoryview]] = {}
        with ThreadPoolExecutor(needed, thread_name_prefix="pieces") as executor:
            while len(had) < needed:
                left = [n for n in self._in_order() if n not in had and n not in self._failures][: needed - len(had)]
                if not left:
                    raise self._too_few(len(had))
                for number, pieces in zip(left, executor.map(lambda n: self._try(n, stripes), left), strict=True):
                    if pieces is not None:
                        had[number] = pieces
        return {stripe: {number: pieces[stripe] for number, pieces in had.items()} for stripe in stripes}

    def _in_order(self) -> list[int]:
        """Pieces here, then data pieces, which need no arithmetic, then parity."""
        refs = self._erasure.refs()
        return sorted(range(len(refs)), key=lambda n: (not self._store.tiers_of(refs[n].shard_id), n))

    def _try(self, number: int, stripes: Sequence[int]) -> Mapping[int, memoryview] | None:
        ref = self._erasure.refs()[number]
        self._limit.check()
        try:
            here = self._read_here(ref, stripes)
            if here is not None:
                return here
            sources = self._sources[number] if number < len(self._sources) else ()
            return self._fetch(ref, stripes, sources, self._limit)
        except RaylogError as error:
            with self._lock:
                self._failures[number] = str(error)
            return None

    def _read_here(self, ref: ShardRef, stripes: Sequence[int]) -> Mapping[int, memoryview] | None:
        try:
            with self._store.open(ref.shard_id) as reader:
                if reader.frame.digest == ref.frame_digest:
                    return {stripe: reader.chunk(stripe) for stripe in stripes}
        except (NotFound, DamagedData):
            pass  # another node may have it
        return None

    def _too_few(self, had: int) -> RaylogError:
        self._limit.check()
        parity = self._erasure.parity
        why = "; ".join(f"piece {number}: {reason}" for number, reason in sorted(self._failures.items()))
        return Unavailable(
            f"shard {self._erasure.shard.shard_id}: {had} of its {self._erasure.pieces} pieces can be had, "
            f"{parity.data_pieces} are needed ({why})",
            shard_id=self._erasure.shard.shard_id,
        )
