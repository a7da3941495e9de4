"""The contract suite over both tiers, and the tiers' own promises beyond it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from raylog.spec import TierKind, new_id
from raylog.store.disk import DiskTier
from raylog.store.memory import MemoryTier
from raylog.store.tier import Tier
from raylog.testing.shards import SampleShard, sample_shard
from raylog.testing.tier_contract import TierContract
from raylog.units import MIB


class TestMemoryTier(TierContract):
    @pytest.fixture
    def tier(self) -> Iterator[MemoryTier]:
        tier = MemoryTier(Path(f"/dev/shm/raylog-test-{new_id()}"), MIB)
        yield tier
        tier.close()

    def overwrite(self, tier: Tier, shard_id: str, offset: int, data: bytes) -> None:
        assert isinstance(tier, MemoryTier)
        pin = tier.pin(shard_id)
        descriptor = os.open(tier.path, os.O_RDWR)
        os.pwrite(descriptor, data, pin.offset + offset)
        os.close(descriptor)
        pin.close()

    def oversized(self, tier: Tier) -> SampleShard:
        return sample_shard(99, chunk_sizes=(MIB, MIB))


class TestDiskTier(TierContract):
    @pytest.fixture
    def tier(self, tmp_path: Path) -> Iterator[DiskTier]:
        tier = DiskTier(tmp_path, cluster_id=new_id(), kind=TierKind.SSD)
        yield tier
        tier.close()

    def overwrite(self, tier: Tier, shard_id: str, offset: int, data: bytes) -> None:
        assert isinstance(tier, DiskTier)
        descriptor = os.open(tier.directory / "shards" / shard_id[:2] / shard_id, os.O_RDWR)
        os.pwrite(descriptor, data, offset)
        os.close(descriptor)

    def oversized(self, tier: Tier) -> SampleShard:
        assert isinstance(tier, DiskTier)
        tier.reserve_bytes = tier.free_bytes + (1 << 50)
        return sample_shard(99)
