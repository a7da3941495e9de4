"""A node that is drained is relieved of what it holds before it goes."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from three_nodes import Machine, wait_until

import raylog
from raylog.actors.node_info import NodeInfo
from raylog.errors import DeadlineExceeded, NotFound, UsageError
from raylog.units import MIB

NAME = "drain/noise"


@pytest.fixture
def four_nodes(machine: Machine, client: raylog.Client) -> Iterator[None]:
    """One more node; a test takes another one away for it."""
    wait_until(lambda: len(client.nodes()) == 3, 30, "three nodes answer")
    machine.cluster.add_node(num_cpus=2, object_store_memory=80 * MIB)

    def are_known() -> bool:
        nodes = {info.node_id for info in client.nodes()}
        return len(nodes) == 4 and nodes <= {sample.node_id for sample in client.telemetry()}

    try:
        wait_until(are_known, 30, "four nodes have a sample")
        yield
    finally:
        for raylet in list(machine.cluster.worker_nodes)[2:]:  # of a test that failed before it took one away
            machine.cluster.remove_node(raylet, allow_graceful=False)
    wait_until(lambda: len(client.nodes()) == 3, 30, "the drained node is gone")


@contextmanager
def leaving(machine: Machine, client: raylog.Client, name: str) -> Iterator[NodeInfo]:
    """A node, not the head, that holds something of `name`; it is switched off afterwards."""
    here = client.local_node().node_id
    holders = {node_id for nodes in client.replicas(name).values() for node_id in nodes} - {here}
    info = client._session.node(min(holders))
    try:
        yield info
    finally:
        raylet = next(one for one in machine.cluster.worker_nodes if one.node_id == info.ray_node_id)
        machine.cluster.remove_node(raylet, allow_graceful=False)


@pytest.mark.usefixtures("four_nodes")
def test_what_a_drained_node_holds_has_its_replicas_elsewhere(machine: Machine, client: raylog.Client) -> None:
    payload = np.random.default_rng(3).bytes(32 * MIB)  # eight shards
    client.put(NAME, payload, replicas=2)
    with leaving(machine, client, NAME) as info:
        held = [shard_id for shard_id, nodes in client.replicas(NAME).items() if info.node_id in nodes]
        before = client._session.retried("catalog", "short_without", info.node_id)
        assert before >= len(held)  # what other tests left may be there too
        heard: list[tuple[int, int]] = []
        report = client.drain(
            info.node_id[:12], timeout_s=60, on_progress=lambda done, total: heard.append((done, total))
        )
        assert (report.node_id, report.shards) == (info.node_id, before)
        assert heard[-1] == (before, before)
        for nodes in client.replicas(NAME).values():
            assert len(set(nodes) - {info.node_id}) >= 2
        assert any("being drained" in event.message for event in client.events())
        assert client.drain(info.node_id, timeout_s=5).shards == 0
    assert client.get(NAME) == payload
    client.delete(NAME)


@pytest.mark.usefixtures("four_nodes")
def test_a_drain_that_cannot_end_says_what_is_left(machine: Machine, client: raylog.Client) -> None:
    client.put("drain/everywhere", b"four copies", replicas=4)
    why = r"1 of \d+ shards on node .* have too few replicas elsewhere"
    with leaving(machine, client, "drain/everywhere") as info, pytest.raises(DeadlineExceeded, match=why):
        client.drain(info.node_id, timeout_s=20)
    client.delete("drain/everywhere")


def test_who_cannot_be_drained(client: raylog.Client) -> None:
    with pytest.raises(UsageError, match="is the head"):
        client.drain(client.local_node().node_id)
    with pytest.raises(NotFound, match="living node"):
        client.drain("ffff")
