"""Whether a version that was just published has come to this node: its publisher sends it, and all who would fetch it
themselves at once would take it from one node, past the relay."""

import time

from raylog.api.session import Session
from raylog.catalog.manifest import Manifest
from raylog.errors import DamagedData, NotFound

GRACE_S = 3.0
"""In which nothing that is missing is on its way, until it is fetched."""


class Arrival:
    """For one subscription. The first version is fetched at once if it does not come already."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._is_taken = False  # the version before, and the next was not seen yet
        self._still_since_s = float("-inf")

    def is_over(self, manifest: Manifest) -> bool:
        """Whether all of the version is here, or does not come by itself."""
        now_s = time.monotonic()
        if self._is_taken:
            self._is_taken, self._still_since_s = False, now_s
        missing = [shard_id for shard_id in manifest.distinct_shards() if not self._has(shard_id)]
        if not missing:
            return True
        if self._session.on_node(self._session.local, "pulls").keys() & set(missing):
            self._still_since_s = now_s
        return now_s - self._still_since_s > GRACE_S

    def taken(self) -> None:
        """A version was read: the next has the time to come, and shares it with all that overtake it."""
        self._is_taken = True

    def _has(self, shard_id: str) -> bool:
        try:
            self._session.store.open(shard_id).close()
        except (NotFound, DamagedData):
            return False
        return True
