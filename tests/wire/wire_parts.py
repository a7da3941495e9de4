"""What the wire's tests are made of: a small cluster's certificates, a shard in memory, and sinks to fill."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from raylog.codec.frame import Frame
from raylog.errors import NotFound
from raylog.security.credentials import Credentials
from raylog.security.identity import Identity, issue_authority, issue_certificate
from raylog.spec import new_id
from raylog.testing.shards import SampleShard


class Cluster:
    """An authority that issues whatever a test needs."""

    def __init__(self) -> None:
        self.id = new_id()
        self._key = Ed25519PrivateKey.generate()
        now_s = time.time()
        self.ca_der = issue_authority(self._key, self.id, now_s - 1000, now_s + 10_000)

    def credentials(self, role: str = "node", *, node_id: str = "", lifetime_s: float = 3600.0) -> Credentials:
        key, now_s = Ed25519PrivateKey.generate(), time.time()
        identity = Identity(role=role, id=node_id or new_id(), cluster_id=self.id)
        der = issue_certificate(
            self._key, self.ca_der, key.public_key().public_bytes_raw(), identity, now_s - 900,
            now_s + lifetime_s,
        )  # fmt: skip
        return Credentials(key, der, self.ca_der, self._key.public_key().public_bytes_raw())


@dataclass
class MemoryReader:
    shard: SampleShard
    chunk_of: Callable[[int], memoryview]
    is_closed: bool = False

    @property
    def frame(self) -> Frame:
        return self.shard.frame

    def chunk(self, number: int) -> memoryview:
        assert not self.is_closed
        return self.chunk_of(number)

    def close(self) -> None:
        self.is_closed = True


@dataclass
class MemorySource:
    """Serves one shard. `chunk_of` may be replaced by what a bad disk would do."""

    shard: SampleShard
    chunk_of: Callable[[int], memoryview] | None = None
    readers: list[MemoryReader] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)

    def open(self, shard_id: str) -> MemoryReader:
        if shard_id != self.shard.shard_id:
            raise NotFound(f"shard {shard_id} is not here")
        reader = MemoryReader(self.shard, self._chunk)
        self.readers.append(reader)
        return reader

    def mend(self, shard_id: str, numbers: Iterable[int]) -> None:
        """There is no other copy."""

    def _chunk(self, number: int) -> memoryview:
        self.asked.append(number)
        return self.chunk_of(number) if self.chunk_of is not None else self.shard.sealed(number)


class MemorySink:
    """Takes one shard and is its own writer; keeps what is verified over any number of pulls."""

    def __init__(self, shard: SampleShard, *, has_places: bool = True) -> None:
        self.frame = shard.frame
        self.chunks: dict[int, bytes] = {}
        self.verified: list[int] = []
        self.is_committed = False
        self.closed = 0
        self._places = {n: bytearray(e.sealed_bytes) for n, e in enumerate(shard.frame.chunks)} if has_places else {}
        self._lock = threading.Lock()

    def create(self, frame: Frame) -> "MemorySink":
        assert frame.digest == self.frame.digest
        return self

    def missing(self) -> list[tuple[int, int]]:
        return [(number, 1) for number in range(len(self.frame.chunks)) if number not in self.chunks]

    def chunk_buffer(self, number: int) -> memoryview | None:
        place = self._places.get(number)
        return None if place is None else memoryview(place)

    def commit_chunk(self, number: int) -> None:
        self.write_chunk(number, memoryview(self._places[number]))

    def write_chunk(self, number: int, sealed: memoryview) -> None:
        self.frame.verify_chunk(number, sealed)
        with self._lock:
            self.chunks[number] = bytes(sealed)
            self.verified.append(number)

    def stored_chunk(self, number: int) -> memoryview:
        return memoryview(self.chunks[number])

    def commit(self) -> None:
        assert not self.missing()
        self.is_committed = True

    def close(self) -> None:
        self.closed += 1


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def leak_check() -> Iterator[None]:
    """As a fixture: no thread and no descriptor outlives the test."""
    threads, descriptors = set(threading.enumerate()), open_descriptors()
    yield
    wait_until(lambda: set(threading.enumerate()) <= threads, "threads are left")
    wait_until(lambda: open_descriptors() <= descriptors, "descriptors are left")


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())
