"""Wrong keyrings, wrong join tokens, no room for an arena, and bad sources, through the command, on a cluster that says
so and goes on once it is put right."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from ray.cluster_utils import Cluster

from raylog.units import MIB

KILL_KEYS = """
import sys
import ray
from raylog.actors import calls
ray.init(sys.argv[1], namespace=calls.NAMESPACE, log_to_driver=False)
ray.kill(calls.find("keys"), no_restart=False)
"""
RAYLOG = Path(sys.executable).with_name("raylog")


class Commands:
    """The command against a Ray cluster of its own, of one node, whose arena finds no room in /dev/shm."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self.keyring = self.state / "keyring" / "keyring.json"
        self.token = self.state / "join" / "token.json"
        self.other = folder / "other"
        self._config = folder / "raylog.toml"
        self._config.write_text(f'state = "{self.state}"\n[node]\narena_bytes = {1 << 49}\ndisk_reserve_bytes = 0\n')
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 * MIB},
        )

    def run(self, *words: str, status: int = 0, says: str | list[str] = "") -> None:
        command = [str(RAYLOG), "--address", self.cluster.address, "--config", str(self._config), *words]
        environment = os.environ | {"COLUMNS": "200"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90, check=False)
        assert done.returncode == status, (words, done.stdout, done.stderr)
        for part in [says] if isinstance(says, str) else says:
            assert part in done.stdout + done.stderr
        assert "Traceback" not in done.stderr

    def kill_keys(self) -> None:
        """As a crash does; Ray restarts it. In a process of its own: this one may be connected to another cluster."""
        subprocess.run([sys.executable, "-c", KILL_KEYS, self.cluster.address], check=True, timeout=60)


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    made = Commands(tmp_path_factory.mktemp("keys"))
    try:
        yield made
    finally:
        made.cluster.shutdown()


def test_what_is_wrong_with_keys_is_said_and_goes_away(commands: Commands) -> None:
    subprocess.run([str(RAYLOG), "--state", str(commands.other), "up", "--prepare"], check=True, timeout=60)
    commands.run("up")
    commands.run("status", says="no memory tier")
    commands.run("put", "keys/one", str(Path(__file__)), "--durability", "memory", status=0)
    spare = commands.keyring.with_name("spare.json")
    shutil.copy2(commands.keyring, spare)

    def changed_keyrings() -> Iterator[str]:
        commands.keyring.chmod(0o644)
        yield "chmod"
        shutil.copy2(commands.other / "keyring" / "keyring.json", commands.keyring)
        yield "cluster"
        commands.keyring.unlink()
        yield "keyring"

    for says in changed_keyrings():
        commands.kill_keys()
        commands.run("get", "keys/one", "nowhere", status=4, says=says)
        assert not Path("nowhere").exists()
        commands.run("up", status=4, says=says)
        shutil.copy2(spare, commands.keyring)
        commands.run("put", "keys/one", str(Path(__file__)))  # without anybody restarting anything


def test_keyrings_are_refused_before_anything_is_started(commands: Commands) -> None:
    commands.run("down")
    spare = commands.keyring.with_name("spare.json")
    shutil.copy2(commands.other / "keyring" / "keyring.json", commands.keyring)
    commands.run("up", status=4, says="cluster")
    commands.run("status", status=1, says="raylog up")
    shutil.copy2(spare, commands.keyring)
    commands.run("up")
    commands.run("ls", says="keys/one")


def test_a_join_token_of_another_cluster(commands: Commands, tmp_path: Path) -> None:
    spare = shutil.copy2(commands.token, tmp_path / "token.json")
    shutil.copy2(commands.other / "join" / "token.json", commands.token)
    try:
        commands.run("ls", status=4, says="cluster")
    finally:
        shutil.copy2(spare, commands.token)
    commands.run("ls", says="keys/one")


def cut_parquet(folder: Path) -> None:
    pa.parquet.write_table(pa.table({"n": range(1000)}), folder / "cut.parquet")
    os.truncate(folder / "cut.parquet", 2000)


def uneven_csv(folder: Path) -> None:
    (folder / "rows.csv").write_text("a,b\n1,2\n3\n")


def mixed(folder: Path) -> None:
    pa.parquet.write_table(pa.table({"n": [1]}), folder / "one.parquet")
    pa.parquet.write_table(pa.table({"m": ["x"]}), folder / "two.parquet")


def empty(folder: Path) -> None:
    (folder / "empty.bin").touch()


def folder_without_files(folder: Path) -> None:
    (folder / "below").mkdir()


SOURCES: list[tuple[Callable[[Path], None], list[str]]] = [
    (cut_parquet, ["cut.parquet"]),
    (uneven_csv, ["rows.csv", "3"]),
    (mixed, ["one.parquet", "two.parquet"]),
    (empty, ["empty"]),
    (folder_without_files, ["no files"]),
]


@pytest.mark.parametrize(("make", "says"), SOURCES, ids=lambda one: getattr(one, "__name__", None))
def test_bad_sources(commands: Commands, tmp_path: Path, make: Callable[[Path], None], says: list[str]) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    make(folder)
    commands.run("put", "bad/source", str(folder), status=2, says=says)
    assert not list((commands.state / "nodes").rglob("staging/*"))
