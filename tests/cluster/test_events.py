"""What the actors of real Ray nodes tell of what happened."""

import socket
import time

import numpy as np

import raylog


def test_what_was_decided_and_refused_is_told_by_whom_it_concerns(client: raylog.Client) -> None:
    begun_s = time.time()
    client.put("tests/events", {"noise": np.random.default_rng(1).integers(0, 256, 1 << 20, dtype=np.uint8)})
    told = client.nodes()[0]
    with socket.create_connection((told.host, told.control_port), timeout=10) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        stranger.settimeout(10)
        while stranger.recv(4096):
            pass
    events = client.events(begun_s)
    assert [event.time_s for event in events] == sorted(event.time_s for event in events)
    assert all(event.time_s > begun_s for event in events)
    refused = [event for event in events if "refused" in event.message and event.actor == told.node_id]
    assert refused and refused[0].level == "warning" and refused[0].source == "wire.server"
    assert any(event.actor == "placement" and event.message.startswith("Placing 1 shard") for event in events)
    assert {event.actor for event in client.events()} >= {"catalog", "launch", "placement", told.node_id}
    assert client.events(time.time()) == []
