"""jobs/ingest.py, ship.py and verify.py through a real `ray job submit` on three nodes with token authentication, and
what Ray's own dashboard and metrics endpoints show of it."""

import json
import math
import os
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from three_nodes import Machine, wait_until

import raylog

JOBS = Path(__file__).parents[2] / "jobs"
METRICS_WITHIN_S = 40.0  # Ray's agents report every 10 s


def submit(machine: Machine, *words: str) -> tuple[int, dict[str, Any], str]:
    """Exit status, the job's last line as JSON, and all that was printed."""
    environment = os.environ | {"RAY_API_SERVER_ADDRESS": machine.dashboard}
    command = ["ray", "job", "submit", "--no-wait", "--", "python", *words]
    deadline = time.monotonic() + 60
    while True:
        started = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        if "No available agent" not in started.stderr or time.monotonic() > deadline:
            break  # else the head's agent is still starting
        time.sleep(1)
    assert started.returncode == 0, started.stdout + started.stderr
    job_id = next(word.strip("'") for word in started.stdout.split() if word.startswith("'raysubmit_"))
    deadline = time.monotonic() + 90
    while (status := dashboard(machine, f"api/jobs/{job_id}"))["status"] in ("PENDING", "RUNNING"):
        assert time.monotonic() < deadline, f"job {job_id} still {status['status']}"
        time.sleep(0.2)
    log = dashboard(machine, f"api/jobs/{job_id}/logs")["logs"]
    lines = [line for line in log.splitlines() if line.startswith("{")]
    return status["driver_exit_code"] or 0, json.loads(lines[-1]) if lines else {}, log


def dashboard(machine: Machine, path: str) -> Any:
    """What Ray's dashboard serves; it asks for the token."""
    headers = {"Authorization": f"Bearer {os.environ['RAY_AUTH_TOKEN']}"}
    request = urllib.request.Request(f"{machine.dashboard}/{path}", headers=headers)
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.loads(answer.read())


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("jobs") / "rows.parquet"
    pyarrow.parquet.write_table(pa.table({"row": range(50_000), "text": ["some text"] * 50_000}), path)
    return path


def test_ingest_ship_and_verify_as_jobs(machine: Machine, client: raylog.Client, parquet: Path) -> None:
    status, ingested, log = submit(machine, str(JOBS / "ingest.py"), "jobs/rows", str(parquet), "--replicas", "2")
    assert status == 0, log
    assert ingested["version"]["rows"] == 50_000
    assert ingested["content_bytes_per_s"] > 0
    status, shipped, log = submit(machine, str(JOBS / "ship.py"), "jobs/rows", "--to", "all")
    assert status == 0, log
    assert len(shipped["shipped"]["nodes"]) == 3
    status, verified, log = submit(machine, str(JOBS / "verify.py"), "jobs/rows")
    assert status == 0, log
    assert verified["verified"]["replicas"] == 3
    assert verified["verified"]["damaged"] == 0
    assert client.get("jobs/rows").num_rows == 50_000


def test_a_job_that_fails_says_why_and_how(machine: Machine, client: raylog.Client) -> None:
    status, result, log = submit(machine, str(JOBS / "ship.py"), "jobs/never-put")
    assert status == 1, log
    assert result["error"] == "NotFound"
    status, result, log = submit(machine, str(JOBS / "ingest.py"), "../outside", str(JOBS / "ingest.py"))
    assert status == 2, log
    assert "artifact name" in result["message"]


def test_metrics_stand_where_rays_prometheus_discovery_points(machine: Machine, client: raylog.Client) -> None:
    discovery = Path(machine.cluster.head_node.get_session_dir_path()) / "prom_metrics_service_discovery.json"

    def found() -> set[str]:
        raylog.report(step=1, loss=math.nan, rank=0, world_size=1)
        targets = json.loads(discovery.read_text())[0]["targets"] if discovery.exists() else []
        return {line.split("{")[0] for target in targets for line in scrape(target) if "raylog_" in line}

    wanted = {"ray_raylog_transfer_sent_bytes_total", "ray_raylog_tier_free_bytes", "ray_raylog_node_cpu_ratio"}
    wanted |= {"ray_raylog_training_losses_not_finite", "ray_raylog_training_step_seconds"}  # Ray drops gauges of NaN
    wait_until(lambda: wanted <= found(), METRICS_WITHIN_S, f"metrics {wanted}")


def scrape(target: str) -> list[str]:
    try:
        with urllib.request.urlopen(f"http://{target}/metrics", timeout=5) as answer:
            return answer.read().decode().splitlines()
    except urllib.error.URLError:
        return []
