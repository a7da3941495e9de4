"""What every actor on the head can be asked for; a node actor has the same call among those that answer at once."""

import ray

from raylog.monitor.events import Event, EventLog


class Eventful:
    """Keeps what is logged in the actor's process from its start on. `actor` is the name that its events carry."""

    def __init__(self, actor: str) -> None:
        self._actor = actor
        self._event_log = EventLog.of_process()

    def runs_on(self) -> str:
        """Ray's id of the node."""
        return str(ray.get_runtime_context().get_node_id())

    def events(self, since_s: float) -> list[Event]:
        """What happened here after `since_s` (seconds of the wall clock), oldest first; as many as are kept."""
        return self._event_log.since(since_s, self._actor)
