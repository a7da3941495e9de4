"""Which of its own addresses a node takes: by address, network or interface, so that one setting serves all."""

import ipaddress
import socket
from collections.abc import Mapping, Sequence

import psutil

from raylog.errors import UsageError

Addresses = Mapping[str, Sequence[str]]
"""A machine's addresses by interface."""
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def machine_addresses() -> dict[str, list[str]]:
    """This machine's IPv4 and IPv6 addresses by interface; those that hold on one link only are left out, since another
    machine would need the link's name."""
    found: dict[str, list[str]] = {}
    for interface, entries in psutil.net_if_addrs().items():
        plain = [one.address for one in entries if one.family in (socket.AF_INET, socket.AF_INET6)]
        usable = [text for text in plain if "%" not in text and not ipaddress.ip_address(text).is_link_local]
        if usable:
            found[interface] = usable
    return found


def check_choice(choice: str) -> None:
    """Raises `UsageError` for a network that is none; anything without a slash may be an address or a name."""
    if "/" in choice:
        _network(choice)


def own_address(choice: str, addresses: Addresses, like: str) -> str:
    """The address that `choice` means on the machine of `addresses`: an address is itself, a network such as
    "10.0.0.0/16" the machine's first address in it, an interface such as "eth1" its first address, of the family of
    `like` if it has one. A host's name is itself if it is known.

    Raises `UsageError` naming the machine's addresses when none fits.
    """
    if "/" in choice:
        network = _network(choice)
        fitting = [text for text in _all(addresses) if ipaddress.ip_address(text) in network]
    elif choice in addresses:
        same = ipaddress.ip_address(like).version if _parsed(like) else 4
        fitting = sorted(addresses[choice], key=lambda text: ipaddress.ip_address(text).version != same)
    elif _parsed(choice) or _is_known(choice):
        fitting = [choice]
    else:
        fitting = []
    if not fitting:
        raise UsageError(
            f"expected {choice!r} to be an address, a network with an address of this machine in it, or an interface "
            f"of it; {socket.gethostname()} has {_listed(addresses)}: change bind or advertise in raylog.toml"
        )
    return fitting[0]


def own_bind_address(choice: str, addresses: Addresses, like: str) -> str:
    """As `own_address`, and it must be one that this machine can listen at: its own, a loopback one, or "0.0.0.0" or
    "::" for all."""
    found = own_address(choice, addresses, like)
    parsed = _parsed(found)
    if parsed is None or parsed.is_loopback or parsed.is_unspecified or parsed.is_link_local:
        return found
    if parsed not in {ipaddress.ip_address(text) for text in _all(addresses)}:
        raise UsageError(
            f"bind = {choice!r} is no address of {socket.gethostname()}, which has {_listed(addresses)}: with several "
            "machines name the network, such as '10.0.0.0/16', or the interface"
        )
    return found


def is_everywhere(address: str) -> bool:
    """Whether listening there means at all addresses: nothing that a peer could connect to."""
    parsed = _parsed(address)
    return parsed is not None and parsed.is_unspecified


def everywhere(advertised: Sequence[str]) -> str:
    """The address to listen at in order to be found at all of `advertised`."""
    families = {parsed.version for text in advertised if (parsed := _parsed(text)) is not None}
    return "0.0.0.0" if families == {4} else "::"  # noqa: S104 - the operator named several networks


def _network(choice: str) -> Network:
    try:
        return ipaddress.ip_network(choice, strict=False)
    except ValueError as error:
        raise UsageError(f"expected a network such as 10.0.0.0/16 or fd00::/8, got {choice!r}: {error}") from None


def _parsed(text: str) -> Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _is_known(name: str) -> bool:
    try:
        return bool(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM))
    except OSError:
        return False


def _all(addresses: Addresses) -> list[str]:
    return [text for texts in addresses.values() for text in texts]


def _listed(addresses: Addresses) -> str:
    return ", ".join(f"{', '.join(texts)} ({interface})" for interface, texts in addresses.items()) or "none"
