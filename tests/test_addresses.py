"""One `bind` for all machines: each node takes its own address, and what is said where none fits."""

import ipaddress
from pathlib import Path

import pytest

from raylog.addresses import is_everywhere, machine_addresses, own_address, own_bind_address
from raylog.errors import UsageError
from raylog.settings import from_mapping, load_settings

FIRST = {"lo": ["127.0.0.1", "::1"], "eth0": ["192.0.2.10"], "eth1": ["10.0.3.7", "fd00:3::7"], "v6": ["2001:db8::5"]}
SECOND = {"lo": ["127.0.0.1", "::1"], "eth0": ["192.0.2.11"], "eth1": ["fd00:3::8", "10.0.4.9"]}


@pytest.mark.parametrize(
    ("choice", "first", "second"),
    [
        ("10.0.0.0/16", "10.0.3.7", "10.0.4.9"),
        ("10.0.99.1/16", "10.0.3.7", "10.0.4.9"),
        ("fd00:3::/64", "fd00:3::7", "fd00:3::8"),
        ("eth1", "10.0.3.7", "10.0.4.9"),
        ("eth0", "192.0.2.10", "192.0.2.11"),
        ("0.0.0.0", "0.0.0.0", "0.0.0.0"),
        ("::", "::", "::"),
        ("127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("localhost", "localhost", "localhost"),
    ],
)
def test_each_machine_takes_its_own(choice: str, first: str, second: str) -> None:
    assert own_bind_address(choice, FIRST, like="192.0.2.10") == first
    assert own_bind_address(choice, SECOND, like="192.0.2.11") == second


def test_an_interface_gives_the_family_that_ray_uses() -> None:
    assert own_address("eth1", FIRST, like="2001:db8::5") == "fd00:3::7"
    assert own_address("v6", FIRST, like="192.0.2.10") == "2001:db8::5"


@pytest.mark.parametrize("choice", ["172.16.0.0/12", "eth9", "fd99::/16"])
def test_no_address_that_fits(choice: str) -> None:
    with pytest.raises(UsageError) as raised:
        own_address(choice, FIRST, like="192.0.2.10")
    assert choice in str(raised.value)
    assert "192.0.2.10 (eth0), 10.0.3.7, fd00:3::7 (eth1)" in str(raised.value)


def test_a_plain_address_is_bound_on_its_own_machine_alone_and_advertised_anywhere() -> None:
    assert own_bind_address("192.0.2.10", FIRST, like="192.0.2.10") == "192.0.2.10"
    with pytest.raises(UsageError, match=r"no address of .*192\.0\.2\.11 \(eth0\).*'10\.0\.0\.0/16'"):
        own_bind_address("192.0.2.10", SECOND, like="192.0.2.11")
    assert own_address("203.0.113.9", FIRST, like="192.0.2.10") == "203.0.113.9"  # behind a translated address


def test_everywhere() -> None:
    assert [is_everywhere(text) for text in ("0.0.0.0", "::", "10.0.3.7", "localhost")] == [True, True, False, False]


def test_this_machine_has_a_loopback_address_and_none_of_one_link() -> None:
    found = machine_addresses()
    assert "127.0.0.1" in found["lo"]
    assert not any(ipaddress.ip_address(text).is_link_local for texts in found.values() for text in texts)


def test_the_setting_is_checked_when_it_is_read(tmp_path: Path) -> None:
    config = tmp_path / "raylog.toml"
    config.write_text('[node]\nbind = "10.0.0.0/16"\nadvertise = "eth1"\n')
    assert load_settings(config).bind == "10.0.0.0/16"
    with pytest.raises(UsageError, match=r"expected a network such as .*, got '10\.0\.0\.0/99'"):
        from_mapping({"bind": "10.0.0.0/99"})
