"""How much of a link's rate is left when packets are lost.

256 MiB of incompressible bytes from one network host on this machine to another over 1 Gbit/s, without loss and with 1
and 3 per cent of the sender's packets lost at random. `adapted_kept_*` is raylog's rate with loss over its rate
without; `one_stream_kept_1pct` the same of one plain TCP stream. `*_late`: loss begins when half has been sent, and the
rate from then on counts. Everything once with the machine's default congestion control and once with cubic as the
hosts' default. Medians of five.

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
from on_hosts import Network, drive, is_driver, network

from raylog.units import MIB

RATE = "1gbit"
SPARE_BYTES = 64 * MIB
SIZE_BYTES, SIZE_BYTES_QUICK = 256 * MIB, 64 * MIB
NAME = "bench/noise"
SENDER, RECEIVER = 1, 2
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


def late_s(bed: Network, size: int, percent: float, wire_bytes: float) -> float:
    """Seconds that a whole shipment would take at the rate it has after loss began, half-way. `wire_bytes` are what a
    shipment without loss sends, headers included."""
    before = bed.sent_bytes(SENDER)
    shipment = bed.start_ship(NAME, [RECEIVER])
    started_s = time.monotonic()
    while (sent := bed.sent_bytes(SENDER) - before) < wire_bytes / 2:
        assert time.monotonic() - started_s < 60, f"{sent} of {wire_bytes} bytes sent"
    bed.hosts.loss(SENDER, percent)
    began_s = time.monotonic()
    shipment.result(300)
    left = max(1 - sent / wire_bytes, 0.01)
    return (time.monotonic() - began_s) / left


def under(bed: Network, percent: float, move: Callable[[], float]) -> float:
    bed.hosts.loss(SENDER, percent)
    try:
        return move()
    finally:
        bed.hosts.loss(SENDER, 0)


def one_turn(bed: Network, size: int) -> dict[str, float]:
    """Seconds of each, measured in turn."""

    def shipped_s() -> float:
        return bed.ship_s(NAME, [RECEIVER])

    def stream_s() -> float:
        return one_stream_s(bed, size)

    before = bed.sent_bytes(SENDER)
    free_s = shipped_s()
    wire_bytes = bed.sent_bytes(SENDER) - before
    return {
        "adapted": free_s,
        "one_stream": stream_s(),
        "one_stream_kept_1pct": under(bed, 1, stream_s),
        "adapted_kept_1pct": under(bed, 1, shipped_s),
        "adapted_kept_3pct": under(bed, 3, shipped_s),
        "adapted_kept_1pct_late": under(bed, 0, lambda: late_s(bed, size, 1, wire_bytes)),
    }


def measure(bed: Network, size: int, repeats: int) -> dict[str, float]:
    """The rates without loss, and the share of them that is kept."""
    bed.ship_s(NAME, [RECEIVER])  # warm
    turns = [one_turn(bed, size) for _ in range(repeats)]
    seconds = {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}
    free_s = {name: seconds.pop(name) for name in ("adapted", "one_stream")}
    rates = {f"{name}_mbit_per_s": size * 8e-6 / value for name, value in free_s.items()}
    return rates | {name: free_s[name.split("_kept")[0]] / value for name, value in seconds.items()}


def run(size: int, repeats: int) -> dict[str, Any]:
    default = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    result: dict[str, Any] = {"bytes": size, "repeats": repeats, "default_congestion_control": default}
    with network(arena_bytes=size + SPARE_BYTES) as bed:
        bed.client.put(NAME, secrets.token_bytes(size))
        script = [sys.executable, "-c", RECEIVER_SCRIPT]
        with bed.hosts.popen(RECEIVER, script, stdout=subprocess.PIPE) as receiver:
            try:
                assert receiver.stdout is not None
                assert receiver.stdout.readline() == "listening\n"
                result |= measure(bed, size, repeats)
                for host in (SENDER, RECEIVER):
                    bed.hosts.congestion_control(host, "cubic")
                result |= {f"{name}_cubic_default": value for name, value in measure(bed, size, repeats).items()}
            finally:
                receiver.kill()
    return result


if __name__ == "__main__":
    arguments = parser(__doc__.splitlines()[0]).parse_args()
    if is_driver():
        size = SIZE_BYTES_QUICK if arguments.quick else SIZE_BYTES
        report(run(size, 1 if arguments.quick else REPEATS), as_json=True)
    else:
        report(drive(2, ["--quick"] if arguments.quick else [], rate=RATE), arguments.json)
