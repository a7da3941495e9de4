"""A version that was published, brought to all living nodes by relay: to each what it was not brought before."""

import logging
import threading
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from raylog.actors.node_info import NodeInfo
from raylog.api.progress import OnProgress
from raylog.api.session import Session
from raylog.api.ship import Shipment
from raylog.catalog.manifest import Manifest
from raylog.errors import Cancelled, RaylogError
from raylog.spec import QosClass, Reference

log = logging.getLogger("raylog.weights")
QOS = QosClass.CHECKPOINT
"""Before shipments of datasets, which last and which nobody waits for; behind what a training step waits for."""
ALONE_S = 10.0  # for each node by itself, after a shipment to several failed
PARTIES_AT_ONCE = 16
_Process = tuple[str, int]


class Delivery:
    """Of one name's versions. What a node's cache loses after it came there, a subscriber has brought there again."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lock = threading.Lock()
        self._brought: dict[_Process, frozenset[str]] = {}  # the shards of the last version
        self._running: set[Shipment] = set()
        self._is_closed = False

    def deliver(self, reference: Reference, timeout_s: float, on_progress: OnProgress | None) -> None:
        """Returns when all living nodes have the version, or have failed to get it within about `timeout_s`: these are
        named in a warning. Raises `NotFound` when it was deleted, `Unavailable`."""
        with self._lock:
            manifest = self._session.manifest(reference)
            nodes = self._session.nodes()
            failed = self._ship(manifest, self._alike(nodes), timeout_s, on_progress)
            if failed and not self._is_closed:  # one node's failure ends a shipment for the others too
                living = {info.node_id for info in self._session.nodes()}
                alone = [[info] for info, _ in failed if info.node_id in living]
                failed = self._ship(manifest, alone, ALONE_S, None)
            for info, error in failed:
                log.warning("%s did not reach node %s (%s): %s", reference, info.node_id[:12], info.hostname, error)
            shard_ids, away = frozenset(manifest.distinct_shards()), {info.node_id for info, _ in failed}
            self._brought = {_process(info): shard_ids for info in nodes if info.node_id not in away}

    def close(self) -> None:
        """Ends what is under way; whoever waits for it is told of all nodes that they failed."""
        self._is_closed = True
        for shipment in list(self._running):
            shipment.cancel()

    def _alike(self, nodes: Sequence[NodeInfo]) -> list[list[NodeInfo]]:
        """Nodes that were brought the same, the most first."""
        alike: dict[frozenset[str], list[NodeInfo]] = defaultdict(list)
        for info in nodes:
            alike[self._brought.get(_process(info), frozenset())].append(info)
        return sorted(alike.values(), key=len, reverse=True)

    def _ship(
        self, manifest: Manifest, parties: Sequence[list[NodeInfo]], timeout_s: float, on_progress: OnProgress | None
    ) -> list[tuple[NodeInfo, RaylogError]]:
        """The nodes of those parties that failed, and why. The first party's progress is told."""

        def ship(targets: list[NodeInfo]) -> RaylogError | None:
            if self._is_closed:
                return Cancelled("the client was closed")
            brought = self._brought.get(_process(targets[0]), frozenset())
            lacking = tuple(entry for entry in manifest.shards if entry.shard.shard_id not in brought)
            part = msgspec.structs.replace(manifest, shards=lacking)
            told = on_progress if targets is parties[0] else None
            try:
                shipment = Shipment(self._session, part, targets, QOS, timeout_s, told)
                self._running.add(shipment)
                if self._is_closed:  # while it was made: `close` has not seen it
                    shipment.cancel()
                try:
                    shipment.result()
                finally:
                    self._running.discard(shipment)
            except RaylogError as error:
                return error
            return None

        with ThreadPoolExecutor(PARTIES_AT_ONCE, thread_name_prefix="deliver") as executor:
            errors = list(executor.map(ship, parties))
        return [(info, error) for targets, error in zip(parties, errors, strict=True) if error for info in targets]


def _process(info: NodeInfo) -> _Process:
    """Node id and process id: an arena does not outlive its node's process."""
    return info.node_id, info.pid
