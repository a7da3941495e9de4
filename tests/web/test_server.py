"""Where a gateway listens, and with what certificate."""

from pathlib import Path

import pytest

from raylog.errors import UsageError
from raylog.web.server import GatewayOptions, check_host, open_tls


def test_hosts_are_addresses_and_loopback_is_told_from_others() -> None:
    for host, is_exposed in [
        ("127.0.0.1", False),
        ("::1", False),
        ("localhost", False),
        ("127.8.8.8", False),
        ("0.0.0.0", True),
        ("::", True),
        ("192.0.2.1", True),
    ]:
        assert GatewayOptions(token="t", spool=Path(), host=check_host(host)).is_exposed is is_exposed
    assert GatewayOptions(token="t", spool=Path()).is_exposed is False, "the default"
    for host in ("example.org", "", "127.0.0.1:80", "*"):
        with pytest.raises(UsageError, match="an IP address"):
            check_host(host)


def test_a_certificate_comes_with_its_key(tmp_path: Path) -> None:
    assert open_tls(None, None) is None
    with pytest.raises(UsageError, match="both or neither"):
        open_tls(tmp_path / "certificate", None)
    (tmp_path / "none").write_text("no PEM")
    for path in (tmp_path / "none", tmp_path / "missing"):
        with pytest.raises(UsageError, match="PEM certificate"):
            open_tls(path, path)
