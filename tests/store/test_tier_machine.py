"""Random histories of both tiers against a plain model: what is committed is there, what is read is right."""

import itertools
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from raylog.errors import Conflict, NoSpace, NotFound
from raylog.spec import new_id
from raylog.store.disk import DiskTier
from raylog.store.memory import MemoryTier
from raylog.testing.shards import SampleShard, sample_shard

SHARDS = [sample_shard(seed, chunk_sizes=(16 + 700 * seed, 3000, 40)) for seed in range(8)]
ARENA_PAGES = 16


class TierMachine(RuleBasedStateMachine):
    """Writers and readers overlap in every way; subclasses say what a restart keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.committed: dict[str, SampleShard] = {}
        self.partial: dict[str, set[int]] = {}
        self.writers: dict[str, object] = {}
        self.readers: list[tuple[SampleShard, object]] = []
        self.views: list[tuple[bytes, memoryview]] = []

    def may_lack_room(self, shard: SampleShard) -> bool:
        return False

    @rule(shard=st.sampled_from(SHARDS))
    def begin(self, shard: SampleShard) -> None:
        try:
            writer = self.tier.create(shard.frame)
        except Conflict:
            assert shard.shard_id in self.committed or shard.shard_id in self.writers
            return
        except NoSpace:
            assert self.may_lack_room(shard)
            return
        assert shard.shard_id not in self.committed and shard.shard_id not in self.writers
        here = set(range(3)) - {n for first, count in writer.missing() for n in range(first, first + count)}
        known = self.partial.get(shard.shard_id, set())
        assert here == known or (not here and self.may_lack_room(shard))
        self.partial[shard.shard_id] = here
        self.writers[shard.shard_id] = writer

    @rule(data=st.data(), number=st.integers(0, 2), is_direct=st.booleans())
    def write(self, data, number: int, is_direct: bool) -> None:
        shard = self.pick_writer(data)
        if shard is None:
            return
        writer = self.writers[shard.shard_id]
        buffer = writer.chunk_buffer(number) if is_direct else None
        if buffer is None:
            writer.write_chunk(number, shard.sealed(number))
        else:
            buffer[:] = shard.chunks[number]
            writer.commit_chunk(number)
        self.partial[shard.shard_id].add(number)

    @rule(data=st.data(), how=st.sampled_from(["commit", "close", "abort"]))
    def end(self, data, how: str) -> None:
        shard = self.pick_writer(data)
        if shard is None or (how == "commit" and len(self.partial[shard.shard_id]) < 3):
            return
        getattr(self.writers.pop(shard.shard_id), how)()
        if how == "commit":
            self.committed[shard.shard_id] = shard
        if how != "close":
            del self.partial[shard.shard_id]

    def pick_writer(self, data) -> SampleShard | None:
        writing = [shard for shard in SHARDS if shard.shard_id in self.writers]
        return data.draw(st.sampled_from(writing)) if writing else None

    @rule(shard=st.sampled_from(SHARDS))
    def open(self, shard: SampleShard) -> None:
        try:
            self.readers.append((shard, self.tier.open(shard.shard_id)))
            assert shard.shard_id in self.committed
        except NotFound:
            assert shard.shard_id not in self.committed

    @rule(number=st.integers(0, 2), which=st.integers(0, 99), keep=st.booleans())
    def read(self, number: int, which: int, keep: bool) -> None:
        if self.readers:
            shard, reader = self.readers[which % len(self.readers)]
            view = reader.chunk(number)
            assert view == shard.chunks[number]
            if keep:
                self.views.append((shard.chunks[number], view))

    @rule(which=st.integers(0, 99))
    def close_reader(self, which: int) -> None:
        if self.readers:
            self.readers.pop(which % len(self.readers))[1].close()

    @rule()
    def drop_views(self) -> None:
        self.views.clear()

    @rule(shard=st.sampled_from(SHARDS), how=st.sampled_from(["delete", "quarantine"]))
    def remove(self, shard: SampleShard, how: str) -> None:
        if shard.shard_id in self.committed:
            getattr(self.tier, how)(shard.shard_id)
            del self.committed[shard.shard_id]

    @invariant()
    def committed_shards_are_listed_and_views_are_right(self) -> None:
        assert {ref.shard_id for ref in self.tier.shards()} == set(self.committed)
        assert all(view == expected for expected, view in self.views)

    def teardown(self) -> None:
        for writer in self.writers.values():
            writer.close()
        for _, reader in self.readers:
            reader.close()
        self.views.clear()
        self.tier.close()


class MemoryMachine(TierMachine):
    def __init__(self) -> None:
        super().__init__()
        self.tier = MemoryTier(Path(f"/dev/shm/raylog-test-{new_id()}"), ARENA_PAGES * 4096)

    def may_lack_room(self, shard: SampleShard) -> bool:
        # Idle partials give way, so a known partial may be gone too, and its chunks with it.
        for shard_id in [shard_id for shard_id in self.partial if shard_id not in self.writers]:
            held = self.tier._shards.get(shard_id)
            if held is None:
                self.partial[shard_id] = set()
        return True

    @invariant()
    def no_byte_is_lost(self) -> None:
        """Free and taken extents together are the arena, and do not overlap."""
        with self.tier._lock:
            self.tier._collect()
            taken = [held.extent for held in self.tier._live.values()]
            extents = sorted([*taken, *self.tier._free.extents()], key=lambda extent: extent.offset)
        assert extents[0].offset == 0 and extents[-1].end == ARENA_PAGES * 4096
        assert all(left.end == right.offset for left, right in itertools.pairwise(extents))


class DiskMachine(TierMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="raylog-test-"))
        self.cluster_id = new_id()
        self.tier = DiskTier(self.directory, cluster_id=self.cluster_id)

    @rule()
    def restart(self) -> None:
        """What a new process finds. Writers of the old one are simply gone; their chunks are on the disk."""
        for writer in self.writers.values():
            writer.close()
        self.writers.clear()
        self.tier.close()
        self.tier = DiskTier(self.directory, cluster_id=self.cluster_id)

    def teardown(self) -> None:
        super().teardown()
        shutil.rmtree(self.directory)


limits = settings(max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
TestMemoryMachine = MemoryMachine.TestCase
TestMemoryMachine.settings = limits
TestDiskMachine = DiskMachine.TestCase
TestDiskMachine.settings = limits
