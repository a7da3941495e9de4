"""One receiver, many links: three sources at once, a source that falls silent half-way, two interfaces per host.

Network hosts on this machine; 256 MiB of incompressible bytes. Four hosts, three of which hold a replica and have links
of 300 Mbit/s, ship it to the fourth on 1 Gbit/s: `share_of_sum` is its rate over the sum of the sources' links. Then
one of the sources is cut off from the receiver when half has come: `sent_twice_share` is what came a second time, over
the artifact's bytes. Two hosts with two interfaces each, every one of 300 Mbit/s on a bridge of its own:
`two_nics_share_of_sum`. Medians of five.

    python bench/multisource.py [--json] [--quick]          (as root, on Linux)
"""

import secrets
import statistics
import time
from typing import Any

from common import REPEATS, parser, report
from on_hosts import Network, drive, is_driver, network, testbed

from raylog.errors import RaylogError
from raylog.units import MIB

SOURCES = 3
RECEIVER_RATE, LINK_RATE, LINK_BYTES_PER_S = "1gbit", "300mbit", 300e6 / 8
SPARE_BYTES = 64 * MIB
SIZE_BYTES, SIZE_BYTES_QUICK = 256 * MIB, 64 * MIB
NAME = "bench/noise"
CUT_DEADLINE_S = 90.0


def uncut(bed: Network, receiver: int) -> dict[str, float]:
    """One shipment: its seconds, and what came through the receiver's interfaces."""
    before = bed.received_bytes(receiver)
    seconds = bed.ship_s(NAME, [receiver])
    return {"seconds": seconds, "received_bytes": bed.received_bytes(receiver) - before}


def cut_half_way(bed: Network, receiver: int, sources: list[int], wire_bytes: float) -> dict[str, Any]:
    """One shipment, whose busiest source (but not host 1, where the catalog is) falls silent in its middle."""
    before = bed.received_bytes(receiver)
    sent_before = {host: bed.sent_bytes(host) for host in sources if host != 1}
    started_s = time.monotonic()
    shipment = bed.start_ship(NAME, [receiver], deadline_s=CUT_DEADLINE_S)
    bed.wait_received(receiver, before + int(wire_bytes / 2))
    victim = max(sent_before, key=lambda host: bed.sent_bytes(host) - sent_before[host])
    bed.hosts.cut(victim, receiver)
    error, twice_bytes = "", 0
    try:
        twice_bytes = shipment.result(CUT_DEADLINE_S + 10).twice_bytes
    except RaylogError as failed:
        error = str(failed)
    seconds = time.monotonic() - started_s
    bed.hosts.heal(victim, receiver)
    return {"seconds": seconds, "twice_bytes": twice_bytes, "error": error}


def many_sources(size: int, repeats: int) -> dict[str, Any]:
    with network(arena_bytes=size + SPARE_BYTES) as bed:
        bed.client.put(NAME, secrets.token_bytes(size), replicas=SOURCES)
        sources = bed.holders(NAME)
        (receiver,) = set(bed.nodes) - set(sources)
        for host in sources:
            bed.hosts.rate(host, LINK_RATE)
        bed.ship_s(NAME, [receiver])  # warm
        whole = [uncut(bed, receiver) for _ in range(repeats)]
        wire_bytes = statistics.median(one["received_bytes"] for one in whole)
        cut = [cut_half_way(bed, receiver, sources, wire_bytes) for _ in range(repeats)]
    seconds = statistics.median(one["seconds"] for one in whole)
    return {
        "share_of_sum": size / seconds / (SOURCES * LINK_BYTES_PER_S),
        "cut_errors": [one["error"] for one in cut if one["error"]],
        "cut_seconds": statistics.median(one["seconds"] for one in cut),
        "sent_twice_share": statistics.median(one["twice_bytes"] / size for one in cut),
    }


def two_nics(size: int, repeats: int) -> dict[str, Any]:
    hosts = testbed()
    networks = ", ".join(f"{hosts.address(1, nic)}/24" for nic in range(hosts.nics))
    with network(arena_bytes=size + SPARE_BYTES, advertise=networks) as bed:
        bed.client.put(NAME, secrets.token_bytes(size))
        bed.ship_s(NAME, [2])  # warm
        seconds = statistics.median(bed.ship_s(NAME, [2]) for _ in range(repeats))
    return {"two_nics_share_of_sum": size / seconds / (bed.hosts.nics * LINK_BYTES_PER_S)}


def both_testbeds(given: list[str]) -> dict[str, Any]:
    found = drive(SOURCES + 1, [*given, "--scene", "sources"], rate=RECEIVER_RATE)
    return found | drive(2, [*given, "--scene", "nics"], rate=LINK_RATE, nics=2)


if __name__ == "__main__":
    arguments_of = parser(__doc__.splitlines()[0])
    arguments_of.add_argument("--scene", choices=["sources", "nics"], help="what the driver on host 1 measures")
    arguments = arguments_of.parse_args()
    if is_driver():
        scene = {"sources": many_sources, "nics": two_nics}[arguments.scene]
        size = SIZE_BYTES_QUICK if arguments.quick else SIZE_BYTES
        report(scene(size, 1 if arguments.quick else REPEATS), as_json=True)
    else:
        report(both_testbeds(["--quick"] if arguments.quick else []), arguments.json)
