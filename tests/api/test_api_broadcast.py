"""Which nodes a broadcast takes for slow."""

from raylog.api.broadcast import slow_nodes


def test_slow_is_below_half_of_the_median() -> None:
    assert slow_nodes({"a": 100.0, "b": 100.0, "c": 49.0, "d": 51.0, "e": 120.0}) == {"c"}


def test_nothing_known_is_not_slow() -> None:
    assert slow_nodes({"a": None, "b": 0.0}) == set()
    assert slow_nodes({"a": None, "b": 10.0}) == set()
