"""A node's disks: opened as the settings name them, measured, and shards moved between them as the policy says."""

import logging
import threading
import time

from raylog.actors.slot import Slot
from raylog.errors import RaylogError
from raylog.monitor.samples import DeviceSample, TierSample
from raylog.settings import Settings
from raylog.spec import TierKind
from raylog.store.device import device_kind
from raylog.store.device_meter import DeviceMeter
from raylog.store.disk import DiskTier
from raylog.store.disks import Disks
from raylog.store.filling import Filling
from raylog.store.memory import MemoryTier
from raylog.store.policy import Stored, gives_way, is_crowded, plan_moves
from raylog.store.tier import Tier
from raylog.store.tiered import TieredStore

log = logging.getLogger("raylog.tiers")
ROUND_S = 30.0
MOVES_PER_ROUND = 8


def open_disks(slot: Slot, cluster_id: str, settings: Settings) -> Disks:
    """The node's own disk tier, and one in a folder of this node's on every disk that the settings name. One of those
    that cannot be opened is left out and said: what lay on it is made again from elsewhere."""
    reserve_bytes = settings.disk_reserve_bytes
    own = DiskTier(slot.path / "tier", cluster_id=cluster_id, kind=device_kind(slot.path), reserve_bytes=reserve_bytes)
    tiers = [own]
    for path in settings.disk_paths:
        directory = path / f"raylog-{slot.node_id()}"
        try:
            tiers.append(
                DiskTier(directory, cluster_id=cluster_id, kind=device_kind(path), reserve_bytes=reserve_bytes)
            )
        except (RaylogError, OSError) as error:
            log.error("disk %s is left out: %s", path, error)
    return Disks(tiers, settings.checkpoint_reserve_bytes)


class Tiering:
    """A thread of the node actor: measures the disks once, then looks every half minute what is better kept
    elsewhere."""

    def __init__(self, store: TieredStore) -> None:
        self._store = store
        self._filling: dict[str, Filling] = {}
        self._stop = threading.Event()
        threading.Thread(target=self._run, name="tiering", daemon=True).start()

    def close(self) -> None:
        """No other move begins."""
        self._stop.set()

    def measure(self) -> None:
        """Tries what each disk can do. One that refuses is said, and goes on as it was."""
        for tier in self._store.disk.tiers:
            try:
                tier.measure()
            except RaylogError as error:
                log.warning("%s was not measured: %s", tier.directory, error)
                continue
            rates = tier.meter.rates if tier.meter.measured is None else tier.meter.measured
            log.info(
                "%s (%s): reads %.0f MB/s, writes %.0f MB/s, fsync %.1f ms",
                tier.directory, tier.kind, rates.read_bytes_per_s / 1e6, rates.write_bytes_per_s / 1e6,
                rates.sync_s * 1e3,
            )  # fmt: skip

    def samples(self) -> list[TierSample]:
        """Every tier now."""
        return [self._sample(tier) for tier in self._store.tiers]

    def _sample(self, tier: Tier) -> TierSample:
        path = str(tier.path if isinstance(tier, MemoryTier) else getattr(tier, "directory", ""))
        try:
            capacity_bytes, free_bytes, shards = tier.capacity_bytes, tier.free_bytes, len(tier.shards())
        except RaylogError:
            capacity_bytes = free_bytes = shards = 0  # its device answers nothing: `problem` says so
        filling = self._filling.setdefault(path, Filling())
        filling.add(time.monotonic(), free_bytes)
        return TierSample(
            kind=tier.kind,
            path=path,
            capacity_bytes=capacity_bytes,
            free_bytes=free_bytes,
            shards=shards,
            days_to_full=None if tier.kind is TierKind.MEMORY else filling.days_to_full(free_bytes),
            device=device_sample(tier.meter) if isinstance(tier, DiskTier) else None,
        )

    def _run(self) -> None:
        self.measure()
        while not self._stop.wait(ROUND_S):
            try:
                self._move()
            except RaylogError as error:
                log.warning("tiers go on in a moment: %s", error)
            except Exception:
                log.exception("tiering failed, trying again")

    def _move(self) -> None:
        disks = self._store.disk
        for tier in disks.tiers:
            if tier.meter.slow:  # seen to be slow: is it, or was much asked of it at once?
                tier.measure()
        if len(disks.tiers) < 2 and not is_crowded(disks.states()):
            return  # and nothing is listed
        numbers = {tier: number for number, tier in enumerate(disks.tiers)}
        stored = []
        for ref in disks.shards():
            holder = disks.holder(ref.shard_id)
            if holder is not None:
                one = Stored(
                    shard_id=ref.shard_id,
                    disk=numbers[holder],
                    stored_bytes=ref.stored_bytes,
                    reads=self._store.arena.reads(ref.shard_id),
                    is_pinned=self._store.is_pinned(ref.shard_id),
                    is_cached=self._store.is_cached(ref.shard_id),
                )
                stored.append(one)
        going = gives_way(disks.states(), [one for one in stored if one.is_cached], self._store.arena.worth_on_disk)
        for one in going:
            self._store.drop_cached(one.shard_id)
        staying = [one for one in stored if one not in going]
        for move in plan_moves(disks.states(), staying, MOVES_PER_ROUND):
            if self._stop.is_set():
                return
            target = disks.tiers[move.target]
            try:
                disks.move(move.shard_id, target)
                log.info("shard %s was moved to %s: %s", move.shard_id, target.directory, move.reason)
            except RaylogError as error:
                log.warning("shard %s stays where it is: %s", move.shard_id, error)


def device_sample(meter: DeviceMeter) -> DeviceSample:
    measured, now, counters = meter.measured, meter.rates, meter.counters
    return DeviceSample(
        measured_read_bytes_per_s=measured.read_bytes_per_s if measured else None,
        measured_write_bytes_per_s=measured.write_bytes_per_s if measured else None,
        measured_sync_s=measured.sync_s if measured else None,
        read_bytes_per_s=now.read_bytes_per_s,
        write_bytes_per_s=now.write_bytes_per_s,
        sync_s=now.sync_s,
        reads=counters.reads,
        read_bytes=counters.read_bytes,
        read_s=counters.read_s,
        writes=counters.writes,
        written_bytes=counters.written_bytes,
        write_s=counters.write_s,
        syncs=counters.syncs,
        synced_s=counters.sync_s,
        errors=counters.errors,
        problem="failing" if meter.is_failing else meter.slow,
    )
