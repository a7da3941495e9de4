"""When a shipment will be done: said before it begins, corrected while it goes."""

import pytest

from raylog.api.pace import Pace, forecast


def told(rates: dict[str, float | None], deadline_s: float = 10.0) -> tuple[float | None, bool | None, str]:
    found = forecast(1000, rates, deadline_s, holders=2, streams=2, qos="ship")
    return found.expected_s, found.can_meet, found.reason


def test_the_slowest_node_says_how_long_it_takes() -> None:
    expected_s, can_meet, reason = told({"fast": 1000.0, "slow": 50.0})
    assert (expected_s, can_meet) == (20.0, False)
    for words in ("slow", "20.0 s", "10.0 s are given", "2 holder(s)", "class ship"):
        assert words in reason


def test_a_deadline_that_can_be_met() -> None:
    assert told({"one": 200.0})[:2] == (5.0, True)


@pytest.mark.parametrize("rates", [{"one": None}, {"one": 100.0, "two": None}])
def test_nothing_is_promised_of_links_that_nobody_has_seen(rates: dict[str, float | None]) -> None:
    expected_s, can_meet, reason = told(rates)
    assert (expected_s, can_meet) == (None, None)
    assert "no rate is known" in reason


def test_nothing_is_to_be_done_where_everybody_has_it() -> None:
    assert told({}) == (0.0, True, "every node holds all of it already")


def test_the_pace_follows_the_last_seconds() -> None:
    pace = Pace(1000)
    assert pace.eta_s(0.0) is None
    for second in range(11):
        pace.reach(10 * second, float(second))
    assert pace.eta_s(10.0) == pytest.approx(90.0)
    for second in range(11, 21):
        pace.reach(100 + 50 * (second - 10), float(second))
    assert pace.eta_s(20.0) == pytest.approx(400 / 50)
    pace.reach(1000, 21.0)
    assert pace.eta_s(21.0) == 0.0


def test_a_pace_that_stands_still_knows_no_end() -> None:
    pace = Pace(1000)
    for second in range(20):
        pace.reach(500, float(second))
    assert pace.eta_s(20.0) is None
