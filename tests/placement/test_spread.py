"""No zone or rack may hold more pieces of a shard than may be lost."""

from raylog.placement.spread import spread_problem


def labels(**racks: str) -> dict[str, dict[str, str]]:
    return {name: {"rack": rack} if rack else {} for name, rack in racks.items()}


def test_as_many_as_may_be_lost() -> None:
    spread = labels(a="r1", b="r1", c="r2", d="r2", e="r3", f="r3")
    assert spread_problem("abcdef", spread, 4, 2) == ""


def test_the_domain_that_is_missing_is_named() -> None:
    crowded = labels(a="r1", b="r1", c="r1", d="r2", e="r2", f="r3")
    problem = spread_problem("abcdef", crowded, 4, 2)
    assert problem.startswith("rack r1 would hold 3 of the 6 pieces of a shard, of which 2 may be lost")
    assert "the racks are r1, r2, r3: add nodes in others than r1" in problem


def test_domains_that_say_nothing() -> None:
    assert spread_problem("abc", labels(a="r1", b="r1", c="r1"), 2, 1) == "", "one rack is all there is"
    assert spread_problem("abc", labels(a="r1", b="r1", c=""), 2, 1) == "", "not every node is labelled"
