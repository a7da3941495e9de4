"""What the tests of this folder share."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from ray.cluster_utils import Cluster

from raylog.settings import Settings


@dataclass(frozen=True, slots=True)
class Machine:
    """The Ray cluster, raylog's settings in it, and where its dashboard answers."""

    cluster: Cluster
    settings: Settings
    dashboard: str


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Polls until `condition` holds; fails the test, naming `what`, after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(0.1)
