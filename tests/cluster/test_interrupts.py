"""Ctrl-C and SIGTERM at many moments of `raylog put`, `get` and `ship`, as real processes against a running cluster."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from three_nodes import Machine, ask_node, lying, wait_until

import raylog
from raylog.actors import bootstrap
from raylog.actors.requests import DeleteShards
from raylog.errors import Cancelled
from raylog.units import MIB

RAYLOG = Path(sys.executable).with_name("raylog")
CONTENT_BYTES = 96 * MIB
ENDS_WITHIN_S = 8.0  # of the signal, on a loaded machine; alone it takes less than one
RUNS = 4


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("interrupts") / "noise.bin"
    path.write_bytes(np.random.default_rng(21).bytes(CONTENT_BYTES))
    return path


@pytest.fixture(scope="module")
def stored(client: raylog.Client, source: Path) -> Iterator[str]:
    client.put("interrupts/stored", source)
    yield "interrupts/stored"
    client.delete("interrupts/stored")


class Interrupted:
    """One run of the command, sent a signal after a while."""

    def __init__(self, machine: Machine, words: list[str], number: signal.Signals, after_s: float) -> None:
        command = [str(RAYLOG), "--address", machine.cluster.address, *words]
        began_s = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            process.wait(after_s)
        except subprocess.TimeoutExpired:
            children = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(number)
        else:
            children = []
        signalled_s = time.monotonic()
        try:
            self.out, self.err = process.communicate(timeout=60)
        finally:
            process.kill()
        self.seconds = time.monotonic() - signalled_s
        self.status = process.returncode
        self.total_s = time.monotonic() - began_s
        self.left = [child for child in children if child.is_running()]


def moments(name: str, whole_s: float) -> Iterator[tuple[signal.Signals, float]]:
    """Alternating signals over the whole length of a run that takes `whole_s`, one at random in each part of it."""
    seed = int(os.environ.get("RAYLOG_INTERRUPT_SEED", time.time_ns() % 1_000_000))
    print(f"{name}: RAYLOG_INTERRUPT_SEED={seed}, an undisturbed run takes {whole_s:.1f} s")
    generator = random.Random(seed)
    for part in range(RUNS):
        at = (part + generator.random()) / RUNS
        yield (signal.SIGINT, signal.SIGTERM)[part % 2], 0.4 + at * max(whole_s - 0.4, 0.1)


def interrupted(machine: Machine, words: list[str], number: signal.Signals, after_s: float) -> Interrupted:
    run = Interrupted(machine, words, number, after_s)
    print(f"  {number.name} after {after_s:.2f} s: status {run.status} {run.seconds:.2f} s later; {run.err.strip()}")
    assert run.seconds < ENDS_WITHIN_S
    is_done = bool(run.out)  # it had said so before the signal came; Python, as it ends, lets go of signals itself
    assert run.status in ((0, 130, -number) if is_done else (130,)), run.err
    assert "Traceback" not in run.err
    assert not run.left
    return run


def undisturbed(machine: Machine, words: list[str]) -> float:
    run = Interrupted(machine, words, signal.SIGINT, 60.0)
    assert run.status == 0, run.err
    return run.total_s


def test_put(machine: Machine, client: raylog.Client, source: Path) -> None:
    words = ["put", "interrupts/put", str(source), "--replicas", "2"]
    whole_s = undisturbed(machine, words)
    client.delete("interrupts/put")
    wait_until(lambda: not named(client), 20, "the undisturbed version is gone")
    before = settled(client)
    for number, after_s in moments("put", whole_s):
        interrupted(machine, words, number, after_s)
        if named(client):
            assert client.get("interrupts/put") == source.read_bytes()  # the signal came after the commit
            client.delete("interrupts/put")
        wait_until(lambda: lying(client) <= before, 20, f"nothing is left but {lying(client) - before}")


def named(client: raylog.Client) -> list[raylog.Version]:
    return client.ls("interrupts/put")


def settled(client: raylog.Client) -> set[str]:
    """What lies there once deletions that are under way are done."""
    seen = [lying(client)]
    wait_until(lambda: seen.append(lying(client)) or seen[-1] == seen[-2], 20, "nothing changes", pause_s=1.5)
    return seen[-1]


def test_get(machine: Machine, client: raylog.Client, stored: str, source: Path, tmp_path: Path) -> None:
    whole_s = undisturbed(machine, ["get", stored, str(tmp_path / "whole")])
    before = settled(client)
    for number, after_s in moments("get", whole_s):
        target = tmp_path / "here" / f"{number}-{after_s}"
        target.parent.mkdir(exist_ok=True)
        run = interrupted(machine, ["get", stored, str(target)], number, after_s)
        if target.exists():
            assert (target / source.name).read_bytes() == source.read_bytes()
            assert run.total_s > after_s - 0.5
        assert [path.name for path in target.parent.iterdir() if path.name.startswith(".")] == []
        assert lying(client) <= before


def test_ship(machine: Machine, client: raylog.Client, stored: str) -> None:
    """Shards that were whole on their target when the signal came are cache and stay; of others nothing does."""
    words = ["ship", stored]
    ids = set(client.replicas(stored))
    whole_s = undisturbed(machine, words)
    for number, after_s in moments("ship", whole_s):
        drop_copies(machine, client, stored)
        before = lying(client)
        interrupted(machine, words, number, after_s)
        left = lying(client) - before
        assert {place.rsplit(maxsplit=1)[-1].rsplit("/", 1)[-1] for place in left} <= ids
        assert not [place for place in left if "/partial/" in place or "/staging/" in place]
    assert client.ship(stored).result(60).nodes


def test_a_cancelled_shipment_does_not_wait_for_its_source(client: raylog.Client) -> None:
    payload = np.random.default_rng(22).bytes(16 * MIB)
    client.put("interrupts/stuck", payload)
    source = client.local_node()
    target = next(info for info in client.nodes() if info.node_id != source.node_id)
    before = lying(client)
    os.kill(source.pid, signal.SIGSTOP)  # for less time than the cluster takes to miss it
    try:
        shipment = client.ship("interrupts/stuck", to=[target.node_id], deadline_s=60)
        time.sleep(0.5)
        began_s = time.monotonic()
        shipment.cancel()
        with pytest.raises(Cancelled):
            shipment.result(0)
        assert time.monotonic() - began_s < 2.0
    finally:
        os.kill(source.pid, signal.SIGCONT)
    assert lying(client) <= before
    assert client.ship("interrupts/stuck", to=[target.node_id]).result(60).nodes == [target.node_id]


def drop_copies(machine: Machine, client: raylog.Client, name: str) -> None:
    """Takes a version's shards from every node that does not hold them by promise, as the catalog may."""
    replicas, signer = client.replicas(name), bootstrap.cluster_signer(machine.settings)
    for info in client.nodes():
        extra = [shard_id for shard_id, nodes in replicas.items() if info.node_id not in nodes]
        ask_node(info, DeleteShards(shard_ids=tuple(extra)), signer)
