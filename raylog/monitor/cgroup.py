"""How much memory the container leaves this process: the tightest limit on its cgroup's way to the root.

Sources: Linux, Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst; cgroups(7) for /proc/self/cgroup.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

UNLIMITED_BYTES = 1 << 60  # version 1 writes "no limit" as a number just under 2^63


@dataclass(frozen=True, slots=True)
class CgroupMemory:
    """A limit and what counts against it. `used_bytes` leaves out page cache that the kernel gives up first."""

    limit_bytes: int
    used_bytes: int
    path: Path

    @property
    def available_bytes(self) -> int:
        return max(self.limit_bytes - self.used_bytes, 0)


def memory_limit(
    root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> CgroupMemory | None:
    """The cgroup that leaves the least memory, or None where nothing limits it (or there are no cgroups)."""
    limits = [limit for folder in _folders(root, membership) if (limit := _read(folder))]
    return min(limits, key=lambda limit: limit.available_bytes, default=None)


def _folders(root: Path, membership: Path) -> Iterator[Path]:
    """The folders of this process's memory cgroup and of its ancestors. Inside a container the path may be the host's
    and not exist here; the mount's own root, which always comes last, then is the container's cgroup."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            mount = root
        elif "memory" in controllers.split(","):
            mount = root / "memory"
        else:
            continue
        folder = mount / path.lstrip("/")
        yield folder
        if ".." not in path:
            yield from (parent for parent in folder.parents if parent == mount or mount in parent.parents)


def _read(folder: Path) -> CgroupMemory | None:
    for limit_name, used_name, cache_key in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            limit = (folder / limit_name).read_text().strip()
            if limit == "max" or int(limit) >= UNLIMITED_BYTES:
                return None
            used_bytes = int((folder / used_name).read_text())
            statistics = dict(line.split(maxsplit=1) for line in (folder / "memory.stat").read_text().splitlines())
        except FileNotFoundError:
            continue
        return CgroupMemory(int(limit), max(used_bytes - int(statistics.get(cache_key, 0)), 0), folder)
    return None
