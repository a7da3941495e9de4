"""Placement files: what is read, and how each mistake is named."""

import json
from pathlib import Path
from typing import Any

import pytest

from raylog.errors import UsageError
from raylog.placement.model import Problem

NODES: list[dict[str, Any]] = [{"id": "a", "cpu": 4}]
JOBS: list[dict[str, Any]] = [{"id": "j", "workers": 2, "each": {"cpu": 1}}]

FILE = """
nodes:
  - {id: big, cpu: 96, memory_bytes: 512GiB, gpus: [{type: H100, memory_bytes: 80GiB}], nic_bytes_per_s: 25e9,
     labels: {zone: z1, rack: r1}, count: 2}
jobs:
  - {id: train, workers: 2, each: {cpu: 8, gpu: 0.5, gpu_types: [H100], memory_bytes: 64GiB}, priority: 3,
     tenant: research, spread: rack, reads: {corpora/wiki: 10GB}, count: 2}
quotas: {research: {gpu: 4}}
current: [{job: train-0, worker: 1, node: big-1}]
"""


def test_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(FILE.replace("25e9", "25000000000"))
    problem = Problem.from_file(path)
    [node], [job] = problem.nodes, problem.jobs
    assert node.ids() == ["big-0", "big-1"] and job.ids() == ["train-0", "train-1"]
    assert node.memory_bytes == 512 * 2**30 and node.gpus[0].memory_bytes == 80 * 2**30
    assert (job.reads, job.each.gpu, job.priority) == ({"corpora/wiki": 10**10}, 0.5, 3)
    assert problem.quotas["research"].gpu == 4 and problem.quotas["research"].cpu is None
    assert problem.current[0].node == "big-1"


def test_json_reads_the_same(tmp_path: Path) -> None:
    values = {"nodes": NODES, "jobs": JOBS}
    path = tmp_path / "p.json"
    path.write_text(json.dumps(values))
    assert Problem.from_file(path) == Problem.from_mapping(values)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"nodes": NODES}, "top level: expected 'jobs', got none"),
        ({"nodes": NODES, "jobs": JOBS, "node": 1}, "top level: expected only known fields, got 'node'"),
        ({"nodes": {"a": 1}, "jobs": JOBS}, "nodes: expected a list, got a mapping"),
        ([1], "top level: expected a mapping, got a list"),
        ({"nodes": [{"id": "a", "cpu": "4"}], "jobs": JOBS}, "nodes[0].cpu: expected a number, got str"),
        ({"nodes": [{"id": "a", "cpu": True}], "jobs": JOBS}, "nodes[0].cpu: expected a number, got bool"),
        ({"nodes": [{"id": "a", "cpu": -1}], "jobs": JOBS}, "nodes[0].cpu: expected a number >= 0.0, got -1"),
        (
            {"nodes": [{"id": "a", "cpu": float("nan")}], "jobs": JOBS},
            "nodes[0].cpu: expected a finite number, got nan",
        ),
        (
            {"nodes": [{"id": "a", "cpu": float("inf")}], "jobs": JOBS},
            "nodes[0].cpu: expected a finite number, got inf",
        ),
        (
            {"nodes": [{"id": "a", "memory_bytes": 1.5}], "jobs": JOBS},
            "nodes[0].memory_bytes: expected int, got a number",
        ),
        (
            {"nodes": [{"id": "a", "memory_bytes": "4 GiBB"}], "jobs": JOBS},
            "nodes[0].memory_bytes: expected a number of",
        ),
        ({"nodes": [{"id": "a", "memory_bytes": 2**70}], "jobs": JOBS}, "nodes[0].memory_bytes: expected int <="),
        ({"nodes": [{"id": "", "cpu": 1}], "jobs": JOBS}, "nodes[0].id: expected str of length >= 1"),
        (
            {"nodes": [{"id": "a", "gpus": [{"type": "A", "ram": 1}]}], "jobs": JOBS},
            "nodes[0].gpus[0]: expected only known",
        ),
        ({"nodes": [{"id": "a", "labels": {"x.y[": 1}}], "jobs": JOBS}, "nodes[0].labels.x.y[: expected str, got int"),
        ({"nodes": [{"id": "a", "count": 0}], "jobs": JOBS}, "nodes[0].count: expected int >= 1, got 0"),
        ({"nodes": NODES + NODES, "jobs": JOBS}, "nodes[1]: expected an id of its own, got 'a', which nodes[0] has"),
        (
            {"nodes": [{"id": "a-1"}, {"id": "a", "count": 2}], "jobs": JOBS},
            "nodes[1]: expected an id of its own, got 'a-1', which nodes[0] has",
        ),
        ({"nodes": NODES, "jobs": JOBS + JOBS}, "jobs[1]: expected an id of its own"),
        (
            {"nodes": NODES, "jobs": [{"id": "j", "workers": 1, "each": {}}]},
            "jobs[0].each: expected a worker that takes",
        ),
        (
            {"nodes": NODES, "jobs": [{"id": "j", "workers": 1, "each": {"gpu": 1.5}}]},
            "jobs[0].each: expected gpu as part",
        ),
        (
            {"nodes": NODES, "jobs": [{"id": "j", "workers": 1, "each": {"cpu": 1, "gpu_types": ["A"]}}]},
            "jobs[0].each: expected gpu above 0 beside gpu_types",
        ),
        (
            {"nodes": NODES, "jobs": [{**JOBS[0], "spread": "zone"}]},
            "jobs[0]: expected spread of rack, node, none, got 'zone'",
        ),
        ({"nodes": NODES, "jobs": [{**JOBS[0], "workers": 1.5}]}, "jobs[0].workers: expected int, got a number"),
        (
            {"nodes": NODES, "jobs": [{**JOBS[0], "count": 100_000, "workers": 100}]},
            "jobs: expected at most 1000000 workers in all, got 10000000",
        ),
        (
            {"nodes": NODES, "jobs": JOBS, "quotas": {"t": {"cpu": -1}}},
            "quotas.t.cpu: expected a number >= 0.0, got -1",
        ),
        ({"nodes": NODES, "jobs": JOBS, "quotas": {7: {"cpu": 1}}}, "quotas: expected str, got int"),
        (
            {"nodes": NODES, "jobs": JOBS, "current": [{"job": "x", "worker": 0, "node": "a"}]},
            "current[0].job: expected the id of a job above, got 'x'",
        ),
        (
            {"nodes": NODES, "jobs": JOBS, "current": [{"job": "j", "worker": 2, "node": "a"}]},
            "current[0].worker: expected a worker below 2 of job j, got 2",
        ),
        (
            {"nodes": NODES, "jobs": JOBS, "current": [{"job": "j", "worker": 0, "node": n} for n in "ab"]},
            "current[1]: worker 0 of job j stands here twice",
        ),
    ],
)
def test_mistakes_are_named_with_file_and_path(values: Any, expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        Problem.from_mapping(values, "p.yaml")
    assert str(caught.value).startswith(f"p.yaml: {expected}")
    assert caught.value.exit_status == 2


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("p.yaml", b"nodes: [\n", "expected YAML or JSON"),
        ("p.json", b'{"nodes": [}', "expected YAML or JSON"),
        ("p.yaml", b"nodes: []\nnodes: []\njobs: []\n", "key 'nodes' stands twice in one mapping, line 2"),
        ("p.json", b'{"nodes": [], "nodes": []}', "key 'nodes' stands twice in one object"),
        ("p.yaml", b"nodes: \xff\xfe", "expected text in UTF-8"),
        ("p.yaml", b"!!python/object/apply:os.system [true]", "expected YAML or JSON"),
        ("p.json", b'{"nodes": [{"id": "a", "cpu": NaN}], "jobs": []}', "expected a finite number, got nan"),
        ("p.yaml", b"", "top level: expected a mapping, got null"),
        ("p.json", b"[" * 100_000, "expected YAML or JSON"),
        ("p.yaml", b"nodes: 2026-02-30", "expected plain values"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        Problem.from_file(path)
    assert str(path) in str(caught.value) and expected in str(caught.value)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(UsageError, match="expected a readable placement file") as caught:
            Problem.from_file(path)
        assert str(path) in str(caught.value)
