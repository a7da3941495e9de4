"""What nodes know of the ways to their peers, on real Ray nodes."""

import numpy as np

import raylog


def test_a_node_that_has_sent_knows_its_peer(client: raylog.Client) -> None:
    client.put("tests/paths", {"noise": np.random.default_rng(1).integers(0, 256, 3 << 20, dtype=np.uint8)})
    client.ship("tests/paths", deadline_s=60).result(60)
    nodes = client.paths()
    assert {node.node_id for node in nodes} == {node.node_id for node in client.nodes()}
    assert all(node.problem == "" for node in nodes)
    ways = [path for node in nodes for path in node.paths]
    assert ways
    assert any(path.estimate.probe_rtt_s is not None for path in ways)
    assert all(path.choice.congestion_control and path.choice.reason for path in ways)
