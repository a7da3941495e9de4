"""Objects behind a URL: one suite over a folder and over a real Ceph S3 gateway, then what only a network does."""

import datetime
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_gateway import Gateway

from raylog.errors import Cancelled, DamagedData, NotFound, NotPermitted, RaylogError, Unavailable, UsageError
from raylog.spec import new_id
from raylog.store import remote
from raylog.store.objects import PAUSE_FIRST_S, PAUSE_MAX_S, Limit, persistently, whole
from raylog.store.remote import RemoteObjects
from raylog.store.remote_shard import open_shard, shard_key, write_shard
from raylog.testing.faulty_proxy import FaultyProxy
from raylog.testing.shards import sample_shard
from raylog.testing.tier_contract import read_all
from raylog.units import MIB

CLUSTER = new_id()
PART_BYTES = 5 * MIB  # the least that S3 takes for one that is not the last


def soon(seconds: float = 30.0) -> Limit:
    return Limit.within(seconds)


def pattern(count: int) -> bytes:
    return bytes(range(251)) * (count // 251 + 1)


class ObjectsContract:
    """Give an `objects` fixture."""

    def test_what_was_written_is_read_by_ranges(self, objects: RemoteObjects) -> None:
        data = pattern(MIB)
        objects.write("a/b/c", whole(data), soon())
        assert objects.size("a/b/c", soon()) == len(data)
        assert objects.read("a/b/c", 0, len(data), soon()) == data
        assert objects.read("a/b/c", 12345, 678, soon()) == data[12345 : 12345 + 678]

    def test_of_several_parts(self, objects: RemoteObjects, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(remote, "PART_BYTES", PART_BYTES)
        data = pattern(7 * PART_BYTES + 17)[: 7 * PART_BYTES + 17]
        objects.write("big", whole(data), soon())
        assert objects.read("big", 0, len(data), soon()) == data

    def test_writing_again_replaces(self, objects: RemoteObjects) -> None:
        objects.write("k", whole(b"first, and longer"), soon())
        objects.write("k", whole(b"second"), soon())
        assert objects.read("k", 0, objects.size("k", soon()), soon()) == b"second"

    def test_nothing_is_written(self, objects: RemoteObjects) -> None:
        objects.write("empty", whole(b""), soon())
        assert objects.size("empty", soon()) == 0

    def test_what_is_not_there(self, objects: RemoteObjects) -> None:
        for call in (lambda: objects.size("no", soon()), lambda: objects.read("no", 0, 1, soon())):
            with pytest.raises(NotFound) as error:
                call()
            assert error.value.url == objects.url  # type: ignore[attr-defined]
        objects.delete("no", soon())

    def test_what_was_deleted(self, objects: RemoteObjects) -> None:
        objects.write("k", whole(b"x"), soon())
        objects.delete("k", soon())
        with pytest.raises(NotFound):
            objects.size("k", soon())

    def test_an_object_that_is_shorter_than_it_should_be(self, objects: RemoteObjects) -> None:
        objects.write("k", whole(b"0123456789"), soon())
        for start in (5, 10, 100):
            with pytest.raises(DamagedData, match="truncated or replaced"):
                objects.read("k", start, 6, soon())

    def test_a_call_that_was_taken_back(self, objects: RemoteObjects) -> None:
        limit = soon()
        limit.cancel.set()
        with pytest.raises(Cancelled):
            objects.write("k", whole(b"x"), limit)
        with pytest.raises(NotFound):
            objects.size("k", soon())

    def test_a_shard_goes_there_and_comes_back(self, objects: RemoteObjects) -> None:
        shard = sample_shard(7, chunk_sizes=(5000,) * 40)
        write_shard(objects, CLUSTER, shard.frame, lambda: map(memoryview, shard.chunks), soon())
        with open_shard(objects, CLUSTER, shard.frame.ref(), soon()) as reader:
            assert read_all(reader) == shard.chunks
            some = dict(reader.chunks([3, 4, 9, 39], soon()))
        assert {number: bytes(sealed) for number, sealed in some.items()} == {n: shard.chunks[n] for n in (3, 4, 9, 39)}
        assert objects.read(shard_key(CLUSTER, shard.shard_id), 0, len(shard.file), soon()) == shard.file

    @pytest.mark.parametrize("damage", ["truncated", "extended", "other frame", "chunk"])
    def test_a_shard_that_is_not_what_it_was(self, objects: RemoteObjects, damage: str) -> None:
        shard, other = sample_shard(8), sample_shard(9)
        file, middle = shard.file, len(shard.file) // 2
        bad = {
            "truncated": file[:-1],
            "extended": file + b"x",
            "other frame": other.file,
            "chunk": file[:middle] + bytes([file[middle] ^ 1]) + file[middle + 1 :],
        }
        objects.write(shard_key(CLUSTER, shard.shard_id), whole(bad[damage]), soon())
        with pytest.raises(DamagedData), open_shard(objects, CLUSTER, shard.frame.ref(), soon()) as reader:
            read_all(reader)


class TestFolder(ObjectsContract):
    @pytest.fixture
    def objects(self, tmp_path: Path) -> RemoteObjects:
        return RemoteObjects(f"{tmp_path.as_uri()}/below/")

    def test_nothing_half_written_has_the_name(self, objects: RemoteObjects, tmp_path: Path) -> None:
        limit = soon()

        def parts(count: int) -> Iterator[bytes]:
            yield b"x" * count
            limit.cancel.set()
            yield b"y"

        with pytest.raises(Cancelled):
            objects.write("k", remote.Blob(size=remote.COMPARED_AT_ONCE + 1, parts=parts), limit)
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []

    def test_a_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(RaylogError):
            RemoteObjects(f"{tmp_path.as_uri()}/file").write("a/b", whole(b"x"), soon(2))


def set_signing_clock(monkeypatch: pytest.MonkeyPatch, minutes: int) -> None:
    """This process signs its requests with a time that is so far off."""
    now = datetime.datetime.now
    off = datetime.timedelta(minutes=minutes)
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda: now(datetime.UTC) + off)


class TestS3(ObjectsContract):
    @pytest.fixture
    def bucket(self, gateway: Gateway) -> str:
        name = f"raylog-{new_id()}"
        gateway.client().mkdir(name)
        return name

    @pytest.fixture(autouse=True)
    def allowed(self, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in gateway.environment.items():
            monkeypatch.setenv(name, value)

    @pytest.fixture
    def objects(self, bucket: str) -> RemoteObjects:
        return RemoteObjects(f"s3://{bucket}/some/where")

    @pytest.fixture
    def proxy(self, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
        monkeypatch.setattr(remote, "PART_BYTES", PART_BYTES)
        with FaultyProxy(gateway.url) as proxy:
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
            yield proxy

    def test_a_bucket_that_is_not_there(self) -> None:
        began_s = time.monotonic()
        with pytest.raises(NotFound, match="NoSuchBucket"):
            RemoteObjects("s3://not-there-at-all/x").write("k", whole(b"x"), soon())
        assert time.monotonic() - began_s < 10, "it is no passing failure"

    def test_a_name_that_no_bucket_has(self) -> None:
        with pytest.raises((UsageError, NotFound)):
            RemoteObjects("s3://x/y").write("k", whole(b"x"), soon())

    def test_wrong_keys(self, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        objects = RemoteObjects(f"s3://{bucket}")
        for call in (
            lambda: objects.size("k", soon()),
            lambda: objects.read("k", 0, 1, soon()),
            lambda: objects.write("k", whole(b"x"), soon()),
        ):
            with pytest.raises(NotPermitted, match="credentials") as error:
                call()
            assert "wrong" not in str(error.value)

    @pytest.mark.parametrize("minutes", [-10, 10])
    def test_a_clock_that_is_ten_minutes_off(self, objects: RemoteObjects, minutes: int) -> None:
        with pytest.MonkeyPatch.context() as patched:
            set_signing_clock(patched, minutes)
            objects.write("k", whole(b"x"), soon())
        assert objects.read("k", 0, 1, soon()) == b"x"

    @pytest.mark.parametrize("minutes", [-30, 30])
    def test_a_clock_that_the_store_refuses_is_told(
        self, objects: RemoteObjects, minutes: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        set_signing_clock(monkeypatch, minutes)
        with pytest.raises(NotPermitted, match=r"RequestTimeTooSkewed.* its clock"):
            objects.write("k", whole(b"x"), soon())

    def test_credentials_that_are_replaced_in_their_file(
        self, gateway: Gateway, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = tmp_path / "credentials"

        def hand_out(secret: str) -> None:
            lines = f"aws_access_key_id={gateway.access_key}\naws_secret_access_key={secret}\n"
            fresh = tmp_path / "credentials.new"
            fresh.write_text(f"[default]\n{lines}")
            fresh.rename(file)

        hand_out("expired")
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
        objects = RemoteObjects(f"s3://{bucket}")
        with pytest.raises(NotPermitted):
            objects.write("k", whole(b"x"), soon())
        hand_out(gateway.secret_key)
        objects.write("k", whole(b"x"), soon())

    def test_credentials_that_expire_are_renewed_before(
        self, gateway: Gateway, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As from an instance's role: a process hands them out for two seconds at a time."""
        calls, process = tmp_path / "calls", tmp_path / "process.py"
        process.write_text(
            "import datetime, json\n"
            f"open({str(calls)!r}, 'a').write('.')\n"
            "until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=2)\n"
            f"print(json.dumps({{'Version': 1, 'AccessKeyId': {gateway.access_key!r}, 'Expiration': until.isoformat(),"
            f" 'SecretAccessKey': {gateway.secret_key!r}}}))\n"
        )
        config = tmp_path / "config"
        config.write_text(f"[default]\ncredential_process = {sys.executable} {process}\n")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
        objects = RemoteObjects(f"s3://{bucket}")
        until = time.monotonic() + 5
        done = 0
        while time.monotonic() < until:
            objects.write(f"k{done}", whole(b"x"), soon())
            done += 1
        assert len(calls.read_text()) >= 3, "they were renewed while they were used"

    @pytest.mark.parametrize("faults", [["500"] * 3, ["503"] * 4, ["reset"] * 2, ["cut"], ["flip", "flip"]])
    def test_passing_failures_are_outlived(self, bucket: str, proxy: FaultyProxy, faults: list[str]) -> None:
        objects = RemoteObjects(f"s3://{bucket}")
        data = pattern(3 * PART_BYTES)[: 3 * PART_BYTES + 5]
        proxy.strike(faults)
        objects.write("k", whole(data), soon(60))
        if "flip" not in faults:
            proxy.strike(faults)
        assert objects.read("k", 0, len(data), soon(60)) == data
        assert sum(proxy.struck.values()) >= len(faults)

    def test_a_gateway_that_stays_silent(
        self, bucket: str, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(remote, "ATTEMPT_S", 1.0)
        objects = RemoteObjects(f"s3://{bucket}")
        proxy.strike(["stall"])
        began_s = time.monotonic()
        objects.write("k", whole(b"x"), soon())
        assert 1 <= time.monotonic() - began_s < 10

    def test_a_gateway_that_stays_broken(self, gateway: Gateway, bucket: str, proxy: FaultyProxy) -> None:
        objects = RemoteObjects(f"s3://{bucket}")
        proxy.strike(["503"] * 1000)
        began_s = time.monotonic()
        with pytest.raises(Unavailable, match="SlowDown"):
            objects.write("k", whole(pattern(2 * PART_BYTES)), soon(3))
        assert time.monotonic() - began_s < 10
        proxy.heal()

    def test_an_upload_that_fails_leaves_no_parts(self, gateway: Gateway, bucket: str, proxy: FaultyProxy) -> None:
        objects = RemoteObjects(f"s3://{bucket}")

        def parts(count: int) -> Iterator[bytes]:
            yield bytes(count)
            raise DamagedData("the copy here is damaged")

        with pytest.raises(DamagedData):
            objects.write("k", remote.Blob(size=4 * PART_BYTES, parts=parts), soon())
        assert "Uploads" not in gateway.client().call_s3("list_multipart_uploads", Bucket=bucket)

    def test_an_upload_is_taken_back_while_the_gateway_is_silent(self, bucket: str, proxy: FaultyProxy) -> None:
        objects, limit = RemoteObjects(f"s3://{bucket}"), soon()
        proxy.strike(["stall"] * 3)
        threading.Timer(0.5, limit.cancel.set).start()
        began_s = time.monotonic()
        with pytest.raises(Cancelled):
            objects.write("k", whole(b"x"), limit)
        assert time.monotonic() - began_s < 8


def test_a_url_that_nobody_serves() -> None:
    with pytest.raises(UsageError, match="no library here serves"):
        RemoteObjects("nope://x")


def test_pauses_grow_and_are_drawn() -> None:
    drawn, pauses, calls = iter([1.0, 0.5, 0.0] + [1.0] * 20), [], 0

    class Waiting(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            pauses.append(timeout)
            return False

    def action() -> str:
        nonlocal calls
        calls += 1
        if calls < 10:
            raise Unavailable("not yet")
        return "done"

    assert persistently(action, Limit(deadline=time.monotonic() + 1e6, cancel=Waiting()), lambda: next(drawn)) == "done"
    assert pauses[:3] == [PAUSE_FIRST_S, PAUSE_FIRST_S, 0.0]
    assert pauses[-1] == PAUSE_MAX_S and len(pauses) == 9


def test_nothing_is_tried_after_the_deadline() -> None:
    calls = []

    def action() -> None:
        calls.append(time.monotonic())
        raise Unavailable("never")

    with pytest.raises(Unavailable):
        persistently(action, Limit.within(0.5))
    assert calls[-1] - calls[0] <= 0.5
