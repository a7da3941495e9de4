"""Benchmarks over several network hosts: the script that is started makes a testbed with Ray on every host, and starts
itself again on host 1, as the driver that measures."""

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import raylog
from raylog.actors import bootstrap, calls
from raylog.actors.node_info import NodeInfo
from raylog.actors.requests import DeleteShards, ask
from raylog.errors import UsageError
from raylog.settings import Settings
from raylog.testing.hosts import Hosts, current
from raylog.testing.ray_hosts import STORE_BYTES_MIN, joined, ray_hosts

DRIVER_TIMEOUT_S = 1800.0
START_TIMEOUT_S = 180.0
QUIET_BYTES = 500_000  # in half a second, of all hosts together


def is_driver() -> bool:
    """Whether this process is the one on host 1."""
    return current() is not None


def drive(
    hosts: int, arguments: Sequence[str], *, rate: str, nics: int = 1, store_bytes: int = STORE_BYTES_MIN
) -> dict[str, Any]:
    """What this script reports when it runs with `arguments` on host 1 of a fresh testbed: its last line, JSON."""
    with ray_hosts(hosts, rate=rate, nics=nics, store_bytes=store_bytes) as cluster:
        command = [sys.executable, str(Path(sys.argv[0]).resolve()), *arguments]
        said = cluster.hosts.run(1, command, timeout_s=DRIVER_TIMEOUT_S, env=cluster.environment)
    result: dict[str, Any] = json.loads(said.splitlines()[-1])
    return result


@dataclass(frozen=True, slots=True)
class Network:
    """raylog on the hosts of the testbed that this process is on."""

    hosts: Hosts
    client: raylog.Client
    nodes: dict[int, NodeInfo]  # by host

    def holders(self, name: str) -> list[int]:
        """The hosts that hold a replica of every shard."""
        holding = set.intersection(*(set(nodes) for nodes in self.client.replicas(name).values()))
        return [host for host, info in self.nodes.items() if info.node_id in holding]

    def forget(self, name: str, hosts: Sequence[int]) -> None:
        """Takes away the copies that an earlier `ship` or `get` left."""
        delete = DeleteShards(shard_ids=tuple(self.client.replicas(name)))
        running = bootstrap.running_settings()
        assert running
        signer = bootstrap.cluster_signer(running)
        for info in (self.nodes[host] for host in hosts):
            calls.wait(ask(calls.node(info.ray_node_id), info.node_id, delete, signer), 60, "delete")

    def start_ship(self, name: str, to: Sequence[int], deadline_s: float = 300.0) -> Any:
        """A running shipment to hosts that hold nothing of it."""
        self.forget(name, to)
        return self.client.ship(name, to=[self.nodes[host].node_id for host in to], deadline_s=deadline_s)

    def ship_s(self, name: str, to: Sequence[int]) -> float:
        """Seconds of one whole shipment to hosts that hold nothing of it."""
        shipped = self.start_ship(name, to).result(300)
        assert shipped.moved_bytes > 0
        return float(shipped.seconds)

    def received_bytes(self, host: int) -> int:
        """What came through a host's interfaces since they are up, headers included."""
        return self._counted(host, "rx_bytes")

    def sent_bytes(self, host: int) -> int:
        return self._counted(host, "tx_bytes")

    def wait_quiet(self, timeout_s: float = 60.0) -> None:
        """Until next to nothing is received anywhere: a peer's broadcast may go on after everybody has it all."""
        deadline, seen = time.monotonic() + timeout_s, -QUIET_BYTES
        while (count := sum(self.received_bytes(host) for host in self.nodes)) - seen >= QUIET_BYTES:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the links are not quiet after {timeout_s:.0f} s")
            seen = count
            time.sleep(0.5)

    def _counted(self, host: int, counter: str) -> int:
        files = [f"/sys/class/net/eth{nic}/statistics/{counter}" for nic in range(self.hosts.nics)]
        return sum(int(line) for line in self.hosts.run(host, ["cat", *files]).split())

    def wait_received(self, host: int, beyond_bytes: int, timeout_s: float = 60.0) -> int:
        """Until a host has received so many bytes in all; how many it had then."""
        deadline = time.monotonic() + timeout_s
        while (count := self.received_bytes(host)) < beyond_bytes:
            if time.monotonic() > deadline:
                raise TimeoutError(f"host {host} received {count} of {beyond_bytes} bytes within {timeout_s:.0f} s")
        return count


def testbed() -> Hosts:
    found = current()
    if found is None:
        raise UsageError("expected to run on a host of a testbed")
    return found


def settings(**values: Any) -> Settings:
    """The hosts share the file system: one state, in the testbed's folder, serves all of their nodes."""
    return Settings(state=Path(testbed().folder, "state"), disk_reserve_bytes=0, **values)


@contextlib.contextmanager
def network(**values: Any) -> Iterator[Network]:
    """raylog with these settings on every host; the client is on this one."""
    hosts = testbed()
    with joined() as address, raylog.connect(address, settings=settings(**values)) as client:
        bootstrap.wait_for_nodes(START_TIMEOUT_S)
        by_address = {hosts.address(host): host for host in hosts.numbers}
        nodes = {by_address[info.host]: info for info in client.nodes()}
        assert len(nodes) == hosts.count, nodes
        yield Network(hosts, client, dict(sorted(nodes.items())))
