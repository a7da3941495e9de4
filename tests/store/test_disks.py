"""Several disks as one: where shards go and lie, moving them, and disks that are full, fail or come back."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from raylog.errors import Conflict, NoSpace, NotFound, Unavailable
from raylog.spec import Durability, TierKind, Use, new_id
from raylog.store.device_meter import DeviceRates
from raylog.store.disk import DiskTier
from raylog.store.disks import Disks
from raylog.store.measure import measure
from raylog.store.tiered import TieredStore
from raylog.testing.shards import SampleShard, sample_shard
from raylog.testing.tier_contract import fill, read_all
from raylog.units import MIB

CLUSTER = new_id()
FAST = DeviceRates(read_bytes_per_s=2e9, write_bytes_per_s=1e9, sync_s=0.001)
SLOW = DeviceRates(read_bytes_per_s=150e6, write_bytes_per_s=120e6, sync_s=0.02)


def open_disks(folder: Path) -> Disks:
    slow = DiskTier(folder / "slow", cluster_id=CLUSTER, kind=TierKind.HDD)
    fast = DiskTier(folder / "fast", cluster_id=CLUSTER)
    slow.meter.measured, fast.meter.measured = SLOW, FAST
    return Disks([slow, fast])


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[Disks]:
    found = open_disks(tmp_path)
    yield found
    found.close()


def put(store: Disks, shard: SampleShard, use: Use = Use.DATASET) -> None:
    with store.create(shard.frame, use) as writer:
        fill(writer, shard)
        writer.commit()


def test_each_use_has_its_disk(disks: Disks) -> None:
    slow, fast = disks.tiers
    hot, cold = sample_shard(1), sample_shard(2)
    put(disks, hot)
    put(disks, cold, Use.ARCHIVE)
    assert fast.holds(hot.shard_id) and slow.holds(cold.shard_id)
    assert (disks.kind_of(hot.shard_id), disks.kind_of(cold.shard_id)) == (TierKind.SSD, TierKind.HDD)
    assert {ref.shard_id for ref in disks.shards()} == {hot.shard_id, cold.shard_id}
    with disks.open(cold.shard_id) as reader:
        assert read_all(reader) == cold.chunks
    with pytest.raises(Conflict):
        disks.create(cold.frame)
    disks.delete(cold.shard_id)
    for name in (cold.shard_id, new_id()):
        with pytest.raises(NotFound):
            disks.open(name)
        with pytest.raises(NotFound):
            disks.delete(name)


def test_a_move_is_seen_by_nobody(disks: Disks) -> None:
    slow, fast = disks.tiers
    shard = sample_shard(3)
    put(disks, shard)
    with disks.open(shard.shard_id) as before:
        assert disks.move(shard.shard_id, slow) == shard.frame.stored_bytes
        assert not fast.holds(shard.shard_id) and slow.holds(shard.shard_id)
        assert read_all(before) == shard.chunks, "whoever read it there reads on"
    with disks.open(shard.shard_id) as after:
        assert read_all(after) == shard.chunks
    assert disks.move(shard.shard_id, slow) == 0
    with pytest.raises(NotFound):
        disks.move(new_id(), slow)


def test_a_move_that_was_cut_off_is_finished(disks: Disks, tmp_path: Path) -> None:
    slow, fast = disks.tiers
    shard = sample_shard(4)
    put(disks, shard)
    with slow.create(shard.frame) as writer:  # as if the process had ended between the commit and the deletion
        fill(writer, shard)
        writer.commit()
    assert [ref.shard_id for ref in disks.shards()] == [shard.shard_id]
    assert disks.holder(shard.shard_id) is fast
    disks.close()
    again = open_disks(tmp_path)
    again.move(shard.shard_id, again.tiers[0])
    assert not again.tiers[1].holds(shard.shard_id) and again.tiers[0].holds(shard.shard_id)
    again.close()


def test_a_move_without_room_leaves_it_where_it_was(disks: Disks) -> None:
    slow, fast = disks.tiers
    shard = sample_shard(5)
    put(disks, shard)
    slow.reserve_bytes = 1 << 60
    with pytest.raises(NoSpace):
        disks.move(shard.shard_id, slow)
    with fast.open(shard.shard_id) as reader:
        assert read_all(reader) == shard.chunks


def test_a_cached_copy_stays_one_when_it_moves(disks: Disks) -> None:
    slow, fast = disks.tiers
    store = TieredStore(None, disks)
    shard = sample_shard(6)
    with store.create_cached(shard.frame) as writer:
        fill(writer, shard)
        writer.commit()
    assert fast.is_cached(shard.shard_id)
    disks.move(shard.shard_id, slow)
    assert slow.is_cached(shard.shard_id) and not fast.is_cached(shard.shard_id)
    with pytest.raises(NotFound, match="not kept"):
        store.kept_on(shard.shard_id)
    store.keep(shard.shard_id, Durability.DISK)
    assert store.kept_on(shard.shard_id) is TierKind.HDD


def test_a_partial_is_resumed_where_it_lies(disks: Disks) -> None:
    slow, fast = disks.tiers
    shard = sample_shard(7)
    with disks.create(shard.frame, Use.ARCHIVE) as writer:
        writer.write_chunk(1, shard.sealed(1))
    with disks.create(shard.frame) as writer:
        assert writer.missing() == [(0, 1), (2, 2)]
        fill(writer, shard)
        writer.commit()
    assert slow.holds(shard.shard_id) and not fast.holds(shard.shard_id)


def test_a_shard_of_which_an_earlier_writer_left_everything(disks: Disks) -> None:
    shard = sample_shard(12)
    with disks.create(shard.frame) as writer:
        fill(writer, shard)
    with disks.create(shard.frame) as writer:
        assert writer.missing() == []
        writer.commit()
    with disks.open(shard.shard_id) as reader:
        assert read_all(reader) == shard.chunks


def test_a_full_disk_makes_way_for_another(disks: Disks) -> None:
    slow, fast = disks.tiers
    fast.reserve_bytes = 1 << 60
    shard = sample_shard(8)
    put(disks, shard)
    assert slow.holds(shard.shard_id)
    slow.reserve_bytes = 1 << 60
    with pytest.raises(NoSpace):
        disks.create(sample_shard(9).frame)
    with pytest.raises(NoSpace):
        disks.stage(MIB)


def test_a_disk_that_cannot_be_written_is_passed_over(disks: Disks, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, fast = disks.tiers
    fast.meter.measured = DeviceRates(
        read_bytes_per_s=2e9, write_bytes_per_s=1e12, sync_s=0.0
    )  # always the first choice
    refused = []

    def refuse(*arguments: object) -> None:
        refused.append(arguments)
        fast.meter.failed()
        raise Unavailable("read-only")

    monkeypatch.setattr(fast, "create", refuse)
    for number in range(5):
        put(disks, sample_shard(20 + number))
    assert len(slow.shards()) == 5
    assert len(refused) == 3, "then it is failing, and not tried any more"
    assert disks.states()[1].is_failing


def test_staging_is_adopted_where_it_was_begun(disks: Disks) -> None:
    slow, _ = disks.tiers
    store, shard = TieredStore(None, disks), sample_shard(10)
    staging = store.stage(len(shard.file), Use.ARCHIVE)
    os.pwrite(staging.descriptor, shard.file, 0)
    store.adopt(staging.stage_id, shard.frame.digest, Durability.DISK)
    assert slow.holds(shard.shard_id)
    other = store.stage(100)
    store.discard(other.stage_id)
    store.discard(other.stage_id)


def test_what_a_device_does_is_measured(tmp_path: Path) -> None:
    rates = measure(tmp_path, 8 * MIB)
    assert rates.read_bytes_per_s > 1e6 and rates.write_bytes_per_s > 1e6 and 0 < rates.sync_s < 5
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(Unavailable):
        measure(tmp_path / "nowhere")


def test_reads_and_writes_are_counted(disks: Disks) -> None:
    _, fast = disks.tiers
    shard = sample_shard(11)
    put(disks, shard)
    with disks.open(shard.shard_id) as reader:
        read_all(reader)
    counters = fast.meter.counters
    assert counters.written_bytes == counters.read_bytes == sum(map(len, shard.chunks))
    assert (counters.writes, counters.reads, counters.syncs, counters.errors) == (1, len(shard.chunks), 1, 0)
