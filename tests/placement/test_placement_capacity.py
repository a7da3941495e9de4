"""Live capacity: what nodes give, and the reason for each reduction."""

import pytest

from raylog.placement.capacity import GpuState, NodeState, capacity
from raylog.placement.model import Gpu, Problem
from raylog.placement.solve import solve

GIB = 1 << 30


def state(node_id: str = "n1", **more: object) -> NodeState:
    plain: dict[str, object] = {
        "cpu_total": 8.0, "cpu_available": 8.0, "memory_total_bytes": 64 * GIB, "memory_available_bytes": 64 * GIB,
    }  # fmt: skip
    return NodeState(node_id=node_id, **{**plain, **more})  # type: ignore[arg-type]


def test_an_idle_node_gives_all_and_no_reason() -> None:
    found = capacity([state(labels={"rack": "r1"}, nic_bytes_per_s=10)])
    [node] = found.nodes
    assert (node.cpu, node.memory_bytes, node.labels, node.nic_bytes_per_s) == (8.0, 64 * GIB, {"rack": "r1"}, 10)
    assert found.reasons == ()


def test_a_busy_node_gives_what_its_load_leaves() -> None:
    found = capacity([state(load=6.5), state("n2", load=20.0)])
    assert [node.cpu for node in found.nodes] == [1.5, 0.0]
    assert found.reasons == (
        "node n1 gives 1.5 of 8 cpu: its load is 6.5",
        "node n2 gives 0 of 8 cpu: its load is 20",
    )


def test_what_ray_has_given_away_is_not_given_twice() -> None:
    found = capacity([state(cpu_available=3.0, load=2.0, memory_available_bytes=GIB)])
    assert (found.nodes[0].cpu, found.nodes[0].memory_bytes) == (3.0, GIB)
    assert found.reasons == (
        "node n1 gives 3 of 8 cpu: the rest is taken in Ray",
        "node n1 gives 1.0 GiB of 64.0 GiB memory: the rest is in use",
    )


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"last_seen_s": 14.2}, "node n2 left out: last sample 14 s old"),
        ({"is_draining": True}, "node n2 left out: it is being drained"),
    ],
)
def test_a_silent_or_draining_node_is_left_out(more: dict[str, object], reason: str) -> None:
    found = capacity([state("n2", **more), state("n1")])
    assert [node.id for node in found.nodes] == ["n1"]
    assert found.reasons == (reason,)


def test_free_gpus_are_whole_ones_and_at_most_one_part() -> None:
    gpus = tuple(
        GpuState(type="A100", memory_total_bytes=80 * GIB, memory_free_bytes=free)
        for free in (30 * GIB, 80 * GIB - 1, 79 * GIB)
    )
    found = capacity([state(gpu_total=3.0, gpu_available=1.5, gpus=gpus)])
    assert found.nodes[0].gpus == (
        Gpu(type="A100", memory_bytes=79 * GIB),
        Gpu(type="A100", memory_bytes=79 * GIB, share=0.5),
    )
    assert found.reasons == ("node n1 gives 1.5 of 3 gpu: the rest is taken in Ray",)


def test_gpus_that_nvml_does_not_see_have_no_type() -> None:
    found = capacity([state(gpu_total=2.0, gpu_available=2.0)])
    assert found.nodes[0].gpus == (Gpu(type="unknown"), Gpu(type="unknown"))


def test_a_busy_node_changes_the_plan_and_the_plan_says_so() -> None:
    jobs = Problem.from_mapping({"nodes": [], "jobs": [{"id": "j", "workers": 1, "each": {"cpu": 4}}]}).jobs
    for load, expected in ((0.0, "n1"), (6.0, "n2")):
        live = capacity([state("n1", load=load), state("n2")])
        plan = solve(Problem(nodes=live.nodes, jobs=jobs, notes=live.reasons))
        assert plan.placements[0].node == expected
        assert ("node n1 gives 2 of 8 cpu: its load is 6" in plan.notes) == (load > 0)
