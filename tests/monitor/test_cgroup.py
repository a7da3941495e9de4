"""Memory limits of cgroups, both versions, in folders laid out as the kernel does."""

from pathlib import Path

import pytest

from raylog.monitor.cgroup import memory_limit


def group(folder: Path, version: int, limit: str, used_bytes: int, cache_bytes: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes"), 2: ("memory.max", "memory.current")}[version]
    (folder / names[0]).write_text(limit + "\n")
    (folder / names[1]).write_text(f"{used_bytes}\n")
    key = "total_inactive_file" if version == 1 else "inactive_file"
    (folder / "memory.stat").write_text(f"anon 1\n{key} {cache_bytes}\nactive_file 3\n")


def membership(folder: Path, text: str) -> Path:
    path = folder / "membership"
    path.write_text(text)
    return path


def test_version_2_takes_the_ancestor_that_leaves_least(tmp_path: Path) -> None:
    group(tmp_path / "slice" / "job", 2, "1000", 100, 0)
    group(tmp_path / "slice", 2, "5000", 4800, 300)
    found = memory_limit(tmp_path, membership(tmp_path, "0::/slice/job\n"))
    assert found is not None
    assert (found.limit_bytes, found.used_bytes, found.available_bytes) == (5000, 4500, 500)
    assert found.path == tmp_path / "slice"


def test_version_2_in_a_container_whose_path_is_the_hosts(tmp_path: Path) -> None:
    group(tmp_path, 2, "2000", 500, 100)
    found = memory_limit(tmp_path, membership(tmp_path, "0::/../../system.slice/docker-1.scope\n"))
    assert found is None or found.path != tmp_path / ".."
    found = memory_limit(tmp_path, membership(tmp_path, "0::/system.slice/docker-1.scope\n"))
    assert found is not None
    assert found.available_bytes == 1600


def test_version_1_under_its_own_mount(tmp_path: Path) -> None:
    group(tmp_path / "memory" / "docker" / "1", 1, "3000", 1000, 400)
    group(tmp_path / "memory", 1, "9223372036854771712", 0, 0)
    found = memory_limit(tmp_path, membership(tmp_path, "5:cpu:/x\n4:memory:/docker/1\n0::/\n"))
    assert found is not None
    assert (found.limit_bytes, found.available_bytes) == (3000, 2400)


@pytest.mark.parametrize("text", ["0::/\n", "4:memory:/\n", "", "3:cpu:/a\n"])
def test_no_limit(tmp_path: Path, text: str) -> None:
    group(tmp_path, 2, "max", 10, 0)
    assert memory_limit(tmp_path, membership(tmp_path, text)) is None


def test_no_cgroups_at_all(tmp_path: Path) -> None:
    assert memory_limit(tmp_path, tmp_path / "absent") is None


def test_a_group_above_its_limit_leaves_nothing(tmp_path: Path) -> None:
    group(tmp_path, 2, "100", 300, 0)
    found = memory_limit(tmp_path, membership(tmp_path, "0::/\n"))
    assert found is not None
    assert found.available_bytes == 0
