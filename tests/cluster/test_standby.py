"""The head is lost while clients write: a standby on another host takes its place, and nothing that was acknowledged is
lost; then that one is cut off, and of the two catalogs only the new one acknowledges anything."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from raylog.testing.hosts import CommandFailed, unavailable
from raylog.testing.ray_hosts import RayHosts, ray_hosts

DRIVER = [sys.executable, str(Path(__file__).with_name("standby_driver.py"))]
RAYLOG = str(Path(sys.executable).with_name("raylog"))

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))


class Story:
    """A cluster whose hosts have state directories of their own, all at the same path."""

    def __init__(self, cluster: RayHosts, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.config = folder / "raylog.toml"
        self.config.write_text(
            f'state = "{folder / "state"}"\narena_bytes = "32MiB"\ndisk_reserve_bytes = 0\nreconcile_period_s = 0.5\n'
            "lost_after_s = 3\ncall_deadline_s = 10\n"
        )

    def raylog(self, host: int, *words: object) -> str:
        command = [RAYLOG, "--config", str(self.config), *map(str, words)]
        return self.cluster.hosts.run(host, command, timeout_s=150, env=self.cluster.environment)

    def driven(self, host: int, step: str) -> str:
        command = [*DRIVER, str(self.config), step]
        return self.cluster.hosts.run(host, command, timeout_s=200, env=self.cluster.environment)

    def check(self, host: int) -> dict[str, list[int]]:
        found: dict[str, list[int]] = json.loads(self.driven(host, "check").splitlines()[-1])
        return found

    def writer(self, host: int, name: str, replicas: int) -> "Writer":
        return Writer(self, host, name, replicas)

    def make_standby(self, host: int) -> None:
        self.raylog(host, "keys", "restore", self.folder / "keys.bak", "--key", self.folder / "recovery")
        self.driven(host, "standby")  # by the command Ray would take the head's node for this host's

    def kill_raylet(self, host: int) -> None:
        """All of Ray on the host but the GCS, which runs on host 1 alone."""
        for pid in self.cluster.hosts.processes(host):
            if _command(pid).split(b"\0")[0].endswith(b"/raylet"):
                os.kill(pid, signal.SIGKILL)
        until = time.monotonic() + 30
        while any(b"CatalogActor" in _command(pid) for pid in self.cluster.hosts.processes(host)):
            assert time.monotonic() < until, "an actor outlives its raylet"
            time.sleep(0.1)


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


class Writer:
    """A client that puts version after version; what it said so far."""

    def __init__(self, story: Story, host: int, name: str, replicas: int) -> None:
        self._stop = story.folder / f"stop-{name.replace('/', '-')}"
        command = [*DRIVER, str(story.config), "put", name, str(replicas), str(self._stop)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self._process = story.cluster.hosts.popen(host, command, env=story.cluster.environment, **pipes)
        self.said: list[dict[str, Any]] = []
        self.other: list[str] = []
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                self.said.append(json.loads(line))
            else:
                self.other.append(line)

    @property
    def acknowledged(self) -> list[int]:
        return [one["acknowledged"] for one in list(self.said) if "acknowledged" in one]

    def wait_for(self, more: int, timeout_s: float) -> None:
        """Until so many more were acknowledged."""
        until, expected = time.monotonic() + timeout_s, len(self.acknowledged) + more
        while len(self.acknowledged) < expected:
            assert time.monotonic() < until, (self.said[-3:], self.other[-20:])
            time.sleep(0.1)

    def wait_for_more(self, timeout_s: float) -> None:
        """Until it has said something more, has ended, or that time has passed."""
        until, said = time.monotonic() + timeout_s, len(self.said)
        while len(self.said) == said and self._process.poll() is None and time.monotonic() < until:
            time.sleep(0.1)

    def end(self, timeout_s: float) -> None:
        self._stop.touch()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._thread.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.mark.timeout(900)
def test_a_standby_takes_the_place_of_the_head(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    with ray_hosts(3, own=str(tmp_path / "state")) as cluster:
        story = Story(cluster, tmp_path)
        story.raylog(1, "up", "--prepare")
        for host in (2, 3):
            shutil.copytree(f"{cluster.hosts.own_folder(1)}/join", f"{cluster.hosts.own_folder(host)}/join")
        story.raylog(1, "up")
        story.raylog(1, "keys", "recovery-key", tmp_path / "recovery")
        story.raylog(1, "keys", "backup", tmp_path / "keys.bak", "--to", tmp_path / "recovery.pub")
        story.make_standby(2)

        writer = story.writer(3, "standby/first", 2)  # under keys that no backup has
        writer.wait_for(3, 60)
        story.kill_raylet(1)
        lost_s = time.monotonic()
        writer.wait_for(3, 100)
        print(f"head lost -> the third put after it: {time.monotonic() - lost_s:.1f} s")
        writer.end(120)
        found = story.check(3)
        assert set(writer.acknowledged) <= set(found["standby/first"]), (writer.said, found)
        assert "standby on" not in story.raylog(3, "status"), "it is the head now"
        assert not [one for one in writer.said if "failed" in one], writer.said

        story.make_standby(3)
        assert "has all that the head has" in story.raylog(3, "status")
        old, new = story.writer(2, "standby/old", 1), story.writer(3, "standby/new", 1)
        old.wait_for(2, 60)
        new.wait_for(2, 60)
        cluster.hosts.cut(2)
        lost_s = time.monotonic()
        new.wait_for(3, 150)
        print(f"catalog cut off -> the third put after it: {time.monotonic() - lost_s:.1f} s")
        cluster.hosts.heal(2)
        old.wait_for_more(20)  # the catalog that was cut off may still run for a moment: what does it say?
        old.end(30)
        new.end(60)
        cluster.hosts.kill(2)
        cluster.start(2)
        for host in (3, 2):
            found = story.check(host)
            assert set(new.acknowledged) <= set(found["standby/new"]), (new.said, found)
            assert set(old.acknowledged) <= set(found["standby/old"]), (old.said, found)
            assert set(writer.acknowledged) <= set(found["standby/first"])

        story.driven(3, "down")
        with pytest.raises(CommandFailed, match="a standby has taken the head's place"):
            story.driven(2, "up")
        story.driven(3, "up")
        assert story.check(2) == found
