"""Copies that were shipped to stay: held on their nodes until `unpin`, and no replicas for that."""

from pathlib import Path

import numpy as np
import pytest
from three_nodes import Machine

import raylog
from raylog.errors import NotFound, UsageError
from raylog.units import MIB


def pinned_marks(machine: Machine) -> int:
    return sum(path.is_file() for path in Path(machine.settings.state).rglob("pinned/*"))


def test_shipped_to_stay(machine: Machine, client: raylog.Client) -> None:
    content = np.random.default_rng(7).bytes(9 * MIB)
    before = pinned_marks(machine)
    client.put("pins/one", content)
    shards = len(client.replicas("pins/one"))
    client.ship("pins/one", pin=True).result(60)
    nodes = len(client.nodes())
    assert pinned_marks(machine) == before + shards * nodes
    assert all(len(holders) == 1 for holders in client.replicas("pins/one").values()), "they are no replicas"
    some = client.nodes()[0].node_id
    client.unpin("pins/one", [some])
    assert pinned_marks(machine) == before + shards * (nodes - 1)
    client.unpin("pins/one")
    client.unpin("pins/one")  # nothing is left to do
    assert pinned_marks(machine) == before
    client.ship("pins/one", pin=True).result(60)
    assert client.get("pins/one") == content
    with pytest.raises(UsageError, match="expected 'all'"):
        client.unpin("pins/one", some)
    client.delete("pins/one")
    with pytest.raises(NotFound):
        client.unpin("pins/one")
