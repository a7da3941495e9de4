"""Settings that Ray reads once, when it is first imported, and so before any test module is: every Ray of these tests
asks for a token, notices dead nodes quickly, and reports nothing home. And hypothesis's, for all property tests."""

import os
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from hypothesis import HealthCheck, settings
from s3_gateway import Gateway, running_gateway

QUICK_HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}
os.environ.update(
    QUICK_HEALTH_CHECKS,
    RAY_AUTH_MODE="token",
    RAY_AUTH_TOKEN=secrets.token_hex(32),
    RAY_USAGE_STATS_ENABLED="0",
)
os.environ.pop("RAY_ADDRESS", None)
hypothesis.settings.register_profile("any load", deadline=None)  # pytest-timeout ends what hangs
hypothesis.settings.load_profile("any load")
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job begins with it ignored

# How long an example takes says how busy the machine is, and nothing about the property.
settings.register_profile("raylog", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("raylog")

NEEDS_RAY = {"cluster", "test_demo.py", "test_source_ray.py"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What starts Ray comes last: the rest is quicker to fail, and shares its process with none of Ray's threads."""
    items.sort(key=lambda item: not NEEDS_RAY.isdisjoint(Path(item.path).parts))


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A real Ceph S3 gateway, the same for all tests of a session."""
    with running_gateway(tmp_path_factory.mktemp("ceph") / "cluster") as found:
        yield found
