"""Network hosts on this machine: rates, loss, cuts, two interfaces, IPv6, nothing left behind; and raylog over three of
them on Ray, one of which dies."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raylog.errors import Unavailable, UsageError
from raylog.testing.hosts import CommandFailed, Hosts, hosts, unavailable
from raylog.testing.ray_hosts import RayHosts, ray_hosts

TRAFFIC = [sys.executable, str(Path(__file__).with_name("host_traffic.py"))]
DRIVER = [sys.executable, str(Path(__file__).with_name("hosts_driver.py"))]

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))


@contextlib.contextmanager
def serving(testbed: Hosts, host: int) -> Iterator[None]:
    with testbed.popen(host, [*TRAFFIC, "serve"], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "listening\n"
            yield
        finally:
            process.kill()


@pytest.fixture(scope="module")
def testbed() -> Iterator[Hosts]:
    """Three hosts with two interfaces; hosts 2 and 3 count what comes."""
    with hosts(3, nics=2) as found, serving(found, 2), serving(found, 3):
        yield found


def mbit_per_s(testbed: Hosts, sender: int, address: str, mib: int) -> float:
    return float(testbed.run(sender, [*TRAFFIC, "send", address, str(mib)])) * 8e-6


def best_mbit_per_s(testbed: Hosts, sender: int, address: str) -> float:
    """Of three tries: a busy machine may be slower than a link, never faster."""
    return max(mbit_per_s(testbed, sender, address, 12) for _ in range(3))


def arrived(testbed: Hosts, sender: int, address: str, count: int) -> int:
    return int(testbed.run(sender, [*TRAFFIC, "datagrams", address, str(count)]))


@pytest.mark.parametrize("limited", [1, 2], ids=["sender", "receiver"])
def test_a_rate_holds_at_either_end(testbed: Hosts, limited: int) -> None:
    testbed.rate(limited, "100mbit")
    try:
        assert 90 <= best_mbit_per_s(testbed, 1, testbed.address(2)) <= 110
    finally:
        testbed.rate(limited, None)
    assert best_mbit_per_s(testbed, 1, testbed.address(2)) > 200


def test_loss_loses_what_it_says(testbed: Hosts) -> None:
    assert arrived(testbed, 1, testbed.address(2), 4000) == 4000
    testbed.loss(1, 10)
    try:
        assert 3400 <= arrived(testbed, 1, testbed.address(2), 4000) <= 3800
        assert mbit_per_s(testbed, 1, testbed.address(2), 1) > 0  # TCP mends it
    finally:
        testbed.loss(1, 0)
    assert arrived(testbed, 1, testbed.address(2), 4000) == 4000


def test_a_cut_is_silent_and_heals(testbed: Hosts) -> None:
    script = f"import socket; socket.create_connection(('{testbed.address(2)}', 4321), 1)"
    testbed.cut(1, 2)
    try:
        with pytest.raises(CommandFailed, match="TimeoutError"):
            testbed.run(1, [sys.executable, "-c", script])
        mbit_per_s(testbed, 1, testbed.address(3), 1)
        mbit_per_s(testbed, 3, testbed.address(2), 1)
    finally:
        testbed.heal(1, 2)
    mbit_per_s(testbed, 1, testbed.address(2), 1)


def test_a_connection_goes_on_after_a_cut(testbed: Hosts) -> None:
    testbed.rate(1, "100mbit")
    try:
        with testbed.popen(1, [*TRAFFIC, "send", testbed.address(2), "12"], stdout=subprocess.PIPE) as sending:
            time.sleep(0.6)
            testbed.cut(1)
            time.sleep(0.6)
            assert sending.poll() is None
            testbed.heal(1)
            said, _ = sending.communicate(timeout=30)
    finally:
        testbed.rate(1, None)
    assert float(said) > 0


def test_a_host_cut_from_everybody_is_cut_from_this_machine(testbed: Hosts) -> None:
    at = (testbed.address(2), 4321)
    testbed.cut(2)
    try:
        with pytest.raises(TimeoutError):
            socket.create_connection(at, 0.5)
    finally:
        testbed.heal(2)
    socket.create_connection(at, 10).close()


def test_the_second_interface_is_a_link_of_its_own(testbed: Hosts) -> None:
    testbed.rate(1, "40mbit")
    try:
        with testbed.popen(1, [*TRAFFIC, "send", testbed.address(2), "12"], stdout=subprocess.PIPE) as first:
            second = mbit_per_s(testbed, 1, testbed.address(2, nic=1), 12)
            said, _ = first.communicate(timeout=30)
    finally:
        testbed.rate(1, None)
    assert 30 <= second <= 46  # neither shared its link
    assert 30 <= float(said) * 8e-6 <= 46


def test_ipv6_and_names(testbed: Hosts) -> None:
    for address in (testbed.address6(2), testbed.address6(2, nic=1), testbed.name(2)):
        assert mbit_per_s(testbed, 1, address, 1) > 0
    assert testbed.run(3, ["cat", "/proc/sys/kernel/hostname"]).strip() == testbed.name(3)


def test_a_process_on_a_host_acts_on_the_testbed(testbed: Hosts) -> None:
    script = "from raylog.testing.hosts import current; current().cut(3, 2); print(current().run(3, ['echo', 'here']))"
    try:
        assert testbed.run(1, [sys.executable, "-c", script]).strip() == "here"
        with pytest.raises(CommandFailed):
            testbed.run(3, [*TRAFFIC, "send", testbed.address(2), "1"])
    finally:
        testbed.heal(3, 2)


def test_a_host_has_a_congestion_control_of_its_own(testbed: Hosts) -> None:
    own, allowed = (Path(f"/proc/sys/net/ipv4/tcp_{name}congestion_control") for name in ("", "allowed_"))
    before = allowed.read_text()
    for name in Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split():
        testbed.congestion_control(1, name)
        assert testbed.run(1, ["cat", str(own)]).strip() == name
    assert sorted(allowed.read_text().split()) == sorted(before.split())
    with pytest.raises(CommandFailed):
        testbed.congestion_control(1, "nonsense")


def test_a_killed_host_loses_processes_and_memory(testbed: Hosts) -> None:
    testbed.run(1, ["sh", "-c", "echo kept > /dev/shm/file"])
    assert testbed.run(1, ["cat", "/dev/shm/file"]) == "kept\n"
    with testbed.popen(1, ["sh", "-c", "echo here; exec sleep 60"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"  # before that it is not on the host yet
        testbed.kill(1)
        assert process.wait(10) == -signal.SIGKILL
    assert testbed.processes(1) == []
    assert testbed.run(1, ["ls", "/dev/shm"]) == ""


def test_wrong_use_is_named(testbed: Hosts) -> None:
    with pytest.raises(UsageError, match="no host 4"):
        testbed.run(4, ["true"])
    with pytest.raises(UsageError, match="cut from itself"):
        testbed.cut(1, 1)
    with pytest.raises(UsageError, match="0 to 100"):
        testbed.loss(1, 101)
    with pytest.raises(CommandFailed, match="killed after"):
        testbed.run(1, ["sleep", "60"], timeout_s=0.2)


def left(prefix: str) -> list[str]:
    """What of a testbed is still on the machine."""
    commands = (["ip", "netns"], ["ip", "-o", "link"], ["nft", "list", "tables"], ["cat", "/proc/self/mounts"])
    said = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for command in commands]
    return [line for text in said for line in text.splitlines() if f"{prefix}-" in line or line.endswith(prefix)]


def test_two_testbeds_stand_side_by_side_and_leave_nothing(testbed: Hosts) -> None:
    before = left(testbed.name(1).split("-")[0])
    with hosts(2) as second:
        prefix = second.name(1).split("-")[0]
        assert second.number != testbed.number
        assert left(prefix)
        process = second.popen(2, ["sleep", "60"])
    assert process.wait(10) == -signal.SIGKILL
    assert left(prefix) == []
    assert not Path(second.folder).exists()
    assert left(testbed.name(1).split("-")[0]) == before


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL], ids=["interrupted", "killed"])
def test_what_an_ended_owner_leaves_is_removed(sent: signal.Signals) -> None:
    """After Ctrl-C by itself, after SIGKILL by the next owner of the number."""
    script = (
        "from raylog.testing.hosts import hosts; import signal, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job ignores it
        "with hosts(2) as testbed:\n"
        "    print(testbed.number, testbed.folder, flush=True); time.sleep(60)\n"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", script], text=True, **pipes) as owner:
        assert owner.stdout is not None
        number, folder = owner.stdout.readline().split()
        owner.send_signal(sent)
        owner.wait(30)
    if sent == signal.SIGKILL:
        assert left(f"rlt{number}")
        with contextlib.ExitStack() as claimed:
            while claimed.enter_context(hosts(1)).number < int(number):
                continue
    assert left(f"rlt{number}") == []
    assert not Path(folder).exists()


def test_a_start_that_fails_leaves_nothing() -> None:
    with pytest.raises(CommandFailed), hosts(2, rate="fast"):
        pytest.fail("it started")
    with pytest.raises(UsageError, match="1 to 250 hosts"), hosts(0):
        pytest.fail("it started")


def driven(cluster: RayHosts, host: int, step: str) -> Any:
    said = cluster.hosts.run(host, [*DRIVER, step], timeout_s=150, env=cluster.environment)
    return json.loads(said.splitlines()[-1])


@pytest.mark.timeout(600)
def test_raylog_over_three_hosts_one_of_which_dies() -> None:
    with ray_hosts(3, rate="1gbit") as cluster:
        holding = driven(cluster, 1, "put")
        assert len(holding) == 2
        reader = next(host for host in (2, 3) if host not in holding)
        driven(cluster, reader, "get")
        victim = next(host for host in holding if host != 1)
        cluster.hosts.kill(victim)
        assert driven(cluster, 1, "healed") == [1, reader]
        cluster.hosts.run(victim, ["ip", "link", "set", "eth0", "mtu", "1280"])  # the others' is larger
        cluster.start(victim)
        driven(cluster, victim, "get")
        with pytest.raises(Unavailable, match="still runs something"):
            cluster.start(victim)


@pytest.mark.timeout(300)
def test_text_is_compressed_further_for_a_slow_link() -> None:
    with ray_hosts(2, rate="100mbit") as cluster:
        before, after = driven(cluster, 1, "codecs")
    assert "lz4" in before and "zstd" not in before
    assert "zstd" in after
