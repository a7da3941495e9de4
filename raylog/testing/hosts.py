"""Several network hosts on one Linux machine: network namespaces joined by bridges, for tests and benchmarks.

Each host has addresses of its own (IPv4 and IPv6), a host name and a /dev/shm; links have a rate in both directions,
packets get lost, hosts are cut off from each other and die. Hosts share the file system, the clock, CPU, memory and
process ids. They reach each other and this machine, nothing beyond it.

    with hosts(3, rate="1gbit") as testbed:
        testbed.run(1, ["ping", "-c1", testbed.address(2)])
        testbed.loss(2, 1.0)

Losses and cuts happen on the bridge, silently, as on a cable: no sender gets an error, a cut connection stays open and
goes on with TCP's next retransmission after `heal`.

A process on a host gets at its own testbed by `current()`: a driver on host 1 may cut host 2 off. Testbeds side by side
never meet: each claims a number, which names its links and subnets. A claim ends with its process however that ends,
and the next owner of the number removes what was left.
"""

import contextlib
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from raylog.errors import RaylogError, Unavailable, UsageError

TOOLS = ("ip", "tc", "nft", "ethtool", "unshare", "nsenter", "mount", "umount")  # iproute2 nftables ethtool util-linux
HOSTS_MAX = 250
NICS_MAX = 2
TESTBEDS_MAX = 250
MACHINE = 254  # this machine's last number in every subnet
KILL_TIMEOUT_S = 10.0
VARIABLE, HOST_VARIABLE = "RAYLOG_HOSTS", "RAYLOG_HOST"  # of a process on a host: for `current` and `current_host`

# Everything a testbed does, once, in namespaces that vanish with the shell.
_PROBE = """
set -e
ip link add name bridge type bridge mcast_snooping 0
ip link add port type veth peer name eth0
ip link set port master bridge
tc qdisc replace dev eth0 root tbf rate 1mbit burst 1mb latency 50ms
ethtool -K eth0 tso off
mount -t tmpfs probe /dev/shm
nft 'add table bridge probe; add set bridge probe cut { type ifname . ifname; };
    add chain bridge probe loss { type filter hook prerouting priority 0; };
    add rule bridge probe loss iifname "port" numgen random mod 100000 < 1 counter drop'
"""
_ENTER = """
set -e
echo "$1" > /proc/sys/kernel/hostname
mount --bind "$2" /dev/shm
mount --bind "$3" /etc/hosts
test "$4" = "" || mount --bind "$5" "$4"
shift 5
exec "$@"
"""


class CommandFailed(RaylogError):
    """A command on a host, or one that makes hosts, exited with an error."""


@functools.cache
def unavailable() -> str | None:
    """Why this machine cannot have hosts; None when it can."""
    if os.geteuid() != 0:
        return "network hosts need root"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"network hosts need {', '.join(missing)}: apt-get install iproute2 nftables ethtool util-linux"
    command = ["unshare", "--net", "--uts", "--mount", "sh", "-c", _PROBE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"this kernel gives no network hosts: {done.stderr.strip()[-300:]}" if done.returncode else None


def current() -> "Hosts | None":
    """The testbed that this process is on a host of."""
    text = os.environ.get(VARIABLE)
    return Hosts(**json.loads(text)) if text else None


def current_host() -> int:
    """The number of the host that this process is on. Raises `UsageError` where it is on none."""
    text = os.environ.get(HOST_VARIABLE)
    if text is None:
        raise UsageError("expected to run on a host of a testbed: start this process by Hosts.run or Hosts.popen")
    return int(text)


@contextlib.contextmanager
def hosts(count: int, *, rate: str | None = None, nics: int = 1, own: str = "") -> Iterator["Hosts"]:
    """`count` hosts, numbered from 1, with `nics` interfaces each, at `rate` (as tc writes it: "1gbit"). At the path
    `own`, a folder, each host has one of its own.

    Ends every process on them and removes everything when the block is left. Raises `Unavailable` where the machine
    cannot.
    """
    reason = unavailable()
    if reason:
        raise Unavailable(reason)
    if not (1 <= count <= HOSTS_MAX and 1 <= nics <= NICS_MAX):
        raise UsageError(f"expected 1 to {HOSTS_MAX} hosts with 1 to {NICS_MAX} NICs, got {count} with {nics}")
    with _claimed_number() as number:
        prefix = _prefix(number)
        folder = tempfile.mkdtemp(prefix=f"{prefix}-")
        testbed = Hosts(number=number, count=count, nics=nics, folder=folder, owner_pid=os.getpid(), own=own)
        try:
            testbed._make()
            for host in testbed.numbers if rate else ():
                testbed.rate(host, rate)
            yield testbed
        finally:
            _remove(prefix)
            shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosts:
    """The hosts of one testbed. The kernel has all of its state: any process with these values may act on it."""

    number: int
    count: int
    nics: int
    folder: str  # goes with the testbed; the hosts' TMPDIRs are in it
    owner_pid: int
    own: str = ""

    @property
    def numbers(self) -> range:
        return range(1, self.count + 1)

    def name(self, host: int) -> str:
        """A host's name, which every host can look up."""
        self._check(host)
        return f"{_prefix(self.number)}-h{host}"

    def own_folder(self, host: int) -> str:
        """What a host has at `own`, as everybody else sees it."""
        return f"{self.folder}/own{host}"

    def address(self, host: int, nic: int = 0) -> str:
        """A host's IPv4 address; 254 is this machine."""
        return f"10.{77 + nic}.{self.number}.{host}"

    def address6(self, host: int, nic: int = 0) -> str:
        """A host's IPv6 address."""
        return f"fd77:{self.number:x}:{nic:x}::{host:x}"

    def popen(self, host: int, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """Starts `command` on a host; `options` are `subprocess.Popen`'s."""
        environment = {**os.environ, **(options.pop("env", None) or {})}
        environment |= {"TMPDIR": self._temporary(host), VARIABLE: json.dumps(asdict(self)), HOST_VARIABLE: str(host)}
        entered = ["ip", "netns", "exec", self.name(host), "unshare", "--uts", "sh", "-c", _ENTER, "hosts"]
        mounts = [self.name(host), self._shm(host), f"{self.folder}/hosts", self.own, self.own_folder(host)]
        return subprocess.Popen([*entered, *mounts, *command], text=True, env=environment, **options)

    def run(
        self, host: int, command: Sequence[str], *, timeout_s: float = 60.0, env: Mapping[str, str] | None = None
    ) -> str:
        """Runs `command` on a host, such as `[sys.executable, script]`; what it wrote to standard output.

        Raises `CommandFailed` with the end of what it said when it exits with an error, or is killed after `timeout_s`.
        """
        pipes: dict[str, IO[Any] | int] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with self.popen(host, command, env=env, **pipes) as process:
            try:
                said, complained = process.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                said, complained = process.communicate()
                complained += f"killed after {timeout_s:.0f} s"
        if process.returncode:
            what, why = " ".join(command)[:200], (said + complained)[-1500:]
            raise CommandFailed(f"host {host}: {what} exited with {process.returncode}: {why}")
        return said

    def rate(self, host: int, rate: str | None) -> None:
        """Limits each of a host's interfaces, what it sends and what it receives, to `rate`; None: no limit."""
        queue = ["tbf", "rate", rate, "burst", "1mb", "latency", "50ms"] if rate else ["noqueue"]
        for nic in range(self.nics):
            for tc, device in (["tc", "-n", self.name(host)], f"eth{nic}"), (["tc"], self._port(host, nic)):
                self._machine(*tc, "qdisc", "replace", "dev", device, "root", *queue)

    def loss(self, host: int, percent: float) -> None:
        """Loses `percent` of the packets that a host sends, at random; 0: none."""
        if not 0 <= percent <= 100:
            raise UsageError(f"expected a loss from 0 to 100 per cent, got {percent}")
        chain = f"bridge {_prefix(self.number)} loss{host}"
        self._nft(f"flush chain {chain}")
        for nic in range(self.nics):
            # With offload TCP crosses the bridge in pieces of up to 64 KiB, and one loss would take a whole piece.
            offload = "off" if percent else "on"
            self._machine("ip", "netns", "exec", self.name(host), "ethtool", "-K", f"eth{nic}", "tso", offload)
        if percent:
            self._nft(f"add rule {chain} numgen random mod 100000 < {round(percent * 1000)} counter drop")

    def cut(self, host: int, other: int | None = None) -> None:
        """Loses everything between a host and another one, in both directions; None: everything from and to it."""
        self._nft(self._elements("add", host, other))

    def heal(self, host: int, other: int | None = None) -> None:
        """Undoes `cut`, between two hosts, or between one and everybody."""
        # Deleting what is not there would fail, so it is added first.
        self._nft(self._elements("add", host, other) + self._elements("delete", host, other))

    def congestion_control(self, host: int, name: str) -> None:
        """Which TCP congestion control new sockets of a host have unless they choose one: "bbr" or "cubic"."""
        # Linux lets a namespace take only what the machine allows everybody, and asks at this moment only.
        script = f"""
            set -e; cd /proc/sys/net/ipv4; read -r allowed < tcp_allowed_congestion_control
            trap 'echo "$allowed" > tcp_allowed_congestion_control' EXIT
            echo "$allowed {name}" > tcp_allowed_congestion_control
            ip netns exec {self.name(host)} sh -c 'echo {name} > /proc/sys/net/ipv4/tcp_congestion_control'
        """
        self._machine("sh", "-c", script)

    def processes(self, host: int) -> list[int]:
        """The process ids on a host."""
        return _processes(self.name(host))

    def kill(self, host: int) -> None:
        """What a loss of power does: every process is gone at once, and what /dev/shm held."""
        _kill_all(self.name(host))
        for entry in Path(self._shm(host)).iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def _check(self, host: int) -> None:
        if host not in self.numbers:
            raise UsageError(f"no host {host}: there are 1 to {self.count}")

    def _port(self, host: int, nic: int) -> str:
        """The bridge's end of an interface."""
        return f"{_prefix(self.number)}-h{host}n{nic}"

    def _shm(self, host: int) -> str:
        return f"{self.folder}/shm{host}"

    def _temporary(self, host: int) -> str:
        return f"{self.folder}/h{host}"

    def _machine(self, *command: str) -> None:
        """Runs a command where the bridges are, wherever this process is."""
        entered = ["nsenter", f"--net=/proc/{self.owner_pid}/ns/net", *command]
        done = subprocess.run(entered, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CommandFailed(f"{' '.join(command)[:200]} exited with {done.returncode}: {done.stderr[:1000]}")

    def _nft(self, commands: str) -> None:
        self._machine("nft", commands)

    def _elements(self, verb: str, host: int, other: int | None) -> str:
        """nft's commands that add or delete what is cut between the two."""
        for named in (host,) if other is None else (host, other):
            self._check(named)
        if host == other:
            raise UsageError(f"host {host} cannot be cut from itself")
        table = f"bridge {_prefix(self.number)}"
        commands = ""
        for nic in range(self.nics):
            mine = self._port(host, nic)
            if other is None:
                commands += f'{verb} element {table} from_machine {{ "{mine}" }};'
            for peer in {*self.numbers} - {host} if other is None else {other}:
                theirs = self._port(peer, nic)
                commands += f'{verb} element {table} cut {{ "{mine}" . "{theirs}", "{theirs}" . "{mine}" }};'
        return commands

    def _make(self) -> None:
        for host in self.numbers:
            for path in (self._shm(host), self._temporary(host), self.own_folder(host)):
                Path(path).mkdir()
            self._machine("mount", "-t", "tmpfs", "-o", "mode=1777", f"{_prefix(self.number)}-shm", self._shm(host))
        named = [f"{self.address(host)} {self.name(host)}" for host in self.numbers]
        Path(self.folder, "hosts").write_text("\n".join(["127.0.0.1 localhost", "::1 localhost", *named, ""]))
        self._make_rules()
        for nic in range(self.nics):
            bridge = f"{_prefix(self.number)}-br{nic}"
            self._machine("ip", "link", "add", bridge, "type", "bridge", "mcast_snooping", "0")
            self._machine("ip", "link", "set", bridge, "up")
            self._machine("ip", "addr", "add", f"{self.address(MACHINE, nic)}/24", "dev", bridge)
            self._machine("ip", "addr", "add", f"{self.address6(MACHINE, nic)}/64", "dev", bridge, "nodad")
        for host in self.numbers:
            self._make_host(host)

    def _make_rules(self) -> None:
        table = f"bridge {_prefix(self.number)}"
        hook = "{{ type filter hook {} priority 0; }}"
        self._nft(f"""
            add table {table}
            add set {table} cut {{ type ifname . ifname; }}
            add set {table} from_machine {{ type ifname; }}
            add chain {table} arriving {hook.format("prerouting")}
            add chain {table} forwarded {hook.format("forward")}
            add chain {table} to_machine {hook.format("input")}
            add chain {table} by_machine {hook.format("output")}
            add rule {table} forwarded iifname . oifname @cut drop
            add rule {table} to_machine iifname @from_machine drop
            add rule {table} by_machine oifname @from_machine drop
        """)
        for host in self.numbers:
            self._nft(f"add chain {table} loss{host}")
            for nic in range(self.nics):
                self._nft(f'add rule {table} arriving iifname "{self._port(host, nic)}" jump loss{host}')

    def _make_host(self, host: int) -> None:
        name = self.name(host)
        self._machine("ip", "netns", "add", name)
        self._machine("ip", "-n", name, "link", "set", "lo", "up")
        for nic in range(self.nics):
            port, device = self._port(host, nic), f"eth{nic}"
            self._machine("ip", "link", "add", port, "type", "veth", "peer", "name", device, "netns", name)
            self._machine("ip", "link", "set", port, "master", f"{_prefix(self.number)}-br{nic}", "up")
            self._machine("ip", "-n", name, "addr", "add", f"{self.address(host, nic)}/24", "dev", device)
            self._machine("ip", "-n", name, "addr", "add", f"{self.address6(host, nic)}/64", "dev", device, "nodad")
            self._machine("ip", "-n", name, "link", "set", device, "up")
        self._machine("ip", "-n", name, "route", "add", "default", "via", self.address(MACHINE))


def _prefix(number: int) -> str:
    return f"rlt{number}"


@contextlib.contextmanager
def _claimed_number() -> Iterator[int]:
    """A number that no other process has: an abstract socket holds it, and vanishes with the process. What a dead owner
    left is removed; numbers whose subnets somebody else uses are passed over."""
    for number in range(1, TESTBEDS_MAX + 1):
        with socket.socket(socket.AF_UNIX) as claim:
            try:
                claim.bind(f"\0raylog-hosts-{number}")
            except OSError:
                continue
            _remove(_prefix(number))
            if _is_free(number):
                yield number
                return
    raise Unavailable(f"all {TESTBEDS_MAX} numbers of testbeds are taken on this machine")


def _is_free(number: int) -> bool:
    subnets = [f"10.{77 + nic}.{number}.0/24" for nic in range(NICS_MAX)]
    shown = [["ip", "-4", "addr", "show", "to", subnet] for subnet in subnets]
    return not any(subprocess.run(command, capture_output=True, check=False).stdout for command in shown)


def _remove(prefix: str) -> None:
    """Everything that a testbed of this prefix made, as far as it is there."""
    namespaces = [path.name for path in Path("/run/netns").glob(f"{prefix}-*")]
    for name in namespaces:
        _kill_all(name)
    links = [["ip", "link", "del", path.name] for path in Path("/sys/class/net").glob(f"{prefix}-*")]
    named = [["ip", "netns", "del", name] for name in namespaces]
    for command in [*links, *named, ["nft", "delete", "table", "bridge", prefix]]:
        subprocess.run(command, capture_output=True, check=False)  # a link goes with its namespace, too
    for line in Path("/proc/self/mounts").read_text().splitlines():
        source, path = line.split()[:2]
        if source == f"{prefix}-shm":
            subprocess.run(["umount", "--lazy", path], capture_output=True, check=True)
            shutil.rmtree(Path(path).parent, ignore_errors=True)


def _processes(namespace: str) -> list[int]:
    done = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
    return [int(word) for word in done.stdout.split()]


def _kill_all(namespace: str) -> None:
    """Until none is left: a dying parent may leave a child made meanwhile."""
    deadline = time.monotonic() + KILL_TIMEOUT_S
    while found := _processes(namespace):
        if time.monotonic() > deadline:
            raise Unavailable(f"processes of {namespace} outlive SIGKILL by {KILL_TIMEOUT_S:.0f} s: {found}")
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
