"""The lines of raylog's loggers as events: kept in order, bounded, asked for by time."""

import logging
from collections.abc import Iterator

import pytest

from raylog.monitor.events import EVENTS_MAX, MESSAGE_CHARS_MAX, EventLog

log = logging.getLogger("raylog.test_events")


@pytest.fixture
def events() -> Iterator[EventLog]:
    listening = EventLog()
    log.addHandler(listening)
    log.setLevel(logging.INFO)
    yield listening
    log.removeHandler(listening)
    log.setLevel(logging.NOTSET)


def test_an_event_is_the_line_with_its_time_source_and_actor(events: EventLog) -> None:
    log.warning("node %s is asked last", "n1")
    log.debug("not told")
    (event,) = events.since(0.0, "catalog")
    assert (event.level, event.source, event.actor) == ("warning", "test_events", "catalog")
    assert event.message == "node n1 is asked last"


def test_only_what_came_after_is_told(events: EventLog) -> None:
    log.info("first")
    (first,) = events.since(0.0)
    log.error("second")
    assert [event.message for event in events.since(first.time_s)] == ["second"]


def test_no_event_moves_a_terminal(events: EventLog) -> None:
    log.warning("it said: %s", "a\x1b[2Jb\nc\x9bd é")
    assert events.since(0.0)[-1].message == "it said: a [2Jb c d é"


def test_an_exception_is_named(events: EventLog) -> None:
    try:
        raise ValueError("seven")
    except ValueError:
        log.exception("sampling failed")
    (event,) = events.since(0.0)
    assert (event.level, event.message) == ("error", "sampling failed: ValueError: seven")


def test_the_oldest_give_way_and_long_lines_are_cut(events: EventLog) -> None:
    for number in range(EVENTS_MAX + 5):
        log.info("%d", number)
    log.info("x" * (MESSAGE_CHARS_MAX + 1))
    kept = events.since(0.0)
    assert (len(kept), kept[0].message, len(kept[-1].message)) == (EVENTS_MAX, "6", MESSAGE_CHARS_MAX)


def test_a_process_has_one() -> None:
    root = logging.getLogger("raylog")
    level, first = root.level, EventLog.of_process()
    try:
        assert EventLog.of_process() is first
        log.info("heard by the process's own")
        assert first.since(0.0)[-1].message == "heard by the process's own"
    finally:
        root.removeHandler(first)
        root.setLevel(level)
        EventLog.of_process.cache_clear()
