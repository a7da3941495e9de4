"""The power goes at every point of a disk tier's work: whatever reached the disk, the tier opens, and every shard that
was acknowledged is there, whole."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from raylog.errors import DamagedData
from raylog.spec import new_id
from raylog.store.disk import DiskTier
from raylog.store.disks import Disks
from raylog.testing.power_cut import Event, Said, SyncFile, SyncNames, Trace, Write, states
from raylog.testing.shards import sample_shard
from raylog.testing.tier_contract import fill, read_all, store

CLUSTER = new_id()
RANDOM_STATES = 6  # at every point, beside the four regular ones
RECEIVED, RESUMED, STAGED, DELETED, REPAIRED, CACHED = (
    sample_shard(seed, (64, 5000, 4096, 17, 3000), shard_id=f"{seed:02x}" * 16) for seed in range(1, 7)
)
DAMAGED_CHUNK = 1


SHARDS = {shard.shard_id: shard for shard in (RECEIVED, RESUMED, STAGED, DELETED, REPAIRED, CACHED)}


@dataclass(frozen=True)
class Stored:
    shard_id: str


@dataclass(frozen=True)
class Leaving:
    """It is being taken away: there or not."""

    shard_id: str


@dataclass(frozen=True)
class Gone:
    shard_id: str


@dataclass(frozen=True)
class Mended:
    shard_id: str


@dataclass(frozen=True)
class Kept:
    """A copy that was cached until then is promised now."""

    shard_id: str


def work(tier: DiskTier, trace: Trace) -> None:
    """Everything that a disk tier does to its files."""
    for shard in (RECEIVED, DELETED, REPAIRED):
        store(tier, shard)
        trace.say(Stored(shard.shard_id))
    with tier.create(RESUMED.frame) as writer:
        writer.write_chunk(0, RESUMED.sealed(0))
        writer.write_chunk(2, RESUMED.sealed(2))
    staging = tier.stage(len(STAGED.file))
    os.pwrite(staging.descriptor, STAGED.file, 0)
    tier.adopt(staging.stage_id, STAGED.frame)
    trace.say(Stored(STAGED.shard_id))
    trace.say(Leaving(DELETED.shard_id))
    tier.delete(DELETED.shard_id)
    trace.say(Gone(DELETED.shard_id))
    store(tier, RESUMED)
    trace.say(Stored(RESUMED.shard_id))
    tier.discard(tier.stage(100).stage_id)
    tier.mark_cached(CACHED.shard_id)
    store(tier, CACHED)
    tier.mark_kept(CACHED.shard_id)
    trace.say(Kept(CACHED.shard_id))
    tier.replace_chunk(REPAIRED.shard_id, DAMAGED_CHUNK, REPAIRED.sealed(DAMAGED_CHUNK))
    trace.say(Mended(REPAIRED.shard_id))
    trace.say(Leaving(RECEIVED.shard_id))
    tier.quarantine(RECEIVED.shard_id)
    trace.say(Gone(RECEIVED.shard_id))
    store(tier, RECEIVED)
    trace.say(Stored(RECEIVED.shard_id))


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> list[Event]:
    """The trace of all that work; the chunk to be repaired is made bad where it was first written."""
    root = tmp_path_factory.mktemp("power") / "tier"
    trace = Trace(root)
    with trace.recording():
        tier = DiskTier(root, cluster_id=CLUSTER)
        work(tier, trace)
        tier.close()
    bad = next(
        index
        for index, event in enumerate(trace.events)
        if isinstance(event, Write) and event.data == REPAIRED.chunks[DAMAGED_CHUNK]
    )
    before = trace.events[bad]
    assert isinstance(before, Write)
    trace.events[bad] = Write(before.file, before.offset, before.data[:-1] + bytes([before.data[-1] ^ 1]))
    return trace.events


def standing(events: list[Event]) -> set[str]:
    """Shards that have been acknowledged and of which nobody has begun to take them away."""
    found = set()
    for event in events:
        match event:
            case Said(Stored(shard_id) | Kept(shard_id)):
                found.add(shard_id)
            case Said(Leaving(shard_id)):
                found.discard(shard_id)
    return found


def check(tier: DiskTier, events: list[Event]) -> None:
    said = [event.what for event in events if isinstance(event, Said)]
    listed = {ref.shard_id for ref in tier.shards()}
    assert standing(events) <= listed
    match events[-1:]:
        case [Said(Gone(shard_id))]:
            assert shard_id not in listed
    if Kept(CACHED.shard_id) in said:
        assert tier.cached() == []
    for shard_id in listed:
        with tier.open(shard_id) as reader:
            for number, sealed in enumerate(SHARDS[shard_id].chunks):
                may_be_bad = (shard_id, number) == (REPAIRED.shard_id, DAMAGED_CHUNK) and Mended(shard_id) not in said
                try:
                    is_right = bytes(reader.chunk(number)) == sealed
                except DamagedData:
                    is_right = False
                    assert may_be_bad, f"chunk {number} of {shard_id} is damaged"
                assert is_right or may_be_bad


def test_every_prefix_leaves_a_tier_with_all_that_was_acknowledged(events: list[Event], tmp_path: Path) -> None:
    looked_at = 0
    for end in range(len(events) + 1):
        for number, left in enumerate(states(events[:end], seed=end, random_states=RANDOM_STATES)):
            root = tmp_path / f"{end}-{number}"
            left.write(root)
            tier = DiskTier(root, cluster_id=CLUSTER)
            try:
                check(tier, events[:end])
                if RESUMED.shard_id not in {ref.shard_id for ref in tier.shards()}:
                    with tier.create(RESUMED.frame) as writer:  # whatever a writer left is no obstacle
                        fill(writer, RESUMED)
                        writer.commit()
                with tier.open(RESUMED.shard_id) as reader:
                    assert read_all(reader) == RESUMED.chunks
            except Exception as error:
                error.add_note(f"after {end} of {len(events)} events, state {number}: {str(events[:end][-1:])[:200]}")
                raise
            finally:
                tier.close()
            looked_at += 1
    print(f"{looked_at} states after {len(events)} events")
    assert looked_at == (len(events) + 1) * (4 + RANDOM_STATES)


@pytest.mark.parametrize("kind", [SyncFile, SyncNames])
def test_the_model_finds_a_missing_fsync(events: list[Event], tmp_path: Path, kind: type[Event]) -> None:
    """With one fsync left out, some state loses an acknowledged shard: the check can fail."""
    last = max(index for index, event in enumerate(events) if isinstance(event, kind))
    careless = events[:last] + events[last + 1 :]
    with pytest.raises((AssertionError, DamagedData)):
        for number, left in enumerate(states(careless, seed=1, random_states=RANDOM_STATES)):
            left.write(tmp_path / str(number))
            tier = DiskTier(tmp_path / str(number), cluster_id=CLUSTER)
            try:
                check(tier, careless)
            finally:
                tier.close()


MOVED, LEAVES, PASSING = (sample_shard(seed, (64, 5000, 17), shard_id=f"{seed:02x}" * 16) for seed in range(11, 14))


def disks_in(top: Path) -> Disks:
    return Disks([DiskTier(top / name, cluster_id=CLUSTER) for name in ("fast", "slow")])


def move_about(disks: Disks, trace: Trace) -> None:
    """There and back, a cached copy too, and one that is deleted afterwards."""
    fast, slow = disks.tiers
    for shard in (MOVED, LEAVES):
        store(fast, shard)
        trace.say(Stored(shard.shard_id))
    fast.mark_cached(PASSING.shard_id)
    store(fast, PASSING)
    for shard in (MOVED, LEAVES, PASSING):
        disks.move(shard.shard_id, slow)
        trace.say(Stored(shard.shard_id) if shard is not PASSING else shard.shard_id)
    disks.move(MOVED.shard_id, fast)
    trace.say(Stored(MOVED.shard_id))
    trace.say(Leaving(LEAVES.shard_id))
    disks.delete(LEAVES.shard_id)
    trace.say(Gone(LEAVES.shard_id))


def test_a_move_between_disks_loses_nothing_at_any_point(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "traced")
    with trace.recording():
        disks = disks_in(tmp_path / "traced")
        move_about(disks, trace)
        disks.close()
    shards = {shard.shard_id: shard for shard in (MOVED, LEAVES, PASSING)}
    looked_at = 0
    for end in range(len(trace.events) + 1):
        events = trace.events[:end]
        for number, left in enumerate(states(events, seed=end, random_states=RANDOM_STATES)):
            top = tmp_path / f"{end}-{number}"
            left.write(top)
            disks = disks_in(top)
            try:
                listed = {ref.shard_id for ref in disks.shards()}
                assert standing(events) <= listed
                assert PASSING.shard_id not in listed or PASSING.shard_id in disks.cached(), "it is promised to nobody"
                if events and events[-1] == Said(Gone(LEAVES.shard_id)):
                    assert LEAVES.shard_id not in listed
                for shard_id in listed:
                    with disks.open(shard_id) as reader:
                        assert read_all(reader) == shards[shard_id].chunks
                    disks.move(shard_id, disks.tiers[1])  # whatever a move left is no obstacle to the next
                    assert [tier.holds(shard_id) for tier in disks.tiers] == [False, True]
            except Exception as error:
                error.add_note(f"after {end} of {len(trace.events)} events, state {number}: {str(events[-1:])[:200]}")
                raise
            finally:
                disks.close()
            looked_at += 1
    print(f"{looked_at} states after {len(trace.events)} events")
    assert looked_at == (len(trace.events) + 1) * (4 + RANDOM_STATES)
