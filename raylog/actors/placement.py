"""The placement actor: live capacity from the monitor actor into the placement model, and plans out."""

from raylog.actors import calls
from raylog.settings import Settings


class PlacementActor:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def replica_targets(self, ref, replicas, local_node_id):
        nodes = calls.call("launch", "nodes")
        ids = [local_node_id] + [n.node_id for n in nodes if n.node_id != local_node_id]
        return ids[:replicas]
