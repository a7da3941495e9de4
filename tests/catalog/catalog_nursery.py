"""A process that forks writers of a catalog for test_catalog_kill.py, which kills them. Imports once, forks often.

Each line on stdin begins a writer: directory, seed, and the number of the SQL statement at which it kills itself (0:
none; then the test kills it). Writers say what they are about to do and what was acknowledged, a JSON object per line.
"""

import json
import os
import random
import signal
import sqlite3
import sys
from pathlib import Path

from raylog.catalog.catalog import Catalog
from raylog.catalog.encoding import digest_of, encode
from raylog.errors import NotFound
from raylog.spec import Reference
from raylog.testing.catalog_cluster import TENANT, Cluster

NAMES = ("a", "a/b", "c")


def say(**words: object) -> None:
    """A line of its own, also after one that a kill cut short."""
    os.write(1, b"\n" + json.dumps(words).encode() + b"\n")


def write(cluster: Cluster, directory: Path, seed: int, kill_at: int) -> None:
    """Changes the catalog at random until it is killed."""
    say(event="born", pid=os.getpid())
    source = random.Random(seed)
    catalog = cluster.open(directory)
    _kill_at_statement(catalog, kill_at)
    while True:
        name = source.choice(NAMES)
        if source.random() < 0.7:
            _put(cluster, catalog, name)
        else:
            _change(catalog, source, name)


def _put(cluster: Cluster, catalog: Catalog, name: str) -> None:
    pending = catalog.begin(name, TENANT)
    manifest = cluster.manifest(name, pending.artifact_id, shards=tuple(cluster.entry() for _ in range(3)))
    signed, receipts = cluster.sign(manifest), cluster.receipts(manifest)
    request = {"signed": signed.hex(), "receipts": [one.hex() for one in receipts], "base": pending.base}
    say(event="try", kind="commit", name=name, number=0, digest=digest_of(encode(manifest)).hex(), **request)
    say(event="done", number=catalog.commit(signed, receipts, pending.base).number)


def _change(catalog: Catalog, source: random.Random, name: str) -> None:
    try:
        number = source.choice(catalog.versions(name)).number
    except NotFound:
        return
    if source.random() < 0.5:
        say(event="try", kind="set-latest", name=name, number=number)
        catalog.set_latest(Reference(name, number), "raylog://x/client/y")
    else:
        number = number if source.random() < 0.8 else 0
        say(event="try", kind="delete", name=name, number=number)
        catalog.delete(Reference(name, number or None), "raylog://x/client/y")
    say(event="done", number=number)


def _kill_at_statement(catalog: Catalog, kill_at: int) -> None:
    """Kills this process when the writer's connection begins its statement number `kill_at`."""
    left = kill_at

    def count(_: str) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    if kill_at:
        connection: sqlite3.Connection = catalog._database._writer
        connection.set_trace_callback(count)


def main() -> None:
    cluster = Cluster()
    for line in sys.stdin:
        directory, seed, kill_at = json.loads(line)
        pid = os.fork()
        if not pid:
            write(cluster, Path(directory), seed, kill_at)
        os.waitpid(pid, 0)
        say(event="gone")


if __name__ == "__main__":
    main()
