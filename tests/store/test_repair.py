"""Repair plans: what they promise for any cluster, and how they explain themselves."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylog.errors import UsageError
from raylog.spec import ShardRef, ShardStanding
from raylog.store.repair import RepairNode, RepairPlan, plan_repair

MIB = 1 << 20


def node(name: str, domain: str = "", free_bytes: int = 100 * MIB) -> RepairNode:
    return RepairNode(node_id=name, domain=domain or name, free_bytes=free_bytes)


def standing(
    name: str, nodes: tuple[str, ...], wanted: int = 2, stored_bytes: int = MIB, **more: object
) -> ShardStanding:
    shard = ShardRef(
        shard_id=name, frame_digest=bytes(32), stored_bytes=stored_bytes, content_bytes=stored_bytes, rows=1, chunks=1
    )
    return ShardStanding(shard=shard, wanted=wanted, nodes=nodes, **more)  # type: ignore[arg-type]


def test_a_lost_replica_is_made_again_and_explained() -> None:
    plan = plan_repair([standing("s1", ("a", "b"))], [node("a", "rack-1"), node("c", "rack-2")])
    (step,) = plan.steps
    assert (step.sources, step.target) == (("a",), "c")
    assert step.reason == (
        "shard s1 has 1 of 2 replicas since node b is gone; to node c because its failure domain rack-2 holds no copy, "
        "it has 100.0 MiB free and the fewest bytes to receive"
    )
    assert (plan.unrepairable, plan.deferred) == ((), 0)


def test_what_stands_is_left_alone() -> None:
    nodes = [node("a"), node("b"), node("c")]
    enough = [standing("s1", ("a", "b")), standing("s2", ("a", "b", "c")), standing("s3", (), wanted=0)]
    assert plan_repair(enough, nodes) == RepairPlan(steps=(), unrepairable=(), deferred=0)


def test_another_failure_domain_comes_first_and_the_same_one_before_none() -> None:
    nodes = [node("a", "r1"), node("b", "r1"), node("c", "r2", free_bytes=2 * MIB)]
    assert plan_repair([standing("s", ("a",))], nodes).steps[0].target == "c"
    (step,) = plan_repair([standing("s", ("a",), stored_bytes=3 * MIB)], nodes).steps
    assert step.target == "b"
    assert "no node of a failure domain without a copy can take it; in r1" in step.reason


def test_the_nearest_to_loss_comes_first() -> None:
    needs = [standing("x", ("a", "b"), wanted=3), standing("y", ("a",)), standing("z", ("a",), wanted=3)]
    plan = plan_repair(needs, [node(name) for name in "abcde"], steps_per_node_max=9)
    assert [step.shard.shard_id for step in plan.steps] == ["z", "z", "y", "x"]


def test_what_cannot_be_repaired_says_why() -> None:
    nodes = [node("a"), node("b", free_bytes=MIB)]
    needs = [
        standing("lost", ("gone-1", "gone-2")),
        standing("wide", ("a", "b"), wanted=3),
        standing("large", ("a",), stored_bytes=5 * MIB),
    ]
    plan = plan_repair(needs, nodes)
    reasons = {one.shard.shard_id: (one.reason, one.lost) for one in plan.unrepairable}
    assert plan.steps == () and plan.deferred == 0
    assert reasons == {
        "lost": (
            "shard lost has 0 of 2 replicas since nodes gone-1, gone-2 are gone: no living node holds a copy; "
            "bring one back, or restore it from a backup",
            True,
        ),
        "wide": ("shard wide has 2 of 3 replicas: 2 living nodes cannot hold 3 copies; add 1 more", False),
        "large": (
            "shard large has 1 of 2 replicas: none of the 1 other living nodes has 5.0 MiB free; "
            "make room or add a node",
            False,
        ),
    }


def test_what_no_node_holds_comes_from_its_backup_once() -> None:
    need = standing("s", ("gone",), wanted=3, backups=("s3://b",))
    plan = plan_repair([need], [node("a"), node("b"), node("c")])
    (step,) = plan.steps
    assert (step.sources, step.elsewhere, plan.unrepairable, plan.deferred) == ((), True, (), 2)
    assert "since node gone is gone; from s3://b to node a because" in step.reason
    (full,) = plan_repair([need], [node("a", free_bytes=0)]).unrepairable
    assert not full.lost and "make room" in full.reason


def test_a_node_that_holds_it_is_asked_before_the_backup() -> None:
    (step,) = plan_repair([standing("s", ("a",), backups=("s3://b",))], [node("a"), node("b")]).steps
    assert (step.sources, step.target, step.elsewhere) == (("a",), "b", True)


def piece(nodes: tuple[str, ...], *siblings: tuple[str, ...], needed: int = 2, **more: object) -> ShardStanding:
    return standing("p", nodes, wanted=1, siblings=siblings, pieces_needed=needed, **more)


def test_a_lost_piece_is_made_anew_on_a_node_without_another_one() -> None:
    nodes = [node("a"), node("b"), node("c")]
    (step,) = plan_repair([piece(("gone",), ("a",), ("b",))], nodes).steps
    assert (step.sources, step.target, step.elsewhere) == ((), "c", True)
    assert "since node gone is gone; anew from 2 of 2 other pieces to node c" in step.reason


def test_too_few_pieces_are_lost_unless_there_is_a_backup() -> None:
    nodes = [node("a"), node("b"), node("c")]
    (lost,) = plan_repair([piece(("gone",), ("a",), ())], nodes).unrepairable
    assert lost.lost and "no living node holds a copy and 1 of 2 other pieces" in lost.reason
    (step,) = plan_repair([piece(("gone",), ("a",), (), backups=("s3://b",))], nodes).steps
    assert "from s3://b to node" in step.reason and step.target in "bc"


def test_a_piece_waits_for_a_node_rather_than_joining_another() -> None:
    (left,) = plan_repair([piece(("gone",), ("a",), ("b",))], [node("a"), node("b")]).unrepairable
    assert not left.lost and "2 living nodes cannot hold 3 pieces; add 1 more" in left.reason


def test_two_pieces_of_a_shard_never_go_to_one_node_in_one_plan() -> None:
    lost = [
        standing(name, ("gone",), wanted=1, siblings=(("a",), ("b",), ()), pieces_needed=2, piece_of="whole")
        for name in ("p", "q")
    ]
    nodes = [node("a"), node("b"), node("c", free_bytes=10**9), node("d", free_bytes=10)]
    steps = plan_repair(lost, [*nodes[:3], node("d", free_bytes=10**9)]).steps
    assert {step.target for step in steps} == {"c", "d"} and {step.piece_of for step in steps} == {"whole"}
    plan = plan_repair(lost, nodes[:3])
    assert [step.target for step in plan.steps] == ["c"] and plan.deferred == 1


def test_a_copy_that_does_not_count_is_a_source_and_may_become_one_that_counts() -> None:
    (step,) = plan_repair([standing("s", (), wanted=1, other_nodes=("a",))], [node("a"), node("b", free_bytes=0)]).steps
    assert (step.sources, step.target) == (("a",), "a")
    plan = plan_repair([standing("s", ("gone",), other_nodes=("b",))], [node("a"), node("b")])
    assert {step.target for step in plan.steps} == {"a", "b"}


def test_busy_nodes_wait() -> None:
    needs = [standing(f"s{number}", ("a",)) for number in range(10)]
    plan = plan_repair(needs, [node("a"), node("c")], steps_per_node_max=3)
    assert [step.target for step in plan.steps] == ["c", "c", "c"]
    assert plan.deferred == 7


def test_repair_spreads_over_all_survivors() -> None:
    """One of 21 nodes is lost: every survivor sends and receives about as much."""
    source = random.Random(3)
    names = [f"n{number:02}" for number in range(21)]
    needs = [standing(f"s{number:03}", ("n00", source.choice(names[1:]))) for number in range(60)]
    plan = plan_repair(needs, [node(name) for name in names[1:]], steps_per_node_max=9)
    receives = [sum(step.target == name for step in plan.steps) for name in names[1:]]
    assert sum(receives) == 60 and (min(receives), max(receives)) == (3, 3)


def test_a_node_named_twice_is_refused() -> None:
    with pytest.raises(UsageError):
        plan_repair([], [node("a"), node("a")])


names = st.sampled_from("abcdefgh")
nodes_in_domains = st.lists(
    st.builds(node, names, st.sampled_from(["r1", "r2", "r3"]), st.integers(0, 6 * MIB)),
    unique_by=lambda one: one.node_id,
    max_size=8,
)
needs_of_shards = st.lists(
    st.builds(
        standing,
        st.uuids().map(lambda one: one.hex),
        st.lists(names, unique=True, max_size=4).map(tuple),
        st.integers(0, 4),
        st.integers(1, 3 * MIB),
    ),
    max_size=12,
    unique_by=lambda one: one.shard.shard_id,
)


@settings(max_examples=300, deadline=None)
@given(nodes=nodes_in_domains, needs=needs_of_shards, steps_max=st.integers(1, 4), seed=st.integers(0, 100))
def test_every_plan_keeps_its_promises(
    nodes: list[RepairNode], needs: list[ShardStanding], steps_max: int, seed: int
) -> None:
    plan = plan_repair(needs, nodes, steps_per_node_max=steps_max)
    living = {one.node_id: one for one in nodes}
    free = {one.node_id: one.free_bytes for one in nodes}
    holders = {need.shard.shard_id: set(need.nodes) & set(living) for need in needs}
    before = {shard_id: set(ids) for shard_id, ids in holders.items()}
    for step in plan.steps:
        shard_id = step.shard.shard_id
        assert step.target in living and step.target not in holders[shard_id]
        assert step.sources and set(step.sources) <= before[shard_id]
        free[step.target] -= step.shard.stored_bytes
        assert free[step.target] >= 0
        fresh = {one.domain for one in nodes} - {living[one].domain for one in holders[shard_id]}
        assert ("holds no copy" in step.reason) == (living[step.target].domain in fresh)
        holders[shard_id].add(step.target)
    for name in living:
        assert sum(step.target == name for step in plan.steps) <= steps_max
        assert sum(step.sources[0] == name for step in plan.steps) <= steps_max
    given_up = {one.shard.shard_id for one in plan.unrepairable}
    missing = {need.shard.shard_id: need.wanted - len(holders[need.shard.shard_id]) for need in needs}
    assert all(
        len(holders[one]) <= max(need.wanted, len(before[one])) for need in needs for one in [need.shard.shard_id]
    )
    assert {one for one in given_up if missing[one] > 0} == given_up
    assert sum(max(count, 0) for one, count in missing.items() if one not in given_up) == plan.deferred
    assert {one.shard.shard_id for one in plan.unrepairable if one.lost} == {
        need.shard.shard_id for need in needs if need.wanted and not before[need.shard.shard_id]
    }
    random.Random(seed).shuffle(nodes)
    random.Random(seed + 1).shuffle(needs)
    assert plan_repair(needs, nodes, steps_per_node_max=steps_max) == plan


def leaving(name: str) -> RepairNode:
    return RepairNode(node_id=name, domain=name, free_bytes=100 * MIB, is_draining=True)


def test_a_drained_node_gives_and_is_given_nothing() -> None:
    (step,) = plan_repair([standing("s", ("a", "b"))], [leaving("a"), node("b"), node("c"), leaving("d")]).steps
    assert step.target == "c"
    assert set(step.sources) == {"a", "b"}
    assert "since node a is being drained" in step.reason
    (only,) = plan_repair([standing("s", ("a",), wanted=1)], [leaving("a"), node("c")]).steps
    assert (only.sources, only.target) == (("a",), "c")


def test_where_only_drained_nodes_are_left_the_plan_says_so() -> None:
    plan = plan_repair([standing("s", ("a",), wanted=1)], [leaving("a"), leaving("b")])
    assert plan.steps == ()
    assert "0 living nodes cannot hold 1 copies" in plan.unrepairable[0].reason
    assert not plan.unrepairable[0].lost
