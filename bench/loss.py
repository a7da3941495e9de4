"""How much of a link's rate is left when packets are lost.

256 MiB of incompressible bytes from one network host on this machine to another over 1 Gbit/s, without loss and with 1
and 3 per cent of the sender's packets lost at random. `adapted_kept_*` is raylog's rate with loss over its rate
without; `one_stream_kept_1pct` the same of one plain TCP stream. `*_late`: loss begins when half has been sent, on a
path that has not seen any, and the rate from then on counts, over the same of a shipment without loss.
Everything once with the machine's default congestion control and once with cubic as the hosts' default, before
raylog starts. Medians of five.

    python bench/loss.py [--json] [--quick]                 (as root, on Linux)
"""

import secrets
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import REPEATS, parser, report
from on_hosts import Network, drive, is_driver, network, testbed

from raylog.units import MIB

RATE = "1gbit"
SPARE_BYTES = 64 * MIB
SIZE_BYTES, SIZE_BYTES_QUICK = 256 * MIB, 64 * MIB
NAME = "bench/noise"
SENDER, RECEIVER = 1, 2
FRESH = range(3, 3 + REPEATS)  # a receiver for each turn, to which no packet was lost yet
RECEIVER_SCRIPT = """
import socket
listener = socket.create_server(("", 7000))
print("listening", flush=True)
buffer = bytearray(1 << 20)
while True:
    connection, _ = listener.accept()
    while connection.recv_into(buffer):
        pass
    connection.close()
"""


def one_stream_s(bed: Network, size: int) -> float:
    """One TCP stream as the host makes them: until the receiver has everything and closes."""
    payload = memoryview(bytes(MIB))
    started_s = time.perf_counter()
    with socket.create_connection((bed.hosts.address(RECEIVER), 7000), timeout=300) as stream:
        for _ in range(size // MIB):
            stream.sendall(payload)
        stream.shutdown(socket.SHUT_WR)
        assert stream.recv(1) == b""
    return time.perf_counter() - started_s


def second_half_s(bed: Network, receiver: int, percent: float, wire_bytes: float) -> float:
    """Seconds that a whole shipment would take at the rate it has after loss began, half-way, until little is left.
    `wire_bytes` are what a shipment without loss sends, headers included."""
    before = sent_bytes()
    shipment = bed.start_ship(NAME, [receiver])
    wait_sent(before + 0.5 * wire_bytes)
    bed.hosts.loss(SENDER, percent)
    began_s, began_bytes = time.monotonic(), sent_bytes()
    moved_bytes = wait_sent(before + 0.95 * wire_bytes) - began_bytes
    seconds = time.monotonic() - began_s
    shipment.result(300)
    return seconds * wire_bytes / (moved_bytes * (1 - percent / 100))


def sent_bytes() -> int:
    """What left the sender, which is this host."""
    return int(Path("/sys/class/net/eth0/statistics/tx_bytes").read_text())


def wait_sent(total_bytes: float) -> int:
    deadline = time.monotonic() + 60
    while (count := sent_bytes()) < total_bytes:
        assert time.monotonic() < deadline, f"{count} of {total_bytes:.0f} bytes sent"
        time.sleep(0.002)
    return count


def under(bed: Network, percent: float, move: Callable[[], float]) -> float:
    bed.hosts.loss(SENDER, percent)
    try:
        return move()
    finally:
        bed.hosts.loss(SENDER, 0)


def one_turn(bed: Network, size: int, fresh: int) -> dict[str, float]:
    """Seconds of each, measured in turn."""

    def shipped_s() -> float:
        return bed.ship_s(NAME, [RECEIVER])

    def stream_s() -> float:
        return one_stream_s(bed, size)

    bed.ship_s(NAME, [fresh])  # warm
    before = sent_bytes()
    free_s = shipped_s()
    wire_bytes = sent_bytes() - before
    return {
        "adapted": free_s,
        "second_half": second_half_s(bed, fresh, 0, wire_bytes),
        "one_stream": stream_s(),
        "one_stream_kept_1pct": under(bed, 1, stream_s),
        "adapted_kept_1pct": under(bed, 1, shipped_s),
        "adapted_kept_3pct": under(bed, 3, shipped_s),
        "second_half_kept_1pct": under(bed, 0, lambda: second_half_s(bed, fresh, 1, wire_bytes)),
    }


def measure(bed: Network, size: int, repeats: int) -> dict[str, float]:
    """The rates without loss, and the share of them that is kept."""
    bed.ship_s(NAME, [RECEIVER])  # warm
    turns = [one_turn(bed, size, fresh) for fresh in FRESH[:repeats]]
    seconds = {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}
    free_s = {name: seconds.pop(name) for name in ("adapted", "second_half", "one_stream")}
    rates = {f"{name}_mbit_per_s": size * 8e-6 / value for name, value in free_s.items()}
    kept = {name: free_s[name.split("_kept")[0]] / value for name, value in seconds.items()}
    kept["adapted_kept_1pct_late"] = kept.pop("second_half_kept_1pct")
    return rates | kept


def run(size: int, repeats: int) -> dict[str, Any]:
    default = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    result: dict[str, Any] = {"bytes": size, "repeats": repeats, "default_congestion_control": default}
    result |= with_network(size, repeats)
    for host in testbed().numbers:
        testbed().congestion_control(host, "cubic")
    return result | {f"{name}_cubic_default": value for name, value in with_network(size, repeats).items()}


def with_network(size: int, repeats: int) -> dict[str, float]:
    with network(arena_bytes=size + SPARE_BYTES) as bed:
        bed.client.put(NAME, secrets.token_bytes(size))
        script = [sys.executable, "-c", RECEIVER_SCRIPT]
        with bed.hosts.popen(RECEIVER, script, stdout=subprocess.PIPE) as receiver:
            try:
                assert receiver.stdout is not None
                assert receiver.stdout.readline() == "listening\n"
                return measure(bed, size, repeats)
            finally:
                receiver.kill()


if __name__ == "__main__":
    arguments = parser(__doc__.splitlines()[0]).parse_args()
    if is_driver():
        size = SIZE_BYTES_QUICK if arguments.quick else SIZE_BYTES
        report(run(size, 1 if arguments.quick else REPEATS), as_json=True)
    else:
        report(drive(2 + len(FRESH), ["--quick"] if arguments.quick else [], rate=RATE), arguments.json)
