"""Ray under a client: found, joined or started, and let go of again."""

import logging
import os
import signal
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from raylog.actors import bootstrap, calls
from raylog.api import ray_access
from raylog.api.report import end_reports, flush_reports
from raylog.errors import Unavailable, UsageError
from raylog.units import MIB

EMBEDDED_STORE_BYTES = 80 * MIB  # Ray's own least; raylog does not use it


@dataclass(frozen=True, slots=True)
class RayConnection:
    """What `connect_ray` found or did: `is_ours` when this call connected the process, `is_started` when it also
    started the cluster."""

    is_ours: bool
    is_started: bool


def connect_ray(address: str | None) -> RayConnection:
    """Connects this process to Ray: the one it is connected to already, else `address`, else `$RAY_ADDRESS`, else the
    cluster that runs on this machine, else a new one in this process.

    A dead address or a missing token is found out by a probe first: Ray itself would wait for long. Raises
    `Unavailable`, `NotPermitted`, and `UsageError` when the process is connected to another cluster than `address`, or
    forked from a connected one.
    """
    calls.refuse_forked()
    if ray.is_initialized():
        joined = ray.get_runtime_context().gcs_address
        if address not in (None, "auto", "local", joined):
            raise UsageError(f"this process is connected to the Ray cluster at {joined}, not {address}: ray.shutdown()")
        return RayConnection(is_ours=False, is_started=False)
    found = ray_access.cluster_address(address, os.environ)
    if found is not None and ray_access.answers(found):
        ray_access.refuse_without_token(found, os.environ, Path.home())
        _init(address=str(found))
        return RayConnection(is_ours=True, is_started=False)
    if found is not None and found.origin in ("argument", "RAY_ADDRESS"):
        raise Unavailable(f"no Ray cluster answers at {found} ({found.origin}): check it, or 'ray start --head' there")
    _init(address="local", include_dashboard=False, object_store_memory=EMBEDDED_STORE_BYTES)
    _guard_ray_token()
    return RayConnection(is_ours=True, is_started=True)


def _guard_ray_token() -> None:
    """Ray makes its token readable by everybody; whoever has it runs code as this user."""
    token = ray_access.token(os.environ, Path.home())
    if token is not None and token.path is not None and token.path.stat().st_uid == os.getuid():
        token.path.chmod(0o600)


def _init(**options: Any) -> None:
    """Ray sets a handler of its own for SIGTERM, which leaves with status 15: where this process had one, it stays."""
    handler = signal.getsignal(signal.SIGTERM)
    is_kept = callable(handler) and threading.current_thread() is threading.main_thread()
    try:
        ray.init(namespace=calls.NAMESPACE, log_to_driver=False, logging_level=logging.ERROR, **options)
    except ConnectionError as error:
        raise Unavailable(
            f"what answers at {options['address']} is no Ray cluster that takes this process: an earlier one may have "
            "left its address behind, or this machine lacks its token; 'raylog doctor' says which"
        ) from error
    except SystemExit as stopped:
        if not is_kept:
            raise
        raise KeyboardInterrupt from stopped
    finally:
        if is_kept:
            signal.signal(signal.SIGTERM, handler)


def disconnect(connection: RayConnection) -> None:
    """Lets go of Ray; ends raylog and Ray where `connect_ray` started Ray."""
    flush_reports()  # while the monitor is there
    try:
        if connection.is_started and ray.is_initialized():
            with suppress(Unavailable):  # it was never up
                bootstrap.stop()
    finally:
        if connection.is_ours:
            end_reports()
            ray.shutdown()
