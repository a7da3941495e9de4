"""Weights on three nodes: published and brought to all of them, changes alone, and subscribed to."""

import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import ray
from blake3 import blake3
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from three_nodes import Machine, wait_until

import raylog
from raylog.actors import calls
from raylog.actors.node_info import NodeInfo
from raylog.api.put_options import PutOptions
from raylog.api.ship import Shipment
from raylog.api.weights import deliver
from raylog.api.weights.deliver import Delivery
from raylog.api.weights.publications import Publications
from raylog.api.weights.publish import Publisher
from raylog.api.weights.target import Target
from raylog.errors import Cancelled, DeadlineExceeded, Unavailable, UsageError
from raylog.spec import parse_reference
from raylog.units import MIB

torch = pytest.importorskip("torch")
PUBLISH_OPTIONS = PutOptions.parse(replicas=1, durability="memory", codec="auto", labels=None)
SHARES = (0.02, 0.02, 0.0, 0.9, 0.02)


def state_of(seed: int, mib: int = 4) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    items = mib * MIB // 8
    return {
        "model": {
            "w": torch.randn(items, generator=generator),
            "half": torch.randn(items, generator=generator).to(torch.bfloat16),
            "small": torch.randn(33, generator=generator),
        },
        "step": seed,
    }


def change(state: dict[str, Any], share: float, seed: int) -> None:
    """Adds one to a share of the values, at random places."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in state["model"].values():
        tensor[torch.rand(tensor.shape, generator=generator) < share] += 1


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["step"] == other["step"] and list(one["model"]) == list(other["model"])
    for name, tensor in one["model"].items():
        assert torch.equal(tensor, other["model"][name]), name


def fresh_bytes(client: raylog.Client, version: raylog.Version) -> int:
    """Stored bytes of the shards that the version before does not name."""
    before = {
        one.shard.shard_id
        for one in client._session.manifest(parse_reference(f"{version.name}@{version.number - 1}")).shards
    }
    shards = client._session.manifest(parse_reference(str(version))).shards
    return sum(one.shard.stored_bytes for one in shards if one.shard.shard_id not in before)


@ray.remote(num_cpus=0)
class Subscriber:
    """On a node of its own."""

    def __init__(self, name: str) -> None:
        self._client = raylog.connect()
        self._subscription = self._client.subscribe(name)

    def wait(self) -> tuple[int, int, str]:
        """Number, step and a digest of the next version."""
        state = self._subscription.wait(30)
        assert self._subscription.version is not None
        return (
            self._subscription.version.number,
            state["step"],
            blake3(memoryview(state["model"]["w"].numpy()).cast("B")).hexdigest(),
        )

    def close(self) -> None:
        self._subscription.close()
        self._client.close()


@contextmanager
def subscribers(client: raylog.Client, name: str) -> Iterator[list[Any]]:
    found = []
    for info in client.nodes():
        strategy = NodeAffinitySchedulingStrategy(info.ray_node_id, soft=False)
        found.append(Subscriber.options(scheduling_strategy=strategy).remote(name))
    yield found
    ray.get([one.close.remote() for one in found], timeout=30)
    for one in found:
        ray.kill(one)


def expect(found: list[Any], version: raylog.Version, state: dict[str, Any]) -> None:
    """Every subscriber gets this version next."""
    digest = blake3(memoryview(state["model"]["w"].numpy()).cast("B")).hexdigest()
    assert ray.get([one.wait.remote() for one in found], timeout=60) == [(version.number, state["step"], digest)] * 3


def test_versions_reach_all_nodes_and_their_subscribers(client: raylog.Client) -> None:
    state = state_of(0)
    with subscribers(client, "weights/all") as found:  # before there is any
        for step in range(4):
            state["step"] = step
            change(state, 0.02, step)
            version = client.publish("weights/all", state)
            shard_ids = client._session.manifest(parse_reference(str(version))).distinct_shards().keys()
            for info in client.nodes():
                held = calls.wait(calls.node(info.ray_node_id).inventory.remote(), 10, "inventory")
                assert {ref.shard_id for ref in held} >= shard_ids
            expect(found, version, state)
        publisher = Publisher(client._session, "weights/all", PUBLISH_OPTIONS)  # which delivers nothing
        expect(found, publisher.publish(state), state)
    wait_until(lambda: len(client.versions("weights/all")) == 2, 20, "two versions are kept")
    client.delete("weights/all")


def test_only_what_changed_is_stored(client: raylog.Client) -> None:
    state, stored = state_of(0), []
    full = client.publish("weights/delta", state, keep=9)
    for number, share in enumerate(SHARES):
        change(state, share, number)
        version = client.publish("weights/delta", state, keep=9)
        stored.append(fresh_bytes(client, version) / full.stored_bytes)
        got = client.get("weights/delta")
        assert isinstance(got, dict) and got.keys() == {"/model/w", "/model/half", "/model/small", "document"}
        np.testing.assert_array_equal(got["/model/w"], state["model"]["w"].numpy())
        np.testing.assert_array_equal(got["/model/half"], state["model"]["half"].view(torch.uint16).numpy())
    first, second, unchanged, most, after = stored
    assert 0.01 < first < 0.05 and 0.01 < second < 0.05 and after < 0.05
    assert unchanged < 0.01
    assert 0.9 < most < 1.1
    client.delete("weights/delta@2")  # later ones name shards of it
    with client.subscribe("weights/delta") as subscription:
        assert_same(state, subscription.wait(20))
    assert client.verify("weights/delta").damaged == 0
    client.delete("weights/delta")


def test_a_chain_of_deltas_ends(client: raylog.Client) -> None:
    state = state_of(0, mib=2)
    full = client.publish("weights/chain", state, keep=1)
    sizes = []
    for number in range(8):
        change(state, 0.1, number)
        sizes.append(fresh_bytes_of_latest(client, state) / full.stored_bytes)
    assert [size > 0.9 for size in sizes] == [False, False, False, True] * 2  # a fourth would be more than half of all
    assert sum(size < 0.2 for size in sizes) == 6
    client.delete("weights/chain")


def fresh_bytes_of_latest(client: raylog.Client, state: Any) -> int:
    before = {one.shard.shard_id for one in client._session.manifest(parse_reference("weights/chain")).shards}
    client.publish("weights/chain", state, keep=1)
    shards = client._session.manifest(parse_reference("weights/chain")).shards
    return sum(one.shard.stored_bytes for one in shards if one.shard.shard_id not in before)


def test_few_changes_beside_a_document_that_changes(client: raylog.Client) -> None:
    state: dict[str, Any] = {"w": np.zeros(MIB, np.float32), "notes": "x" * 100_000}
    versions = [client.publish("weights/few", {**state, "step": 0})]
    for step in range(1, 5):
        state["w"][step] = 1
        versions.append(client.publish("weights/few", {**state, "step": step}))
    stored = [one.stored_bytes for one in versions]
    assert all(later - before < 20_000 for before, later in itertools.pairwise(stored))
    with client.subscribe("weights/few") as subscription:
        found = subscription.wait(20)
    np.testing.assert_array_equal(found["w"], state["w"])
    assert found["step"] == 4
    client.delete("weights/few")


def test_another_publisher_goes_on(client: raylog.Client) -> None:
    state = state_of(0)
    client.publish("weights/two", state)
    other = Publications(client._session)
    options: Any = {
        "replicas": 1, "durability": "memory", "keep": 2, "wait": True, "timeout_s": 60, "on_progress": None
    }  # fmt: skip
    with client.subscribe("weights/two") as subscription:
        assert_same(state, subscription.wait(20))
        for number in range(4):
            change(state, 0.02, number)
            if number % 2:
                client.publish("weights/two", state)
            else:
                other.publish("weights/two", state, **options)
            assert_same(state, subscription.wait(20))
    client.delete("weights/two")


def test_versions_are_switched_whole_into_tensors_that_are_there(client: raylog.Client) -> None:
    live = {"w": torch.zeros(MIB // 4), "b": torch.zeros(9, dtype=torch.bfloat16), "n": np.zeros(5)}
    tensors, seen = dict(live), []
    with client.subscribe("weights/live", into=live, key="/model") as subscription:
        assert subscription.poll() is None
        with pytest.raises(DeadlineExceeded, match="nothing newer than no version of weights/live came"):
            subscription.wait(0.1)

        def publish() -> None:
            for step in range(1, 8):
                values = {name: tensor * 0 + step for name, tensor in tensors.items()}
                client.publish("weights/live", {"model": values, "step": step}, wait=step % 2 == 0)

        thread = threading.Thread(target=publish)
        thread.start()
        deadline = time.monotonic() + 60
        while (not seen or seen[-1] < 7) and time.monotonic() < deadline:
            found = subscription.poll()
            values = {float(value) for tensor in live.values() for value in tensor[[0, -1]]}
            assert len(values) == 1
            if found is not None:
                assert all(found[name] is tensor for name, tensor in tensors.items())
                seen.append(values.pop())
        thread.join()
        assert seen == sorted(seen) and seen[-1] == 7
        assert subscription.version == client.stat("weights/live")
    with pytest.raises(Cancelled):
        subscription.wait(1)
    client.delete("weights/live")


def test_versions_that_follow_faster_than_they_come(client: raylog.Client) -> None:
    """Of none is all there before the next one is: subscribers elsewhere get on all the same."""
    state, is_over = state_of(0, mib=1), threading.Event()
    publisher = Publisher(client._session, "weights/fast", PUBLISH_OPTIONS)  # which delivers nothing

    def publish() -> None:
        while not is_over.wait(0.4):
            change(state, 1.0, 1)
            publisher.publish(state)

    thread = threading.Thread(target=publish)
    with subscribers(client, "weights/fast") as found:
        expect(found, publisher.publish(state), state)
        thread.start()
        try:
            later = ray.get([one.wait.remote() for one in found], timeout=40)
        finally:
            is_over.set()
            thread.join()
    assert all(number > 1 for number, *_ in later)
    client.delete("weights/fast")


def test_an_error_that_nobody_expects_is_told_and_passes(
    client: raylog.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(kind: type[BaseException]) -> Any:
        def read(*_: object) -> None:
            raise kind("odd")

        return read

    with client.subscribe("weights/odd") as subscription:
        monkeypatch.setattr(Target, "read", failing(MemoryError))
        client.publish("weights/odd", {"w": np.zeros(9)})
        with pytest.raises(Unavailable, match=r"tried again: MemoryError\('odd'\)"):
            subscription.wait(20)
        monkeypatch.undo()
        np.testing.assert_array_equal(subscription.wait(20)["w"], np.zeros(9))
        assert subscription.is_running
        monkeypatch.setattr(Target, "read", failing(SystemExit))
        client.publish("weights/odd", {"w": np.ones(9)})
        for ask in (lambda: subscription.wait(20), subscription.poll, subscription.poll):
            with pytest.raises(Unavailable, match="ended, subscribe again"):
                ask()
        assert not subscription.is_running
    client.delete("weights/odd")


def test_a_delivery_that_is_closed_while_it_begins(client: raylog.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    version = Publisher(client._session, "weights/closed", PUBLISH_OPTIONS).publish(state_of(0))
    delivery = Delivery(client._session)

    def begin(*arguments: Any) -> Shipment:
        delivery.close()
        return Shipment(*arguments)

    monkeypatch.setattr(deliver, "Shipment", begin)
    delivery.deliver(parse_reference(str(version)), 60, None)
    assert delivery._brought == {}
    client.delete("weights/closed")


def test_published_with_other_options_meanwhile(
    client: raylog.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By another thread, between a version's commit and its delivery."""
    publications, state, publish = Publications(client._session), {"w": np.zeros(9)}, Publisher.publish
    options: Any = {"durability": "memory", "keep": 2, "wait": False, "timeout_s": 60, "on_progress": None}

    def overtaken(self: Publisher, state: object) -> raylog.Version:
        version = publish(self, state)
        if version.number == 1:
            publications.publish("weights/options", state, replicas=2, **options)
        return version

    monkeypatch.setattr(Publisher, "publish", overtaken)
    version = publications.publish("weights/options", state, replicas=1, **options)
    assert version.number == 1 and f"{version} is committed, but brought to no node" in caplog.text
    publications.close()
    client.delete("weights/options")


def test_a_node_that_restarted_is_brought_all_again(client: raylog.Client) -> None:
    state = state_of(0)
    client.publish("weights/restart", state)
    keepers = {node_id for nodes in client.replicas("weights/restart").values() for node_id in nodes}
    before = next(info for info in client.nodes() if info.node_id not in keepers | {client.local_node().node_id})
    os.kill(before.pid, signal.SIGKILL)

    def now() -> list[NodeInfo]:
        return [info for info in client.nodes() if info.node_id == before.node_id and info.pid != before.pid]

    wait_until(lambda: bool(now()), 30, "the node came back as itself")
    change(state, 0.02, 1)
    version = client.publish("weights/restart", state)
    shard_ids = client._session.manifest(parse_reference(str(version))).distinct_shards().keys()
    held = calls.wait(calls.node(before.ray_node_id).inventory.remote(), 10, "inventory")
    assert len(shard_ids) > 1 and {ref.shard_id for ref in held} >= shard_ids
    client.delete("weights/restart")


@pytest.mark.slow
def test_a_node_that_dies_is_not_waited_for(machine: Machine, client: raylog.Client) -> None:
    state = state_of(0, mib=16)
    added = machine.cluster.add_node(num_cpus=1, object_store_memory=80 * MIB)
    wait_until(lambda: len(client.nodes()) == 4, 60, "the fourth node's actor")
    client.publish("weights/dies", state)
    machine.cluster.remove_node(added, allow_graceful=False)
    change(state, 1.0, 1)
    started_s = time.monotonic()
    version = client.publish("weights/dies", state)
    assert time.monotonic() - started_s < 40
    wait_until(lambda: len(client.nodes()) == 3, 30, "the dead node is not listed any more")
    shard_ids = client._session.manifest(parse_reference(str(version))).distinct_shards().keys()
    for info in client.nodes():
        held = calls.wait(calls.node(info.ray_node_id).inventory.remote(), 10, "inventory")
        assert {ref.shard_id for ref in held} >= shard_ids
    client.delete("weights/dies")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_from_and_into_a_gpu(client: raylog.Client) -> None:
    state = {"w": torch.randn(MIB, device="cuda"), "half": torch.randn(1000, device="cuda").to(torch.bfloat16)}
    live = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    with client.subscribe("weights/cuda", into=live) as subscription:
        assert all(one.is_pinned() for one in subscription._target._waiting.values())
        for _ in range(3):
            state["w"][::50] += 1
            client.publish("weights/cuda", state)
            subscription.wait(20)
            assert all(torch.equal(live[name], tensor) for name, tensor in state.items())
    client.delete("weights/cuda")


def test_what_cannot_be_published_or_read(client: raylog.Client) -> None:
    state = state_of(1)
    live = {"model": {name: torch.zeros_like(tensor) for name, tensor in state["model"].items()}}
    with client.subscribe("weights/bad", into=live) as subscription:
        client.publish("weights/bad", state)
        assert_same(state, subscription.wait(20))
        for share in (0.0, 1.0):  # found in what changed, and in all
            broken = {"model": {name: tensor + (share > 0) for name, tensor in state["model"].items()}}
            broken["model"]["half"][5] = float("nan")
            with pytest.raises(UsageError, match="tensor /model/half holds a NaN"):
                client.publish("weights/bad", broken)
        for wrong, message in (
            ({"model": {**state["model"], "w": torch.zeros(3)}, "step": 2}, r"\[?'?/model/w"),
            (
                {"model": {"w": state["model"]["w"]}, "step": 2},
                "expected /model/half, /model/small in the state that is read",
            ),
        ):
            version = client.publish("weights/bad", wrong)
            with pytest.raises(UsageError, match=message) as caught:
                subscription.wait(20)
            assert str(version) in caught.value.__notes__[0]
            assert_same(state, {**live, "step": 1})
        change(state, 0.1, 3)
        client.publish("weights/bad", state)
        assert_same(state, subscription.wait(20))
        client.put("weights/bad", {"a": np.ones(3)})
        with pytest.raises(UsageError, match="weights/bad"):
            subscription.wait(20)
        client.publish("weights/bad", state)
        assert_same(state, subscription.wait(20))
        client.delete("weights/bad")
        client.publish("weights/bad", {**state, "step": 8})
        assert subscription.wait(20)["step"] == 8
    with pytest.raises(UsageError, match="expected a dense tensor"):
        client.publish("weights/bad", {"w": torch.zeros(3).to_sparse()})
    for empty in ({}, {"step": 1}, {"w": torch.zeros(0)}):
        with pytest.raises(UsageError, match="at least one tensor"):
            client.publish("weights/bad", empty)
    with pytest.raises(UsageError, match="at least one version to keep"):
        client.publish("weights/bad", state, keep=0)
    client.delete("weights/bad")
