"""Which directory a node actor owns: `nodes/slot-N`, the first that no living process holds.

One machine has one Ray node and so one slot, slot-0, which the next incarnation takes over with all in it.
Several Ray nodes on one machine (a demo, a test) share the folder and take a slot each; an actor that is restarted on
its Ray node takes the one that it had, so that two that restart at once do not swap identities. The hold is a lock on
an open descriptor: the kernel drops it with the process, however that ends.
"""

import fcntl
import hashlib
import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from raylog.errors import Unavailable
from raylog.spec import new_id, parse_id

SLOTS_MAX = 256
_HOLDER = "ray-node-id"


@dataclass(frozen=True, slots=True)
class Slot:
    """A claimed directory and the descriptor whose lock is the claim."""

    path: Path
    lock_fd: int

    def node_id(self) -> str:
        """The node's identity: made at the first claim, the same ever after."""
        return kept_id(self.path / "node-id")

    @property
    def arena_path(self) -> Path:
        """In /dev/shm, named after the slot, so that the next incarnation finds and fences what this one left."""
        digest = hashlib.sha256(str(self.path).encode()).hexdigest()[:16]
        return Path("/dev/shm") / f"raylog-{os.getuid()}-{digest}"  # noqa: S108 - the arena's place, mode 0600

    @property
    def socket_path(self) -> Path:
        """In a folder of this user's own; a Unix socket's path has at most 107 bytes."""
        folder = Path(tempfile.gettempdir()) / f"raylog-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder / f"{self.arena_path.name.rsplit('-', 1)[1]}.sock"

    def release(self) -> None:
        """Lets the directory go, and the sockets' folder if no other node of this user has one in it."""
        os.close(self.lock_fd)
        with suppress(OSError):
            self.socket_path.parent.rmdir()


def kept_id(file: Path) -> str:
    """The id in a file: made when it is asked for the first time, the same ever after."""
    if not file.exists():
        temporary = file.with_name(f"{file.name}.new")
        with temporary.open("w") as handle:
            handle.write(new_id())
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(file)
    return parse_id(file.read_text().strip(), f"id in {file}")


def claim_slot(nodes_path: Path, ray_node_id: str) -> Slot:
    """The free slot under `nodes_path` that this Ray node had last, else the first; raises `Unavailable` when all are
    held."""
    had = [path for path in sorted(nodes_path.glob("slot-*")) if _last_holder(path) == ray_node_id]
    for path in (*had, *(nodes_path / f"slot-{number}" for number in range(SLOTS_MAX))):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock_fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock_fd)
            continue
        (path / _HOLDER).write_text(ray_node_id)
        return Slot(path, lock_fd)
    raise Unavailable(f"all {SLOTS_MAX} slots under {nodes_path} are held by living node actors")


def _last_holder(path: Path) -> str:
    with suppress(OSError):
        return (path / _HOLDER).read_text()
    return ""
