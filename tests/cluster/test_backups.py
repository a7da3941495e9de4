"""Copies in a backup: written after the commit or before it, read where no node has the shard, deleted with the
version. The backup is a folder here; a real S3 gateway has a test of its own."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from three_nodes import wait_until, wait_until_settled

import raylog
from raylog.actors.requests import EvictShard
from raylog.errors import DamagedData, NotFound, RaylogError, UsageError
from raylog.units import MIB

WITHIN_S = 30.0


def read_from(client: raylog.Client, url: str) -> int:
    """Bytes that all nodes have read from a backup, by their samples."""
    devices = [tier.device for sample in client.telemetry() for tier in sample.tiers if tier.path == url]
    return sum(device.read_bytes for device in devices if device is not None)


@pytest.fixture(scope="module", autouse=True)
def settled(client: raylog.Client) -> Iterator[None]:
    """The tests after these count what lies on nodes."""
    yield
    wait_until_settled(client, WITHIN_S)


@pytest.fixture
def backup(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "backup"
    folder.mkdir()
    yield folder


def objects(folder: Path, kind: str) -> list[Path]:
    """Whole ones: what is being written has another name."""
    found = folder.glob(f"raylog-*/{kind}/**/*")
    return sorted(path for path in found if path.is_file() and path.suffix != ".part")


def noise(seed: int, count: int = 3 * MIB) -> bytes:
    return np.random.default_rng(seed).bytes(count)


def shard_files(client: raylog.Client, name: str) -> list[Path]:
    """The copies of a version's shards on the disks of nodes."""
    tiers = [Path(info.directory) / "tier" / "shards" for info in client.nodes()]
    return [path for tier in tiers for shard_id in client.replicas(name) for path in tier.rglob(shard_id)]


def test_a_version_is_copied_after_its_commit(client: raylog.Client, backup: Path) -> None:
    content = noise(1, 9 * MIB)
    client.put("backup/after", content, backup=backup.as_uri())
    wait_until(lambda: len(objects(backup, "shards")) == 3, WITHIN_S, "three shards are there")
    wait_until(lambda: objects(backup, "records"), WITHIN_S, "the records are there")
    assert {path.name for path in objects(backup, "shards")} == set(client.replicas("backup/after"))
    for path in shard_files(client, "backup/after"):
        (copy,) = (one for one in objects(backup, "shards") if one.name == path.name)
        assert copy.read_bytes() == path.read_bytes()
    assert content[:4096] not in b"".join(path.read_bytes() for path in objects(backup, "shards"))
    client.delete("backup/after")
    wait_until(lambda: not objects(backup, "shards"), WITHIN_S, "the copies of a deleted version are gone")


def test_a_cold_version_is_read_once_for_all_nodes(client: raylog.Client, backup: Path) -> None:
    content, url = noise(20, 9 * MIB), backup.as_uri()
    version = client.put("backup/shipped", content, replicas=0, backup=url, durability="remote")
    report = client.ship("backup/shipped").result(60)
    assert len(report.nodes) == 3 and report.moved_bytes >= 3 * version.content_bytes
    wait_until(lambda: read_from(client, url) >= version.stored_bytes, 10, "the reads are told")
    assert client.get("backup/shipped") == content
    time.sleep(2.5)  # every node has told its newest figures
    assert read_from(client, url) < 1.2 * version.stored_bytes, "one node read it, and the others had it from there"
    client.delete("backup/shipped")


def test_a_cold_copy_is_all_there_is(client: raylog.Client, backup: Path) -> None:
    content = noise(2)
    client.put("backup/cold", content, replicas=0, backup=backup.as_uri(), durability="remote")
    assert len(objects(backup, "shards")) == 1, "it is there when put returns"
    assert shard_files(client, "backup/cold") == []
    assert all(nodes == [] for nodes in client.replicas("backup/cold").values())
    assert client.get("backup/cold") == content
    client.ship("backup/cold").result(60)
    client.delete("backup/cold")
    wait_until(lambda: not objects(backup, "shards"), WITHIN_S, "it is gone with the version")


def test_an_older_version_is_backed_up_later(client: raylog.Client, backup: Path) -> None:
    client.put("backup/later", noise(3), replicas=2)
    report = client.back_up("backup/later", f"{backup.as_uri()}/")
    assert (report.versions, report.shards) == (["backup/later@1"], 1)
    assert len(objects(backup, "shards")) == len(objects(backup, "records")) == 1
    assert report.stored_bytes == objects(backup, "shards")[0].stat().st_size
    client.delete("backup/later")


def test_damage_on_the_only_node_is_mended_from_the_backup(client: raylog.Client, backup: Path) -> None:
    content = noise(4)
    client.put("backup/damaged", content, backup=backup.as_uri(), durability="remote")
    (path,) = shard_files(client, "backup/damaged")
    right = path.read_bytes()
    client._session.ask_node(client.local_node(), EvictShard(shard_id=path.name))
    with path.open("r+b") as file:
        file.seek(len(right) // 2)
        file.write(os.urandom(64))
    report = client.verify("backup/damaged")
    assert (report.damaged, report.repaired, report.problems) == (1, 1, [])
    assert path.read_bytes() == right
    assert client.get("backup/damaged") == content
    client.delete("backup/damaged")


@pytest.mark.parametrize("damage", ["truncated", "replaced", "gone"])
def test_a_bad_remote_copy_is_told_and_never_served(client: raylog.Client, backup: Path, damage: str) -> None:
    name = f"backup/{damage}"
    client.put(name, noise(5), replicas=0, backup=backup.as_uri(), durability="remote")
    (copy,) = objects(backup, "shards")
    right = copy.read_bytes()
    if damage == "gone":
        copy.unlink()
    else:
        copy.write_bytes(
            right[:-1] if damage == "truncated" else right[: MIB // 2] + bytes(64) + right[MIB // 2 + 64 :]
        )
    with pytest.raises(NotFound if damage == "gone" else DamagedData, match=f"{copy.name}|not there"):
        client.get(name)
    copy.write_bytes(right)
    assert client.get(name) == noise(5)
    client.delete(name)


def test_a_bad_copy_in_a_backup_is_written_anew(client: raylog.Client, backup: Path) -> None:
    client.put("backup/checked", noise(6), backup=backup.as_uri(), durability="remote")
    (copy,) = objects(backup, "shards")
    right = copy.read_bytes()
    for damage in (right[:-5], right[:MIB] + b"x" + right[MIB + 1 :], None):
        if damage is None:
            copy.unlink()
        else:
            copy.write_bytes(damage)
        report = client.verify("backup/checked", backups=True)
        assert (report.damaged, report.repaired, report.backup_copies, report.problems) == (1, 1, 1, [])
        assert copy.read_bytes() == right
    assert client.verify("backup/checked", backups=True).damaged == 0
    client.delete("backup/checked")


def test_a_backup_that_cannot_be_written_is_told_at_once(client: raylog.Client) -> None:
    for url, error in (
        ("file:///proc/nowhere", RaylogError),
        ("nope://bucket/x", UsageError),
        ("s3://key:secret@bucket", UsageError),
        ("bucket", UsageError),
    ):
        with pytest.raises(error):
            client.put("backup/never", b"x", backup=url)
    with pytest.raises(NotFound):
        client.stat("backup/never")
    with pytest.raises(UsageError, match="name one"):
        client.put("backup/never", b"x", durability="remote")
    with pytest.raises(UsageError, match="1 to 16 replicas"):
        client.put("backup/never", b"x", replicas=0)
