"""The checker by itself: each rule, broken once."""

import pytest

from raylog.placement.check import violations
from raylog.placement.model import Problem
from raylog.placement.plan import Placement

PROBLEM = Problem.from_mapping(
    {
        "nodes": [
            {
                "id": "a",
                "cpu": 4,
                "memory_bytes": 100,
                "gpus": [{"type": "A", "memory_bytes": 8}, {"type": "A", "memory_bytes": 8}, {"type": "B"}],
                "labels": {"rack": "r"},
            },
            {"id": "b", "cpu": 4, "labels": {"rack": "r"}, "gpus": [{"type": "A", "share": 0.5}]},
        ],
        "jobs": [
            {"id": "cpu", "workers": 5, "each": {"cpu": 1}},
            {"id": "memory", "workers": 2, "each": {"memory_bytes": 60}},
            {"id": "half", "workers": 3, "each": {"gpu": 0.5}},
            {"id": "two", "workers": 1, "each": {"gpu": 2}},
            {"id": "b", "workers": 1, "each": {"gpu": 1, "gpu_types": ["B"]}},
            {"id": "wide", "workers": 2, "each": {"gpu": 0.1, "gpu_memory_bytes": 5}},
            {"id": "nodes", "workers": 2, "each": {"cpu": 1}, "spread": "node"},
            {"id": "racks", "workers": 2, "each": {"cpu": 1}, "spread": "rack"},
            {"id": "poor", "workers": 2, "each": {"cpu": 1}, "tenant": "t"},
        ],
        "quotas": {"t": {"cpu": 1}},
    }
)


def at(job: str, node: str = "a", worker: int = 0, **devices: float) -> Placement:
    return Placement(job=job, worker=worker, node=node, devices={key[1:]: share for key, share in devices.items()})


@pytest.mark.parametrize(
    ("placements", "expected"),
    [
        ([at("cpu", worker=i) for i in range(5)], "a: more cpu placed than 4.0"),
        ([at("memory"), at("memory", worker=1)], "a: more memory placed than 100 bytes"),
        ([at("half", d0=0.25, d1=0.25)], "0.5 of one GPU expected"),
        ([at("half", d0=1.0)], "0.5 of one GPU expected"),
        ([at("half", d7=0.5)], "no such GPU"),
        ([at("half", worker=i, d0=0.5) for i in range(3)], "a: 1.5 of GPU 0 placed, 1.0 of it is free"),
        ([at("half", "b", d0=0.5), at("half", "b", 1, d0=0.5)], "b: 1.0 of GPU 0 placed, 0.5 of it is free"),
        ([at("two", d0=1.0)], "2 whole GPUs expected"),
        ([at("two", d0=1.0, d2=1.0)], "GPUs of several types"),
        ([at("b", d0=1.0)], "GPU of type A, asked for B"),
        ([at("wide", d0=0.1), at("wide", worker=1, d0=0.1)], "a: more memory of GPU 0 placed than 8 bytes"),
        ([at("nodes"), at("nodes", worker=1)], "nodes: 2 workers on node a, spread allows one"),
        ([at("racks"), at("racks", "b", 1)], "racks: 2 workers on rack r, spread allows one"),
        ([at("poor"), at("poor", worker=1)], "tenant t: more cpu placed than its quota of 1.0"),
        ([at("cpu"), at("cpu", "b")], "worker 0 of cpu stands in more than one place"),
        ([at("cpu", worker=5)], "cpu has no worker 5"),
        ([at("cpu", "c")], "cpu on c: no such job or node"),
    ],
)
def test_each_rule_is_seen_when_broken(placements: list[Placement], expected: str) -> None:
    [found] = violations(PROBLEM, placements)
    assert expected in found


def test_what_is_allowed_passes() -> None:
    allowed = [at("two", d0=1.0, d1=1.0), at("b", d2=1.0), at("half", "b", d0=0.5), at("nodes"), at("nodes", "b", 1)]
    assert violations(PROBLEM, [*allowed, at("poor"), at("racks")]) == []
