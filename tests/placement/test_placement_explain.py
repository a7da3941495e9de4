"""A plan in words."""

import msgspec

from raylog.placement.explain import LINES_MAX, explain
from raylog.placement.model import Problem
from raylog.placement.solve import solve


def test_the_seed_in_words() -> None:
    nodes = [{"id": f"c{cpu}", "cpu": cpu} for cpu in (4, 6, 8)]
    problem = Problem.from_mapping({"nodes": nodes, "jobs": [{"id": "d", "workers": 20, "each": {"cpu": 1}}]})
    plan = msgspec.structs.replace(solve(problem), seconds=0.01)
    assert explain(plan).split("\n  then the least sum")[0] == (
        "18 of 20 workers placed on 3 nodes; optimal, 10 ms\n"
        "placed:\n  c4: 4 of d\n  c6: 6 of d\n  c8: 8 of d\n"
        "short:\n  d: 2 workers missing; short by 2: capacity 18, demand 20 (cpu)\n"
        "binds:\n  cpu on all nodes: 18 of 18 used\n"
        "would fit with:\n  d: 2 more cpu on any node\n  d: 1 more node like c4\n"
        "  d: job d with 18 workers instead of 20\n"
        "prices (shortfall saved per part of the cluster):\n  cpu at c4: 1\n  cpu at c6: 1\n  cpu at c8: 1\n"
        "minimised:\n  shortfall: 0.1111 (no plan has less than 0.1111)\n"
        "  waste + fragmentation + moves: 0 (no plan has less than 0)"
    )


def test_devices_moves_and_notes_are_told() -> None:
    problem = Problem.from_mapping(
        {
            "nodes": [{"id": "g", "gpus": [{"type": "A"}] * 2}],
            "jobs": [{"id": "j", "workers": 3, "each": {"gpu": 0.5}}],
            "current": [{"job": "j", "worker": 0, "node": "lost"}],
            "notes": ["node n2 left out: last sample 14 s old"],
        }
    )
    text = explain(solve(problem))
    assert "all 3 workers placed on 1 nodes, 1 moved; optimal" in text
    assert "g: 3 of j (GPU 0, 1)" in text
    assert "binds:\n  nothing binds; the fullest is gpu, 75% used" in text
    assert "node n2 left out: last sample 14 s old" in text and "moves to g" in text


def test_long_plans_are_cut_and_counted() -> None:
    problem = Problem.from_mapping(
        {"nodes": [{"id": "n", "cpu": 1, "count": 50}], "jobs": [{"id": "j", "workers": 60, "each": {"cpu": 1}}]}
    )
    text = explain(solve(problem))
    assert f"… and {50 - LINES_MAX} more" in text and len(text.splitlines()) < 50
