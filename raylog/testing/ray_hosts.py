"""A real Ray cluster over network hosts (hosts.py), one Ray node on each, the head on host 1, for tests and benchmarks.

    with ray_hosts(3, rate="1gbit") as cluster:
        cluster.hosts.run(1, [sys.executable, "driver.py"], env=cluster.environment)
        cluster.hosts.kill(2)
        cluster.start(2)

A driver runs on a host, with `cluster.environment`, and enters `joined()` before it calls `raylog.connect`: the hosts
share process ids, and Ray by itself would take the head's node for the one beside the driver. They share the file
system, too, so one `Settings.state` serves all of raylog's nodes, each with a slot of its own.
"""

import contextlib
import logging
import os
import secrets
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import ray

from raylog.errors import Unavailable
from raylog.testing.hosts import CommandFailed, Hosts, current, current_host, hosts
from raylog.units import MIB

PORT = 6379
START_TIMEOUT_S = 120.0
STARTS_AT_ONCE = 2
STORE_BYTES_MIN = 80 * MIB  # Ray's own least


@dataclass(frozen=True, slots=True, kw_only=True)
class RayHosts:
    """A running cluster. `store_bytes` is each node's object store, `cpus` what each node says it has."""

    hosts: Hosts
    store_bytes: int
    cpus: int
    token: str = field(repr=False)

    @property
    def address(self) -> str:
        """Ray's address, as `raylog.connect` takes it on a host."""
        return f"{self.hosts.address(1)}:{PORT}"

    @property
    def environment(self) -> dict[str, str]:
        """What a driver needs on top of this process's environment."""
        return {**self._node_environment, "RAY_ADDRESS": self.address}

    @property
    def _node_environment(self) -> dict[str, str]:
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, "RAY_USAGE_STATS_ENABLED": "0"}

    def start(self, host: int) -> None:
        """Starts Ray on a host where it does not run. A head that comes back has forgotten its cluster: kill and start
        the others, too. Raises `Unavailable` with what Ray said."""
        if self.hosts.processes(host):
            raise Unavailable(f"host {host} still runs something: kill it first")
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                self.hosts.run(host, self._start_command(host), timeout_s=START_TIMEOUT_S, env=self._node_environment)
                return
            except CommandFailed as error:
                self.hosts.kill(host)
                # Ray gives a node 30 s to start, which a busy machine can exceed.
                if "timed out" not in str(error) or time.monotonic() > deadline:
                    raise Unavailable(f"Ray did not start: {error}") from error

    def _start_command(self, host: int) -> list[str]:
        folder = Path(self.hosts.folder, f"ray{host}")
        (folder / "ray_current_cluster").unlink(missing_ok=True)  # of a killed head: a new one would refuse to start
        if host == 1:
            role = ["--head", f"--port={PORT}", "--include-dashboard=false", "--no-monitor"]
        else:
            role = [f"--address={self.address}"]
        # `env -u`: with an address in its environment a head would refuse to start.
        return ["env", "-u", "RAY_ADDRESS", sys.executable, "-m", "ray.scripts.scripts", "start", *role,
                f"--node-ip-address={self.hosts.address(host)}", f"--num-cpus={self.cpus}", f"--temp-dir={folder}",
                f"--object-store-memory={self.store_bytes}", "--include-log-monitor=false",
                "--disable-usage-stats"]  # fmt: skip


@contextlib.contextmanager
def ray_hosts(
    count: int,
    *,
    rate: str | None = None,
    nics: int = 1,
    store_bytes: int = STORE_BYTES_MIN,
    cpus: int = 1,
    own: str = "",
) -> Iterator[RayHosts]:
    """Ray with token authentication on `count` fresh hosts; all of it is gone when the block is left."""
    with hosts(count, rate=rate, nics=nics, own=own) as testbed:
        cluster = RayHosts(hosts=testbed, store_bytes=store_bytes, cpus=cpus, token=secrets.token_hex(32))
        cluster.start(1)
        with ThreadPoolExecutor(STARTS_AT_ONCE) as executor:
            list(executor.map(cluster.start, testbed.numbers[1:]))
        yield cluster


@contextlib.contextmanager
def joined() -> Iterator[str]:
    """Connects this process, a driver on a host, to that host's own Ray node; the cluster's address."""
    host, testbed, address = current_host(), current(), os.environ["RAY_ADDRESS"]
    assert testbed is not None
    ray.init(address, _node_ip_address=testbed.address(host), log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield address
    finally:
        ray.shutdown()
