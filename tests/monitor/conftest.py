"""A scripted NVML (../testbed/nvml.c) for samplers in a process of their own, and samples to aggregate."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from raylog.monitor.nvml import GpuReport
from raylog.monitor.samples import HostSample, NodeSample, TransferCounters

TESTBED = Path(__file__).parents[1] / "testbed"


@pytest.fixture(scope="session")
def compile_nvml(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """C source -> a folder with libnvidia-ml.so.1."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler (cc, gcc or clang) to build the scripted NVML with")

    def compile_source(source: str) -> Path:
        folder = tmp_path_factory.mktemp("nvml")
        (folder / "nvml.c").write_text(source)
        command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(folder / "libnvidia-ml.so.1"), str(folder / "nvml.c")]
        subprocess.run(command, check=True, timeout=60)
        return folder

    return compile_source


@pytest.fixture(scope="session")
def scripted_nvml(compile_nvml: Callable[[str], Path]) -> Path:
    return compile_nvml((TESTBED / "nvml.c").read_text())


@pytest.fixture
def sample_gpus(tmp_path: Path) -> Callable[..., list[GpuReport]]:
    """`sample_gpus(library, step, …)`: one report per step; a step is a script or (script or None, seconds to pass)."""

    def run(library: Path, *steps: str | tuple[str | None, float], timeout_s: float = 5.0) -> list[GpuReport]:
        pairs = [(step, 0.0) if isinstance(step, str) else step for step in steps]
        lines = [{"script": script, "advance_s": seconds, "timeout_s": timeout_s} for script, seconds in pairs]
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": str(library),
            "FAKE_NVML_SCRIPT": str(tmp_path / "gpus.txt"),
            "PYTHONPATH": os.pathsep.join([str(TESTBED.parents[1]), os.environ.get("PYTHONPATH", "")]),
        }
        done = subprocess.run(
            [sys.executable, "-W", "error", str(TESTBED / "nvml_session.py")],
            input="".join(json.dumps(line) + "\n" for line in lines),
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return [msgspec.json.decode(line, type=GpuReport) for line in done.stdout.splitlines()]

    return run


@pytest.fixture(scope="session")
def make_sample() -> Callable[..., NodeSample]:
    """A plain sample of node "a" at one moment of both its clocks; keywords replace fields, `host` the host's."""

    def make(seconds: float = 0.0, *, host: dict[str, Any] | None = None, **fields: Any) -> NodeSample:
        plain_host = HostSample(
            cpus=4,
            cpu_share=0.5,
            load=(1.0, 2.0, 3.0),
            memory_total_bytes=1000,
            memory_available_bytes=600,
            shm_free_bytes=50,
            shm_total_bytes=100,
            process_rss_anon_bytes=7,
        )
        plain = NodeSample(
            node_id="a",
            hostname="host-a",
            incarnation="first",
            time_s=1e9 + seconds,
            monotonic_s=seconds,
            host=msgspec.structs.replace(plain_host, **(host or {})),
            transfer=TransferCounters(),
        )
        return msgspec.structs.replace(plain, **fields)

    return make
