"""The arena: what gives way to what, what pins keep, and what a restart fences."""

import gc
import mmap
import os
import resource
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from raylog.buffers import BufferPool
from raylog.errors import DamagedData, NoSpace, UsageError
from raylog.spec import new_id
from raylog.store.memory import MemoryTier
from raylog.testing.shards import SampleShard, sample_shard
from raylog.testing.tier_contract import fill, read_all, store

PAGE = mmap.PAGESIZE


@pytest.fixture
def path() -> Iterator[Path]:
    path = Path(f"/dev/shm/raylog-test-{new_id()}")
    yield path
    assert not path.exists(), "an arena outlived its test"


@pytest.fixture
def tier(path: Path) -> Iterator[MemoryTier]:
    tier = MemoryTier(path, 16 * PAGE)
    yield tier
    tier.close()


def pages(seed: int, count: int) -> SampleShard:
    """A shard that takes exactly so many pages."""
    empty = sample_shard(seed, chunk_sizes=(16,)).frame.stored_bytes
    return sample_shard(seed, chunk_sizes=(16 + count * PAGE - empty,))


def put(tier: MemoryTier, shard: SampleShard, *, evictable: bool) -> None:
    with tier.create(shard.frame, evictable=evictable) as writer:
        fill(writer, shard)
        writer.commit()


def held(tier: MemoryTier) -> set[str]:
    return {ref.shard_id for ref in tier.shards()}


def test_the_coldest_evictable_shard_gives_way(tier: MemoryTier) -> None:
    shards = [pages(seed, 4) for seed in range(4)]
    for shard in shards:
        put(tier, shard, evictable=True)
    tier.open(shards[0].shard_id).close()  # now the second is the coldest
    put(tier, pages(9, 4), evictable=True)
    assert held(tier) == {shards[0].shard_id, shards[2].shard_id, shards[3].shard_id, pages(9, 4).shard_id}


def test_what_is_kept_or_looked_at_does_not_give_way(tier: MemoryTier) -> None:
    kept, seen, cold = pages(1, 6), pages(2, 6), pages(3, 4)
    put(tier, kept, evictable=False)
    put(tier, seen, evictable=True)
    put(tier, cold, evictable=True)
    reader = tier.open(seen.shard_id)
    with pytest.raises(NoSpace, match="pinned or kept") as caught:
        tier.create(pages(4, 5).frame)
    assert (caught.value.needed_bytes, caught.value.free_bytes) == (5 * PAGE, 4 * PAGE)
    assert held(tier) == {kept.shard_id, seen.shard_id, cold.shard_id}, "evicted although it did not help"
    reader.close()
    put(tier, pages(4, 10), evictable=False)
    assert held(tier) == {kept.shard_id, pages(4, 10).shard_id}
    tier.set_evictable(kept.shard_id, True)
    put(tier, pages(5, 6), evictable=False)
    assert held(tier) == {pages(4, 10).shard_id, pages(5, 6).shard_id}


def test_an_abandoned_partial_gives_way_and_a_writer_does_not(tier: MemoryTier) -> None:
    with tier.create(pages(1, 8).frame):
        pass
    writer = tier.create(pages(2, 8).frame)
    with tier.create(pages(3, 8).frame), pytest.raises(NoSpace):
        tier.create(pages(4, 8).frame)
    writer.abort()


def test_an_extent_is_not_recycled_while_any_slice_of_it_lives(tier: MemoryTier) -> None:
    shard = pages(1, 16)
    put(tier, shard, evictable=True)
    with tier.open(shard.shard_id) as reader:
        slice_of_slice = memoryview(reader.chunk(0))[100:200][10:20]
    tier.delete(shard.shard_id)
    with pytest.raises(NoSpace):
        tier.create(pages(2, 1).frame)
    assert slice_of_slice == shard.chunks[0][110:120]
    del slice_of_slice
    put(tier, pages(2, 16), evictable=False)


def test_a_receiver_that_is_late_cannot_write_into_another_shard(tier: MemoryTier) -> None:
    writer = tier.create(pages(1, 16).frame)
    late = writer.chunk_buffer(0)
    assert late is not None
    writer.abort()
    with pytest.raises(NoSpace):
        tier.create(pages(2, 16).frame)
    late[:] = bytes(len(late))
    del late
    put(tier, pages(2, 16), evictable=False)


def test_a_chunk_that_two_streams_bring_is_verified_again_at_the_commit(tier: MemoryTier) -> None:
    shard = sample_shard(1)
    with tier.create(shard.frame) as writer:
        slow = writer.chunk_buffer(1)
        assert slow is not None
        fill(writer, shard)  # another stream brings chunk 1 too
        assert writer.missing() == []
        slow[:5] = b"wrong"
        with pytest.raises(DamagedData):
            writer.commit()
        assert writer.missing() == [(1, 1)]
        fill(writer, shard)
        writer.commit()
    with tier.open(shard.shard_id) as reader:
        assert read_all(reader) == shard.chunks


def test_a_pin_shows_the_whole_file_read_only(tier: MemoryTier) -> None:
    shard = sample_shard(1)
    put(tier, shard, evictable=False)
    pin = tier.pin(shard.shard_id)
    assert pin.offset % PAGE == 0
    with mmap.mmap(pin.descriptor, pin.length, prot=mmap.PROT_READ, offset=pin.offset) as mapped:
        assert mapped[:] == shard.file
    with pytest.raises(PermissionError):
        mmap.mmap(pin.descriptor, pin.length, prot=mmap.PROT_READ | mmap.PROT_WRITE, offset=pin.offset)
    assert tier.is_current(pin.generation)
    tier.delete(shard.shard_id)
    assert tier.is_current(pin.generation), "pinned: the bytes are still the shard's"
    generation = pin.generation
    pin.close()
    assert not tier.is_current(generation)
    put(tier, shard, evictable=False)
    again = tier.pin(shard.shard_id)
    assert again.generation != generation and not tier.is_current(generation)


def test_a_restart_fences_the_old_arena(path: Path) -> None:
    old = MemoryTier(path, 4 * PAGE)
    shard = sample_shard(1, chunk_sizes=(2 * PAGE,))
    store(old, shard)
    reader = old.open(shard.shard_id)
    new = MemoryTier(path, 4 * PAGE)
    store(new, sample_shard(2, chunk_sizes=(2 * PAGE,)))
    assert read_all(reader) == shard.chunks, "a reader of the old arena was disturbed"
    old.close()
    assert path.exists(), "the old incarnation removed the new one's arena"
    new.close()


def test_views_outlive_the_tier(path: Path) -> None:
    tier = MemoryTier(path, 4 * PAGE)
    shard = sample_shard(1)
    store(tier, shard)
    view = tier.open(shard.shard_id).chunk(1)
    tier.close()
    tier.close()
    assert view == shard.chunks[1]


def test_an_arena_larger_than_the_memory_file_system_is_refused_before_a_page_is_touched(path: Path) -> None:
    status = os.statvfs("/dev/shm")
    with pytest.raises(NoSpace, match=r"cannot make the arena: needs .* are free"):
        MemoryTier(path, status.f_blocks * status.f_frsize + PAGE)
    assert not path.exists()


def test_an_arena_of_nothing_or_nowhere_is_refused(path: Path) -> None:
    with pytest.raises(UsageError, match="at least a page"):
        MemoryTier(path, PAGE - 1)
    with pytest.raises(Exception, match="is there such a directory"):
        MemoryTier(path / "below", PAGE)


def test_the_arena_is_faulted_in_ahead_of_use(path: Path) -> None:
    tier = MemoryTier(path, 1024 * PAGE)
    try:
        deadline = time.monotonic() + 10
        while tier.warm_bytes < tier.capacity_bytes and time.monotonic() < deadline:
            time.sleep(0.005)
        assert tier.warm_bytes == tier.capacity_bytes
        shard = sample_shard(1, chunk_sizes=(900 * PAGE,))
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        with tier.create(shard.frame) as writer:
            fill(writer, shard)
            writer.commit()
        assert resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before < 100
    finally:
        tier.close()


def test_nothing_is_left_open(path: Path) -> None:
    def state() -> tuple[int, int]:
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()

    before = state()
    for seed in range(10):
        tier = MemoryTier(path, 16 * PAGE)
        store(tier, sample_shard(seed))
        tier.pin(sample_shard(seed).shard_id)
        tier.close()
    gc.collect()
    assert state() == before
    assert str(path) not in Path("/proc/self/maps").read_text()


def test_pooled_buffers_are_reused_but_never_shared() -> None:
    pool = BufferPool(idle_max=2)
    first = pool.take(1000)
    first[:3] = b"one"
    second = pool.take(1000)
    second[:3] = b"two"
    assert bytes(first[:3]) == b"one"
    assert {np.frombuffer(buffer, np.uint8).ctypes.data % PAGE for buffer in (first, second)} == {0}, "page-aligned"
    tail = first[990:]
    del first
    assert len(pool._idle) == 0, "a slice still looks at it"
    del tail
    assert len(pool._idle) == 1
    assert bytes(pool.take(500)[:3]) == b"one", "the idle buffer was not reused"
    many = [pool.take(100) for _ in range(6)]
    del many, second
    assert len(pool._idle) == 2


def test_one_place_is_lent_to_one_receiver(path: Path) -> None:
    tier = MemoryTier(path, 1024 * PAGE)
    shard = sample_shard(1, chunk_sizes=(64,) * 2000)
    with tier.create(shard.frame) as writer, ThreadPoolExecutor(4) as pool:

        def borrow(_: int) -> list[int]:
            return [number for number in range(2000) if writer.chunk_buffer(number) is not None]

        lent = [number for numbers in pool.map(borrow, range(4)) for number in numbers]
        assert sorted(lent) == list(range(2000))
    tier.close()
