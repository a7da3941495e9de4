"""Bits that rot on a disk are found and replaced without anybody asking. In a cluster of its own: the other tests count
what they damage, and no scrub is to come before them."""

import subprocess
import sys
from pathlib import Path


def test_damage_is_found_and_mended_by_itself(tmp_path: Path) -> None:
    driver = Path(__file__).with_name("scrub_driver.py")
    done = subprocess.run([sys.executable, str(driver), str(tmp_path)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout)
    assert "repaired after" in done.stdout
