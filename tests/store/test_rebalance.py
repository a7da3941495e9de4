"""Copies moved so that nodes are filled alike: decided without a node."""

from hypothesis import given
from hypothesis import strategies as st

from raylog.spec import ShardRef, ShardStanding
from raylog.store.rebalance import FILL_GAP, BalanceNode, plan_rebalance
from raylog.units import GIB


def shard(name: str, size: int = GIB) -> ShardRef:
    return ShardRef(shard_id=name, frame_digest=bytes(32), stored_bytes=size, content_bytes=size, rows=1, chunks=1)


def standing(name: str, *nodes: str, size: int = GIB, siblings: tuple[tuple[str, ...], ...] = ()) -> ShardStanding:
    return ShardStanding(
        shard=shard(name, size), wanted=len(nodes), nodes=nodes, siblings=siblings, pieces_needed=len(siblings)
    )


def nodes_for(standings: list[ShardStanding], names: str, room: int = 100 * GIB, **domains: str) -> list[BalanceNode]:
    stored = {name: sum(one.shard.stored_bytes for one in standings if name in one.nodes) for name in names}
    return [
        BalanceNode(
            node_id=name, domain=domains.get(name, name), stored_bytes=stored[name], free_bytes=room - stored[name]
        )
        for name in names
    ]


def fills(nodes: list[BalanceNode]) -> list[float]:
    return [node.stored_bytes / node.room_bytes for node in nodes]


def test_a_new_node_takes_its_part() -> None:
    shards = [standing(f"{number:02}", "a", "b") for number in range(60)]
    plan = plan_rebalance(nodes_for(shards, "abc"), shards, 100)
    after = {"a": 60, "b": 60, "c": 0}
    for move in plan:
        after[move.source] -= 1
        after[move.target] += 1
    assert {move.target for move in plan} == {"c"}
    assert max(after.values()) - min(after.values()) <= 2 * FILL_GAP * 100 + 1
    assert "node c 0%, the mean is 40%" in plan[0].reason


def test_alike_nodes_are_left_alone() -> None:
    shards = [standing(f"{number:02}", *("ab", "bc", "ac")[number % 3]) for number in range(60)]
    assert plan_rebalance(nodes_for(shards, "abc"), shards, 100) == []


def test_copies_stay_apart() -> None:
    shards = [standing(f"{number:02}", "a", "b") for number in range(50)]
    domains = {"a": "r1", "b": "r2", "c": "r2"}
    plan = plan_rebalance(nodes_for(shards, "abc", **domains), shards, 100)
    assert {move.source for move in plan} == {"b"}, "a's copies would join b's in r2"
    pieces = [standing(f"{number:02}", "a", siblings=(("b",), ("c",))) for number in range(50)]
    assert plan_rebalance(nodes_for(pieces, "abc"), pieces, 100) == []
    assert {move.target for move in plan_rebalance(nodes_for(pieces, "abcd"), pieces, 100)} == {"d"}


@given(
    st.lists(st.tuples(st.sets(st.sampled_from("abcdef"), min_size=1, max_size=3), st.integers(1, 8)), max_size=40),
    st.integers(1, 20),
)
def test_it_never_makes_things_worse(copies: list[tuple[set[str], int]], moves_max: int) -> None:
    shards = [standing(f"{n:02}", *sorted(held), size=size * GIB) for n, (held, size) in enumerate(copies)]
    nodes = nodes_for(shards, "abcdef", 500 * GIB)
    plan = plan_rebalance(nodes, shards, moves_max)
    assert len(plan) <= moves_max
    where = {one.shard.shard_id: set(one.nodes) for one in shards}
    for move in plan:
        held = where[move.shard.shard_id]
        assert move.source in held and move.target not in held
        held.remove(move.source)
        held.add(move.target)
    after = [
        standing(one.shard.shard_id, *sorted(where[one.shard.shard_id]), size=one.shard.stored_bytes) for one in shards
    ]
    before, now = fills(nodes), fills(nodes_for(after, "abcdef", 500 * GIB))
    assert max(now) <= max(before) and min(now) >= min(before)
