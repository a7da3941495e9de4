"""All nodes are lost; a new cluster is made of the backup in a real Ceph S3 gateway and the keys' own sealed backup."""

import os
import subprocess
import sys
from pathlib import Path

from s3_gateway import Gateway

from raylog.spec import new_id


def test_a_cluster_comes_back_from_its_backup(gateway: Gateway, tmp_path: Path) -> None:
    bucket = f"disaster-{new_id()}"
    gateway.client().mkdir(bucket)
    driver = Path(__file__).with_name("disaster_driver.py")
    done = subprocess.run(
        [sys.executable, str(driver), str(tmp_path), bucket],
        env=os.environ | gateway.environment, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]
    assert done.stdout.rstrip().endswith("restored")
