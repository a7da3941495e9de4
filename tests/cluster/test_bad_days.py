"""Full disks, a full arena, a shard file that is another's, a stranger on the wire: on real nodes."""

import shutil
import time
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from three_nodes import SMALL_DISK_BYTES, ask_node, beside, lying, signer_of, wait_until

import raylog
from raylog.actors.node_info import NodeInfo
from raylog.actors.requests import EvictShard
from raylog.errors import NoSpace, NotPermitted, PeerFault, Unsatisfiable
from raylog.security.certs import Authority
from raylog.security.join import request_with_token
from raylog.security.providers.file import FileKeyring
from raylog.spec import new_id, parse_reference
from raylog.store.disk import DiskTier
from raylog.units import MIB
from raylog.wire.client import pull
from raylog.wire.fetcher import Source
from raylog.wire.sessions import PeerAddress


def noise(seed: int, count: int) -> bytes:
    return np.random.default_rng(seed).bytes(count)


def test_a_disk_that_fills_half_way_through_a_put(client: raylog.Client, small: NodeInfo) -> None:
    """All nodes shall hold it, and one of them has room for half of it."""
    before = lying(client)
    nodes = len(client.nodes())
    for put in (client.put, partial(beside, small, "put")):
        with pytest.raises((NoSpace, Unsatisfiable)) as told:  # the second when a sample has told of the room by then
            put("bad/large", noise(1, 2 * SMALL_DISK_BYTES), replicas=nodes)
        assert small.node_id[:12] in str(told.value)
        assert isinstance(told.value, Unsatisfiable) or "delete something or enlarge the tier" in str(told.value)
        assert not client.ls("bad/large")
        assert lying(client) <= before
    payload = noise(2, 2 * MIB)
    wait_until(lambda: fits(client, payload, nodes), 10, "a smaller put works")
    assert beside(small, "get", "bad/fits") == payload
    client.delete("bad/fits")
    wait_until(lambda: lying(client) <= before, 20, "all is gone")


def fits(client: raylog.Client, payload: bytes, replicas: int) -> bool:
    """The placement actor knows of the room again with the node's next sample."""
    try:
        return client.put("bad/fits", payload, replicas=replicas).number > 0
    except Unsatisfiable:
        return False


def test_a_full_arena_and_then_a_full_disk(client: raylog.Client, small: NodeInfo) -> None:
    """What shall be in memory goes to disk once the arena is full; a shipment that fills the disk too says so."""
    kept, more, large = noise(3, 60 * MIB), noise(4, 8 * MIB), noise(5, 40 * MIB)
    beside(small, "put", "bad/kept", kept, durability="memory")
    before = lying(client)
    client.put("bad/more", more)
    assert client.ship("bad/more", to=[small.node_id]).result(30).moved_bytes > len(more)
    ids = set(client.replicas("bad/more"))
    on_disk = {path.name for path in (Path(small.directory) / "tier" / "shards").rglob("*") if path.is_file()}
    assert ids <= on_disk, "the arena had no room"
    assert beside(small, "get", "bad/more") == more
    client.put("bad/long", large)
    with pytest.raises(NoSpace) as told:
        client.ship("bad/long", to=[small.node_id]).result(30)
    assert f"node {small.node_id[:12]}" in str(told.value)
    assert "disk tier" in str(told.value)
    assert "delete something or enlarge the tier" in str(told.value)
    left = lying(client) - before
    assert not [place for place in left if "/partial/" in place or "/staging/" in place]
    assert client.get("bad/long") == large
    # What was shipped is cache: it gives way. The records of a long session take some of the disk, too.
    beside(small, "put", "bad/next", noise(6, 12 * MIB))
    assert beside(small, "get", "bad/next") == noise(6, 12 * MIB)
    assert lying(client) & left < left
    assert beside(small, "get", "bad/kept") == kept
    for name in ("bad/kept", "bad/more", "bad/long", "bad/next"):
        client.delete(name)


def test_a_checkpoint_without_room_is_told_at_the_next_call(client: raylog.Client, small: NodeInfo) -> None:
    """The steps before it stay, and those after it are stored again."""
    fits, does_not = {"w": np.arange(MIB // 8)}, {"w": np.frombuffer(noise(9, 48 * MIB), np.uint8)}
    with raylog.CheckpointManager("bad/run", client=client, replicas=len(client.nodes())) as manager:
        manager.save(1, fits)
        manager.save(2, does_not)
        with pytest.raises((NoSpace, Unsatisfiable)) as told:
            manager.save(3, fits)
        assert told.value.__notes__ == ["bad/run: step 2 was not stored, the steps before it stay"]
        assert manager.steps() == [1]
        manager.save(3, fits)
        assert np.array_equal(manager.load()["w"], fits["w"]) and manager.steps() == [1, 3]
    client.delete("bad/run")


def test_a_shard_file_swapped_for_another_artifacts(client: raylog.Client) -> None:
    """It is whole, sealed and of this cluster, and still not what the manifest names."""
    payloads = {"bad/one": noise(7, 2 * MIB), "bad/other": noise(8, 2 * MIB)}
    paths = []
    here = client.local_node()
    for name, payload in payloads.items():
        client.put(name, payload, replicas=2)
        (shard_id,) = client.replicas(name)
        ask_node(here, EvictShard(shard_id=shard_id), signer_of(client))
        paths += Path(here.directory, "tier", "shards").rglob(shard_id)
    assert len(paths) == 2, "the writer's own node holds both"
    shutil.copyfile(paths[1], paths[0])
    for name, payload in payloads.items():
        assert client.get(name) == payload
    assert client.verify("bad/one").damaged == 0, "reading healed it"


def test_a_peer_of_another_cluster_gets_nothing(client: raylog.Client, tmp_path: Path) -> None:
    with Authority.create(tmp_path / "keys" / "a", FileKeyring.create(tmp_path / "keys" / "k", new_id())) as authority:
        pending = request_with_token(authority.make_join_token(), "node", new_id(), time.time())
        stranger = pending.accept(authority.admit(pending.request, time.time()), time.time())
    client.put("bad/private", noise(9, MIB))
    ref = client._session.manifest(parse_reference("bad/private")).shards[0].shard
    node = client.local_node()
    address = Source(peer=PeerAddress(node_id=node.node_id, host=node.host, control_port=node.control_port))
    tier = DiskTier(tmp_path / "tier", cluster_id=new_id())
    with closing(tier), pytest.raises((PeerFault, NotPermitted)) as told:
        pull(ref, [address], tier, stranger, deadline_s=20)
    assert node.node_id in str(told.value)
    assert client.get("bad/private") == noise(9, MIB)
