"""Memory in front of disk: what each durability promises, what becomes hot, and that nothing deleted comes back."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from raylog.errors import Conflict, DamagedData, NoSpace, NotFound
from raylog.spec import Durability, TierKind, new_id
from raylog.store import policy
from raylog.store.device_meter import DeviceRates
from raylog.store.disk import DiskTier
from raylog.store.memory import MemoryTier
from raylog.store.tiered import Mending, TieredStore
from raylog.testing.shards import SampleShard, sample_shard
from raylog.testing.tier_contract import fill, read_all
from raylog.units import MIB

ARENA_BYTES = MIB
BOTH, DISK, MEMORY = [TierKind.MEMORY, TierKind.SSD], [TierKind.SSD], [TierKind.MEMORY]


@pytest.fixture(autouse=True)
def any_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """However full the disk of this machine is, except where a test says how full it is."""
    monkeypatch.setattr(policy, "HIGH_WATERMARK", 1.0)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TieredStore]:
    memory = MemoryTier(Path(f"/dev/shm/raylog-test-{new_id()}"), ARENA_BYTES)
    store = TieredStore(memory, DiskTier(tmp_path, cluster_id=new_id()))
    yield store
    store.close()


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[TieredStore]:
    store = TieredStore(None, DiskTier(tmp_path, cluster_id=new_id()))
    yield store
    store.close()


def receive(store: TieredStore, shard: SampleShard, durability: Durability) -> None:
    with store.create(shard.frame, durability) as writer:
        fill(writer, shard)
        writer.commit()


def stage(store: TieredStore, data: bytes) -> str:
    staging = store.stage(len(data))
    os.pwrite(staging.descriptor, data, 0)
    return staging.stage_id


def adopt(store: TieredStore, shard: SampleShard, durability: Durability) -> None:
    assert store.adopt(stage(store, shard.file), shard.frame.digest, durability) == shard.frame.ref()


def read(store: TieredStore, shard: SampleShard) -> tuple[bytes, ...]:
    with store.open(shard.shard_id) as reader:
        return read_all(reader)


LARGE = sample_shard(99, chunk_sizes=(ARENA_BYTES,))


@pytest.mark.parametrize("enter", [receive, adopt])
def test_each_durability_goes_where_it_promises(store: TieredStore, enter) -> None:
    durable, quick = sample_shard(1), sample_shard(2)
    enter(store, durable, Durability.DISK)
    enter(store, quick, Durability.MEMORY)
    enter(store, LARGE, Durability.MEMORY)
    assert store.tiers_of(durable.shard_id) == BOTH
    assert store.tiers_of(quick.shard_id) == MEMORY
    assert store.tiers_of(LARGE.shard_id) == DISK, "too large for the arena: it is promised more instead"
    for shard in (durable, quick, LARGE):
        assert read(store, shard) == shard.chunks
    refs = {ref.shard_id: ref for ref in store.shards()}
    assert refs == {shard.shard_id: shard.frame.ref() for shard in (durable, quick, LARGE)}
    assert not list((store.disk.directory / "staging").iterdir())


@pytest.mark.parametrize("enter", [receive, adopt])
def test_a_node_without_an_arena_stores_on_disk(plain: TieredStore, enter) -> None:
    shard, other = sample_shard(1), sample_shard(2)
    enter(plain, shard, Durability.DISK)
    enter(plain, other, Durability.MEMORY)
    assert plain.tiers_of(shard.shard_id) == plain.tiers_of(other.shard_id) == DISK
    assert read(plain, shard) == shard.chunks
    plain.persist(shard.shard_id)
    with pytest.raises(NotFound):
        plain.persist(new_id())


def test_a_shard_is_received_straight_into_the_arena(store: TieredStore) -> None:
    shard = sample_shard(1)
    writer = store.create(shard.frame, Durability.DISK)
    buffer = writer.chunk_buffer(1)
    assert buffer is not None
    buffer[:] = bytes(len(buffer))
    with pytest.raises(DamagedData):
        writer.commit_chunk(1)
    assert writer.missing() == [(0, 4)]
    fill(writer, shard)
    writer.commit()
    assert store.tiers_of(shard.shard_id) == BOTH
    assert store.disk.open(shard.shard_id).chunk(1) == shard.chunks[1]


def test_a_cut_receive_resumes_on_disk_and_leaves_the_arena(store: TieredStore) -> None:
    shard = sample_shard(1)
    with store.create(shard.frame, Durability.DISK) as writer:
        writer.write_chunk(2, shard.sealed(2))
    assert store.memory is not None and store.memory.free_bytes == ARENA_BYTES
    with store.create(shard.frame, Durability.DISK) as writer:
        assert writer.missing() == [(0, 2), (3, 1)]
        fill(writer, shard)
        writer.commit()
    assert store.tiers_of(shard.shard_id) == DISK
    writer = store.create(sample_shard(2).frame, Durability.DISK)
    writer.abort()
    assert store.memory.free_bytes == ARENA_BYTES
    assert not list((store.disk.directory / "partial").iterdir())


def test_a_late_receiver_spoils_the_hot_copy_only(store: TieredStore) -> None:
    shard = sample_shard(1)
    with store.create(shard.frame, Durability.DISK) as writer:
        slow = writer.chunk_buffer(1)
        assert slow is not None
        fill(writer, shard)
        slow[:5] = b"wrong"
        writer.commit()
    assert store.tiers_of(shard.shard_id) == DISK
    assert read(store, shard) == shard.chunks


def test_a_hot_copy_may_go_and_the_shard_stays(store: TieredStore) -> None:
    shards = [sample_shard(seed, chunk_sizes=(ARENA_BYTES // 3,)) for seed in range(5)]
    for shard in shards:
        receive(store, shard, Durability.DISK)
    assert [store.tiers_of(shard.shard_id) for shard in shards] == [DISK] * 3 + [BOTH] * 2
    assert all(read(store, shard) == shard.chunks for shard in shards)


def test_a_shard_of_durability_memory_never_gives_way(store: TieredStore) -> None:
    kept = [sample_shard(seed, chunk_sizes=(ARENA_BYTES // 3,)) for seed in range(2)]
    for shard in kept:
        adopt(store, shard, Durability.MEMORY)
    late = sample_shard(9, chunk_sizes=(ARENA_BYTES // 2 - 1000,))
    for durability in Durability:
        adopt(store, late, durability)
        assert store.tiers_of(late.shard_id) == DISK
        store.delete(late.shard_id)
    assert all(store.tiers_of(shard.shard_id) == MEMORY for shard in kept)


def test_what_is_in_memory_alone_can_be_persisted(store: TieredStore) -> None:
    shard = sample_shard(1)
    adopt(store, shard, Durability.MEMORY)
    with pytest.raises(Conflict, match="persist it"):
        store.create(shard.frame, Durability.DISK)
    for _ in range(2):
        store.persist(shard.shard_id)
    assert store.tiers_of(shard.shard_id) == BOTH
    for seed in range(2, 2 + ARENA_BYTES // shard.frame.stored_bytes):
        adopt(store, sample_shard(seed), Durability.MEMORY)
    assert store.tiers_of(shard.shard_id) == DISK, "evictable once it was persisted"
    assert read(store, shard) == shard.chunks


@pytest.mark.parametrize("durability", list(Durability))
def test_a_staged_shard_with_a_damaged_chunk_is_refused_and_nothing_is_kept(store: TieredStore, durability) -> None:
    shard = sample_shard(1)
    data = bytearray(shard.file)
    data[shard.frame.chunks[2].offset] ^= 1
    stage_id = stage(store, bytes(data))
    with pytest.raises(DamagedData) as caught:
        store.adopt(stage_id, shard.frame.digest, durability)
    assert (caught.value.shard_id, caught.value.chunk) == (shard.shard_id, 2)
    assert store.shards() == [] and store.memory is not None and store.memory.free_bytes == ARENA_BYTES
    store.discard(stage_id)
    assert not list((store.disk.directory / "staging").iterdir())
    adopt(store, shard, durability)


@pytest.mark.parametrize("first", list(Durability))
@pytest.mark.parametrize("second", list(Durability))
@pytest.mark.parametrize("is_hot", [True, False])
def test_a_shard_enters_once(store: TieredStore, first: Durability, second: Durability, is_hot: bool) -> None:
    shard = sample_shard(1)
    adopt(store, shard, first)
    if first is Durability.DISK and not is_hot:
        store.memory.delete(shard.shard_id)
    tiers = store.tiers_of(shard.shard_id)
    stage_id = stage(store, shard.file)
    with pytest.raises(Conflict):
        store.adopt(stage_id, shard.frame.digest, second)
    with pytest.raises(Conflict):
        store.create(shard.frame, second)
    store.discard(stage_id)
    assert store.tiers_of(shard.shard_id) == tiers
    assert read(store, shard) == shard.chunks


def test_a_shard_read_whole_from_disk_becomes_hot(store: TieredStore) -> None:
    shard = sample_shard(1)
    adopt(store, shard, Durability.DISK)
    assert store.memory is not None
    store.memory.delete(shard.shard_id)
    with store.open(shard.shard_id) as reader:
        reader.chunk(0)
    assert store.tiers_of(shard.shard_id) == DISK, "read in part"
    with store.open(shard.shard_id) as reader, store.open(shard.shard_id) as second:
        views = [reader.chunk(number) for number in range(4)]
        assert store.tiers_of(shard.shard_id) == BOTH
        assert read_all(reader) == read_all(second) == tuple(views) == shard.chunks
    adopt(store, sample_shard(2, chunk_sizes=(ARENA_BYTES // 2 - 1000,)), Durability.DISK)
    assert tuple(views) == shard.chunks


def test_damage_is_met_while_promoting_too(store: TieredStore) -> None:
    shard = sample_shard(1)
    adopt(store, shard, Durability.DISK)
    assert store.memory is not None
    store.memory.delete(shard.shard_id)
    path = store.disk.directory / "shards" / shard.shard_id[:2] / shard.shard_id
    data = bytearray(shard.file)
    data[shard.frame.chunks[1].offset + 3] ^= 4
    path.write_bytes(data)
    with store.open(shard.shard_id) as reader:
        for _ in range(2):
            with pytest.raises(DamagedData) as caught:
                reader.chunk(1)
            assert caught.value.chunk == 1
        store.replace_chunk(shard.shard_id, 1, shard.sealed(1))
        assert read_all(reader) == shard.chunks
    assert store.tiers_of(shard.shard_id) == BOTH


def flip_in_arena(store: TieredStore, shard: SampleShard, offset: int) -> None:
    """What a bad memory cell does: no code of the store sees it happen."""
    assert store.memory is not None
    pin = store.memory.pin(shard.shard_id)
    with store.memory.path.open("r+b") as arena:
        arena.seek(pin.offset + offset)
        byte = arena.read(1)
        arena.seek(pin.offset + offset)
        arena.write(bytes([byte[0] ^ 8]))


def flip_on_disk(store: TieredStore, shard: SampleShard, offset: int) -> None:
    path = store.disk.directory / "shards" / shard.shard_id[:2] / shard.shard_id
    data = bytearray(path.read_bytes())
    data[offset] ^= 8
    path.write_bytes(data)


def test_a_damaged_copy_is_mended_by_the_other(store: TieredStore) -> None:
    shard = sample_shard(1)
    adopt(store, shard, Durability.DISK)
    offsets = [entry.offset for entry in shard.frame.chunks]
    flip_in_arena(store, shard, offsets[1] + 7)
    flip_on_disk(store, shard, offsets[2] + 7)
    assert store.mend(shard.shard_id, range(4)) == Mending(replaced=2, missing=[])
    for tier in store.tiers:
        with tier.open(shard.shard_id) as reader:
            assert read_all(reader) == shard.chunks
    assert store.mend(shard.shard_id, range(4)) == Mending(replaced=0, missing=[])


def test_what_no_copy_here_has_whole_is_named(store: TieredStore) -> None:
    shard = sample_shard(1)
    with pytest.raises(NotFound):
        store.mend(shard.shard_id, [0])
    adopt(store, shard, Durability.DISK)
    for flip in (flip_in_arena, flip_on_disk):
        flip(store, shard, shard.frame.chunks[3].offset)
    assert store.mend(shard.shard_id, [3, 0]) == Mending(replaced=0, missing=[3])
    store.replace_chunk(shard.shard_id, 3, shard.sealed(3))
    assert store.mend(shard.shard_id, [3, 0]) == Mending(replaced=0, missing=[])


@pytest.mark.parametrize("offset", [9, -9, -70])
def test_a_damaged_frame_in_the_arena_is_written_anew(store: TieredStore, offset: int) -> None:
    shard = sample_shard(1)
    adopt(store, shard, Durability.DISK)
    flip_in_arena(store, shard, offset % len(shard.file))
    pin = store.pin(shard.shard_id)
    assert pin.tier is TierKind.MEMORY
    assert os.pread(pin.descriptor, pin.length, pin.offset) == shard.file


def test_a_shard_deleted_while_it_becomes_hot_does_not_come_back(store: TieredStore) -> None:
    shard = sample_shard(1)
    adopt(store, shard, Durability.DISK)
    assert store.memory is not None
    store.memory.delete(shard.shard_id)
    with store.open(shard.shard_id) as reader:
        reader.chunk(0)
        store.delete(shard.shard_id)
        assert read_all(reader) == shard.chunks
    assert store.tiers_of(shard.shard_id) == [] and store.shards() == []


def test_delete_and_quarantine_take_every_copy(store: TieredStore) -> None:
    shard = sample_shard(1)
    for action in (store.delete, store.quarantine):
        adopt(store, shard, Durability.DISK)
        action(shard.shard_id)
        assert store.tiers_of(shard.shard_id) == []
        with pytest.raises(NotFound):
            store.open(shard.shard_id)
        with pytest.raises(NotFound):
            action(shard.shard_id)
    with pytest.raises(NotFound):
        store.replace_chunk(shard.shard_id, 0, shard.sealed(0))


def test_pins_show_the_file_on_either_tier(store: TieredStore) -> None:
    shard = sample_shard(1)
    adopt(store, shard, Durability.DISK)
    hot = store.pin(shard.shard_id)
    store.memory.delete(shard.shard_id)
    cold = store.pin(shard.shard_id)
    store.delete(shard.shard_id)
    assert (hot.tier, cold.tier) == (TierKind.MEMORY, TierKind.SSD)
    for pin in (hot, cold):
        assert store.is_current(pin.generation)
        assert os.pread(pin.descriptor, pin.length, pin.offset) == shard.file
    generation = hot.generation
    hot.close()
    cold.close()
    assert not store.is_current(generation)


def test_staging_without_room_is_refused_at_the_start(store: TieredStore) -> None:
    store.disk.tiers[0].reserve_bytes = store.disk.tiers[0].free_bytes + (1 << 50)
    with pytest.raises(NoSpace):
        store.stage(1)


def test_many_threads_put_read_and_delete(store: TieredStore) -> None:
    failures: list[BaseException] = []

    def work(first_seed: int) -> None:
        try:
            for seed in range(first_seed, first_seed + 12):
                shard = sample_shard(seed, chunk_sizes=(20_000, 30_000))
                (adopt if seed % 2 else receive)(store, shard, list(Durability)[seed % 3 == 0])
                assert read(store, shard) == shard.chunks
                store.delete(shard.shard_id)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(100 * (index + 1),)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == [] and store.shards() == []
    assert store.memory is not None and store.memory.free_bytes == ARENA_BYTES


FRUGAL = """
import os, sys
from pathlib import Path
from raylog.spec import Durability, new_id
from raylog.store.disk import DiskTier
from raylog.store.memory import MemoryTier
from raylog.store.tiered import TieredStore
from raylog.testing.shards import sample_shard

def anonymous_bytes():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("RssAnon"))

shard = sample_shard(1, chunk_sizes=(1 << 20,) * 96)
frame, path = shard.frame, Path(sys.argv[1])
(path / "shard").write_bytes(shard.file)
del shard
memory = MemoryTier(Path(sys.argv[2]), (256 << 20) if sys.argv[3] == "hot" else 4096)
store = TieredStore(memory, DiskTier(path / "tier", cluster_id=new_id()))
before = anonymous_bytes()
staging = store.stage()
with open(path / "shard", "rb") as source:
    while os.sendfile(staging.descriptor, source.fileno(), None, 1 << 24):
        pass
store.adopt(staging.stage_id, frame.digest, Durability.DISK)
with store.open(frame.header.shard_id) as reader:
    for number in range(96):
        reader.chunk(number)
print(anonymous_bytes() - before)
store.close()
"""


@pytest.mark.parametrize("mode", ["hot", "cold"])
def test_the_process_needs_a_few_chunks_of_memory_of_its_own(tmp_path: Path, mode: str) -> None:
    command = [sys.executable, "-c", FRUGAL, str(tmp_path), f"/dev/shm/raylog-test-{new_id()}", mode]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert int(result.stdout) < 12 * MIB


def test_a_cached_copy_on_disk_gives_way_and_is_not_promised(plain: TieredStore) -> None:
    cached, promised = sample_shard(1), sample_shard(2)
    for shard in (cached, promised):
        with plain.create_cached(shard.frame) as writer:
            fill(writer, shard)
            writer.commit()
    with pytest.raises(NotFound, match="not kept"):
        plain.kept_on(cached.shard_id)
    plain.keep(promised.shard_id, Durability.DISK)
    assert plain.kept_on(promised.shard_id) is TierKind.SSD
    plain.disk.tiers[0].reserve_bytes = 1 << 60  # as if others had filled the file system
    with pytest.raises(NoSpace):
        plain.stage(MIB)
    assert [ref.shard_id for ref in plain.shards()] == [promised.shard_id]


def test_what_somebody_waits_for_displaces_cached_copies_on_a_full_disk(plain: TieredStore) -> None:
    first, second, third = (sample_shard(seed) for seed in (1, 2, 3))
    for shard in (first, second):
        with plain.create_cached(shard.frame) as writer:
            fill(writer, shard)
            writer.commit()
    plain.disk.tiers[0].reserve_bytes = 1 << 60
    for displaces, left in ((False, 2), (True, 0)):
        with pytest.raises(NoSpace):
            plain.create_cached(third.frame, displaces=displaces)
        assert len(plain.shards()) == left


def test_a_cached_copy_that_is_still_written_does_not_give_way(plain: TieredStore) -> None:
    """It would be taken for one that is kept once it is whole."""
    shard = sample_shard(1)
    with plain.create_cached(shard.frame) as writer:
        plain.disk.tiers[0].reserve_bytes = 1 << 60
        with pytest.raises(NoSpace):
            plain.stage(MIB)
        fill(writer, shard)
        writer.commit()
    assert plain.is_cached(shard.shard_id) and plain.disk.cached() == [shard.shard_id]
    with pytest.raises(NoSpace):
        plain.stage(MIB)
    assert plain.shards() == [], "it goes now"


def test_a_cached_copy_whose_file_is_read_stays_till_then(plain: TieredStore) -> None:
    """To delete it would free nothing, and it would have to be pulled again."""
    read, idle = sample_shard(1), sample_shard(2)
    for shard in (read, idle):
        with plain.create_cached(shard.frame) as writer:
            fill(writer, shard)
            writer.commit()
    pins = [plain.pin(read.shard_id) for _ in range(2)]
    plain.disk.tiers[0].reserve_bytes = 1 << 60
    for _ in range(2):
        with pytest.raises(NoSpace):
            plain.stage(MIB)
        assert [ref.shard_id for ref in plain.shards()] == [read.shard_id]
        pins.pop().close()
    with pytest.raises(NoSpace):
        plain.stage(MIB)
    assert plain.shards() == []


def test_nothing_is_remembered_of_copies_that_were_read_and_went(plain: TieredStore) -> None:
    gone, promised = sample_shard(1), sample_shard(2)
    for shard in (gone, promised):
        receive_cached(plain, shard)
        plain.pin(shard.shard_id).close()
    plain.drop_cached(gone.shard_id)
    plain.keep(promised.shard_id, Durability.DISK)
    assert not plain._cached._files_read


def test_a_cached_copy_on_disk_is_still_cached_after_a_restart(tmp_path: Path) -> None:
    cluster, (cached, kept, given) = new_id(), (sample_shard(seed) for seed in (1, 2, 3))
    store = TieredStore(None, DiskTier(tmp_path, cluster_id=cluster))
    for shard in (cached, given):
        with store.create_cached(shard.frame) as writer:
            fill(writer, shard)
            writer.commit()
    receive(store, kept, Durability.DISK)
    store.keep(given.shard_id, Durability.DISK)
    store.close()
    store = TieredStore(None, DiskTier(tmp_path, cluster_id=cluster))
    for shard in (kept, given):
        assert store.kept_on(shard.shard_id) is TierKind.SSD
    with pytest.raises(NotFound, match="not kept here"):
        store.kept_on(cached.shard_id)
    store.keep(cached.shard_id, Durability.DISK)
    store.close()
    store = TieredStore(None, DiskTier(tmp_path, cluster_id=cluster))
    assert store.kept_on(cached.shard_id) is TierKind.SSD
    store.close()


def test_what_was_begun_as_cache_and_finished_for_good_is_kept(plain: TieredStore) -> None:
    shard = sample_shard(4)
    with plain.create_cached(shard.frame) as writer:
        writer.write_chunk(0, shard.sealed(0))
    receive(plain, shard, Durability.DISK)
    assert plain.kept_on(shard.shard_id) is TierKind.SSD


def test_a_deleted_cached_copy_leaves_no_mark(plain: TieredStore) -> None:
    shard = sample_shard(5)
    with plain.create_cached(shard.frame) as writer:
        fill(writer, shard)
        writer.commit()
    plain.delete(shard.shard_id)
    assert plain.disk.cached() == []
    receive(plain, shard, Durability.DISK)
    assert plain.kept_on(shard.shard_id) is TierKind.SSD


def receive_cached(store: TieredStore, shard: SampleShard) -> None:
    with store.create_cached(shard.frame) as writer:
        fill(writer, shard)
        writer.commit()


SLOW = DeviceRates(read_bytes_per_s=1e6, write_bytes_per_s=1e6, sync_s=0.0)


def test_a_copy_from_a_backup_is_cached_on_disk_too(store: TieredStore) -> None:
    near, far, *others = (sample_shard(seed, chunk_sizes=(ARENA_BYTES // 3,)) for seed in range(6))
    store.arena.came_from(far.shard_id, far.frame.stored_bytes, SLOW)
    receive_cached(store, near)
    receive_cached(store, far)
    assert store.tiers_of(near.shard_id) == MEMORY and store.tiers_of(far.shard_id) == BOTH
    with pytest.raises(NotFound, match="not kept here"):
        store.kept_on(far.shard_id)
    for shard in others:
        receive_cached(store, shard)
    assert far.shard_id in [ref.shard_id for ref in store.disk.shards()], "it is not asked of the backup again"
    assert b"".join(read(store, far)) == b"".join(bytes(far.sealed(n)) for n in range(len(far.frame.chunks)))


def test_of_cached_copies_on_disk_the_one_worth_least_gives_way(plain: TieredStore) -> None:
    often, seldom, slow = (sample_shard(seed) for seed in (1, 2, 3))
    for shard in (often, seldom, slow):
        if shard is slow:
            plain.arena.came_from(shard.shard_id, shard.frame.stored_bytes, SLOW)
        receive_cached(plain, shard)
    for _ in range(20):
        plain.open(often.shard_id).close()
    gone = []
    for _ in range(3):
        before = {ref.shard_id for ref in plain.shards()}
        plain._cached.give_way()
        (one,) = before - {ref.shard_id for ref in plain.shards()}
        gone.append(one)
    assert gone[0] == seldom.shard_id and gone[-1] == slow.shard_id
    assert not plain._cached.give_way()


def test_a_cached_copy_displaces_nothing_that_is_worth_more(
    plain: TieredStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    worthy, newcomer, promised = (sample_shard(seed) for seed in (1, 2, 3))
    receive(plain, promised, Durability.DISK)
    for shard in (worthy, newcomer):
        plain.arena.came_from(shard.shard_id, shard.frame.stored_bytes, SLOW)
    receive_cached(plain, worthy)
    for _ in range(20):
        plain.open(worthy.shard_id).close()
    monkeypatch.setattr(policy, "HIGH_WATERMARK", 0.0)  # as if others had filled the disk to its watermark
    assert plain._cached.create_beside(newcomer.frame) is None
    assert {ref.shard_id for ref in plain.shards()} == {worthy.shard_id, promised.shard_id}
    for _ in range(40):
        plain.arena.read(newcomer.shard_id)
    assert plain._cached.create_beside(newcomer.frame) is None, "no room is made, but what is worth less has gone"
    assert {ref.shard_id for ref in plain.shards()} == {promised.shard_id}


def test_a_pinned_copy_stays_in_the_arena_and_on_disk(store: TieredStore) -> None:
    pinned, *others = (sample_shard(seed, chunk_sizes=(ARENA_BYTES // 3,)) for seed in range(6))
    receive_cached(store, pinned)
    assert store.tiers_of(pinned.shard_id) == MEMORY
    store.pin_copy(pinned.shard_id)
    assert store.tiers_of(pinned.shard_id) == BOTH, "the arena does not outlive the process"
    with pytest.raises(NotFound, match="not kept here"):
        store.kept_on(pinned.shard_id)
    for shard in others:
        receive(store, shard, Durability.DISK)
    assert store.tiers_of(pinned.shard_id) == BOTH, "others give way"
    store.disk.tiers[0].reserve_bytes = 1 << 60
    with pytest.raises(NoSpace):
        store.stage(MIB)
    assert store.tiers_of(pinned.shard_id) == BOTH
    assert store.memory is not None
    assert store.memory.victims(ARENA_BYTES - MIB // 64) is None
    store.unpin_copy(pinned.shard_id)
    with pytest.raises(NoSpace):
        store.stage(MIB)
    assert store.tiers_of(pinned.shard_id) == MEMORY
    going = store.memory.victims(ARENA_BYTES - MIB // 64)
    assert pinned.shard_id in [shard_id for shard_id, _ in going or []]


def test_a_pinned_shard_that_is_read_from_disk_takes_the_place_of_others(store: TieredStore) -> None:
    pinned, *others = (sample_shard(seed, chunk_sizes=(ARENA_BYTES // 3,)) for seed in range(4))
    receive(store, pinned, Durability.DISK)
    assert store.memory is not None
    store.memory.delete(pinned.shard_id)
    for shard in others:
        receive(store, shard, Durability.DISK)
        for _ in range(20):
            read(store, shard)
    read(store, pinned)
    assert store.tiers_of(pinned.shard_id) == DISK, "others are read more"
    store.pin_copy(pinned.shard_id)
    read(store, pinned)
    assert store.tiers_of(pinned.shard_id) == BOTH


def test_pins_outlive_a_restart_and_not_their_shard(tmp_path: Path) -> None:
    cluster, (pinned, other, gone) = new_id(), (sample_shard(seed) for seed in (1, 2, 3))
    store = TieredStore(None, DiskTier(tmp_path, cluster_id=cluster))
    for shard in (pinned, other, gone):
        receive_cached(store, shard)
    for shard in (pinned, gone):
        store.pin_copy(shard.shard_id)
    store.delete(gone.shard_id)
    with pytest.raises(NotFound):
        store.pin_copy(gone.shard_id)
    assert store.disk.pinned() == [pinned.shard_id]
    assert [store.is_pinned(shard.shard_id) for shard in (pinned, other, gone)] == [True, False, False]
    store.close()
    store = TieredStore(None, DiskTier(tmp_path, cluster_id=cluster))
    store.disk.tiers[0].reserve_bytes = 1 << 60
    with pytest.raises(NoSpace):
        store.stage(MIB)
    assert [ref.shard_id for ref in store.shards()] == [pinned.shard_id]
    with pytest.raises(NotFound, match="not kept here"):
        store.kept_on(pinned.shard_id)
    store.disk.tiers[0].delete(pinned.shard_id)  # by hand, as it were
    store.close()
    store = TieredStore(None, DiskTier(tmp_path, cluster_id=cluster))
    assert store.disk.pinned() == []
    store.close()
