"""A second disk of a real node: used, measured and shown. In a cluster of its own, since disks are a setting."""

import subprocess
import sys
from pathlib import Path


def test_a_second_disk_is_used_measured_and_shown(tmp_path: Path) -> None:
    driver = Path(__file__).with_name("tiers_driver.py")
    done = subprocess.run([sys.executable, driver, tmp_path], capture_output=True, text=True, timeout=240, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert done.stdout.rstrip().endswith("tiers are right")
