"""Real processes killed for real: node actors while they send and receive, the catalog between replicas and commit, a
whole node; damage on a disk; two writers; readers beside a writer."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from three_nodes import Machine, ask_node, signer_of, wait_until

import raylog
from raylog.actors import calls
from raylog.actors.node_info import NodeInfo
from raylog.actors.requests import EvictShard
from raylog.api.files.tree import FILE_LABEL
from raylog.api.filesystem import RaylogFileSystem
from raylog.api.put import Put
from raylog.errors import Conflict, DamagedData, RaylogError
from raylog.spec import TierKind
from raylog.units import MIB
from raylog.wire.local_client import LocalClient

BIG_BYTES = 48 * MIB


@pytest.fixture(scope="module")
def noise() -> bytes:
    return np.random.default_rng(11).bytes(BIG_BYTES)


@pytest.fixture(autouse=True)
def whole_again(machine: Machine, client: raylog.Client) -> None:
    """Every test begins with three answering nodes."""
    wait_until(lambda: len(client.nodes()) == 3, 30, "three nodes answer")


def others(client: raylog.Client) -> list[NodeInfo]:
    return [info for info in client.nodes() if info.node_id != client.local_node().node_id]


def came_back(client: raylog.Client, before: NodeInfo) -> bool:
    """The same node in another process."""
    return any(info.node_id == before.node_id and info.pid != before.pid for info in client.nodes())


def kill(info: NodeInfo) -> None:
    os.kill(info.pid, signal.SIGKILL)


def in_thread(action: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(action())
        except RaylogError as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


def finished(thread: threading.Thread, timeout_s: float) -> None:
    thread.join(timeout_s)
    assert not thread.is_alive(), f"a call outlived its deadline of {timeout_s} s"


def test_a_receiver_killed_while_it_receives(client: raylog.Client, noise: bytes) -> None:
    client.put("faults/receive", noise)
    target = others(client)[0]
    shipment = client.ship("faults/receive", to=[target.node_id], deadline_s=60)
    wait_until(lambda: shipment.progress().done_bytes > 0, 20, "the first shard is there")
    kill(target)
    try:
        shipment.result(70)
    except RaylogError as error:
        assert error.is_retryable, error
    wait_until(lambda: came_back(client, target), 30, "the node came back as itself")
    report = client.ship("faults/receive", to=[target.node_id], deadline_s=60).result(60)
    assert report.nodes == [target.node_id]
    assert client.get("faults/receive") == noise
    assert client.verify("faults/receive").damaged == 0


def test_a_sender_killed_while_it_sends(client: raylog.Client, noise: bytes) -> None:
    client.put("faults/send", noise, replicas=2)
    holders = {node for nodes in client.replicas("faults/send").values() for node in nodes}
    sender = next(info for info in others(client) if info.node_id in holders)
    target = next(info for info in others(client) if info.node_id != sender.node_id)
    shipment = client.ship("faults/send", to=[target.node_id], deadline_s=60)
    kill(sender)
    assert shipment.result(70).nodes == [target.node_id]
    assert client.get("faults/send") == noise
    wait_until(lambda: came_back(client, sender), 30, "the sender came back as itself")


def test_the_catalog_killed_between_replicas_and_commit(client: raylog.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly there: the replicas stand and are vouched for, the manifest is signed, the catalog is gone."""
    table, sign = pa.table({"n": range(1000)}), Put._sign

    def sign_and_kill(self: Put, *arguments: Any, **options: Any) -> Any:
        ray.kill(calls.find("catalog"), no_restart=False)
        return sign(self, *arguments, **options)

    monkeypatch.setattr(Put, "_sign", sign_and_kill)
    version = client.put("faults/between", table, replicas=2)
    assert client.versions("faults/between") == [version]
    assert client.get("faults/between") == table


def test_the_catalog_killed_again_and_again(client: raylog.Client) -> None:
    table = pa.table({"n": range(1000)})
    catalog = calls.find("catalog")
    stop = threading.Event()

    def keep_killing() -> None:
        while not stop.wait(0.7):
            ray.kill(catalog, no_restart=False)

    killer = threading.Thread(target=keep_killing)
    killer.start()
    acknowledged = []
    try:
        for _ in range(3):
            thread, outcome = in_thread(lambda: client.put("faults/catalog", table, replicas=2))
            finished(thread, 100)
            acknowledged += [one for one in outcome if not isinstance(one, RaylogError)]
    finally:
        stop.set()
        killer.join()
    wait_until(lambda: answers(client), 30, "the catalog answers again")
    acknowledged.append(client.put("faults/catalog", table, replicas=2))
    listed = client.versions("faults/catalog")
    assert set(acknowledged) <= set(listed)
    for version in listed:
        assert client.get(str(version)) == table


def answers(client: raylog.Client) -> bool:
    try:
        client.ls("nothing")
    except RaylogError:
        return False
    return True


def test_a_damaged_chunk_is_replaced_while_reading(client: raylog.Client) -> None:
    payload = np.random.default_rng(3).bytes(3 * MIB)
    client.put("faults/damage", payload, replicas=2)
    here = client.local_node()
    for shard_id in client.replicas("faults/damage"):
        ask_node(here, EvictShard(shard_id=shard_id), signer_of(client))  # the copy on disk is what is read next
        (path,) = Path(here.directory).rglob(f"{shard_id}*")
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 2)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 0x10]))
    assert client.get("faults/damage") == payload
    report = client.verify("faults/damage")
    assert report.damaged == 0, "reading repaired it"


def flip_in_arena(info: NodeInfo, shard_id: str, *shares: float) -> None:
    """What bad memory cells do, at these shares of the shard's length; no code of the node sees it happen."""
    with LocalClient(Path(info.socket_path)) as store, store.open(shard_id) as shard:
        assert shard.tier is TierKind.MEMORY
        offset, length = shard._opened.offset, shard._opened.length
    with Path(info.arena_path).open("r+b") as arena:
        for share in shares:
            arena.seek(offset + int(length * share))
            byte = arena.read(1)
            arena.seek(-1, os.SEEK_CUR)
            arena.write(bytes([byte[0] ^ 0x10]))


@pytest.mark.parametrize(("replicas", "durability"), [(1, "disk"), (2, "memory")])
def test_a_bit_flipped_in_the_arena_is_mended_while_reading(
    client: raylog.Client, replicas: int, durability: str
) -> None:
    """By the node's own disk where the shard lies there, else by another replica."""
    name, payload = f"faults/arena-{durability}", np.random.default_rng(6).bytes(6 * MIB)
    client.put(name, payload, replicas=replicas, durability=durability)
    shards = list(client.replicas(name))
    assert len(shards) == 2
    assert client.get(name) == payload  # and what lies elsewhere alone is in the arena here now
    for shard_id in shards:
        flip_in_arena(client.local_node(), shard_id, 0.0, 0.3, 0.8)  # the header, two chunks
    assert client.get(name) == payload
    report = client.verify(name)
    assert (report.damaged, report.problems) == (0, []), "reading mended it"


def test_a_chunk_that_nobody_has_whole_is_named(client: raylog.Client) -> None:
    client.put("faults/gone", np.random.default_rng(8).bytes(MIB), durability="memory")
    ((shard_id, (holder,)),) = client.replicas("faults/gone").items()
    assert holder == client.local_node().node_id
    flip_in_arena(client.local_node(), shard_id, 0.6)
    with pytest.raises(DamagedData, match="put faults/gone anew") as caught:
        client.get("faults/gone")
    for part in ("faults/gone", shard_id, "chunk 3", holder):
        assert part in str(caught.value)


def test_verify_finds_and_repairs(client: raylog.Client) -> None:
    payload = np.random.default_rng(4).bytes(2 * MIB)
    client.put("faults/scrub", payload, replicas=2)
    remote = next(
        info for info in others(client) if any(info.node_id in n for n in client.replicas("faults/scrub").values())
    )
    (shard_id,) = client.replicas("faults/scrub")
    (path,) = Path(remote.directory).rglob(f"{shard_id}*")
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\0" * 16)
    report = client.verify("faults/scrub")
    assert (report.damaged, report.repaired) == (1, 1), report
    assert client.verify("faults/scrub").damaged == 0


@pytest.mark.parametrize("durability", ["memory", "disk"])
def test_an_open_file_is_read_on_after_its_node_restarted(client: raylog.Client, noise: bytes, durability: str) -> None:
    """What it held went with the connection."""
    name = f"faults/open-{durability}"
    here = client.local_node()
    client.put(name, noise[: 6 * MIB], replicas=2, durability=durability, labels=FILE_LABEL)
    with RaylogFileSystem(client=client).open(name) as file:
        assert file.read(1000) == noise[:1000]
        kill(here)
        wait_until(lambda: came_back(client, here), 30, "the node came back as itself")
        assert client._session.store.is_connected  # anew; the old connection is closed
        file.seek(2 * MIB)
        assert file.read() == noise[2 * MIB : 6 * MIB]
        file.seek(5)
        assert file.read(1000) == noise[5:1005]


def test_two_writers_of_one_name(client: raylog.Client) -> None:
    tables = [pa.table({"writer": [number] * 50_000}) for number in range(2)]
    started = [in_thread(lambda table=table: client.put("faults/writers", table)) for table in tables]
    for thread, _ in started:
        finished(thread, 60)
    outcomes = [outcome[0] for _, outcome in started]
    losers = [one for one in outcomes if isinstance(one, Conflict)]
    winners = [one for one in outcomes if not isinstance(one, RaylogError)]
    assert len(winners) + len(losers) == 2
    assert winners
    assert all("another writer was first" in str(loser) for loser in losers)
    assert client.versions("faults/writers") == winners


def test_a_reader_beside_a_writer_sees_one_version_or_the_other(client: raylog.Client) -> None:
    def table(number: int) -> pa.Table:
        return pa.table({"version": pa.array([number] * 20_000)})

    client.put("faults/replace", table(1))
    stop, seen = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            seen.append(client.get("faults/replace"))

    thread, outcome = in_thread(read)
    for number in (2, 3):
        client.put("faults/replace", table(number))
    stop.set()
    finished(thread, 60)
    assert outcome == [None]
    assert seen
    assert all(one in (table(1), table(2), table(3)) for one in seen)


def test_a_lost_node_is_made_up_for(machine: Machine, client: raylog.Client) -> None:
    payload = np.random.default_rng(5).bytes(6 * MIB)
    client.put("faults/lost", payload, replicas=2)
    holders = {node for nodes in client.replicas("faults/lost").values() for node in nodes}
    victim = next(info for info in others(client) if info.node_id in holders)
    raylet = next(node for node in machine.cluster.list_all_nodes() if node.node_id == victim.ray_node_id)
    machine.cluster.remove_node(raylet, allow_graceful=False)
    kill_quietly(victim)
    for path in (victim.arena_path, victim.socket_path):  # a dead machine's memory goes with it
        Path(path).unlink(missing_ok=True)
    wait_until(lambda: victim.node_id not in {info.node_id for info in client.nodes()}, 20, "the loss is noticed")
    wait_until(
        lambda: all(len(set(n) - {victim.node_id}) == 2 for n in client.replicas("faults/lost").values()), 40, "healed"
    )
    assert client.get("faults/lost") == payload
    machine.cluster.add_node(num_cpus=2, object_store_memory=80 * MIB)  # returns once Ray lists the node
    started_s = time.monotonic()
    wait_until(lambda: len(client.nodes()) == 3, 20, "the new node has a node actor")
    assert time.monotonic() - started_s < 10


def kill_quietly(info: NodeInfo) -> None:
    try:
        kill(info)
    except ProcessLookupError:
        return
