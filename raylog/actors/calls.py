"""Names of raylog's actors in a Ray cluster, and calls to them that end by a deadline."""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import ray
import ray.exceptions

from raylog.errors import DeadlineExceeded, RaylogError, Unavailable, UsageError

NAMESPACE = "raylog"
ANSWER_S = 5.0  # of an actor that has nothing to do for it
T = TypeVar("T")


def node_actor_name(ray_node_id: str) -> str:
    return f"node-{ray_node_id}"


def standby_name(ray_node_id: str) -> str:
    return f"standby-{ray_node_id}"


def exists(name: str) -> bool:
    """Whether Ray's GCS knows of an actor of that name that runs, or is to run again."""
    try:
        find(name)
    except Unavailable:
        return False
    return True


def node_of(name: str) -> str:
    """The Ray node id of the machine that an actor of the head runs on."""
    found: str = call(name, "runs_on", timeout_s=ANSWER_S)
    return found


def answers(name: str) -> bool:
    """Whether an actor of the head does."""
    try:
        node_of(name)
    except RaylogError:
        return False
    return True


def find(name: str) -> Any:
    """A handle of the named actor; `Unavailable` when there is none."""
    _check_connected()
    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError as error:
        raise Unavailable(f"no raylog actor {name!r} in this Ray cluster: start raylog with 'raylog up'") from error


def node(ray_node_id: str) -> Any:
    """A handle of the node actor of a Ray node; `Unavailable` when there is none."""
    return find(node_actor_name(ray_node_id))


def wait(reference: Any, timeout_s: float, what: str) -> Any:
    """The result of one remote call. An error of raylog comes out as itself, whatever way it travelled.

    Raises `DeadlineExceeded` after `timeout_s`, `Unavailable` when the actor or its node is gone.
    """
    _check_connected()
    try:
        return ray.get(reference, timeout=max(timeout_s, 0.001))
    except ray.exceptions.GetTimeoutError as error:
        raise DeadlineExceeded(f"{what}: no answer within {timeout_s:.1f} s") from error
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, RaylogError):
            raise error.cause from None
        raise Unavailable(f"{what} failed on its node: {type(error.cause).__name__}: {error.cause}") from error
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise Unavailable(f"{what}: the actor is gone or restarting ({type(error).__name__}: {reason})") from error


def _check_connected() -> None:
    """Ray would connect by itself, somewhere, when it is asked while it is not connected."""
    refuse_forked()
    if not ray.is_initialized():
        raise Unavailable("this process is not connected to a Ray cluster: use raylog.connect()")


def refuse_forked() -> None:
    """Raises `UsageError` in a process that was forked from a connected one: Ray would never answer it."""
    if _Fork.is_of_connected:
        raise UsageError(
            "this process was forked from one that was connected to Ray, and cannot use that connection: start it with "
            "'spawn', or fork before raylog.connect()"
        )


class _Fork:
    """Whether this process was forked from one that was connected."""

    is_of_connected = False

    @classmethod
    def note(cls) -> None:
        cls.is_of_connected = cls.is_of_connected or ray.is_initialized()


os.register_at_fork(after_in_child=_Fork.note)


def end_process() -> None:
    """Ends this actor's process at once; Ray starts it again, unless another one has taken its name."""
    os._exit(1)


def wait_all(references: Sequence[Any], timeout_s: float, what: str) -> list[Any]:
    """One result or one `RaylogError` per reference, in order; no wait outlives the common deadline."""
    deadline = time.monotonic() + timeout_s
    results: list[Any] = []
    for reference in references:
        try:
            results.append(wait(reference, deadline - time.monotonic(), what))
        except RaylogError as error:
            results.append(error)
    return results


def call(name: str, method: str, *arguments: Any, timeout_s: float = 30.0) -> Any:
    """`method` of the actor `name`, waiting at most `timeout_s`."""
    return wait(getattr(find(name), method).remote(*arguments), timeout_s, f"{name}.{method}")


def retried(attempt: Callable[[float], T], timeout_s: float, pause_s: float = 0.3) -> T:
    """`attempt(seconds left)` again and again while what it raises is retryable, until `timeout_s` have passed.

    For idempotent calls only: an actor that died between doing and answering is asked a second time.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return attempt(deadline - time.monotonic())
        except RaylogError as error:
            if not error.is_retryable or time.monotonic() + pause_s > deadline:
                raise
        time.sleep(pause_s)
