"""The disk tier: whose directory it is, what damage it detects, and what a full or killed machine leaves."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raylog.errors import Conflict, DamagedData, NoSpace, NotFound, RaylogError, Unavailable, UsageError
from raylog.spec import new_id
from raylog.store.disk import DiskTier
from raylog.store.files import storage_errors
from raylog.testing.shards import SampleShard, sample_shard
from raylog.testing.tier_contract import fill, read_all, store
from raylog.units import MIB

CLUSTER = new_id()


@pytest.fixture
def tier(tmp_path: Path) -> Iterator[DiskTier]:
    tier = DiskTier(tmp_path / "tier", cluster_id=CLUSTER)
    yield tier
    tier.close()


def files_in(directory: Path) -> list[str]:
    kept = ("tier.json", "lock")
    return sorted(
        str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file() and path.name not in kept
    )


def path_of(tier: DiskTier, shard: SampleShard) -> Path:
    return tier.directory / "shards" / shard.shard_id[:2] / shard.shard_id


# Whose directory it is


def test_a_directory_of_another_cluster_is_refused_by_name(tier: DiskTier) -> None:
    tier.close()
    other = new_id()
    with pytest.raises(UsageError, match=f"belongs to cluster '{CLUSTER}', not to '{other}'"):
        DiskTier(tier.directory, cluster_id=other)


def test_a_directory_of_another_format_is_refused_by_name(tier: DiskTier) -> None:
    tier.close()
    marker = tier.directory / "tier.json"
    marker.write_text(marker.read_text().replace('format":1', 'format":7'))
    with pytest.raises(UsageError, match="expected tier format version 1, got 7"):
        DiskTier(tier.directory, cluster_id=CLUSTER)
    marker.write_bytes(b"\x80garbage")
    with pytest.raises(UsageError, match="expected the marker"):
        DiskTier(tier.directory, cluster_id=CLUSTER)


def test_a_directory_with_something_else_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        DiskTier(tmp_path, cluster_id=CLUSTER)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_two_processes_cannot_open_one_directory(tier: DiskTier) -> None:
    with pytest.raises(Conflict, match="open in another process"):
        DiskTier(tier.directory, cluster_id=CLUSTER)


def test_a_directory_that_cannot_be_made_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match="cannot open the directory"):
        DiskTier(tmp_path / "file" / "tier", cluster_id=CLUSTER)


@pytest.mark.parametrize("bad", ["", "../../etc/passwd", "A" * 32, "0" * 31 + "/", "\0" * 32])
def test_an_id_is_checked_before_it_becomes_a_path(tier: DiskTier, bad: str) -> None:
    for action in (tier.open, tier.delete, tier.quarantine, tier.holds):
        with pytest.raises(UsageError):
            action(bad)


# Damage


@pytest.mark.parametrize("seed", range(40))
def test_a_flipped_bit_is_never_served(tier: DiskTier, seed: int) -> None:
    shard = sample_shard(seed)
    store(tier, shard)
    data = bytearray(shard.file)
    bit = random.Random(seed).randrange(len(data) * 8)
    data[bit // 8] ^= 1 << bit % 8
    path_of(tier, shard).write_bytes(data)
    with pytest.raises(DamagedData), tier.open(shard.shard_id) as reader:
        read_all(reader)


@pytest.mark.parametrize("keep", [0, 10, 300, -65, -64, -1])
def test_a_file_cut_short_is_not_served_and_makes_way(tier: DiskTier, keep: int) -> None:
    shard = sample_shard(1)
    store(tier, shard)
    path_of(tier, shard).write_bytes(shard.file[:keep])
    with pytest.raises(DamagedData):
        tier.open(shard.shard_id)
    with tier.create(shard.frame) as writer:  # the damaged file went to quarantine
        fill(writer, shard)
        writer.commit()
    assert (tier.directory / "quarantine" / shard.shard_id).exists()


def test_a_file_shortened_under_an_open_reader_is_damage_and_not_a_signal(tier: DiskTier) -> None:
    shard = sample_shard(2)
    store(tier, shard)
    with tier.open(shard.shard_id) as reader:
        os.truncate(path_of(tier, shard), shard.frame.chunks[1].offset + 10)
        assert reader.chunk(0) == shard.chunks[0]
        with pytest.raises(DamagedData, match="ends after 10") as caught:
            reader.chunk(1)
        assert (caught.value.shard_id, caught.value.chunk) == (shard.shard_id, 1)


def test_another_shards_file_under_the_name_is_damage(tier: DiskTier) -> None:
    shard, other = sample_shard(3), sample_shard(4)
    store(tier, shard)
    path_of(tier, shard).write_bytes(other.file)
    with pytest.raises(DamagedData, match=f"expected shard {shard.shard_id}"):
        tier.open(shard.shard_id)


def test_the_listing_puts_unreadable_frames_away(tier: DiskTier) -> None:
    good, bad = sample_shard(5), sample_shard(6)
    store(tier, good)
    store(tier, bad)
    tier.close()
    data = bytearray(bad.file)
    data[-100] ^= 1  # in the index
    path_of(tier, bad).write_bytes(data)
    (tier.directory / "shards" / good.shard_id[:2] / "notes.txt").write_text("not ours")
    with _opened(tier) as again:
        assert again.shards() == [good.frame.ref()]
        assert not again.holds(bad.shard_id)
        assert (again.directory / "quarantine" / bad.shard_id).exists()


def test_a_different_frame_of_the_same_id_is_not_overwritten(tier: DiskTier) -> None:
    old, new = sample_shard(7), sample_shard(8, shard_id=sample_shard(7).shard_id)
    store(tier, old)
    with pytest.raises(Conflict, match="another frame digest"):
        tier.create(new.frame)


def test_a_read_error_of_the_device_is_damage_and_a_write_error_is_not() -> None:
    with pytest.raises(DamagedData, match="repair it"), storage_errors("disk", "read chunk 1", chunk=1):
        raise OSError(errno.EIO, "Input/output error")
    for code in (errno.EIO, errno.EROFS):
        with pytest.raises(Unavailable, match="cannot write chunk 1"), storage_errors("disk", "write chunk 1"):
            raise OSError(code, os.strerror(code))


# Resuming


class _opened:
    """The tier's directory opened by a next process."""

    def __init__(self, tier: DiskTier) -> None:
        self.directory = tier.directory

    def __enter__(self) -> DiskTier:
        self.tier = DiskTier(self.directory, cluster_id=CLUSTER)
        return self.tier

    def __exit__(self, *_: object) -> None:
        self.tier.close()


def test_a_resumed_partial_is_verified_and_not_believed(tier: DiskTier) -> None:
    shard = sample_shard(9, chunk_sizes=(5000,) * 6)
    with tier.create(shard.frame) as writer:
        for number in (0, 1, 4, 5):
            writer.write_chunk(number, shard.sealed(number))
    tier.close()
    partial = tier.directory / "partial" / f"{shard.shard_id}.part"
    data = bytearray(partial.read_bytes())
    torn = shard.frame.chunks[4].offset + 3000
    data[torn : torn + 1000] = bytes(1000)  # pages that the power cut lost
    partial.write_bytes(data)
    with _opened(tier) as again, again.create(shard.frame) as writer:
        assert writer.missing() == [(2, 3)]
        fill(writer, shard)
        writer.commit()
        with again.open(shard.shard_id) as reader:
            assert read_all(reader) == shard.chunks
        assert files_in(again.directory) == [f"shards/{shard.shard_id[:2]}/{shard.shard_id}"]


def test_leftovers_are_cleared_at_the_start(tier: DiskTier) -> None:
    shard = sample_shard(10)
    store(tier, shard)
    tier.stage()
    os.close(os.dup(tier.stage().descriptor))
    tier._layout.close()  # as if killed: the lock goes, the files stay
    (tier.directory / "partial" / f"{shard.shard_id}.part").write_bytes(b"of a rename that was half durable")
    (tier.directory / "partial" / "garbage").write_bytes(b"")
    assert len(files_in(tier.directory)) == 5
    with _opened(tier) as again:
        assert files_in(again.directory) == [f"shards/{shard.shard_id[:2]}/{shard.shard_id}"]


WRITER = """
import random, sys
from pathlib import Path
from raylog.store.disk import DiskTier
from raylog.testing.shards import sample_shard
tier = DiskTier(Path(sys.argv[1]), cluster_id=sys.argv[2])
for seed in range(int(sys.argv[3]), 10**6):
    shard = sample_shard(seed, chunk_sizes=(20_000,) * 12)
    print("begun", seed, flush=True)
    with tier.create(shard.frame) as writer:
        order = list(range(12))
        random.Random(seed).shuffle(order)
        for number in order:
            writer.write_chunk(number, shard.sealed(number))
        writer.commit()
    print("committed", seed, flush=True)
"""


@pytest.mark.parametrize("round_number", range(8))
def test_sigkill_at_any_moment_loses_nothing_acknowledged_and_serves_nothing_torn(
    tmp_path: Path, round_number: int
) -> None:
    begun, acknowledged = _run_writer_and_kill(tmp_path, after=3 + round_number, first_seed=1000 * round_number)
    tier = DiskTier(tmp_path, cluster_id=CLUSTER)
    try:
        here = {ref.shard_id for ref in tier.shards()}
        shards = {seed: sample_shard(seed, chunk_sizes=(20_000,) * 12) for seed in begun}
        assert {shards[seed].shard_id for seed in acknowledged} <= here
        for shard in shards.values():
            if shard.shard_id in here:
                with tier.open(shard.shard_id) as reader:
                    assert read_all(reader) == shard.chunks
                continue
            with tier.create(shard.frame) as writer:  # the one that was cut off
                fill(writer, shard)
                writer.commit()
        assert len(files_in(tmp_path)) == len(begun)
    finally:
        tier.close()


def _run_writer_and_kill(directory: Path, after: int, first_seed: int) -> tuple[set[int], set[int]]:
    """Seeds begun and acknowledged by a process that was killed some time after so many commits."""
    command = [sys.executable, "-c", WRITER, str(directory), CLUSTER, str(first_seed)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(2 * after)]
    time.sleep(random.Random(first_seed).uniform(0, 0.01))
    process.send_signal(signal.SIGKILL)
    lines += process.stdout.readlines()
    process.stdout.close()
    process.wait(10)
    words = [line.split() for line in lines if line.endswith("\n")]
    return (
        {int(seed) for what, seed in words if what == "begun"},
        {int(seed) for what, seed in words if what == "committed"},
    )


# A full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB, full for real."""
    mounted = tmp_path / "small"
    mounted.mkdir()
    result = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", mounted], capture_output=True, text=True)
    if result.returncode:
        pytest.skip(f"this user may not mount a small file system: {result.stderr.strip()}")
    yield mounted
    subprocess.run(["umount", mounted], check=True)


def test_a_full_disk_is_met_at_the_start(small_disk: Path) -> None:
    tier = DiskTier(small_disk / "tier", cluster_id=CLUSTER)
    kept, large = sample_shard(11, chunk_sizes=(300_000,)), sample_shard(12, chunk_sizes=(400_000, 400_000))
    store(tier, kept)
    before = files_in(small_disk)
    with pytest.raises(NoSpace, match=rf"disk tier {small_disk}.* needs .*{large.frame.stored_bytes} bytes.* are free"):
        tier.create(large.frame)
    with pytest.raises(NoSpace):
        tier.stage(800_000)
    assert files_in(small_disk) == before
    with tier.open(kept.shard_id) as reader:
        assert read_all(reader) == kept.chunks
    tier.delete(kept.shard_id)
    store(tier, large)
    tier.close()


def test_room_is_made_from_what_nobody_was_promised(small_disk: Path) -> None:
    tier = DiskTier(small_disk / "tier", cluster_id=CLUSTER)
    damaged, abandoned = sample_shard(13, chunk_sizes=(250_000,)), sample_shard(14, chunk_sizes=(250_000,))
    store(tier, damaged)
    tier.quarantine(damaged.shard_id)
    with tier.create(abandoned.frame) as writer:
        fill(writer, abandoned)
    busy = tier.create(sample_shard(15, chunk_sizes=(100_000,)).frame)
    large = sample_shard(16, chunk_sizes=(800_000,))
    store(tier, large)
    assert [name.split("/")[1] for name in files_in(small_disk)] == ["partial", "shards"]
    with pytest.raises(NoSpace):
        tier.create(damaged.frame)
    busy.close()
    tier.close()


def test_a_putting_process_that_fills_the_disk_harms_nobody(small_disk: Path) -> None:
    tier = DiskTier(small_disk / "tier", cluster_id=CLUSTER)
    kept = sample_shard(17, chunk_sizes=(300_000,))
    store(tier, kept)
    staging = tier.stage()
    with pytest.raises(OSError, match="No space left"):
        for offset in range(0, MIB, 65536):
            assert os.pwrite(staging.descriptor, b"x" * 65536, offset) == 65536 or os.pwrite(
                staging.descriptor, b"x", offset
            )
    tier.discard(staging.stage_id)
    with tier.open(kept.shard_id) as reader:
        assert read_all(reader) == kept.chunks
    assert len(files_in(small_disk)) == 1
    tier.close()


LIMITED = """
import resource, sys
from pathlib import Path
from raylog.errors import NoSpace
from raylog.store.disk import DiskTier
from raylog.testing.shards import sample_shard
tier = DiskTier(Path(sys.argv[1]), cluster_id=sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    tier.create(sample_shard(1, chunk_sizes=(200_000,)).frame)
except NoSpace as error:
    print(error.tier, error.needed_bytes)
"""


def test_a_reservation_that_the_system_refuses_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LIMITED, str(tmp_path), CLUSTER]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    needed = sample_shard(1, chunk_sizes=(200_000,)).frame.stored_bytes
    assert result.stdout.strip() == f"disk tier {tmp_path} {needed}"
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("fails", ["file", "directory"])
@pytest.mark.parametrize("enter", ["commit", "adopt"])
def test_what_a_failed_fsync_left_is_not_trusted(
    tier: DiskTier, monkeypatch: pytest.MonkeyPatch, fails: str, enter: str
) -> None:
    shard = sample_shard(20)
    (tier.directory / "shards" / shard.shard_id[:2]).mkdir()

    def fsync(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").is_dir() == (fails == "directory"):
            raise OSError(errno.EIO, "Input/output error")

    def attempt() -> None:
        with tier.create(shard.frame) as writer:
            fill(writer, shard)
            with monkeypatch.context() as faulty, pytest.raises(Unavailable, match="cannot commit"):
                faulty.setattr(os, "fsync", fsync)
                writer.commit()

    def attempt_staged() -> None:
        stage_id = stage(tier, shard.file)
        with monkeypatch.context() as faulty, pytest.raises(Unavailable, match="cannot adopt"):
            faulty.setattr(os, "fsync", fsync)
            tier.adopt(stage_id, shard.frame)
        tier.discard(stage_id)

    attempt() if enter == "commit" else attempt_staged()
    assert not tier.holds(shard.shard_id) and files_in(tier.directory) == []
    store(tier, shard)


# Staging


def stage(tier: DiskTier, data: bytes) -> str:
    staging = tier.stage(len(data))
    os.pwrite(staging.descriptor, data, 0)
    return staging.stage_id


def test_a_staged_shard_is_adopted(tier: DiskTier) -> None:
    shard = sample_shard(18)
    stage_id = stage(tier, shard.file)
    with tier.staged(stage_id, shard.frame.digest) as reader:
        assert read_all(reader) == shard.chunks
        tier.adopt(stage_id, reader.frame)
    with tier.open(shard.shard_id) as reader:
        assert read_all(reader) == shard.chunks
    assert files_in(tier.directory) == [f"shards/{shard.shard_id[:2]}/{shard.shard_id}"]
    with pytest.raises(NotFound):
        tier.staged(stage_id, shard.frame.digest)


def test_a_staged_shard_of_another_digest_is_refused(tier: DiskTier) -> None:
    shard = sample_shard(19)
    stage_id = stage(tier, shard.file)
    with pytest.raises(DamagedData, match="frame digest"):
        tier.staged(stage_id, bytes(32))
    tier.discard(stage_id)
    tier.discard(stage_id)
    assert files_in(tier.directory) == []


def test_no_descriptor_is_leaked(tier: DiskTier) -> None:
    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = count()
    for seed in range(20, 30):
        shard = sample_shard(seed)
        for damage in (b"", b"\1"):
            stage_id = stage(tier, damage + shard.file)
            try:
                tier.staged(stage_id, shard.frame.digest).close()
            except RaylogError:
                assert damage
            tier.discard(stage_id)
        with tier.create(shard.frame) as writer, pytest.raises(DamagedData):
            writer.write_chunk(0, memoryview(b"wrong"))
        store(tier, shard)
        tier.open(shard.shard_id).close()
        path_of(tier, shard).write_bytes(shard.file[:-1])
        with pytest.raises(DamagedData):
            tier.open(shard.shard_id)
    assert count() == before
