"""One connection for all in a process that need one and were given none: file systems, tasks of Ray Data."""

import atexit
import os
import sys
import threading

from raylog.api.client import Client, connect
from raylog.errors import UsageError

_lock = threading.Lock()
_client: Client | None = None
_cluster = ""
_is_forked_from_ray = False


def shared_client() -> Client:
    """This process's connection, made at the first call as by `connect()`, and again where Ray was connected elsewhere
    since. It lasts until the process ends. Raises as `connect`, and `UsageError` as `check_not_forked`."""
    import ray

    global _client, _cluster
    check_not_forked()
    with _lock:
        if _client is None or not ray.is_initialized() or ray.get_runtime_context().gcs_address != _cluster:
            fresh = connect()
            if _client is None:
                atexit.register(_close)
            _client, _cluster = fresh, ray.get_runtime_context().gcs_address
        return _client


def check_not_forked() -> None:
    """Raises `UsageError` in a process that was forked from one that was connected to Ray: what Ray's connection needs
    did not come along, and calls would hang."""
    if _is_forked_from_ray:
        raise UsageError(
            "this process was forked from one that was connected to Ray, which does not outlive that: start it with "
            "the method spawn or forkserver, or fork it before the other one connects"
        )


def _close() -> None:
    if _client is not None:
        _client.close()


def _after_fork() -> None:
    global _lock, _client, _is_forked_from_ray
    ray = sys.modules.get("ray")
    _lock, _client = threading.Lock(), None
    _is_forked_from_ray = _is_forked_from_ray or (ray is not None and ray.is_initialized())


os.register_at_fork(after_in_child=_after_fork)
