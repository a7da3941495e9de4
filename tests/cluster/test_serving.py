"""jobs/serve.py: requests without a pause while versions are published."""

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from test_jobs import submit
from three_nodes import Machine

import raylog

torch = pytest.importorskip("torch")
serve = pytest.importorskip("ray.serve")
JOB = Path(__file__).parents[2] / "jobs" / "serve.py"
INPUTS = [[1.0] * 8, [2.0] * 8]
VERSIONS, THREADS = 6, 4


def weights_of(number: int) -> dict[str, Any]:
    """Of a model whose answers tell which version all of it is: each output is the sum of the inputs, and the bias."""
    return {"model": {"weight": torch.full((4, 8), float(number)), "bias": torch.full((4,), float(number))}}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Load:
    """Requests from several threads, one after the other each."""

    def __init__(self, url: str) -> None:
        self._url, self._is_over = url, threading.Event()
        self.answers: list[dict[str, Any]] = []
        self.failed: list[str] = []
        self._threads = [threading.Thread(target=self._ask_on) for _ in range(THREADS)]
        for one in self._threads:
            one.start()

    def _ask_on(self) -> None:
        request = urllib.request.Request(self._url, json.dumps(INPUTS).encode())
        while not self._is_over.is_set():
            try:
                with urllib.request.urlopen(request, timeout=20) as answer:
                    self.answers.append(json.loads(answer.read()))
            except OSError as error:
                self.failed.append(repr(error))

    def end(self) -> None:
        self._is_over.set()
        for one in self._threads:
            one.join()


def test_weights_are_switched_under_load(machine: Machine, client: raylog.Client) -> None:
    first = client.publish("weights/served", weights_of(1)).number
    status, said, log = submit(machine, str(JOB), "weights/served", "--replicas", "2", "--port", str(free_port()))
    assert status == 0, log
    load = Load(said["url"])
    try:
        for number in range(2, VERSIONS + 1):
            asked = len(load.answers)
            last = client.publish("weights/served", weights_of(number)).number
            deadline = time.monotonic() + 20
            while {one["version"] for one in load.answers[asked:][-20:]} != {last} and time.monotonic() < deadline:
                time.sleep(0.02)
        for wrong in (b"no JSON", b"[[1, 2]]", b'["a"]'):
            with pytest.raises(urllib.error.HTTPError) as told:
                urllib.request.urlopen(urllib.request.Request(said["url"], wrong), timeout=20)
            assert told.value.code == 400 and b"expected a JSON list of lists of 8 numbers" in told.value.read()
    finally:
        load.end()
        serve.shutdown()
    assert not load.failed
    for one in load.answers:
        number = one["version"] - first + 1
        assert one["outputs"] == [[9.0 * number] * 4, [17.0 * number] * 4]
    assert {one["version"] for one in load.answers} == set(range(first, last + 1))
    assert {one["version"] for one in load.answers[-20:]} == {last}
    client.delete("weights/served")
