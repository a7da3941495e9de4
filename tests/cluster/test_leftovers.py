"""What a killed writer left on the nodes goes by itself; what a slow one has sealed so far stays."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
from three_nodes import Machine, lying, wait_until

import raylog


@contextmanager
def slow_put(machine: Machine, name: str, pause_s: float) -> Iterator[subprocess.Popen[str]]:
    """A put in a process of its own that has sealed something."""
    command = [
        sys.executable,
        str(Path(__file__).with_name("slow_put.py")),
        machine.cluster.address,
        name,
        str(pause_s),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "sealed\n"
            yield process
        finally:
            process.kill()


def adopted(client: raylog.Client) -> set[str]:
    """All that lies on the nodes but what a process is writing into now."""
    return {one for one in lying(client) if "/staging/" not in one}


def last_word(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=90)
    return said.splitlines()[-1]


def test_a_killed_writers_shards_go_and_a_stopped_ones_commit_is_refused(
    client: raylog.Client, machine: Machine
) -> None:
    grace_s = machine.settings.orphan_grace_s
    before, began_s = lying(client), time.time()
    with slow_put(machine, "leftovers/killed", 60) as killed, slow_put(machine, "leftovers/stopped", 1) as stopped:
        killed.kill()
        stopped.send_signal(signal.SIGSTOP)
        assert len(adopted(client) - before) >= 2
        wait_until(lambda: adopted(client) <= before, 3 * grace_s + 20, "nothing is left of either")
        stopped.send_signal(signal.SIGCONT)
        assert "Conflict" in last_word(stopped)
    assert client.ls("leftovers/") == []
    assert lying(client) <= before
    told = [event.message for event in client.events(began_s)]
    assert any("which no version names" in one for one in told)


def test_a_slow_put_keeps_what_it_has(client: raylog.Client, machine: Machine) -> None:
    with slow_put(machine, "leftovers/slow", 3 * machine.settings.orphan_grace_s) as process:
        assert last_word(process) == "committed"
    assert client.get("leftovers/slow").num_rows > 0
    client.delete("leftovers/slow")


def test_cached_copies_of_a_deleted_version_go(client: raylog.Client, machine: Machine) -> None:
    before = lying(client)
    client.put("leftovers/shipped", pa.table({"n": range(100_000)}))
    client.ship("leftovers/shipped", to="all").result(60)
    client.delete("leftovers/shipped")
    wait_until(lambda: lying(client) <= before, 3 * machine.settings.orphan_grace_s + 20, "no copy is left")
