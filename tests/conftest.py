"""Settings that Ray reads once, when it is first imported, and so before any test module is: every Ray of these tests
asks for a token, notices dead nodes quickly, and reports nothing home."""

import os
import secrets
import signal
from pathlib import Path

import hypothesis
import pytest

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

NEEDS_RAY = {"cluster", "test_demo.py", "test_source_ray.py"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What starts Ray comes last: the rest is quicker to fail, and shares its process with none of Ray's threads."""
    items.sort(key=lambda item: not NEEDS_RAY.isdisjoint(Path(item.path).parts))
