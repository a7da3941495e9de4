"""What a scrub finds in a node's store, and in which order it looks."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylog.spec import Durability, new_id
from raylog.store.disk import DiskTier
from raylog.store.memory import MemoryTier
from raylog.store.scrub import Rounds, check_shard
from raylog.store.tiered import TieredStore
from raylog.testing.shards import SampleShard, sample_shard
from raylog.testing.tier_contract import fill
from raylog.units import MIB


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TieredStore]:
    store = TieredStore(MemoryTier(tmp_path / "arena", 8 * MIB), DiskTier(tmp_path / "tier", cluster_id=new_id()))
    yield store
    store.close()


def put(store: TieredStore, shard: SampleShard, durability: Durability) -> None:
    with store.create(shard.frame, durability) as writer:
        fill(writer, shard)
        writer.commit()


def on_disk(store: TieredStore, shard: SampleShard) -> Path:
    return store.disk.directory / "shards" / shard.shard_id[:2] / shard.shard_id


def damage(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_whole_copies_are_read_whole(store: TieredStore) -> None:
    shard, read = sample_shard(1), []
    put(store, shard, Durability.DISK)
    found = check_shard(store, shard.shard_id, read.append)
    assert found is not None
    assert (found.chunks_read, found.damaged, found.lost_frames) == (2 * len(shard.chunks), (), 0)
    assert sum(read) == 2 * sum(map(len, shard.chunks))  # from memory and from disk
    assert check_shard(store, new_id()) is None


@pytest.mark.parametrize("number", range(4))
def test_one_wrong_bit_is_found(store: TieredStore, number: int) -> None:
    shard = sample_shard(2)
    put(store, shard, Durability.DISK)
    damage(on_disk(store, shard), shard.frame.chunks[number].offset)
    found = check_shard(store, shard.shard_id)
    assert found is not None
    assert found.damaged == (number,)


def test_a_damaged_frame_is_replaced_by_the_copy_in_memory(store: TieredStore) -> None:
    shard = sample_shard(3)
    put(store, shard, Durability.DISK)
    damage(on_disk(store, shard), shard.frame.index_offset + 20)
    found = check_shard(store, shard.shard_id)
    assert found is not None
    assert (found.lost_frames, found.is_gone, found.damaged) == (1, False, ())
    assert on_disk(store, shard).read_bytes() == shard.file
    assert check_shard(store, shard.shard_id).lost_frames == 0  # type: ignore[union-attr]


def test_without_another_copy_it_is_gone_and_put_aside(store: TieredStore) -> None:
    shard = sample_shard(4)
    put(store, shard, Durability.DISK)
    assert store.memory is not None
    store.memory.delete(shard.shard_id)
    damage(on_disk(store, shard), shard.frame.index_offset + 20)
    found = check_shard(store, shard.shard_id)
    assert found is not None
    assert found.is_gone
    assert store.shards() == []
    assert (store.disk.directory / "quarantine" / shard.shard_id).exists()


@given(st.sets(st.integers(0, 1000), max_size=50), st.binary(min_size=16, max_size=16))
def test_a_round_takes_every_shard_once(numbers: set[int], seed: bytes) -> None:
    present = {f"{number:032x}" for number in numbers}
    rounds = Rounds(100.0, seed, 5.0)
    assert not rounds.begins(4.9)
    assert rounds.begins(5.0)
    rounds.begin(present, 5.0)
    assert rounds.total == len(present)
    taken = []
    while rounds.checked < rounds.total:
        assert not rounds.begins(1e9)
        taken.append(rounds.next())
    assert rounds.next() is None
    assert set(taken) == present and len(taken) == len(present)
    assert (rounds.checked, rounds.done) == (len(present), 1 if present else 0)
    assert not rounds.begins(104.9)
    assert rounds.begins(105.0)


def test_each_start_has_an_order_of_its_own() -> None:
    present = [f"{number:032x}" for number in range(100)]
    first = []
    for seed in (b"a", b"b"):
        rounds = Rounds(1.0, seed, 0.0)
        rounds.begin(present, 0.0)
        first.append(rounds.next())
    assert first[0] != first[1]
