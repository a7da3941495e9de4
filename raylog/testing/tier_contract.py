"""The promises of `store/tier.py`, as tests. A tier's own test file subclasses `TierContract` and gives it a tier."""

from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor

import pytest

from raylog.errors import Conflict, DamagedData, NoSpace, NotFound, UsageError
from raylog.spec import new_id
from raylog.store.tier import ShardReader, ShardWriter, Tier
from raylog.testing.shards import SampleShard, sample_shard


def fill(writer: ShardWriter, shard: SampleShard) -> None:
    """Writes every missing chunk, into the tier's own buffers where it lends them."""
    for first, count in writer.missing():
        for number in range(first, first + count):
            buffer = writer.chunk_buffer(number)
            if buffer is None:
                writer.write_chunk(number, shard.sealed(number))
            else:
                buffer[:] = shard.chunks[number]
                writer.commit_chunk(number)


def store(tier: Tier, shard: SampleShard) -> None:
    with tier.create(shard.frame) as writer:
        fill(writer, shard)
        writer.commit()


def read_all(reader: ShardReader) -> tuple[bytes, ...]:
    return tuple(bytes(reader.chunk(number)) for number in range(len(reader.frame.chunks)))


class TierContract(ABC):
    """Give a `tier` fixture of at least 1 MiB, and the two ways to set up trouble."""

    @abstractmethod
    def overwrite(self, tier: Tier, shard_id: str, offset: int, data: bytes) -> None:
        """Damages a committed shard behind the tier's back."""

    @abstractmethod
    def oversized(self, tier: Tier) -> SampleShard:
        """A shard that the tier has no room for from now on."""

    def test_a_committed_shard_reads_back(self, tier: Tier) -> None:
        shard = sample_shard(1)
        store(tier, shard)
        with tier.open(shard.shard_id) as reader:
            assert reader.frame.digest == shard.frame.digest
            assert read_all(reader) == shard.chunks
            assert reader.chunk(1).readonly
        assert tier.shards() == [shard.frame.ref()]

    def test_nothing_is_visible_before_the_commit(self, tier: Tier) -> None:
        shard = sample_shard(2)
        writer = tier.create(shard.frame)
        fill(writer, shard)
        assert not tier.holds(shard.shard_id) and tier.shards() == []
        with pytest.raises(NotFound, match=shard.shard_id):
            tier.open(shard.shard_id)
        writer.commit()
        assert tier.holds(shard.shard_id)

    def test_chunks_come_in_any_order_and_twice(self, tier: Tier) -> None:
        shard = sample_shard(3)
        with tier.create(shard.frame) as writer:
            assert writer.missing() == [(0, 4)]
            writer.write_chunk(2, shard.sealed(2))
            assert writer.missing() == [(0, 2), (3, 1)]
            writer.write_chunk(2, memoryview(b"ignored, it is here"))
            for number in (3, 1, 0):
                writer.write_chunk(number, shard.sealed(number))
            assert writer.missing() == []
            writer.commit()
        with tier.open(shard.shard_id) as reader:
            assert read_all(reader) == shard.chunks

    @pytest.mark.parametrize("wrong", [b"", b"short", b"\0" * 5000, b"\0" * 5001])
    def test_wrong_bytes_are_refused_and_the_chunk_stays_missing(self, tier: Tier, wrong: bytes) -> None:
        shard = sample_shard(4)
        with tier.create(shard.frame) as writer:
            with pytest.raises(DamagedData) as caught:
                writer.write_chunk(1, memoryview(wrong))
            assert (caught.value.__dict__["shard_id"], caught.value.__dict__["chunk"]) == (shard.shard_id, 1)
            assert writer.missing() == [(0, 4)]
            fill(writer, shard)
            writer.commit()

    def test_a_lent_buffer_is_verified(self, tier: Tier) -> None:
        shard = sample_shard(5)
        with tier.create(shard.frame) as writer:
            buffer = writer.chunk_buffer(1)
            if buffer is None:
                with pytest.raises(UsageError):
                    writer.commit_chunk(1)
                return
            assert len(buffer) == len(shard.chunks[1]) and writer.chunk_buffer(1) is None
            buffer[:] = bytes(len(buffer))
            with pytest.raises(DamagedData):
                writer.commit_chunk(1)
            assert writer.missing() == [(0, 4)]
            fill(writer, shard)
            assert writer.chunk_buffer(1) is None
            writer.commit()

    def test_a_commit_with_chunks_missing_is_refused(self, tier: Tier) -> None:
        shard = sample_shard(6)
        with tier.create(shard.frame) as writer:
            writer.write_chunk(0, shard.sealed(0))
            with pytest.raises(UsageError, match="missing"):
                writer.commit()
        assert not tier.holds(shard.shard_id)

    def test_a_closed_writer_is_resumed(self, tier: Tier) -> None:
        shard = sample_shard(7)
        with tier.create(shard.frame) as writer:
            writer.write_chunk(1, shard.sealed(1))
        with tier.create(shard.frame) as writer:
            assert writer.missing() == [(0, 1), (2, 2)]
            fill(writer, shard)
            writer.commit()
        with tier.open(shard.shard_id) as reader:
            assert read_all(reader) == shard.chunks

    def test_an_aborted_writer_leaves_nothing(self, tier: Tier) -> None:
        shard = sample_shard(8)
        writer = tier.create(shard.frame)
        fill(writer, shard)
        writer.abort()
        writer.abort()
        writer.close()
        with pytest.raises(UsageError):
            writer.commit()
        with tier.create(shard.frame) as again:
            assert again.missing() == [(0, 4)]

    def test_a_partial_of_another_frame_is_not_resumed(self, tier: Tier) -> None:
        shard_id = new_id()
        old, new = sample_shard(9, shard_id=shard_id), sample_shard(10, shard_id=shard_id)
        with tier.create(old.frame) as writer:
            writer.write_chunk(0, old.sealed(0))
        with tier.create(new.frame) as writer:
            assert writer.missing() == [(0, 4)]
            fill(writer, new)
            writer.commit()
        with tier.open(shard_id) as reader:
            assert read_all(reader) == new.chunks

    def test_two_writers_of_one_shard_conflict(self, tier: Tier) -> None:
        shard = sample_shard(11)
        with tier.create(shard.frame) as writer:
            with pytest.raises(Conflict, match="another writer"):
                tier.create(shard.frame)
            fill(writer, shard)
            writer.commit()
        with pytest.raises(Conflict, match="already"):
            tier.create(shard.frame)

    def test_threads_may_fill_one_writer(self, tier: Tier) -> None:
        shard = sample_shard(12, chunk_sizes=(3000,) * 24)
        with tier.create(shard.frame) as writer, ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda number: writer.write_chunk(number % 24, shard.sealed(number % 24)), range(48)))
            writer.commit()
        with tier.open(shard.shard_id) as reader, ThreadPoolExecutor(4) as pool:
            assert tuple(pool.map(lambda number: bytes(reader.chunk(number)), range(24))) == shard.chunks

    def test_a_reader_outlives_delete_and_reuse_of_the_room(self, tier: Tier) -> None:
        shard, other = sample_shard(13), sample_shard(14)
        store(tier, shard)
        reader = tier.open(shard.shard_id)
        view = reader.chunk(1)
        tier.delete(shard.shard_id)
        with pytest.raises(NotFound):
            tier.open(shard.shard_id)
        store(tier, other)
        assert read_all(reader) == shard.chunks
        reader.close()
        reader.close()
        store(tier, sample_shard(15))
        assert view == shard.chunks[1]
        with pytest.raises(UsageError, match="closed"):
            reader.chunk(0)

    def test_what_is_not_there_is_said_so(self, tier: Tier) -> None:
        shard_id = new_id()
        for action in (tier.open, tier.delete, tier.quarantine):
            with pytest.raises(NotFound, match=shard_id):
                action(shard_id)
        with pytest.raises(NotFound):
            tier.replace_chunk(shard_id, 0, memoryview(b""))
        assert not tier.holds(shard_id)

    def test_a_deleted_or_quarantined_shard_can_be_written_anew(self, tier: Tier) -> None:
        shard = sample_shard(16)
        for action in (tier.delete, tier.quarantine):
            store(tier, shard)
            action(shard.shard_id)
            assert not tier.holds(shard.shard_id) and tier.shards() == []
        store(tier, shard)
        assert tier.holds(shard.shard_id)

    def test_a_partial_shard_can_be_deleted(self, tier: Tier) -> None:
        shard = sample_shard(17)
        with tier.create(shard.frame) as writer:
            writer.write_chunk(0, shard.sealed(0))
            with pytest.raises(NotFound):  # it is being written
                tier.delete(shard.shard_id)
        tier.delete(shard.shard_id)
        with tier.create(shard.frame) as writer:
            assert writer.missing() == [(0, 4)]

    def test_a_damaged_chunk_is_replaced_under_an_open_reader(self, tier: Tier) -> None:
        shard = sample_shard(18)
        store(tier, shard)
        self.overwrite(tier, shard.shard_id, shard.frame.chunks[1].offset + 7, b"\xff\x00\xff")
        with tier.open(shard.shard_id) as reader:
            with pytest.raises(DamagedData):
                tier.replace_chunk(shard.shard_id, 1, shard.sealed(0))
            tier.replace_chunk(shard.shard_id, 1, shard.sealed(1))
            assert read_all(reader) == shard.chunks

    def test_without_room_nothing_changes(self, tier: Tier) -> None:
        shard = sample_shard(19)
        store(tier, shard)
        large = self.oversized(tier)
        with pytest.raises(NoSpace, match=r"needs .* are free") as caught:
            tier.create(large.frame)
        details = caught.value.__dict__
        assert details["needed_bytes"] >= large.frame.stored_bytes > details["free_bytes"]
        assert tier.shards() == [shard.frame.ref()]
        with pytest.raises(NoSpace):  # and not Conflict: nothing of the first attempt is left
            tier.create(large.frame)
        with tier.open(shard.shard_id) as reader:
            assert read_all(reader) == shard.chunks
