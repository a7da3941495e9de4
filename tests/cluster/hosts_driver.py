"""A driver on a network host, one step of a story per run; prints the hosts that hold the artifact, `codecs` the codecs
that text got before and after the link was known.

python hosts_driver.py put | get | healed | codecs
"""

import json
import sys
from pathlib import Path

import numpy as np
from three_nodes import wait_until

import raylog
from raylog.actors import bootstrap
from raylog.settings import Settings
from raylog.testing.hosts import current, current_host
from raylog.testing.ray_hosts import joined
from raylog.units import MIB

NAME = "hosts/noise"
REPLICAS = 2


def holders(client: raylog.Client) -> list[int]:
    """The living hosts, by number, that hold every shard."""
    testbed = current()
    assert testbed is not None
    addresses = {testbed.address(host): host for host in testbed.numbers}
    holding = set.intersection(*(set(nodes) for nodes in client.replicas(NAME).values()))
    return sorted(addresses[info.host] for info in client.nodes() if info.node_id in holding)


def codecs(client: raylog.Client) -> list[list[str]]:
    """The codecs of the same text, put before and after shards have moved."""
    bootstrap.wait_for_nodes(90)
    text = b"".join(path.read_bytes() for path in sorted(Path(json.__file__).parent.parent.glob("*.py")))[: 2 * MIB]
    client.put("hosts/before", text)
    client.put(NAME, np.random.default_rng(22).bytes(8 * MIB), replicas=REPLICAS)
    wait_until(lambda: any(sample.transfer.pull_bytes_per_s for sample in client.telemetry()), 60, "a rate is known")
    client.put("hosts/after", text)
    assert client.get("hosts/after") == text
    return [sorted(client.inspect(name).codecs) for name in ("hosts/before", "hosts/after")]


def main(step: str) -> None:
    testbed = current()
    assert testbed is not None
    settings = Settings(
        state=Path(testbed.folder, "state"), arena_bytes=64 * MIB, disk_reserve_bytes=0, shard_bytes=4 * MIB,
        chunk_bytes=MIB // 4, reconcile_period_s=0.5, lost_after_s=2.0,
    )  # fmt: skip
    payload = np.random.default_rng(21).bytes(8 * MIB)
    with joined() as address, raylog.connect(address, settings=settings) as client:
        assert client.local_node().host == testbed.address(current_host())
        if step == "codecs":
            print(json.dumps(codecs(client)))
            return
        if step == "put":
            bootstrap.wait_for_nodes(90)
            client.put(NAME, payload, replicas=REPLICAS)
            report = client.ship(NAME, deadline_s=60).result(60)
            assert len(report.nodes) == testbed.count
            assert report.moved_bytes > len(payload), "one host had nothing"
        elif step == "healed":
            wait_until(lambda: len(client.nodes()) == testbed.count - 1, 60, "the loss is noticed")
            wait_until(lambda: len(holders(client)) == REPLICAS, 60, "two living hosts hold everything")
        assert client.get(NAME) == payload
        print(json.dumps(holders(client)))


if __name__ == "__main__":
    main(sys.argv[1])
