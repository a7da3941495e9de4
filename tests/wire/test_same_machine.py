"""A shard from a node on the same machine: out of its arena or its file, verified, without a network."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from wire_parts import Cluster, MemorySink, leak_check

from raylog.errors import DamagedData, NotFound, RaylogError
from raylog.spec import QosClass
from raylog.store.disk import DiskTier
from raylog.store.memory import MemoryTier
from raylog.store.tiered import TieredStore
from raylog.testing.shards import SampleShard, sample_shard
from raylog.units import MIB
from raylog.wire.fetcher import Fetcher, PullReport, Source
from raylog.wire.local import LocalServer
from raylog.wire.same_machine import machine_id
from raylog.wire.sessions import PeerAddress, Sessions

SHARD = sample_shard(9, (70_000, 16, 200_000, *[300_000] * 20))

nothing_is_left = pytest.fixture(autouse=True)(leak_check)


def at(path: Path) -> Source:
    """A node that no port leads to."""
    peer = PeerAddress(node_id="b" * 32, host="127.0.0.1", control_port=1, machine=machine_id(), socket_path=str(path))
    return Source(peer=peer)


@pytest.fixture(params=["arena", "disk"])
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[TieredStore, Source]]:
    """A node that has the shard, in its arena or on its disk alone."""
    memory = MemoryTier(Path(f"/dev/shm/raylog-{tmp_path.name}"), 16 * MIB) if request.param == "arena" else None
    store = TieredStore(memory, DiskTier(tmp_path / "tier", cluster_id="c" * 32))
    fill(store, SHARD)
    path = tmp_path / "node" / "n.sock"
    with LocalServer(path, store):
        yield store, at(path)
    store.close()


def fill(store: TieredStore, shard: SampleShard) -> None:
    writer = store.memory.create(shard.frame) if store.memory else store.disk.create(shard.frame)
    for number in range(len(shard.chunks)):
        writer.write_chunk(number, shard.sealed(number))
    writer.commit()


def fetch(source: Source, sink: MemorySink, shard: SampleShard = SHARD, machine: str | None = None) -> PullReport:
    own = Cluster().credentials()
    sessions = Sessions(lambda: own, machine=machine_id() if machine is None else machine)
    try:
        deadline = time.monotonic() + 20
        return Fetcher(shard.frame.ref(), [source], sink, sessions, qos=QosClass.SHIP, deadline=deadline).run()
    finally:
        sessions.close()


@pytest.mark.parametrize("has_places", [True, False])
def test_a_shard_comes_whole(node: tuple[TieredStore, Source], has_places: bool) -> None:
    sink = MemorySink(SHARD, has_places=has_places)
    report = fetch(node[1], sink)
    assert [sink.chunks[number] for number in range(len(SHARD.chunks))] == list(SHARD.chunks)
    assert sink.is_committed and report.chunks == len(SHARD.chunks)


def test_only_what_is_missing_is_copied(node: tuple[TieredStore, Source]) -> None:
    sink = MemorySink(SHARD)
    for number in range(20):
        sink.write_chunk(number, SHARD.sealed(number))
    assert fetch(node[1], sink).chunks == len(SHARD.chunks) - 20


def test_a_shard_that_is_not_there(node: tuple[TieredStore, Source]) -> None:
    other = sample_shard(10)
    with pytest.raises(NotFound):
        fetch(node[1], MemorySink(other), other)


def test_another_machine_is_not_reached_this_way(node: tuple[TieredStore, Source]) -> None:
    with pytest.raises(RaylogError, match="cannot connect"):
        fetch(node[1], MemorySink(SHARD), machine="another machine")


def test_damaged_bytes_are_found_and_never_taken(node: tuple[TieredStore, Source]) -> None:
    store, source = node
    path = store.memory.path if store.memory else next(store.disk.directory.rglob(SHARD.shard_id))
    with path.open("r+b") as file:
        file.seek(SHARD.frame.chunks[5].offset)
        file.write(bytes(16))
    sink = MemorySink(SHARD)
    with pytest.raises(DamagedData, match="chunk 5"):
        fetch(source, sink)
    assert 5 not in sink.chunks and not sink.is_committed


def test_a_node_that_goes_away_is_an_error_and_not_a_wait(tmp_path: Path) -> None:
    """Its socket is there, takes the request and closes."""
    path = tmp_path / "silent.sock"

    def serve() -> None:
        connection, _ = listener.accept()
        connection.recv(100)
        connection.close()

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(8)
        thread = threading.Thread(target=lambda: [serve() for _ in range(4)])
        thread.start()
        with pytest.raises(RaylogError, match="closed"):
            fetch(at(path), MemorySink(SHARD))
        thread.join(10)
