"""`raylog demo` as a newcomer runs it: it tells its story, ends within its minute, and leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

RAYLOG = Path(sys.executable).with_name("raylog")
DEMO_SECONDS_MAX = 60


def leftovers(folder: Path) -> tuple[set[str], set[int]]:
    """Files in the temporary folder, arenas in /dev/shm that no living process has open, processes that run there."""
    files = {str(path) for path in folder.iterdir()}
    arenas = {str(path) for path in Path("/dev/shm").glob("raylog-*")}
    running = set()
    for process in psutil.process_iter(["environ"]):
        if (process.info["environ"] or {}).get("TMPDIR") == str(folder):
            running.add(process.pid)
        with suppress(psutil.Error):
            arenas -= {file.path for file in process.open_files()}
    return files | arenas, running


@pytest.fixture
def folder() -> Path:
    """Short, since Ray's sockets lie below it."""
    path = Path(f"/tmp/rld{os.getpid()}")
    path.mkdir(mode=0o700)
    yield path
    path.rmdir()  # fails when anything is left in it


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    environment = os.environ | {"TMPDIR": str(folder)}
    return subprocess.Popen(
        [str(RAYLOG), "demo", "--json", *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def check_why(report: dict[str, Any]) -> None:
    """Every shard's nodes are explained, and so is each node that was not chosen."""
    assert sum(placed["shards"] for placed in report["placed"]) == len(report["replicas"])
    for placed in report["placed"]:
        assert len(placed["nodes"]) == 2
        for node in placed["nodes"]:
            assert any(reason.startswith(f"node {node}: 1 new replica (") for reason in placed["reasons"])
        assert len(placed["reasons"]) == 3
        assert any("the writer's own node" in reason for reason in placed["reasons"])


def check_figures(report: dict[str, Any]) -> None:
    """The monitor saw the bytes that the report says were moved, on all three nodes."""
    rows = report["monitored"]
    assert len({row["node_id"] for row in rows}) == 3
    assert [row["node_id"] for row in rows if row["is_killed"]] == [report["killed_node"]]
    assert sum(row["received_bytes"] for row in rows) >= report["shipped_bytes"] > 0
    assert sum(row["sent_bytes"] for row in rows) > 0
    assert all(row["memory_available_bytes"] > 0 and row["disk_free_bytes"] > 0 for row in rows)
    assert all(row["gpus"] > 0 or row["gpu_problem"] for row in rows)


def test_the_demo_with_a_users_own_data(folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "rows.csv"
    source.write_text("a,b\n" + "".join(f"{n},word{n % 7}\n" for n in range(5000)))
    before = leftovers(folder)
    started_s = time.monotonic()
    demo = start(folder, "--source", str(source))
    output, errors = demo.communicate(timeout=2 * DEMO_SECONDS_MAX)
    assert demo.returncode == 0, errors
    assert time.monotonic() - started_s < DEMO_SECONDS_MAX
    report = json.loads(output)
    assert report["rows"] == 5000
    assert all(len(nodes) == 2 for nodes in report["replicas"].values())
    assert report["killed_node"] not in {node for nodes in report["replicas"].values() for node in nodes}
    assert report["verified_chunks"] > 0
    check_why(report)
    check_figures(report)
    assert leftovers(folder) == before


def test_ctrl_c_in_the_middle_leaves_nothing(folder: Path) -> None:
    before = leftovers(folder)
    demo = start(folder)
    deadline = time.monotonic() + 30
    while not any(path.name.startswith("raylog-") for path in folder.iterdir()):
        assert time.monotonic() < deadline, "the demo did not begin"
        time.sleep(0.05)
    time.sleep(4)  # somewhere between starting Ray and putting
    demo.send_signal(signal.SIGINT)
    demo.communicate(timeout=60)
    assert demo.returncode == 130
    deadline = time.monotonic() + 20
    while leftovers(folder) != before:
        assert time.monotonic() < deadline, leftovers(folder)
        time.sleep(0.2)
