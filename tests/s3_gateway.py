"""A real Ceph with its S3 gateway for the tests, started when the first one needs it (tests/testbed/ceph)."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import s3fs

SCRIPT = Path(__file__).parent / "testbed" / "ceph"
PACKAGES = ("ceph-mon", "ceph-osd", "ceph-mgr", "radosgw", "curl")
VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL")


@dataclass(frozen=True)
class Gateway:
    """Where it is, and what may be done there. `environment` is what an S3 client of these tests needs."""

    url: str
    access_key: str
    secret_key: str

    @property
    def environment(self) -> dict[str, str]:
        return dict(zip(VARIABLES, (self.access_key, self.secret_key, self.url), strict=True))

    def client(self) -> s3fs.S3FileSystem:
        return s3fs.S3FileSystem(
            key=self.access_key, secret=self.secret_key, endpoint_url=self.url, skip_instance_cache=True,
            use_listings_cache=False,
        )  # fmt: skip


@contextmanager
def running_gateway(folder: Path) -> Iterator[Gateway]:
    """Skips the test where Ceph is not installed or this is not root; what fails then is a failure."""
    lacking = [name for name in PACKAGES if shutil.which(name) is None]
    if lacking or os.geteuid() != 0:
        pytest.skip(f"needs root and Debian's packages for {', '.join(lacking) or 'Ceph'}")
    try:
        subprocess.run([SCRIPT, "up", folder, str(_free_port())], check=True, timeout=120, capture_output=True)
        found = subprocess.run(
            ["bash", "-c", f". {folder}/s3.env; printf '%s\n' " + " ".join(f"${name}" for name in VARIABLES)],
            check=True, timeout=10, capture_output=True, text=True,
        ).stdout.split()  # fmt: skip
        yield Gateway(url=found[2], access_key=found[0], secret_key=found[1])
    finally:
        if (folder / "ceph.conf").exists():
            subprocess.run([SCRIPT, "wipe", folder], check=True, timeout=120, capture_output=True)


def _free_port() -> int:
    """One whose neighbour is free too."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port
