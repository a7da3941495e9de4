"""Erasure-coded versions on three nodes: pieces instead of replicas, read with a node's pieces gone, made anew."""

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from three_nodes import Machine, wait_until, wait_until_settled

import raylog
from raylog.actors import bootstrap
from raylog.actors.node_info import NodeInfo
from raylog.actors.requests import EvictShard
from raylog.errors import Unsatisfiable, UsageError
from raylog.spec import parse_reference
from raylog.units import MIB

WITHIN_S = 60.0


@pytest.fixture(scope="module", autouse=True)
def settled(client: raylog.Client) -> Iterator[None]:
    """The tests after these count what lies on nodes."""
    yield
    wait_until_settled(client, WITHIN_S)


def noise(seed: int, count: int) -> bytes:
    return np.random.default_rng(seed).bytes(count)


def piece_files(client: raylog.Client, name: str) -> dict[Path, NodeInfo]:
    ids = set(client.replicas(name))
    return {
        path: info
        for info in client.nodes()
        for path in (Path(info.directory) / "tier" / "shards").rglob("*")
        if path.name in ids
    }


def evicted(client: raylog.Client, files: dict[Path, NodeInfo]) -> None:
    """The disks are to be all that there is."""
    for path, info in files.items():
        client._session.ask_node(info, EvictShard(shard_id=path.name))


def test_pieces_are_kept_instead_of_replicas(client: raylog.Client) -> None:
    content = noise(1, 9 * MIB + 123)
    version = client.put("erasure/spread", content, erasure="2+1")
    files = piece_files(client, "erasure/spread")
    by_shard = client.replicas("erasure/spread")
    assert len(by_shard) == len(files) == 3 * version.shards, "one copy of each piece and nothing else"
    assert all(len(nodes) == 1 for nodes in by_shard.values())
    assert len({info.node_id for info in files.values()}) == 3
    stored = sum(path.stat().st_size for path in files)
    assert 1.5 * version.stored_bytes <= stored < 1.51 * version.stored_bytes + 40_000
    assert client.get("erasure/spread") == content
    assert client.verify("erasure/spread").problems == []
    client.delete("erasure/spread")
    wait_until(lambda: not any(path.exists() for path in files), WITHIN_S, "the pieces of a deleted version are gone")


def test_a_table_and_a_small_file(client: raylog.Client) -> None:
    table = pa.table({"row": range(1000), "text": ["some text"] * 1000})
    client.put("erasure/table", table, erasure="2+1")
    assert client.get("erasure/table").equals(table)
    client.put("erasure/byte", b"x", erasure="1+1")
    assert client.get("erasure/byte") == b"x"
    client.ship("erasure/table").result(60)
    for name in ("erasure/table", "erasure/byte"):
        client.delete(name)


@pytest.mark.parametrize("number", range(3))
def test_any_one_piece_may_be_gone(client: raylog.Client, number: int) -> None:
    content, name = noise(2, 3 * MIB), f"erasure/without-{number}"
    client.put(name, content, erasure="2+1")
    files = piece_files(client, name)
    evicted(client, files)
    erasure = next(iter(client._session.manifest(parse_reference(name)).erasures().values()))
    (path,) = (one for one in files if one.name == erasure.refs()[number].shard_id)
    right = path.read_bytes()
    path.unlink()
    assert client.get(name) == content
    path.write_bytes(right)
    client.delete(name)


def test_damage_in_a_piece_is_mended_from_the_others(client: raylog.Client) -> None:
    content = noise(3, 3 * MIB)
    client.put("erasure/damaged", content, erasure="2+1")
    files = piece_files(client, "erasure/damaged")
    evicted(client, files)
    path = next(iter(files))
    right = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(len(right) // 2)
        file.write(os.urandom(64))
    report = client.verify("erasure/damaged")
    assert (report.damaged, report.repaired, report.problems) == (1, 1, [])
    assert path.read_bytes() == right
    client.delete("erasure/damaged")


def test_a_backup_has_the_shard_whole(client: raylog.Client, tmp_path: Path) -> None:
    content = noise(4, 3 * MIB)
    url = tmp_path.as_uri()
    for durability in ("remote", "disk"):
        name = f"erasure/backup-{durability}"
        version = client.put(name, content, erasure="2+1", backup=url, durability=durability)
        client.back_up(name, url)
        (copy,) = tmp_path.glob("raylog-*/shards/*/*")
        assert copy.stat().st_size == version.stored_bytes
        assert client.get(name) == content
        client.delete(name)
        wait_until(lambda: not list(tmp_path.glob("raylog-*/shards/*/*")), WITHIN_S, "it is gone with the version")


def test_what_cannot_be_placed_says_what_is_missing(client: raylog.Client) -> None:
    with pytest.raises(Unsatisfiable, match=r"erasure 4\+2 keeps the 6 pieces .* 3 nodes are fit"):
        client.put("erasure/wide", b"x", erasure="4+2")
    for bad in ("4", "4+", "+2", "0+1", "1+0", "40+40", "a+b", "4+2+1"):
        with pytest.raises(UsageError):
            client.put("erasure/bad", b"x", erasure=bad)
    with pytest.raises(UsageError, match="replicas or erasure"):
        client.put("erasure/bad", b"x", erasure="2+1", replicas=2)
    with pytest.raises(UsageError, match="on disks"):
        client.put("erasure/bad", b"x", erasure="2+1", durability="memory")
    assert client.ls("erasure/") == []


def test_a_lost_nodes_pieces_are_made_anew(machine: Machine, client: raylog.Client) -> None:
    content = noise(5, 9 * MIB)
    client.put("erasure/lost", content, erasure="2+1")
    victim = next(info for info in client.nodes() if info.node_id != client.local_node().node_id)
    raylets = [node for node in machine.cluster.list_all_nodes() if node.node_id == victim.ray_node_id]
    machine.cluster.remove_node(raylets[0], allow_graceful=False)
    with suppress(ProcessLookupError):
        os.kill(victim.pid, signal.SIGKILL)
    for path in (victim.arena_path, victim.socket_path):  # a dead machine's memory goes with it
        Path(path).unlink(missing_ok=True)
    shutil.rmtree(Path(victim.directory) / "tier" / "shards")  # another node may take its slot, and nothing with it
    wait_until(lambda: victim.node_id not in {info.node_id for info in client.nodes()}, 20, "the loss is noticed")
    assert client.get("erasure/lost") == content, "two of three pieces are enough"
    machine.cluster.add_node(num_cpus=2, object_store_memory=80 * MIB)
    bootstrap.wait_for_nodes(60)
    wait_until(lambda: client.verify("erasure/lost").problems == [], WITHIN_S, "its pieces are there again", 1.0)
    assert all(len(nodes) == 1 for nodes in client.replicas("erasure/lost").values())
    told = [event.message for event in client.events(0)]
    assert any("anew from 2 of 2 other pieces" in one for one in told), told[-20:]
    client.delete("erasure/lost")
