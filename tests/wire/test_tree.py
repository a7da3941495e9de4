"""Who passes on to whom: every plan reaches everybody, and nobody carries more than about what it receives."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylog.wire.tree import STRIPES, Step, plan_broadcast


def names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


def reach(plan: dict[str, list[Step]], holders: list[str], stripe: int) -> set[str]:
    """Who gets this stripe from the holders over first sources alone."""
    here, grows = set(holders), True
    while grows:
        fresh = {
            node
            for node, steps in plan.items()
            for step in steps
            if node not in here and step.rank == 0 and stripe in step.stripe and step.node_id in here
        }
        here |= fresh
        grows = bool(fresh)
    return here - set(holders)


@given(st.integers(1, 4), st.integers(0, 80))
def test_everybody_is_reached_and_the_load_is_even(holders: int, receivers: int) -> None:
    have, want = names("h", holders), names("r", receivers)
    plan = plan_broadcast(have, want)
    assert set(plan) == set(want)
    for stripe in range(STRIPES):
        assert reach(plan, have, stripe) == set(want)
    children: Counter[tuple[str, int]] = Counter()
    shares: Counter[str] = Counter()
    for node, steps in plan.items():
        first = [step for step in steps if step.rank == 0]
        for stripe in range(STRIPES):
            givers = [step for step in first if stripe in step.stripe]
            assert len(givers) == 1 or not any(step.is_relay for step in givers), "from one, or from several holders"
            assert givers
        assert len({step.node_id for step in steps}) == len(steps) and node not in {step.node_id for step in steps}
        assert {step.node_id for step in steps} >= set(have), "every holder is there to fall back to"
        assert all(step.is_relay == (step.node_id in want) for step in steps)
        assert [step.rank for step in steps] == sorted(step.rank for step in steps)
        for step in first:
            shares[step.node_id] += STRIPES // step.stripe.count
            for stripe in range(STRIPES):
                children[step.node_id, stripe] += stripe in step.stripe
    assert all(count <= 2 for count in children.values()), children
    assert all(share <= STRIPES for share in shares.values()), "nobody sends more than a whole shard"


def depth(plan: dict[str, list[Step]], node: str, stripe: int) -> int:
    steps = 0
    while node in plan:
        (node,) = (step.node_id for step in plan[node] if step.rank == 0 and stripe in step.stripe)
        steps += 1
    return steps


def test_a_thousand_receivers_are_ten_hops_deep() -> None:
    want = names("r", 1000)
    plan = plan_broadcast(["h"], want)
    for stripe in range(STRIPES):
        assert max(depth(plan, node, stripe) for node in want) == 10
        assert reach(plan, ["h"], stripe) == set(want)
    passing = [{step.node_id for steps in plan.values() for step in steps if stripe in step.stripe and not step.rank}
               for stripe in range(STRIPES)]  # fmt: skip
    assert passing[0] & passing[1] == {"h"}, "who passes on in one tree is a leaf in the other"


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_few_form_a_chain_in_their_order(count: int) -> None:
    plan = plan_broadcast(["h"], names("r", count))
    before = ["h", *names("r", count)]
    for place, node in enumerate(names("r", count)):
        assert plan[node][0].node_id == before[place] and plan[node][0].stripe.count == 1
        assert [step.node_id for step in plan[node][1:]] == (["h"] if place else [])


def test_the_first_receivers_are_nearest_to_the_holder() -> None:
    plan = plan_broadcast(["h"], names("r", 8))
    assert depth(plan, "r0", 0) == 1 and depth(plan, "r7", 1) == 1, "the other tree begins at the other end"


def test_holders_share_the_receivers_and_need_nothing_themselves() -> None:
    plan = plan_broadcast(["a", "b"], ["a", *names("r", 4), "b"])
    assert set(plan) == set(names("r", 4))
    assert [plan[f"r{n}"][0].node_id for n in range(4)] == ["a", "b", "r0", "r1"]
    assert plan_broadcast(["a"], ["a"]) == plan_broadcast(["a"], []) == {}


def passing(plan: dict[str, list[Step]]) -> set[str]:
    return {step.node_id for steps in plan.values() for step in steps if not step.rank}


@pytest.mark.parametrize(("count", "slow"), [(2, 1), (3, 1), (7, 1), (7, 3), (20, 8)])
def test_slow_nodes_pass_nothing_on(count: int, slow: int) -> None:
    lame = set(names("r", slow))
    plan = plan_broadcast(["h"], names("r", count), lame)
    assert set(plan) == set(names("r", count))
    assert not passing(plan) & lame
    for stripe in range(STRIPES):
        assert reach(plan, ["h"], stripe) == set(plan)


def test_the_quickest_of_a_chain_come_first() -> None:
    plan = plan_broadcast(["h"], ["r0", "r1", "r2"], {"r0"})
    assert [plan[node][0].node_id for node in ("r1", "r2", "r0")] == ["h", "r1", "r2"]


def test_where_most_are_slow_they_pass_on_as_well() -> None:
    plan = plan_broadcast(["h"], names("r", 9), set(names("r", 7)))
    for stripe in range(STRIPES):
        assert reach(plan, ["h"], stripe) == set(plan)
    assert passing(plan) >= {"r7", "r8"}
