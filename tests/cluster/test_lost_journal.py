"""A journal that is lost is made anew by the command, from what the node has copied."""

import subprocess
import sys
from pathlib import Path


def test_the_command_brings_the_catalog_back(tmp_path: Path) -> None:
    driver = Path(__file__).with_name("rebuild_driver.py")
    done = subprocess.run([sys.executable, str(driver), str(tmp_path)], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "rebuilt"
