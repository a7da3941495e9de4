"""Every check of `raylog doctor`: real files and modes, real sockets, a real gRPC server in Ray's place."""

import os
import resource
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from raylog.api import ray_access
from raylog.api.doctor import Check, Surroundings, checks, files, machine, software
from raylog.api.ray_access import Access, ClusterAddress
from raylog.errors import NotPermitted, Unavailable, UsageError
from raylog.monitor.cgroup import CgroupMemory
from raylog.monitor.machine import ClockDiscipline, Congestion
from raylog.monitor.nvml import GpuReport
from raylog.monitor.samples import GpuSample
from raylog.settings import Settings
from raylog.units import GIB, MIB


class Gcs(grpc.GenericRpcHandler):
    """Answers the calls of Ray's control port as Ray 2.60 does, with and without token authentication."""

    def __init__(self, wants_token: bool) -> None:
        self.wants_token = wants_token

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if details.method != "/ray.rpc.NodeInfoGcsService/CheckAlive":
            return None
        metadata = {key for key, _ in details.invocation_metadata}

        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            if self.wants_token and "authorization" not in metadata:
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
            return b"\n\x00\x12\x062.60.0"

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.fixture
def gcs(request: pytest.FixtureRequest) -> Iterator[ClusterAddress]:
    server = grpc.server(ThreadPoolExecutor(1), handlers=(Gcs(request.param),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield ClusterAddress("127.0.0.1", port, "argument")
    server.stop(None).wait(5)


needs_token = pytest.mark.parametrize("gcs", [True], indirect=True)
serves_anybody = pytest.mark.parametrize("gcs", [False], indirect=True)


@pytest.fixture
def listener() -> Iterator[ClusterAddress]:
    """Something that listens and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield ClusterAddress("127.0.0.1", server.getsockname()[1], "argument")


@pytest.fixture
def dead() -> ClusterAddress:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return ClusterAddress("127.0.0.1", server.getsockname()[1], "RAY_ADDRESS")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state=tmp_path / "state")


def give_token(home: Path, mode: int = 0o600) -> Path:
    path = home / ".ray" / "auth_token"
    path.parent.mkdir()
    path.write_text("1234")
    path.chmod(mode)
    return path


# All together


def test_all_checks_have_a_name_and_what_is_not_ok_has_one_line_to_paste(settings: Settings, tmp_path: Path) -> None:
    found = checks(settings, surroundings=Surroundings({"RAY_TMPDIR": str(tmp_path)}, tmp_path))
    assert len({check.name for check in found}) == len(found) >= 14
    for check in found:
        assert check.found
        assert (check.status == "ok") == (check.fix == ""), check
        assert "\n" not in check.fix
    by_name = {check.name: check for check in found}
    assert by_name["python"].status == "ok"
    assert by_name["ray"].status == "ok"
    assert by_name["state directory"].status in ("ok", "warn")
    assert "clock and head" not in by_name


def test_fixes_are_shell_that_parses(settings: Settings, tmp_path: Path) -> None:
    hostile = tmp_path / "it's a; folder"
    hostile.mkdir(mode=0o777)
    (hostile / "keyring.json").write_text("{}")
    found = [
        files.keyring(hostile / "keyring.json"),
        machine.container_memory(CgroupMemory(GIB, 0, Path("/")), GIB, Settings(state=hostile)),
        machine.shared_memory(64 * MIB, 0, GIB),
        machine.open_files(100, 100),
        software.ray_cluster(ClusterAddress("a", 1, str(hostile / "x")), is_up=False),
        software.ray_token(None, {}, hostile),
    ]
    for check in found:
        assert check.fix, check
        done = subprocess.run(["/bin/sh", "-n", "-c", check.fix], capture_output=True, text=True, timeout=10)
        assert done.returncode == 0, (check.fix, done.stderr)


def test_doctor_does_not_import_ray() -> None:
    program = "import sys; import raylog.api.doctor; sys.exit('ray' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        timeout=60,
        env={**os.environ, "PYTHONPATH": "."},
    )
    assert done.returncode == 0


# Python and Ray


@pytest.mark.parametrize(
    ("version", "status"), [((3, 10), "fail"), ((3, 11), "ok"), ((3, 13), "ok"), ((3, 14), "fail")]
)
def test_python_version(version: tuple[int, int], status: str) -> None:
    assert software.python_version(version).status == status


def test_python_build() -> None:
    assert software.python_build(is_free_threaded=False).status == "ok"
    assert software.python_build(is_free_threaded=True).status == "fail"


@pytest.mark.parametrize(
    ("version", "status"),
    [("2.59.1", "fail"), ("2.60.0", "ok"), ("2.100.0rc1", "ok"), ("3.0.0.dev0", "ok"), ("1.13", "fail")],
)
def test_ray_version(version: str, status: str) -> None:
    found = software.ray_version(version)
    assert (found.status, version in found.found) == (status, True)


def test_where_the_cluster_is(tmp_path: Path) -> None:
    file = tmp_path / "ray" / "ray_current_cluster"
    environment = {"RAY_TMPDIR": str(tmp_path)}
    assert ray_access.cluster_address(None, environment) is None
    file.parent.mkdir()
    file.write_text("192.0.2.1:6379\n")
    assert ray_access.cluster_address(None, environment) == ClusterAddress("192.0.2.1", 6379, str(file))
    environment["RAY_ADDRESS"] = "ray://[2001:db8::1]:10001"
    assert ray_access.cluster_address("auto", environment) == ClusterAddress("2001:db8::1", 10001, "RAY_ADDRESS")
    assert str(ray_access.cluster_address(None, environment)) == "[2001:db8::1]:10001"
    assert ray_access.cluster_address("head:1", environment) == ClusterAddress("head", 1, "argument")
    assert ray_access.cluster_address("local", environment) is None


@pytest.mark.parametrize("text", ["head", "head:", ":6379", "head:x", "head:0", "head:65536", "head:٣"])
def test_what_is_no_address(text: str, settings: Settings) -> None:
    with pytest.raises(UsageError, match=r"192\.0\.2\.10:6379 in argument"):
        ray_access.cluster_address(text, {})
    by_name = {check.name: check for check in checks(settings, ray_address=text)}
    assert by_name["ray cluster"].status == "fail"
    assert "ray token" not in by_name


def test_cluster_found_dead_or_stale(listener: ClusterAddress, dead: ClusterAddress, tmp_path: Path) -> None:
    assert ray_access.answers(listener)
    assert not ray_access.answers(dead)
    assert software.ray_cluster(listener, is_up=True).status == "ok"
    assert software.ray_cluster(None, is_up=False).status == "ok"
    named = software.ray_cluster(dead, is_up=False)
    assert (named.status, f"--port={dead.port}" in named.fix) == ("fail", True)
    stale = software.ray_cluster(ClusterAddress("127.0.0.1", dead.port, "/tmp/ray/ray_current_cluster"), is_up=False)
    assert (stale.status, stale.fix) == ("warn", "rm /tmp/ray/ray_current_cluster")


# Ray's token


@needs_token
def test_a_cluster_that_asks_for_a_token(gcs: ClusterAddress, tmp_path: Path) -> None:
    assert ray_access.access(gcs) is Access.CLOSED
    no_token = software.ray_token(gcs, {"RAY_AUTH_MODE": "token"}, tmp_path)
    assert no_token.status == "fail"
    assert no_token.fix.startswith("scp 127.0.0.1:.ray/auth_token ")
    give_token(tmp_path)
    assert software.ray_token(gcs, {"RAY_AUTH_MODE": "token"}, tmp_path).status == "ok"
    unset = software.ray_token(gcs, {}, tmp_path)
    assert (unset.status, unset.fix) == ("fail", "export RAY_AUTH_MODE=token")
    disabled = software.ray_token(gcs, {"RAY_AUTH_MODE": "disabled"}, tmp_path)
    assert (disabled.status, disabled.fix) == ("fail", "export RAY_AUTH_MODE=token")


@needs_token
def test_a_caller_whose_ray_would_show_no_token_is_told_at_once(gcs: ClusterAddress, tmp_path: Path) -> None:
    for environment in ({}, {"RAY_AUTH_MODE": "token"}):
        with pytest.raises(NotPermitted, match=rf"copy 127\.0\.0\.1:\.ray/auth_token to {tmp_path}"):
            ray_access.refuse_without_token(gcs, environment, tmp_path)
    give_token(tmp_path)
    for mode in ("", "disabled"):
        with pytest.raises(NotPermitted, match=f"which is {mode or 'not set'}: export RAY_AUTH_MODE=token"):
            ray_access.refuse_without_token(gcs, {"RAY_AUTH_MODE": mode}, tmp_path)
    ray_access.refuse_without_token(gcs, {"RAY_AUTH_MODE": "token"}, tmp_path)
    program = "import raylog; raylog.connect()"
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "RAY_ADDRESS": str(gcs)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=15)
    assert "NotPermitted" in done.stderr and "export RAY_AUTH_MODE=token" in done.stderr


@serves_anybody
def test_a_cluster_that_asks_for_no_token_needs_none(gcs: ClusterAddress, tmp_path: Path) -> None:
    ray_access.refuse_without_token(gcs, {}, tmp_path)


@serves_anybody
def test_an_open_cluster_fails_whatever_this_shell_has_set(gcs: ClusterAddress, tmp_path: Path) -> None:
    assert ray_access.access(gcs) is Access.OPEN
    give_token(tmp_path)
    for environment in ({}, {"RAY_AUTH_MODE": "token"}, {"RAY_AUTH_MODE": "disabled"}):
        found = software.ray_token(gcs, environment, tmp_path)
        assert found.status == "fail"
        assert "RAY_AUTH_MODE=token" in found.found
        assert "export RAY_AUTH_MODE=token" in found.fix


@serves_anybody
def test_an_open_cluster_is_found_by_the_whole_run(gcs: ClusterAddress, settings: Settings, tmp_path: Path) -> None:
    found = checks(settings, ray_address=str(gcs), surroundings=Surroundings({}, tmp_path))
    by_name = {check.name: check.status for check in found}
    assert (by_name["ray cluster"], by_name["ray token"]) == ("ok", "fail")


def test_a_port_that_does_not_speak_is_given_up_in_time(listener: ClusterAddress, tmp_path: Path) -> None:
    started_s = time.monotonic()
    assert ray_access.access(listener, timeout_s=0.3) is Access.UNKNOWN
    assert time.monotonic() - started_s < 3
    give_token(tmp_path)
    found = software.ray_token(listener, {"RAY_AUTH_MODE": "token"}, tmp_path)
    assert found.status == "warn"
    assert "did not say" in found.found


def test_the_token_and_its_mode_without_a_cluster(tmp_path: Path) -> None:
    missing = software.ray_token(None, {"RAY_AUTH_MODE": "token"}, tmp_path)
    assert missing.status == "warn"
    assert "ray get-auth-token --generate" in missing.fix
    path = give_token(tmp_path, 0o644)  # as Ray itself writes it under the usual umask
    lax = software.ray_token(None, {"RAY_AUTH_MODE": "token"}, tmp_path)
    assert (lax.status, lax.fix) == ("fail", f"chmod 600 {path}")
    assert "mode 0644" in lax.found
    subprocess.run(["/bin/sh", "-c", lax.fix], check=True, timeout=10)
    assert software.ray_token(None, {"RAY_AUTH_MODE": "token"}, tmp_path).status == "ok"
    path.write_text("")
    assert software.ray_token(None, {"RAY_AUTH_MODE": "token"}, tmp_path).status == "warn"


def test_the_token_is_looked_for_in_rays_order_and_never_shown(tmp_path: Path) -> None:
    named = tmp_path / "named"
    named.write_text("secret-in-file")
    named.chmod(0o600)
    assert ray_access.token({}, tmp_path) is None
    found = ray_access.token({"RAY_AUTH_TOKEN_PATH": str(named)}, tmp_path)
    assert found is not None
    assert (found.origin, found.path) == ("RAY_AUTH_TOKEN_PATH", named)
    # A named file that is not there: Ray stops there and does not look at the default.
    give_token(tmp_path)
    assert ray_access.token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "gone")}, tmp_path) is None
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "secret-itself", "RAY_AUTH_TOKEN_PATH": str(named)}
    check = software.ray_token(None, environment, tmp_path)
    assert check == Check("ray token", "ok", "RAY_AUTH_MODE=token, the token is in RAY_AUTH_TOKEN")


# Ports and memory


def free_range(count: int) -> int:
    """The first of `count` ports in a row that are free now."""
    for first in range(20_000 + os.getpid() % 5000, 60_000, count):
        if all(
            machine.ports(Settings(port_first=port, port_last=port)).status == "ok"
            for port in range(first, first + count)
        ):
            return first
    raise AssertionError("no free ports")


def test_ports_free_some_taken_all_taken() -> None:
    assert machine.ports(Settings()).status == "ok"
    first = free_range(2)
    settings = Settings(bind="127.0.0.1", port_first=first, port_last=first + 1)
    assert machine.ports(settings) == Check("ports", "ok", f"2 of 2 ports free, {first} to {first + 1}")
    with socket.create_server(("127.0.0.1", first)):
        some = machine.ports(settings)
        assert (some.status, some.found.startswith("1 of 2")) == ("warn", True)
        with socket.create_server(("127.0.0.1", first + 1)):
            assert machine.ports(settings).status == "fail"
    assert machine.ports(settings).status == "ok"


@pytest.mark.parametrize("bind", ["192.0.2.77", "2001:db8::77"])
def test_bind_address_of_another_machine(bind: str) -> None:
    found = machine.ports(Settings(bind=bind, port_first=20_000, port_last=20_001))
    assert (found.status, bind in found.found) == ("fail", True)


def test_shared_memory_holds_arena_and_rays_store_together() -> None:
    assert machine.shared_memory(10 * GIB, 4 * GIB, 6 * GIB).status == "ok"
    small = machine.shared_memory(10 * GIB - 1, 4 * GIB, 6 * GIB)
    assert small.status == "fail"
    assert "4.0 GiB + Ray's object store 6.0 GiB = 10.0 GiB" in small.found
    assert "size=10g" in small.fix
    # What docker gives: Ray's store alone is larger, and nothing is left for the arena.
    assert machine.shared_memory(64 * MIB, 0, 7 * GIB).status == "fail"


def test_rays_store_is_counted_as_ray_counts_it() -> None:
    assert machine.ray_store_bytes(10 * GIB, 100 * GIB, {}) == 3 * GIB
    assert machine.ray_store_bytes(1000 * GIB, 20 * GIB, {}) == 19 * GIB
    assert machine.ray_store_bytes(1000 * GIB, GIB, {}) == 10**10
    assert machine.ray_store_bytes(10**13, 10**13, {}) == 200 * 10**9
    half = {"RAY_DEFAULT_OBJECT_STORE_MEMORY_PROPORTION": "0.5", "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": "5"}
    assert machine.ray_store_bytes(10 * GIB, 100 * GIB, half) == 5


def test_container_memory_limit(settings: Settings) -> None:
    assert machine.container_memory(None, 100 * GIB, settings).status == "ok"
    limit = CgroupMemory(10 * GIB, 0, Path("/sys/fs/cgroup"))
    assert machine.container_memory(limit, 7 * GIB, settings).status == "ok"
    tight = machine.container_memory(limit, 7 * GIB + 1, settings)
    assert tight.status == "warn"
    settings.state.mkdir()
    subprocess.run(["/bin/sh", "-c", tight.fix], check=True, timeout=10)
    assert (settings.state / "raylog.toml").read_text() == 'arena_bytes = "1792MiB"\n'


def test_a_missing_shared_memory_folder(settings: Settings, tmp_path: Path) -> None:
    around = Surroundings({"RAY_TMPDIR": str(tmp_path)}, tmp_path, shm=tmp_path / "absent")
    by_name = {check.name: check for check in checks(settings, surroundings=around)}
    assert by_name["shared memory"].status == "fail"


# Files


def test_keyring_modes_and_owner(tmp_path: Path) -> None:
    folder = tmp_path / "keyring"
    path = folder / "keyring.json"
    absent = files.keyring(path)
    assert (absent.status, "worker" in absent.found) == ("ok", True)
    folder.mkdir(mode=0o700)
    path.write_text("{}")
    path.chmod(0o600)
    assert files.keyring(path).status == "ok"
    for mode in (0o644, 0o640, 0o601, 0o660):
        path.chmod(mode)
        lax = files.keyring(path)
        assert (lax.status, lax.fix) == ("fail", f"chmod 600 {path}")
    subprocess.run(["/bin/sh", "-c", lax.fix], check=True, timeout=10)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    folder.chmod(0o777)
    replaceable = files.keyring(path)
    assert (replaceable.status, replaceable.fix) == ("fail", f"chmod 700 {folder}")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_keyring_of_another_user(tmp_path: Path) -> None:
    path = tmp_path / "keyring.json"
    path.write_text("{}")
    path.chmod(0o600)
    os.chown(path, 12345, -1)
    found = files.keyring(path)
    assert (found.status, "user 12345" in found.found) == ("fail", True)
    subprocess.run(["/bin/sh", "-c", found.fix.removeprefix("sudo ")], check=True, timeout=10)
    assert path.stat().st_uid == os.geteuid()


def test_state_directory(settings: Settings, tmp_path: Path) -> None:
    not_made_yet = files.state_directory(settings)
    assert not_made_yet.status in ("ok", "warn")
    assert not settings.state.exists()
    settings.state.mkdir()
    files.state_directory(settings)
    assert list(settings.state.iterdir()) == []
    full = files.state_directory(Settings(state=settings.state, disk_reserve_bytes=1 << 60))
    assert (full.status, full.fix.startswith("du ")) == ("warn", True)
    # Nothing can be written in a folder of /proc, not even by root.
    unwritable = files.state_directory(Settings(state=Path("/proc/self/raylog")))
    assert unwritable.status == "fail"
    assert "cannot write in /proc/self" in unwritable.found


def test_a_file_in_place_of_the_state_directory(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    assert files.state_directory(Settings(state=tmp_path / "state")).status == "fail"


@pytest.mark.parametrize(
    ("soft", "hard", "status", "fix"),
    [
        (65536, 65536, "ok", ""),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, "ok", ""),
        (20_000, 100_000, "warn", "ulimit -n 65536"),
        (20_000, resource.RLIM_INFINITY, "warn", "ulimit -n 65536"),
        (1024, 4096, "fail", "limits.d"),
    ],
)
def test_open_files(soft: int, hard: int, status: str, fix: str) -> None:
    found = machine.open_files(soft, hard)
    assert found.status == status
    assert fix in found.fix


# Clock and hardware


def test_clock() -> None:
    assert machine.clock(ClockDiscipline.SYNCHRONISED, "synchronised, off by at most 3 ms").status == "ok"
    for discipline in (ClockDiscipline.UNSYNCHRONISED, ClockDiscipline.UNKNOWN):
        found = machine.clock(discipline, "nothing synchronises it")
        assert (found.status, "unknown whether" in found.found) == ("warn", True)


@pytest.mark.parametrize(
    ("offset_s", "status", "word"),
    [
        (0.0, "ok", ""),
        (0.8, "ok", "behind"),
        (5.0, "warn", "behind"),
        (-5.0, "warn", "ahead of"),
        (90.0, "fail", "behind"),
    ],
)
def test_clock_against_the_head(offset_s: float, status: str, word: str) -> None:
    found = machine.clock_against_head(lambda: time.time() + offset_s)
    assert found.status == status
    assert word in found.found


def test_a_slow_answer_is_no_wrong_clock() -> None:
    def slow() -> float:
        time.sleep(0.2)
        now_s = time.time()
        time.sleep(0.2)
        return now_s

    found = machine.clock_against_head(slow)
    assert found.status == "ok"
    assert "± 0.2" in found.found
    assert int(found.found.split(" ms")[0]) < 100  # and not the 200 ms that the answer was under way


def test_a_head_that_does_not_answer_leaves_the_clock_unknown() -> None:
    def unavailable() -> float:
        raise Unavailable("no raylog actor 'launch'")

    found = machine.clock_against_head(unavailable)
    assert (found.status, found.found) == ("warn", "unknown: no raylog actor 'launch'")


def test_gpus() -> None:
    gpu = GpuSample(uuid="GPU-1", name="H200", index=0)
    assert machine.gpus(GpuReport(gpus=(gpu, gpu)), has_driver=True) == Check("gpus", "ok", "2: H200")
    absent = machine.gpus(GpuReport(problem="no NVIDIA driver on this machine"), has_driver=False)
    assert (absent.status, "works without" in absent.found) == ("ok", True)
    assert machine.gpus(GpuReport(problem="Driver Not Loaded"), has_driver=True).status == "warn"
    lost = machine.gpus(GpuReport(gpus=(gpu,), problem="GPU 0 (GPU-1): GPU is lost"), has_driver=True)
    assert (lost.status, "GPU is lost" in lost.found) == ("fail", True)


def test_congestion_control_and_aes() -> None:
    assert machine.congestion_control(Congestion(("cubic", "bbr"), "cubic")).status == "ok"
    assert machine.congestion_control(Congestion(("cubic",), "cubic")).fix == "sudo modprobe tcp_bbr"
    assert machine.congestion_control(None).status == "warn"
    assert machine.aes(frozenset({"aes", "vaes"})).found == "aes and vaes"
    assert machine.aes(frozenset({"aes"})).status == "ok"
    assert machine.aes(frozenset({"fpu"})).status == "warn"
    assert machine.aes(None).status == "warn"
