"""A cluster that loses all of its nodes, and another one that is made of its backup: `disaster_driver.py FOLDER
BUCKET`, with an S3 gateway in the environment. Says "restored" last."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import ray
from ray.cluster_utils import Cluster
from three_nodes import wait_until

import raylog
from raylog.actors import bootstrap
from raylog.errors import NotFound, Unavailable, UsageError
from raylog.settings import Settings
from raylog.units import MIB

RAYLOG = Path(sys.executable).with_name("raylog")
JOBS = Path(__file__).parents[2] / "jobs"
NODES = 3


def new_cluster() -> Cluster:
    cluster = Cluster()
    for _ in range(NODES):
        cluster.add_node(num_cpus=2, object_store_memory=80 * MIB, include_dashboard=False)
    return cluster


def settings_in(state: Path) -> Settings:
    return Settings(
        state=state, arena_bytes=16 * MIB, disk_reserve_bytes=0, shard_bytes=4 * MIB, chunk_bytes=MIB // 4,
        reconcile_period_s=0.5, shared_memory=False,
    )  # fmt: skip


def contents() -> dict[str, bytes]:
    source = np.random.default_rng(5)
    return {f"disaster/{number}": source.bytes(size) for number, size in enumerate((10, 3 * MIB, 9 * MIB))}


def command(*words: object) -> str:
    done = subprocess.run([str(RAYLOG), *map(str, words)], capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise SystemExit(f"raylog {words}: {done.stdout}{done.stderr}")
    return done.stdout


def before(folder: Path, url: str) -> dict[str, list[str]]:
    """Puts, backs up, and says what there was."""
    cluster = new_cluster()
    try:
        with raylog.connect(cluster.address, settings=settings_in(folder / "before")) as client:
            bootstrap.wait_for_nodes(60)
            for name, content in contents().items():
                client.put(name, b"an older state")
                client.put(name, content, replicas=2, backup=url, durability="remote", labels={"of": "the test"})
            client.delete("disaster/0@1")
            client.put("disaster/deleted", b"not to come back", backup=url)
            client.delete("disaster/deleted")
            client.put("disaster/never-backed-up", b"lost with its node")
            client.back_up("disaster/1@1", url)
            command("keys", "recovery-key", folder / "recovery")
            command(
                "--state", folder / "before", "keys", "backup", folder / "keys.bak", "--to", folder / "recovery.pub"
            )
            client.back_up("disaster/2@1", url)  # and with it all of the chain
            listing = {one.name: [str(version) for version in client.versions(one.name)] for one in client.ls()}
            bootstrap.stop()
        return listing
    finally:
        ray.shutdown()
        cluster.shutdown()


def after(folder: Path, url: str, listing: dict[str, list[str]], *, is_drill: bool) -> None:
    """A new cluster, in which nothing is but the backups."""
    state = folder / ("drill" if is_drill else "after")
    cluster = new_cluster()
    try:
        environment = os.environ | {"RAY_ADDRESS": cluster.address}
        config = folder / "raylog.toml"
        text = {"shard_bytes": "4MiB", "chunk_bytes": 262144, "arena_bytes": "16MiB", "disk_reserve_bytes": 0}
        config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in text.items()))
        words = [
            JOBS / "restore.py", url, "--keys", folder / "keys.bak", "--recovery-key", folder / "recovery",
            "--config", config, "--state", state, "--timeout", 120, *(["--drill"] if is_drill else []),
        ]  # fmt: skip
        done = subprocess.run(
            [sys.executable, *map(str, words)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        print(done.stdout.splitlines()[-1] if done.stdout else done.stderr)
        assert done.returncode == 0, done.stdout + done.stderr[-3000:]
        report = json.loads(done.stdout.splitlines()[-1])
        assert report["shards_without_backup"] == 1, "never-backed-up is lost, and no other"
        with raylog.connect(cluster.address, settings=settings_in(state)) as client:
            found = {one.name: [str(version) for version in client.versions(one.name)] for one in client.ls()}
            assert found == listing, f"{found} is not {listing}"
            for name, content in contents().items():
                assert client.get(name) == content, name
                assert all(len(nodes) == 2 for nodes in client.replicas(name).values())
                assert client.verify(name).problems == []
            assert client.get("disaster/1@1") == b"an older state"
            try:
                client.get("disaster/never-backed-up")
                raise SystemExit("what was never backed up is there")
            except Unavailable as error:
                print(error)
            try:
                client.stat("disaster/deleted")
                raise SystemExit("a deleted version came back")
            except NotFound:
                pass
            if is_drill:
                check_no_backup(client, url)
            else:
                again = client.put("disaster/1", b"a newer state", backup=url)
                assert str(again) == "disaster/1@3", again
                wait_until(lambda: client.storage_standing().copies_to_back_up == 0, 60, "the backup goes on")
            bootstrap.stop()
    finally:
        ray.shutdown()
        cluster.shutdown()


def check_no_backup(client: raylog.Client, url: str) -> None:
    """The real cluster could not go on with a chain that a drill has written to."""
    for action in (lambda: client.put("disaster/1", b"newer", backup=url), lambda: client.back_up("disaster/2@1", url)):
        try:
            action()
            raise SystemExit("a drill wrote to the backup")
        except UsageError as error:
            print(error)
    client.put("disaster/1", b"a state that stays in the drill")


def main(folder: Path, bucket: str) -> None:
    url = f"s3://{bucket}/of/raylog"
    listing = before(folder, url)
    shutil.rmtree(folder / "before")
    after(folder, url, listing, is_drill=True)
    after(folder, url, listing, is_drill=False)
    print("restored")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
