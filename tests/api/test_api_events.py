"""Events of actors that do not answer."""

from raylog.actors.bootstrap import HEAD_ACTORS
from raylog.api.events import ask_events


def test_an_actor_that_does_not_answer_is_an_event_itself() -> None:
    events = ask_events([], 0.0)  # this process is connected to no cluster
    assert {event.actor for event in events} == set(HEAD_ACTORS)
    assert all(event.level == "error" and event.message.startswith("no answer: ") for event in events)
