"""Sources whose bytes were wrong are remembered, and asked only when nobody else can give a shard."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from raylog.errors import DamagedData
from raylog.wire.fetcher import Source

log = logging.getLogger(__name__)

DISTRUST_S = 600.0
NODES_MAX = 4096
LAST_RANK = 1000


class Distrust:
    """Who sent damaged chunks lately. Thread-safe; `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: dict[str, float] = {}
        self._lock = threading.Lock()

    def blame(self, node_id: str, error: DamagedData) -> None:
        """This node sent what `error` says."""
        log.warning("node %s is asked last for %.0f s, for it sent damaged bytes: %s", node_id, DISTRUST_S, error)
        with self._lock:
            self._until[node_id] = self._clock() + DISTRUST_S
            while len(self._until) > NODES_MAX:
                del self._until[next(iter(self._until))]

    def blamed(self) -> list[str]:
        """The nodes that are asked last now."""
        now = self._clock()
        with self._lock:
            return sorted(node_id for node_id, until in self._until.items() if until > now)

    def last(self, sources: Sequence[Source]) -> list[Source]:
        """The same sources, those that are blamed in a rank behind all others."""
        blamed = set(self.blamed())
        return [
            replace(source, rank=source.rank + LAST_RANK) if source.peer.node_id in blamed else source
            for source in sources
        ]
