"""Where shards belong in a node's store: decisions without a disk."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylog.spec import TierKind, Use
from raylog.store.access import AccessHistory
from raylog.store.arena_policy import ArenaPolicy
from raylog.store.device_meter import ERRORS_FAILING, DeviceMeter, DeviceRates
from raylog.store.policy import (
    HIGH_WATERMARK,
    LOW_WATERMARK,
    Disk,
    Stored,
    admits,
    belongs_in_arena,
    choose_disk,
    gives_way,
    is_crowded,
    plan_moves,
    worth,
)
from raylog.units import GIB, MIB

FAST = DeviceRates(read_bytes_per_s=2e9, write_bytes_per_s=1e9, sync_s=0.001)
SLOW = DeviceRates(read_bytes_per_s=150e6, write_bytes_per_s=120e6, sync_s=0.02)


def ssd(free_bytes: int = 90 * GIB, capacity_bytes: int = 100 * GIB, **more: object) -> Disk:
    fields = {"kind": TierKind.SSD, "rates": FAST} | more
    return Disk(capacity_bytes=capacity_bytes, free_bytes=free_bytes, **fields)  # type: ignore[arg-type]


def hdd(free_bytes: int = 90 * GIB, capacity_bytes: int = 100 * GIB, **more: object) -> Disk:
    return ssd(free_bytes, capacity_bytes, kind=TierKind.HDD, rates=SLOW, **more)


def stored(name: str, disk: int, reads: float, stored_bytes: int = GIB, **more: bool) -> Stored:
    return Stored(shard_id=name, disk=disk, stored_bytes=stored_bytes, reads=reads, **more)


def test_half_of_the_arena_at_most() -> None:
    assert belongs_in_arena(50, 100) and not belongs_in_arena(51, 100)


def test_new_shards_go_to_the_fast_disk_and_archives_to_the_slow_one() -> None:
    disks = [hdd(), ssd()]
    assert choose_disk(disks, GIB, Use.DATASET).disk == choose_disk(disks, GIB, Use.CHECKPOINT).disk == 1
    assert choose_disk(disks, GIB, Use.ARCHIVE).disk == 0
    assert "committed soonest, in 1.07 s" in choose_disk(disks, GIB, Use.DATASET).reason


def test_disks_that_are_alike_fill_alike() -> None:
    assert choose_disk([ssd(free_bytes=50 * GIB), ssd(free_bytes=60 * GIB)], GIB, Use.DATASET).disk == 1
    assert choose_disk([ssd(free_bytes=60 * GIB), ssd(free_bytes=50 * GIB)], GIB, Use.DATASET).disk == 0


def test_a_disk_that_is_full_slow_or_failing_is_avoided() -> None:
    assert choose_disk([ssd(free_bytes=5 * GIB), hdd()], GIB, Use.DATASET).disk == 1, "above the high watermark"
    assert choose_disk([ssd(free_bytes=5 * GIB), hdd(free_bytes=0)], GIB, Use.DATASET).disk == 0, "if there is no other"
    slow = choose_disk([ssd(slow="writes 20 MB/s, it was measured at 900"), hdd()], GIB, Use.DATASET)
    assert slow.disk == 1 and "disk 0 is slow (writes 20 MB/s" in slow.reason
    assert choose_disk([ssd(slow="x")], GIB, Use.DATASET).disk == 0
    assert choose_disk([ssd(is_failing=True), hdd()], GIB, Use.DATASET).disk == 1
    none = choose_disk([ssd(is_failing=True), hdd(free_bytes=MIB)], GIB, Use.DATASET)
    assert none.disk is None and none.reason == "2 disks, 1 failing"


def test_the_checkpoints_reserve_is_theirs() -> None:
    disks = [ssd(free_bytes=3 * GIB)]
    assert choose_disk(disks, 2 * GIB, Use.CHECKPOINT, 2 * GIB).disk == 0
    refused = choose_disk(disks, 2 * GIB, Use.DATASET, 2 * GIB)
    assert refused.disk is None and "2.0 GiB of each kept for checkpoints" in refused.reason


def test_a_scan_pushes_out_nothing_that_is_read_again() -> None:
    assert not admits(worth(1, MIB, ssd()), MIB, [(worth(2, MIB, ssd()), MIB)])
    assert admits(worth(3, MIB, ssd()), MIB, [(worth(2, MIB, ssd()), MIB)])
    assert not admits(worth(3, MIB, ssd()), MIB, [(worth(2, MIB, ssd()), MIB)] * 2), "two for one"
    assert admits(worth(1, MIB, hdd()), MIB, [(worth(2, MIB, ssd()), MIB)]), "a slow disk's reads cost more"


def test_moves_off_a_disk_that_became_slow_begin_with_what_is_read_most() -> None:
    plan = plan_moves([ssd(slow="reads 40 MB/s"), ssd()], [stored("a", 0, 1), stored("b", 0, 9), stored("c", 1, 5)], 10)
    assert [(one.shard_id, one.target) for one in plan] == [("b", 1), ("a", 1)]
    assert "disk 0 is slow or fails (reads 40 MB/s)" in plan[0].reason


def test_what_is_read_least_moves_down_until_the_low_watermark() -> None:
    shards = [stored(f"{number:02}", 0, number, 5 * GIB) for number in range(19)]
    plan = plan_moves([ssd(free_bytes=5 * GIB), hdd()], shards, 10)
    assert [one.shard_id for one in plan] == ["00", "01", "02"], "95 % full, 80 % after three of 5 GiB"
    assert all((one.source, one.target) == (0, 1) for one in plan)
    pinned = [stored("00", 0, 0, 5 * GIB, is_pinned=True), *shards[1:]]
    assert "00" not in [one.shard_id for one in plan_moves([ssd(free_bytes=5 * GIB), hdd()], pinned, 10)]


def test_cached_copies_go_from_a_full_disk_and_are_not_moved_down() -> None:
    full, roomy = ssd(free_bytes=5 * GIB), hdd()
    cached = [stored(f"c{n}", 0, reads=float(n), stored_bytes=6 * GIB, is_cached=True) for n in range(4)]
    pinned = stored("p", 0, reads=0.0, is_cached=True, is_pinned=True)
    worths = {one.shard_id: one.reads for one in (*cached, pinned)}
    going = gives_way([full, roomy], [*cached, pinned], worths.__getitem__)
    assert [one.shard_id for one in going] == ["c0", "c1", "c2"], "down to the low watermark, what is worth least first"
    assert gives_way([ssd(free_bytes=11 * GIB), roomy], cached, worths.__getitem__) == []
    assert is_crowded([roomy, full]) and not is_crowded([ssd(free_bytes=11 * GIB), roomy])
    assert plan_moves([full, roomy], cached, 9) == []


def test_what_is_read_often_moves_up_while_there_is_room() -> None:
    shards = [stored("cold", 1, 1), stored("warm", 1, 3), stored("hot", 1, 30)]
    assert [one.shard_id for one in plan_moves([ssd(), hdd()], shards, 10)] == ["hot", "warm"]
    assert plan_moves([ssd(free_bytes=10 * GIB), hdd()], shards, 10) == [], "not above the low watermark"
    assert plan_moves([ssd(), ssd()], [stored("hot", 0, 30)], 10) == [], "the other disk is no faster"


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 100), st.booleans()), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 3), st.floats(0, 50), st.integers(1, 10)), max_size=30),
)
def test_moves_never_overfill_a_disk_nor_go_round_in_circles(
    kinds: list[tuple[bool, int, bool]], shards: list[tuple[int, float, int]]
) -> None:
    disks = [(ssd if fast else hdd)(free_bytes=free * GIB, slow="slow" if slow else "") for fast, free, slow in kinds]
    here = [stored(f"{n:02}", disk % len(disks), reads, size * GIB) for n, (disk, reads, size) in enumerate(shards)]
    plan = plan_moves(disks, here, 100)
    free = [disk.free_bytes for disk in disks]
    for move in plan:
        assert move.source != move.target and not disks[move.target].slow
        free[move.target] -= move.stored_bytes
        free[move.source] += move.stored_bytes
    assert all(left >= 0 for left in free)
    assert len({move.shard_id for move in plan}) == len(plan)
    where = {move.shard_id: move.target for move in plan}
    after = [Disk(kind=d.kind, capacity_bytes=d.capacity_bytes, free_bytes=f, rates=d.rates, slow=d.slow)
             for d, f in zip(disks, free, strict=True)]  # fmt: skip
    settled = [
        Stored(shard_id=s.shard_id, disk=where.get(s.shard_id, s.disk), stored_bytes=s.stored_bytes, reads=s.reads)
        for s in here
    ]
    back = {move.shard_id: move.target for move in plan_moves(after, settled, 100)}
    sources = {move.shard_id: move.source for move in plan}
    assert not [one for one, target in back.items() if sources.get(one) == target], "nothing goes straight back"


def test_counts_fade_and_the_least_read_are_forgotten() -> None:
    history = AccessHistory(half_life_s=10, shards_max=10)
    for _ in range(4):
        history.touch("a", 0)
    assert history.count("a", 0) == 4 and history.count("a", 10) == pytest.approx(2)
    for number in range(20):
        history.touch(f"{number}", 0)
    assert history.count("a", 0) == 4
    assert sum(history.count(f"{number}", 0) for number in range(20)) <= 9, "ten are remembered"
    history.forget("a")
    assert history.count("a", 0) == 0


def test_a_device_that_slows_down_is_noticed_and_forgiven() -> None:
    meter = DeviceMeter(measured=FAST)
    assert (meter.rates, meter.slow) == (FAST, "")
    for _ in range(64):
        meter.read(MIB, MIB / 2e9)
    assert meter.slow == "" and meter.rates.read_bytes_per_s == pytest.approx(2e9)
    for _ in range(64):
        meter.read(MIB, MIB / 50e6)
    assert meter.slow.startswith("reads take ") and meter.slow.endswith(" times as long as measured")
    for _ in range(256):
        meter.read(MIB, MIB / 2e9)
    assert meter.slow == ""
    for _ in range(64):
        meter.wrote(MIB, MIB / 10e6, 0.05)
    assert meter.slow.startswith("writes take ")
    counters = meter.counters
    assert (counters.reads, counters.writes, counters.written_bytes) == (384, 64, 64 * MIB)
    assert counters.sync_s == pytest.approx(3.2)


def test_a_device_that_refuses_again_and_again_fails() -> None:
    meter = DeviceMeter()
    for _ in range(ERRORS_FAILING - 1):
        meter.failed()
    assert not meter.is_failing
    meter.failed()
    assert meter.is_failing and meter.counters.errors == ERRORS_FAILING
    meter.read(1, 0.001)
    assert not meter.is_failing


def test_the_arena_keeps_what_is_read_again() -> None:
    now_s = [0.0]
    policy = ArenaPolicy(lambda: now_s[0])
    for name, reads in (("often", 9), ("once", 1)):
        for _ in range(reads):
            policy.read(name)
        policy.lies_on(name, MIB, TierKind.SSD, FAST)
    assert policy.worth("often") == pytest.approx(9 * policy.worth("once"))
    assert policy.admits("often", MIB, [("once", MIB)]) and not policy.admits("once", MIB, [("often", MIB)])
    assert policy.admits("once", MIB, []) and not policy.admits("often", MIB, None)
    assert policy.rank("often") > policy.rank("once") > policy.rank("never")
    now_s[0] = 1e6
    policy.read("once")
    assert policy.rank("once") > policy.rank("often")
    assert policy.admits("once", MIB, [("often", MIB)]), "what was read often long ago gives way"
    policy.forget("once")
    assert policy.reads("once") == 0


def test_watermarks_are_in_order() -> None:
    assert 0 < LOW_WATERMARK < HIGH_WATERMARK < 1
