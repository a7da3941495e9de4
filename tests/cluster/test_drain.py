"""A node that is drained is relieved of what it holds before it goes."""

import numpy as np
import pytest
from three_nodes import Machine, wait_until

import raylog
from raylog.errors import DeadlineExceeded, NotFound, UsageError
from raylog.units import MIB

NAME = "drain/noise"


def test_what_a_drained_node_holds_has_its_replicas_elsewhere(machine: Machine, client: raylog.Client) -> None:
    before = {info.node_id for info in client.nodes()}
    raylet = machine.cluster.add_node(num_cpus=2, object_store_memory=80 * MIB)
    try:
        wait_until(lambda: len(client.telemetry()) == len(before) + 1, 30, "the new node has a sample")
        (leaving,) = {info.node_id for info in client.nodes()} - before
        payload = np.random.default_rng(3).bytes(32 * MIB)  # eight shards
        client.put(NAME, payload, replicas=2)
        held = [shard_id for shard_id, nodes in client.replicas(NAME).items() if leaving in nodes]
        assert held, "the empty node was given nothing"
        heard: list[tuple[int, int]] = []
        report = client.drain(leaving[:12], timeout_s=60, on_progress=lambda done, total: heard.append((done, total)))
        assert (report.node_id, report.shards) == (leaving, len(held))
        assert heard[-1] == (len(held), len(held))
        for nodes in client.replicas(NAME).values():
            assert len(set(nodes) - {leaving}) >= 2
        assert any("being drained" in event.message for event in client.events())
        assert client.drain(leaving, timeout_s=5).shards == 0
    finally:
        machine.cluster.remove_node(raylet, allow_graceful=False)
    wait_until(lambda: {info.node_id for info in client.nodes()} == before, 30, "the drained node is gone")
    assert client.get(NAME) == payload
    client.delete(NAME)


def test_a_drain_that_cannot_end_says_what_is_left(machine: Machine, client: raylog.Client) -> None:
    before = {info.node_id for info in client.nodes()}
    raylet = machine.cluster.add_node(num_cpus=2, object_store_memory=80 * MIB)
    try:
        wait_until(lambda: len(client.telemetry()) == len(before) + 1, 30, "the new node has a sample")
        (leaving,) = {info.node_id for info in client.nodes()} - before
        client.put("drain/everywhere", b"four copies", replicas=4)
        with pytest.raises(DeadlineExceeded, match=r"1 of 1 shards on node .* have too few replicas elsewhere"):
            client.drain(leaving, timeout_s=2)
    finally:
        client.delete("drain/everywhere")
        machine.cluster.remove_node(raylet, allow_graceful=False)
    wait_until(lambda: {info.node_id for info in client.nodes()} == before, 30, "the drained node is gone")


def test_who_cannot_be_drained(client: raylog.Client) -> None:
    with pytest.raises(UsageError, match="is the head"):
        client.drain(client.local_node().node_id)
    with pytest.raises(NotFound, match="living node"):
        client.drain("ffff")
