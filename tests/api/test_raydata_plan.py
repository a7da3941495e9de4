"""Rows dealt out to tasks of Ray Data: each once, near where it lies, in about as many tasks as asked for."""

from hypothesis import given
from hypothesis import strategies as st

from raylog.api.raydata_plan import Slice, choose_nodes, default_blocks, plan_slices
from raylog.units import GIB, MIB

ROWS = st.lists(st.integers(0, 1000), min_size=1, max_size=20)


@given(ROWS, st.integers(1, 60))
def test_each_row_is_read_once(rows: list[int], tasks: int) -> None:
    numbered = {2 * number: count for number, count in enumerate(rows)}
    planned = plan_slices(numbered, tasks)
    seen = {(one.shard, row) for task in planned for one in task for row in range(one.first, one.first + one.rows)}
    assert len(seen) == sum(one.rows for task in planned for one in task) == sum(rows)
    assert {one.shard for task in planned for one in task} == set(numbered), "also those without rows"
    assert all(planned) and len(planned) <= tasks + len(rows)
    assert len(planned) == tasks or tasks > len(rows)


def test_tasks_take_part_of_a_shard_or_several() -> None:
    assert plan_slices({0: 10, 1: 10}, 4) == [[Slice(0, 0, 5)], [Slice(0, 5, 5)], [Slice(1, 0, 5)], [Slice(1, 5, 5)]]
    assert plan_slices({3: 10, 5: 20, 6: 10}, 2) == [[Slice(3, 0, 10)], [Slice(5, 0, 20), Slice(6, 0, 10)]]
    assert plan_slices({0: 0}, 9) == [[Slice(0, 0, 0)]]


@given(ROWS, st.data(), st.integers(1, 5))
def test_nodes_read_what_they_hold(rows: list[int], data: st.DataObject, nodes_max: int) -> None:
    holders = [data.draw(st.lists(st.sampled_from("abcdefgh"), max_size=3, unique=True)) for _ in rows]
    chosen = choose_nodes(rows, holders, nodes_max)
    assert sorted(number for numbers in chosen.values() for number in numbers) == list(range(len(rows)))
    assert len(chosen.keys() - {""}) <= nodes_max
    assert all(node in holders[number] for node, numbers in chosen.items() if node for number in numbers)


def test_nodes_share_the_work() -> None:
    both = [["a", "b"]] * 4
    assert choose_nodes([5, 5, 5, 5], both, 9) == {"a": [0, 2], "b": [1, 3]}
    assert choose_nodes([9, 5, 5, 1], both, 9) == {"a": [0, 3], "b": [1, 2]}
    assert choose_nodes([5, 1], [["a"], ["b"]], 1) == {"a": [0], "": [1]}


def test_blocks() -> None:
    assert default_blocks(0, 8) == 1
    assert default_blocks(20 * MIB, 8) == 3
    assert default_blocks(GIB, 8) == 16
    assert default_blocks(100 * GIB, 8) == 800
