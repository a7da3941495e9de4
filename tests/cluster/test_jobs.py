"""jobs/ingest.py, ship.py and verify.py through a real `ray job submit`, with token authentication, three nodes."""

import json
import os
import re
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
import ray

import raylog

from conftest import Machine  # noqa: I001  (the folder's own)

JOBS = Path(__file__).parents[2] / "jobs"


def submit(machine: Machine, *words: str) -> tuple[int, dict[str, Any], str]:
    """Exit status, the last JSON line of the job's own log, and all that was printed."""
    environment = os.environ | {"RAY_API_SERVER_ADDRESS": machine.dashboard}
    command = ["ray", "job", "submit", "--", "python", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return done.returncode, json.loads(lines[-1]) if lines else {}, done.stdout + done.stderr
