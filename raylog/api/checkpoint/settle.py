"""What was promised in memory, written to disks as well by the nodes that hold it, after the promise was kept."""

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from raylog.api.pulls import Pulls
from raylog.api.session import Session
from raylog.catalog.manifest import ShardEntry
from raylog.errors import Cancelled, RaylogError
from raylog.spec import Durability, QosClass, Use, Version

log = logging.getLogger("raylog.checkpoint")


class Settler:
    """One version at a time; of those that wait, the last alone is worth it."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._pulls = Pulls(session)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="settle")
        self._waiting: Future[None] | None = None

    def settle(self, version: Version, entries: Sequence[ShardEntry]) -> None:
        """Returns at once. What fails is logged: the version is kept in memory as it was promised."""
        if self._waiting is not None:
            self._waiting.cancel()
        self._waiting = self._executor.submit(self._settle, version, list(entries))

    def _settle(self, version: Version, entries: Sequence[ShardEntry]) -> None:
        try:
            for entry in entries:
                for holder in self._session.holders(entry.shard.shard_id):
                    self._pulls.pull(holder, entry.shard, QosClass.CHECKPOINT, Durability.DISK, use=Use.CHECKPOINT)
        except Cancelled:
            log.info("%s is in memory alone, its manager was interrupted", version)
        except RaylogError as error:
            log.warning("%s is in memory alone: %s", version, error)

    def close(self) -> None:
        """Waits for what was begun."""
        self._executor.shutdown()

    def cancel(self) -> None:
        """Ends what was begun."""
        self._pulls.cancel()
