"""The pulls that one call has asked nodes for, so that they end with it: after Ctrl-C nobody waits for gigabytes."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from typing import TypeVar

from raylog.actors.elsewhere import NOWHERE, Elsewhere
from raylog.actors.node_info import NodeInfo
from raylog.actors.pull import Outcome
from raylog.api.session import Session
from raylog.errors import Cancelled, NoSpace, RaylogError
from raylog.spec import Durability, QosClass, ShardRef, Use, new_id
from raylog.wire.fetcher import Source

CANCEL_TIMEOUT_S = 5.0
T = TypeVar("T")


class Pulls:
    """Pulls under way for one put, shipment or reading. Thread-safe."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lock = threading.Lock()
        self._under_way: dict[str, NodeInfo] = {}
        self.is_cancelled = False

    def pull(
        self,
        target: NodeInfo,
        ref: ShardRef,
        qos: QosClass,
        durability: Durability | None,
        *,
        use: Use = Use.DATASET,
        sources: Sequence[Source] | None = None,
        timeout_s: float | None = None,
    ) -> Outcome:
        """As `Session.pull`. Raises `Cancelled` at once after `cancel`, and within a second when it comes meanwhile;
        then nothing of the shard is left on `target`."""
        with self._registered(target, ref) as pull_id:
            try:
                return self._session.pull(
                    target, ref, qos, durability, use=use, sources=sources, timeout_s=timeout_s, pull_id=pull_id
                )
            except NoSpace as error:
                raise on_node(error, target) from error

    def back_up(self, holder: NodeInfo, ref: ShardRef, url: str, elsewhere: Elsewhere = NOWHERE) -> bytes:
        """As `Session.back_up`. Raises `Cancelled` as `pull`."""
        with self._registered(holder, ref) as pull_id:
            return self._session.back_up(holder, ref, url, elsewhere, pull_id=pull_id)

    @contextmanager
    def _registered(self, target: NodeInfo, ref: ShardRef) -> Iterator[str]:
        """An id by which `cancel` ends what goes on under it."""
        pull_id = new_id()
        with self._lock:
            if self.is_cancelled:
                raise Cancelled(f"shard {ref.shard_id}: node {target.node_id} is not asked, the call was ended")
            self._under_way[pull_id] = target
        try:
            yield pull_id
        finally:
            with self._lock:
                del self._under_way[pull_id]

    def cancel(self) -> None:
        """Ends what is under way; no other pull begins. Those who wait in `pull` get `Cancelled`."""
        with self._lock:
            self.is_cancelled = True
            under_way = dict(self._under_way)
        for pull_id, target in under_way.items():
            with suppress(RaylogError):  # a node that does not answer is found out by those who wait for it
                self._session.cancel_pull(target, pull_id, CANCEL_TIMEOUT_S)


def on_node(error: NoSpace, info: NodeInfo) -> NoSpace:
    """A full tier's error with the name of its node, which the node itself has no reason to give."""
    return NoSpace(f"node {info.node_id[:12]} ({info.hostname}): {error}", **error.__dict__)


def whole(action: Callable[[], T]) -> T:
    """Does `action` in a thread of its own. Ctrl-C, which strikes the main thread anywhere, finds it done or not
    begun."""
    outcome: Future[T] = Future()

    def run() -> None:
        if not outcome.set_running_or_notify_cancel():
            return
        try:
            outcome.set_result(action())
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            outcome.set_exception(error)

    try:
        threading.Thread(target=run, name="whole").start()  # Ctrl-C in here says nothing of whether it runs
        return outcome.result()
    finally:
        if not outcome.cancel():
            wait([outcome])
