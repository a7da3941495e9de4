"""The Unix-socket service over a real store: descriptors out, shards in, and everything back when a client dies."""

import gc
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from raylog.codec.header import ShardIds
from raylog.codec.keys import GroupKey
from raylog.codec.open import ShardOpener
from raylog.codec.seal import ShardSealer
from raylog.errors import (
    Conflict,
    DamagedData,
    DeadlineExceeded,
    NoSpace,
    NotFound,
    NotPermitted,
    PeerFault,
    Unavailable,
    UsageError,
)
from raylog.spec import Durability, Kind, ShardRef, TierKind, new_id
from raylog.store.disk import DiskTier
from raylog.store.memory import MemoryTier
from raylog.store.tiered import TieredStore
from raylog.testing.shards import SampleShard, sample_shard
from raylog.units import MIB
from raylog.wire import local
from raylog.wire.local import LocalServer
from raylog.wire.local_client import LocalClient, LocalShard

ARENA_BYTES = MIB


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TieredStore]:
    memory = MemoryTier(Path(f"/dev/shm/raylog-test-{new_id()}"), ARENA_BYTES)
    store = TieredStore(memory, DiskTier(tmp_path / "tier", cluster_id=new_id()))
    yield store
    store.close()


@pytest.fixture
def server(store: TieredStore, tmp_path: Path) -> Iterator[LocalServer]:
    with LocalServer(tmp_path / "run" / "node.sock", store) as server:
        yield server


@pytest.fixture
def client(server: LocalServer) -> Iterator[LocalClient]:
    with LocalClient(server.path) as client:
        yield client


def put(client: LocalClient, shard: SampleShard, durability: Durability = Durability.DISK) -> None:
    with client.stage(len(shard.file)) as staging:
        staging.write_at(0, shard.file)
        assert staging.adopt(shard.frame.digest, durability) == shard.frame.ref()


def chunks_of(shard: LocalShard) -> tuple[bytes, ...]:
    return tuple(bytes(shard.chunk(number)) for number in range(len(shard.frame.chunks)))


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def staged_files(store: TieredStore) -> list[Path]:
    return list((store.disk.directory / "staging").iterdir())


# Reading and putting


def test_a_put_and_a_read_from_either_tier(client: LocalClient, store: TieredStore) -> None:
    shard = sample_shard(1)
    put(client, shard)
    with client.open(shard.shard_id) as hot:
        assert hot.tier is TierKind.MEMORY and hot.frame.digest == shard.frame.digest
        assert chunks_of(hot) == shard.chunks and hot.chunk(0).readonly
    store.memory.delete(shard.shard_id)
    with client.open(shard.shard_id) as cold:
        assert cold.tier is TierKind.SSD and chunks_of(cold) == shard.chunks and cold.chunk(0).readonly
    assert staged_files(store) == []


def test_content_goes_the_whole_way_sealed(client: LocalClient, store: TieredStore) -> None:
    key = GroupKey(dek_id=new_id(), dek=os.urandom(32))
    ids = ShardIds(tenant=new_id(), artifact=new_id(), version=new_id(), shard=new_id())
    content = os.urandom(300_000)
    with client.stage() as staging:
        sealer = ShardSealer(
            ids=ids, kind=Kind.FILES, keys=[key], preamble=b"p", write_at=staging.write_at, chunk_bytes=65536
        )
        sealer.add_bytes(content)
        ref = staging.adopt(sealer.finish().digest, Durability.MEMORY)
    assert store.tiers_of(ref.shard_id) == [TierKind.MEMORY]
    with client.open(ref.shard_id) as shard:
        opener = ShardOpener(shard.frame, [key], shard.chunk)
        assert b"".join(bytes(opener.chunk(number)) for number in range(1, ref.chunks)) == content


def test_errors_come_over_as_themselves(client: LocalClient, store: TieredStore) -> None:
    shard = sample_shard(1)
    with pytest.raises(NotFound) as caught:
        client.open(shard.shard_id)
    assert caught.value.shard_id == shard.shard_id
    with pytest.raises(UsageError):
        client.open("../../etc/passwd")
    with pytest.raises(NoSpace):
        client.stage(1 << 60)
    with client.stage() as staging:
        staging.write_at(0, shard.file[:-1] + b"x")
        with pytest.raises(DamagedData):
            staging.adopt(shard.frame.digest)
        staging.write_at(0, shard.file)
        staging.adopt(shard.frame.digest)
    with client.stage() as staging, pytest.raises(Conflict):
        staging.write_at(0, shard.file)
        staging.adopt(shard.frame.digest)
    assert staged_files(store) == []


def test_damage_on_the_disk_is_met_by_the_reader(client: LocalClient, store: TieredStore) -> None:
    shard = sample_shard(1)
    put(client, shard)
    store.memory.delete(shard.shard_id)
    path = store.disk.directory / "shards" / shard.shard_id[:2] / shard.shard_id
    with client.open(shard.shard_id) as opened:
        with path.open("r+b") as file:
            file.seek(shard.frame.chunks[2].offset)
            file.write(b"\0\0")
        with pytest.raises(DamagedData) as caught:
            opened.chunk(2)
        assert caught.value.chunk == 2
        os.truncate(path, 1000)
        with pytest.raises(DamagedData, match="ends at 1000"):
            opened.chunk(1)


def test_a_staging_belongs_to_its_connection(client: LocalClient, server: LocalServer) -> None:
    with client.stage() as staging, LocalClient(server.path) as other:
        with pytest.raises(NotFound):
            other._adopt(staging._stage_id, bytes(32), Durability.DISK, 5, 0)
        with pytest.raises(NotFound):
            other._discard(staging._stage_id)
    with pytest.raises(UsageError, match="has ended"):
        staging.write_at(0, b"late")


def test_the_descriptors_are_read_only(client: LocalClient, store: TieredStore) -> None:
    shard = sample_shard(1)
    put(client, shard)
    for _ in range(2):
        reply, descriptors = client._call(local.Open(shard_id=shard.shard_id), local.Opened, 5)
        with pytest.raises(PermissionError):
            mmap.mmap(descriptors[0], 4096, offset=0)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.pwrite(descriptors[0], b"x", reply.offset)
        os.close(descriptors[0])
        if store.memory.holds(shard.shard_id):
            store.memory.delete(shard.shard_id)


# Pins


def test_a_pinned_extent_is_not_recycled_until_its_last_view_is_gone(client: LocalClient, store: TieredStore) -> None:
    shard = sample_shard(1, chunk_sizes=(100_000, 100_000))
    put(client, shard, Durability.MEMORY)
    opened = client.open(shard.shard_id)
    view = opened.chunk(1)[10:20]
    assert opened.is_current()
    store.delete(shard.shard_id)
    opened.close()
    assert store.memory.free_bytes < ARENA_BYTES, "a view is held"
    assert view == shard.chunks[1][10:20]
    with pytest.raises(UsageError, match="closed"):
        opened.chunk(0)
    del view
    assert not client.is_current(opened._opened.generation)  # any call tells the node
    assert store.memory.free_bytes == ARENA_BYTES


READER = """
import sys, time
from pathlib import Path
from raylog.wire.local_client import LocalClient
client = LocalClient(Path(sys.argv[1]))
shard = client.open(sys.argv[2])
view = shard.chunk(0)
staging = client.stage()
staging.write_at(0, b"half a shard")
print("holding", flush=True)
time.sleep(60)
"""


def test_a_killed_client_gives_everything_back(server: LocalServer, store: TieredStore, client: LocalClient) -> None:
    shard = sample_shard(1)
    put(client, shard, Durability.MEMORY)
    process = subprocess.Popen(
        [sys.executable, "-c", READER, str(server.path), shard.shard_id], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "holding\n"
    store.delete(shard.shard_id)
    assert len(staged_files(store)) == 1 and store.memory.free_bytes < ARENA_BYTES
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    process.stdout.close()
    wait_until(lambda: store.memory.free_bytes == ARENA_BYTES, "the pin outlived its process")
    wait_until(lambda: staged_files(store) == [], "the staging outlived its process")


def test_a_lost_connection_is_said_so_and_nothing_more_is_read(store: TieredStore, tmp_path: Path) -> None:
    server = LocalServer(tmp_path / "run" / "node.sock", store)
    client = LocalClient(server.path)
    shard = sample_shard(1)
    put(client, shard)
    opened = client.open(shard.shard_id)
    server.close()
    assert not server.path.exists()
    with pytest.raises(Unavailable, match="local socket"):
        client.open(shard.shard_id)
    with pytest.raises(Unavailable, match="pin went"):
        opened.chunk(0)
    assert not opened.is_current()
    opened.close()
    with pytest.raises(Unavailable, match="connection is closed"):
        client.stage()
    with pytest.raises(Unavailable, match="is raylog up"):
        LocalClient(server.path)


def test_threads_share_a_connection(client: LocalClient) -> None:
    shards = [sample_shard(seed) for seed in range(8)]

    def work(shard: SampleShard) -> None:
        put(client, shard)
        for _ in range(5):
            with client.open(shard.shard_id) as opened:
                assert chunks_of(opened) == shard.chunks

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, shards))


def test_a_forked_process_is_told_to_connect_by_itself(client: LocalClient) -> None:
    client._process += 1
    with pytest.raises(UsageError, match="after a fork"):
        client.stage()


def own_threads() -> int:
    return sum(thread.name.startswith("raylog-") for thread in threading.enumerate())


def test_nothing_is_left_open(store: TieredStore, tmp_path: Path) -> None:
    def state() -> tuple[int, int]:
        return len(list(Path("/proc/self/fd").iterdir())), own_threads()

    gc.collect()
    wait_until(lambda: store.memory.warm_bytes == ARENA_BYTES and not own_threads(), "still warming")
    before = state()
    with LocalServer(tmp_path / "run" / "node.sock", store) as server:
        for seed in range(6):
            with LocalClient(server.path) as client:
                shard = sample_shard(seed)
                put(client, shard)
                client.open(shard.shard_id).chunk(0)
                if seed % 2:
                    client.stage().discard()
                else:
                    client.stage()._close_file()
                    store.memory.delete(shard.shard_id)
                    client.open(shard.shard_id).chunk(0)
    assert state() == before
    assert staged_files(store) == []


# Who may come, and what they may say


def raw(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(10)
    connection.connect(str(path))
    return connection


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (struct.pack("<I", 2**20 + 1), "expected a message of 1 to 1048576 bytes"),
        (struct.pack("<I", 0), "expected a message of 1 to 1048576 bytes"),
        (b"GET / HTTP/1.1\r\n\r\n", "got a length of 542393671"),
        (struct.pack("<I", 5) + b"\xc1\xff\x00\x01\x02", "expected a request"),
        (struct.pack("<I", 1) + b"\x80", "expected a request"),
        (struct.pack("<I", 14) + b"\x81\xa4type\xa7Unknown", "expected a request"),
    ],
)
def test_garbage_is_refused_and_the_connection_ends(
    server: LocalServer, sent: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with raw(server.path) as connection:
        connection.sendall(sent)
        # What the node has not read when it closes turns the end of the connection into a reset.
        with suppress(ConnectionResetError):
            while connection.recv(65536):
                pass
    wait_until(lambda: reason in caplog.text, "not logged")
    LocalClient(server.path).close()


def test_a_request_that_never_ends_is_given_up(server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "MESSAGE_TIMEOUT_S", 0.05)
    with raw(server.path) as connection:
        connection.sendall(struct.pack("<I", 100) + b"half")
        answer = b""
        while part := connection.recv(65536):
            answer += part
        assert b"DeadlineExceeded" in answer


def test_connections_pins_and_stagings_are_bounded(
    server: LocalServer, store: TieredStore, client: LocalClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = sample_shard(1)
    put(client, shard)
    monkeypatch.setattr(local, "PINS_PER_CONNECTION_MAX", 2)
    monkeypatch.setattr(local, "STAGINGS_PER_CONNECTION_MAX", 2)
    monkeypatch.setattr(local, "CONNECTIONS_MAX", 2)
    shards = [client.open(shard.shard_id) for _ in range(2)]
    with pytest.raises(Unavailable, match="shards open"):
        client.open(shard.shard_id)
    shards[0].close()
    client.open(shard.shard_id)
    stagings = [client.stage() for _ in range(2)]
    with pytest.raises(Unavailable, match="stagings"):
        client.stage()
    for staging in stagings:
        staging.discard()
    with LocalClient(server.path) as second:
        assert second.is_current(0)
        with LocalClient(server.path) as third, pytest.raises(Unavailable, match="2 connections are served already"):
            third.is_current(0)


def test_a_staging_apart_holds_up_nobody_and_its_connection_ends_with_it(
    server: LocalServer, store: TieredStore, client: LocalClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard, other = sample_shard(1), sample_shard(2)
    put(client, other)
    begun, go_on, adopt = threading.Event(), threading.Event(), store.adopt

    def adopt_slowly(stage_id: str, frame_digest: bytes, durability: Durability, stored_bytes: int) -> ShardRef:
        begun.set()
        assert go_on.wait(10)
        return adopt(stage_id, frame_digest, durability, stored_bytes)

    monkeypatch.setattr(store, "adopt", adopt_slowly)
    with client.stage(len(shard.file), is_apart=True) as staging, ThreadPoolExecutor(1) as executor:
        staging.write_at(0, shard.file)
        adopting = executor.submit(staging.adopt, shard.frame.digest)
        assert begun.wait(10)
        with client.open(other.shard_id) as held:
            assert chunks_of(held) == other.chunks
        go_on.set()
        assert adopting.result(10) == shard.frame.ref()
    client.stage(is_apart=True).discard()
    with pytest.raises(NoSpace):
        client.stage(1 << 60, is_apart=True)
    wait_until(lambda: len(server._connections) == 1, "only the client's own connection is left")


INTRUDER = """
import os, sys
from pathlib import Path
from raylog.errors import NotPermitted
from raylog.wire.local_client import LocalClient
os.setuid(65534)
try:
    LocalClient(Path(sys.argv[1])).stage()
except NotPermitted as error:
    print(error)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_is_refused_at_both_ends(server: LocalServer, store: TieredStore) -> None:
    for path in (server.path, *server.path.parents[:-2]):
        path.chmod(0o777)  # the modes alone would keep the other user out
    command = [sys.executable, "-c", INTRUDER, str(server.path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "of user 0" in result.stdout, "the client did not refuse a node of another user"
    lax = INTRUDER.replace("os.setuid", "import raylog.wire.local_client as c; c.check_same_user = print; os.setuid")
    command = [sys.executable, "-c", lax, str(server.path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "expected a process of user 0, got process" in result.stdout, "the node did not refuse another user"
    assert staged_files(store) == []


def test_the_socket_is_private(server: LocalServer, store: TieredStore, tmp_path: Path) -> None:
    assert server.path.stat().st_mode & 0o777 == 0o600
    assert server.path.parent.stat().st_mode & 0o777 == 0o700
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o755)
    with pytest.raises(NotPermitted, match="0755"):
        LocalServer(open_to_all / "node.sock", store)


def test_a_path_longer_than_a_socket_takes_is_said_so(store: TieredStore, tmp_path: Path) -> None:
    path = tmp_path / ("x" * 120) / "node.sock"
    for attempt in (lambda: LocalServer(path, store), lambda: LocalClient(path)):
        with pytest.raises(UsageError, match="socket path of at most 107 bytes"):
            attempt()
    assert not path.parent.exists()


def test_an_old_socket_is_replaced_and_a_living_one_is_not(server: LocalServer, store: TieredStore) -> None:
    with pytest.raises(Conflict, match="a node listens"):
        LocalServer(server.path, store)
    stale = server.path.parent / "stale.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(stale))
    with LocalServer(stale, store), LocalClient(stale) as client:
        assert client.is_current(0)
    precious = server.path.parent / "precious"
    precious.write_text("data")
    with pytest.raises(Conflict, match="something else"):
        LocalServer(precious, store)
    assert precious.read_text() == "data"


class _SilentNode:
    """A listener that takes a request and answers `reply`, or nothing."""

    def __init__(self, path: Path, reply: bytes) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.settimeout(10)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._reply = reply
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            connection.settimeout(10)
            connection.recv(65536)
            connection.sendall(self._reply)
            connection.recv(65536)  # until the client has gone

    def end(self) -> None:
        self._thread.join(10)
        self._listener.close()


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (b"", DeadlineExceeded),
        (struct.pack("<I", 9) + b"abc", DeadlineExceeded),
        (struct.pack("<I", 3) + b"abc", PeerFault),
        (struct.pack("<I", 2**31), PeerFault),
        (struct.pack("<I", 11) + b"\x81\xa4type\xa4Done", PeerFault),
    ],
)
def test_a_node_that_says_nothing_or_nonsense_ends_the_call_in_time(tmp_path: Path, reply: bytes, error) -> None:
    node = _SilentNode(tmp_path / "node.sock", reply)
    started = time.monotonic()
    client = LocalClient(tmp_path / "node.sock", timeout_s=0.3)
    with pytest.raises(error):
        client.is_current(7)
    assert time.monotonic() - started < 5
    assert not client.is_connected
    with pytest.raises(Unavailable):
        client.is_current(7)
    node.end()


# Sealed straight into the arena


def staged_bytes(store: TieredStore) -> int:
    assert store.memory is not None
    return ARENA_BYTES - store.memory.free_bytes


def test_a_shard_is_sealed_into_the_arena_and_stays_there(client: LocalClient, store: TieredStore) -> None:
    shard = sample_shard(1)
    with client.stage_in_memory(len(shard.file) + 50_000) as staging:
        staging.write_at(0, shard.file)
        with pytest.raises(NoSpace, match="expected at most"):
            staging.write_at(len(shard.file) + 60_000, b"x")
        with pytest.raises(DamagedData):
            staging.adopt(bytes(32), Durability.MEMORY)
        with pytest.raises(UsageError, match="promised in memory, not on disk"):
            staging.adopt(shard.frame.digest, Durability.DISK)
    assert staged_bytes(store) == 0  # discarded
    with client.stage_in_memory(len(shard.file) + 50_000) as staging:
        staging.write_at(0, shard.file)
        assert staging.adopt(shard.frame.digest, Durability.MEMORY) == shard.frame.ref()
    assert staged_files(store) == [] and not store.disk.holds(shard.shard_id)
    assert staged_bytes(store) < len(shard.file) + mmap.PAGESIZE  # what was not needed is free again
    with client.open(shard.shard_id) as hot:
        assert hot.tier is TierKind.MEMORY and chunks_of(hot) == shard.chunks
    with client.stage_in_memory(len(shard.file)) as staging:
        staging.write_at(0, shard.file)
        with pytest.raises(Conflict):
            staging.adopt(shard.frame.digest, Durability.MEMORY)
    store.persist(shard.shard_id)
    assert store.disk.holds(shard.shard_id)


def test_a_byte_that_changed_on_the_way_is_refused(client: LocalClient, store: TieredStore) -> None:
    shard = sample_shard(1)
    with client.stage_in_memory(len(shard.file)) as staging:
        staging.write_at(0, shard.file)
        staging.write_at(shard.frame.chunks[1].offset, b"\xff" * 8)
        with pytest.raises(DamagedData, match="chunk 1"):
            staging.adopt(shard.frame.digest, Durability.MEMORY)
        staging.write_at(0, shard.file)
        staging.adopt(shard.frame.digest, Durability.MEMORY)


def test_what_has_no_room_in_the_arena_goes_to_disk(client: LocalClient, store: TieredStore) -> None:
    shard = sample_shard(1)
    with client.stage_in_memory(ARENA_BYTES // 3) as first, client.stage_in_memory(ARENA_BYTES // 3) as second:
        assert first._length and second._length is None  # at most half of the arena is lent out
        second.write_at(0, shard.file)
        second.adopt(shard.frame.digest, Durability.DISK)
    with client.stage_in_memory(2 * ARENA_BYTES) as large:
        assert large._length is None


STAGER = """
import sys, time
from pathlib import Path
from raylog.wire.local_client import LocalClient

client = LocalClient(Path(sys.argv[1]))
staging = client.stage_in_memory(100_000)
staging.write_at(0, b"mine" * 25_000)
print("staged", flush=True)
if sys.argv[2] == "close":
    client.close()
    print("closed", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("how", ["close", "kill"])
def test_an_extent_is_nobody_elses_while_its_writer_lives(server: LocalServer, store: TieredStore, how: str) -> None:
    words = [sys.executable, "-c", STAGER, str(server.path), how]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as writer:
        try:
            assert writer.stdout is not None and writer.stdout.readline() == "staged\n"
            assert staged_bytes(store) >= 100_000
            if how == "close":
                assert writer.stdout.readline() == "closed\n"
                time.sleep(0.3)
                assert staged_bytes(store) >= 100_000  # a thread of it may write on
        finally:
            writer.send_signal(signal.SIGKILL)
        writer.wait()
        wait_until(lambda: staged_bytes(store) == 0, "the extent is free")
