"""Pieces of one shard that are lost together: one node makes them all in one pass, and keeps the others' as cache."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from raylog.actors.backup_copies import BackupCopies
from raylog.actors.elsewhere import Elsewhere, ways
from raylog.codec import pieces as module
from raylog.errors import NotFound
from raylog.spec import Durability, ShardRef, new_id
from raylog.store.disk import DiskTier
from raylog.store.objects import Limit
from raylog.store.remote_shard import ShardSource
from raylog.store.tiered import TieredStore
from raylog.testing.shards import SampleShard, cut, sample_shard
from raylog.testing.tier_contract import fill, read_all
from raylog.wire.fetcher import Source


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TieredStore]:
    found = TieredStore(None, DiskTier(tmp_path / "tier", cluster_id=new_id()))
    yield found
    found.close()


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> tuple[list[SampleShard], Elsewhere]:
    """3+3 pieces of some stripes; 1, 4 and 5 are lost, and node 4 makes them."""
    monkeypatch.setattr(module, "PIECE_BYTES_MAX", 128)
    erasure, pieces = cut(sample_shard(1), 3, 3)
    assert erasure.stripes > 5
    return pieces, Elsewhere(erasure=erasure, number=4, sources=((),) * 6, beside=(1, 5))


class Counted:
    """What the node asks others for."""

    def __init__(self, pieces: list[SampleShard], given: Sequence[int]) -> None:
        self._given = {pieces[number].shard_id: pieces[number] for number in given}
        self.asked: list[tuple[str, int]] = []

    def __call__(
        self, ref: ShardRef, numbers: Sequence[int], sources: Sequence[Source], limit: Limit
    ) -> dict[int, memoryview]:
        if ref.shard_id not in self._given:
            raise NotFound("no other living node holds it")
        self.asked += [(ref.shard_id, number) for number in numbers]
        return {number: self._given[ref.shard_id].sealed(number) for number in numbers}


def made(store: TieredStore, piece: SampleShard, elsewhere: Elsewhere, fetch: Counted) -> ShardSource:
    limit = Limit.within(10)
    (way,) = ways(piece.frame.ref(), elsewhere, store, BackupCopies(store, new_id(), "node", ()), fetch, limit)
    source = way()
    with store.create(source.frame, Durability.DISK) as writer:
        for number, sealed in source.chunks(range(len(source.frame.chunks)), limit):
            writer.write_chunk(number, sealed)
        writer.commit()
    return source


def test_all_are_made_of_the_same_pieces(store: TieredStore, lost: tuple[list[SampleShard], Elsewhere]) -> None:
    pieces, elsewhere = lost
    fetch = Counted(pieces, [0, 2, 3])
    made(store, pieces[4], elsewhere, fetch)
    stripes = len(pieces[0].frame.chunks)
    assert len(fetch.asked) == len(set(fetch.asked)) == 3 * stripes, "each piece of each stripe came once"
    for number in (1, 4, 5):
        with store.open(pieces[number].shard_id) as reader:
            assert read_all(reader) == pieces[number].chunks
    store.kept_on(pieces[4].shard_id)
    for number in (1, 5):
        with pytest.raises(NotFound, match="not kept here"):
            store.kept_on(pieces[number].shard_id)


def test_a_chunk_is_had_by_its_stripes_alone(
    store: TieredStore, lost: tuple[list[SampleShard], Elsewhere], monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces, elsewhere = lost
    erasure = elsewhere.erasure
    assert erasure is not None
    whole = sample_shard(1)
    for wanted in (1, 3):
        fetch = Counted(pieces, [0, 2, 3])
        limit = Limit.within(10)
        everything = Elsewhere(erasure=erasure, sources=elsewhere.sources)
        (way,) = ways(whole.frame.ref(), everything, store, BackupCopies(store, new_id(), "node", ()), fetch, limit)
        source = way()
        fetch.asked.clear()  # what came before is the frame
        ((number, sealed),) = source.chunks([wanted], limit)
        assert (number, bytes(sealed)) == (wanted, whole.chunks[wanted])
        entry, size = whole.frame.chunks[wanted], erasure.parity.stripe_bytes
        needed = set(range(entry.offset // size, (entry.offset + entry.sealed_bytes - 1) // size + 1))
        assert {stripe for _, stripe in fetch.asked} <= needed < set(range(erasure.stripes))


def test_one_that_is_here_already_is_no_obstacle(store: TieredStore, lost: tuple[list[SampleShard], Elsewhere]) -> None:
    pieces, elsewhere = lost
    with store.create(pieces[1].frame, Durability.DISK) as writer:
        fill(writer, pieces[1])
        writer.commit()
    made(store, pieces[4], elsewhere, Counted(pieces, [0, 2, 3]))
    assert {ref.shard_id for ref in store.shards()} == {pieces[number].shard_id for number in (1, 4, 5)}
    store.kept_on(pieces[1].shard_id)


def test_a_pass_that_fails_leaves_nothing_beside(
    store: TieredStore, lost: tuple[list[SampleShard], Elsewhere], monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces, elsewhere = lost
    monkeypatch.setattr("raylog.actors.elsewhere.STRIPES_AT_ONCE", 2)
    fetch = Counted(pieces, [0, 2, 3])
    limit = Limit.within(10)
    (way,) = ways(pieces[4].frame.ref(), elsewhere, store, BackupCopies(store, new_id(), "node", ()), fetch, limit)
    chunks = way().chunks(range(4), limit)
    next(chunks)
    fetch._given.clear()
    limit.cancel.set()
    with pytest.raises(Exception, match="ended by whoever made it"):
        list(chunks)
    assert store.shards() == []
    assert list((store.disk.directory / "partial").iterdir()) == []
