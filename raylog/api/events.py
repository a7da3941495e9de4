"""What happened in the cluster, as `client.events()` and `raylog status --events` give it."""

import time
from collections.abc import Sequence

from raylog.actors import calls
from raylog.actors.bootstrap import HEAD_ACTORS
from raylog.actors.node_info import NodeInfo
from raylog.errors import RaylogError
from raylog.monitor.events import Event

ASK_TIMEOUT_S = 10.0


def ask_events(nodes: Sequence[NodeInfo], since_s: float) -> list[Event]:
    """Asks all actors at once; one that does not answer is an event itself. By the machines' time."""
    actors = {name: name for name in HEAD_ACTORS}
    actors.update({info.node_id: calls.node_actor_name(info.ray_node_id) for info in nodes})
    asked, found = {}, []
    for actor, name in actors.items():
        try:
            asked[actor] = calls.find(name).events.remote(since_s)
        except RaylogError as error:
            found.append(_silent(actor, error))
    answers = calls.wait_all(list(asked.values()), ASK_TIMEOUT_S, "events of an actor")
    for actor, answer in zip(asked, answers, strict=True):
        found.extend([_silent(actor, answer)] if isinstance(answer, RaylogError) else answer)
    return sorted(found, key=lambda event: event.time_s)


def _silent(actor: str, error: RaylogError) -> Event:
    return Event(time_s=time.time(), level="error", source="events", message=f"no answer: {error}", actor=actor)
