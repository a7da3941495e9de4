"""The command on a running Ray cluster of one node, as an operator types it: up, put, ls, ship, verify, get, status,
rm, down, and up again with everything still there."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.csv
import pytest
from ray.cluster_utils import Cluster

from raylog.units import MIB

RAYLOG = Path(sys.executable).with_name("raylog")
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Runs the command against a Ray cluster of its own, with a state directory of its own."""
    folder = tmp_path_factory.mktemp("command")
    config = folder / "raylog.toml"
    config.write_text(f'state = "{folder / "state"}"\n[node]\narena_bytes = "64MiB"\ndisk_reserve_bytes = 0\n')
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 * MIB},
    )

    def run_command(*words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        command = [str(RAYLOG), "--address", cluster.address, "--config", str(config), *words]
        environment = os.environ | {"COLUMNS": "200"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90, check=False)
        assert done.returncode == status, (words, done.stdout, done.stderr)
        return done

    try:
        yield run_command
    finally:
        cluster.shutdown()


def test_a_day_of_an_operator(run: Run, tmp_path: Path) -> None:
    nodes = json.loads(run("up", "--json").stdout)
    assert len(nodes) == 1
    assert json.loads(run("up", "--json").stdout)[0]["node_id"] == nodes[0]["node_id"], "up again changes nothing"

    rows = tmp_path / "rows.csv"
    rows.write_text("n,word\n" + "".join(f"{n},w{n % 5}\n" for n in range(20_000)))
    version = json.loads(run("put", "team/rows", str(rows), "--json").stdout)
    assert (version["number"], version["rows"]) == (1, 20_000)
    assert "fit" in run("put", "team/rows", str(rows), "--replicas", "2", status=1).stderr
    assert "team/rows@2" in run("put", "team/rows", str(rows), "--as-files").stdout

    assert "team/rows@2" in run("ls").stdout
    assert [one["number"] for one in json.loads(run("ls", "--versions", "--json").stdout)] == [1, 2]
    assert json.loads(run("ship", "team/rows@1", "--json").stdout)["moved_bytes"] == 0
    report = json.loads(run("verify", "team/rows", "--json").stdout)
    assert report["chunks_read"] > 0
    assert report["damaged"] == 0

    run("get", "team/rows@1", str(tmp_path / "back.csv"))
    assert pyarrow.csv.read_csv(tmp_path / "back.csv") == pyarrow.csv.read_csv(rows)
    assert "exists already" in run("get", "team/rows@1", str(tmp_path / "back.csv"), status=1).stderr
    assert ".parquet" in run("get", "team/rows@1", str(tmp_path / "no-ending"), status=2).stderr
    run("get", "team/rows@2", str(tmp_path / "folder"))
    assert (tmp_path / "folder" / "rows.csv").read_bytes() == rows.read_bytes()

    status = json.loads(run("status", "--json").stdout)
    assert status["monitor"]["totals"]["nodes"] == 1
    assert status["standbys"] == {}
    assert "the head's actors run on the state" in run("standby", status=1).stderr
    (ways,) = json.loads(run("status", "--paths", "--json").stdout)
    assert ways["problem"] == "" and ways["paths"] == []
    assert "round trip" in run("status", "--paths").stdout
    events = json.loads(run("status", "--events", "--json").stdout)
    assert {"catalog", nodes[0]["node_id"]} <= {event["actor"] for event in events}
    assert "catalog: Epoch" in run("status", "--events", "--since", "1h").stdout
    assert "--paths and --events" in run("status", "--paths", "--events", status=2).stderr
    assert "--since says" in run("status", "--since", "2h", status=2).stderr
    shown = run("status").stdout
    assert nodes[0]["node_id"][:12] in shown
    assert "1 node(s), 0 silent" in shown

    socket = Path(nodes[0]["socket_path"])
    assert stat.S_IMODE(socket.stat().st_mode) == 0o600
    run("down")
    assert not socket.exists()
    assert not Path(nodes[0]["arena_path"]).exists()
    assert "raylog up" in run("status", status=1).stderr

    again = json.loads(run("up", "--json").stdout)
    assert again[0]["node_id"] == nodes[0]["node_id"], "the node kept its identity"
    assert "deleted team/rows@1" in run("rm", "team/rows@1").stdout
    assert "team/rows@1" in run("get", "team/rows@1", str(tmp_path / "x.csv"), status=1).stderr
    assert [one["number"] for one in json.loads(run("ls", "--versions", "--json").stdout)] == [2]
    run("down")


def test_an_open_ray_is_refused_unless_told(tmp_path: Path) -> None:
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "HOME": str(tmp_path)}
    script = (
        "import subprocess, sys\n"
        "from ray.cluster_utils import Cluster\n"
        "cluster = Cluster(initialize_head=True, head_node_args={'num_cpus': 1, 'include_dashboard': False,"
        " 'object_store_memory': 80 << 20})\n"
        f"command = [{str(RAYLOG)!r}, '--address', cluster.address, 'up']\n"
        "done = subprocess.run(command, capture_output=True, text=True)\n"
        "cluster.shutdown()\n"
        "print(done.returncode, done.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.startswith("4 "), done.stdout
    assert "RAY_AUTH_MODE=token" in done.stdout
    assert not (tmp_path / ".raylog").exists()
