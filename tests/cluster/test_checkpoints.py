"""Checkpoints on a cluster of three nodes: saved in the background, found again, loaded, stored once."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import raylog
from raylog.api.older import replicas_of
from raylog.errors import NotFound, UsageError
from raylog.spec import Durability, parse_reference
from raylog.units import MIB

torch = pytest.importorskip("torch")
SAVER = Path(__file__).parent / "checkpoint_saver.py"


def state_of(step: int, mib: int = 8) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    frozen = torch.Generator().manual_seed(0)
    items = mib * MIB // 16
    return {
        "model": {
            "w": torch.randn(items, generator=generator),
            "b": torch.randn(7, generator=generator).to(torch.bfloat16),
            "frozen": torch.randn(items, generator=frozen),
        },
        "optimizer": {"state": {0: {"step": torch.tensor(float(step)), "m": torch.randn(items, generator=generator)}}},
        "groups": [{"lr": 0.1, "betas": (0.9, 0.999)}],
        "rng": np.random.default_rng(step).bit_generator.state,
        "step": step,
    }


def assert_same(one: Any, other: Any) -> None:
    if torch.is_tensor(one):
        assert one.dtype == other.dtype and torch.equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key, value in one.items():
            assert_same(value, other[key])
    elif isinstance(one, (list, tuple)):
        assert type(one) is type(other)
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    else:
        assert one == other


def test_saved_in_the_background_and_loaded(client: raylog.Client) -> None:
    with raylog.CheckpointManager(
        "ckpt/run", client=client, replicas=2, durability="memory", keep=2, every=2
    ) as manager:
        assert manager.load() is None and manager.steps() == []
        for step in range(5):
            state = state_of(step)
            assert manager.save(step, state) is (step % 2 == 0)
            state["model"]["w"].zero_()  # the copy was made
        assert_same(state_of(4), manager.load())
        into = state_of(9)
        found = manager.load(2, into=into)
        assert found["model"]["w"] is into["model"]["w"]
        assert_same(state_of(2), into | {"step": 2, "rng": state_of(2)["rng"]})
        assert_same(state_of(4)["model"], manager.load(key="/model"))
        assert manager.load(key="/groups/0/betas") == (0.9, 0.999)
        for number, wrong in enumerate(({"key": "/none"}, {"into": {"model": {"w": torch.zeros(3)}}}, {"step": 3})):
            with pytest.raises(
                (UsageError, NotFound), match=("there is no '/none'", "/model/w", r"no step 3; it has")[number]
            ):
                manager.load(**wrong)
        with pytest.raises(UsageError, match="expected /model/lost in the state that is read"):
            manager.load(into={"model": {"w": state["model"]["w"], "lost": torch.zeros(3)}})
        with pytest.raises(UsageError, match="target of float32 for /model/w, got int32"):
            manager.load(into={"model": {"w": state["model"]["w"].view(torch.int32)}})
    shards = [entry.shard for entry in client._session.manifest(parse_reference("ckpt/run")).shards]
    on_disk = [replicas_of(client._session, shard, Durability.DISK) for shard in shards]
    assert shards and all(len(receipts) == 2 for receipts in on_disk)  # the manager has waited for that too
    deadline = time.monotonic() + 20
    while len(client.versions("ckpt/run")) > 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    with raylog.CheckpointManager("ckpt/run", client=client) as later:
        assert later.steps() == [2, 4]
    weights = client.get("ckpt/run")
    assert isinstance(weights, dict)
    np.testing.assert_array_equal(weights["/model/w"], state_of(4)["model"]["w"].numpy())
    client.delete("ckpt/run")


def test_targets_that_are_not_tied_or_do_not_lie_in_a_row(client: raylog.Client) -> None:
    weight = torch.ones(3, 4)
    with raylog.CheckpointManager("ckpt/tied", client=client) as manager:
        manager.save(1, {"a": weight, "b": weight}, blocking=True)
        again = manager.load()
        assert again["a"] is again["b"]
        untied = {"a": torch.zeros(3, 4), "b": torch.zeros(4, 3).T.requires_grad_()}
        found = manager.load(into=untied)
        assert found["a"] is untied["a"] and found["b"] is untied["b"]
        assert torch.equal(untied["a"], weight) and torch.equal(untied["b"], weight)
        with pytest.raises(UsageError, match=r"shape \(3, 4\) for /b, got \(4, 1\)"):
            manager.load(into={"b": torch.zeros(1, 4).T})
    client.delete("ckpt/tied")


def test_what_did_not_change_is_not_stored_again(client: raylog.Client) -> None:
    stored = []

    def note() -> None:
        manifest = client._session.manifest(parse_reference("ckpt/same"))
        before = {one.shard.shard_id for _, shards in stored for one in shards}
        fresh = sum(one.shard.stored_bytes for one in manifest.shards if one.shard.shard_id not in before)
        stored.append((fresh, manifest.shards))

    state = state_of(0, mib=16)
    with raylog.CheckpointManager("ckpt/same", client=client) as manager:
        for step in range(3):
            state["step"] = step
            if step == 2:
                state["model"]["w"] += 1
            manager.save(step, state, blocking=True)
            note()
    with raylog.CheckpointManager("ckpt/same", client=client) as manager:  # another process would open what it names
        state["step"] = 3
        manager.save(3, state, blocking=True)
        note()
        assert_same(state, manager.load())
        client.delete("ckpt/same@1")
        assert_same(state, manager.load())
    full, unchanged, third, again = [fresh for fresh, _ in stored]
    assert unchanged < full / 100 and again < full / 100
    assert full / 5 < third < full * 0.7
    assert client.verify("ckpt/same").damaged == 0
    client.delete("ckpt/same")


def test_a_checkpoint_of_ray_train_points_to_a_step(client: raylog.Client, tmp_path: Path) -> None:
    from ray.train import Checkpoint

    with raylog.CheckpointManager("ckpt/train", client=client) as manager:
        with pytest.raises(NotFound, match="no step yet"), manager.train_checkpoint():
            pass
        for step in (1, 2):
            manager.save(step, state_of(step, mib=1))
        with manager.train_checkpoint(1) as checkpoint:  # ray.train.report stores it somewhere; so is this
            kept = Checkpoint(checkpoint.to_directory(tmp_path / "kept"))
        assert_same(state_of(1, mib=1), manager.load_train_checkpoint(kept))
        assert sum(path.stat().st_size for path in (tmp_path / "kept").rglob("*")) < 1000
        (tmp_path / "other").mkdir()
        with pytest.raises(UsageError, match=r"has no raylog\.json"):
            manager.load_train_checkpoint(Checkpoint(str(tmp_path / "other")))
    client.delete("ckpt/train")


def test_in_pieces_instead_of_replicas(client: raylog.Client) -> None:
    with raylog.CheckpointManager("ckpt/pieces", client=client, erasure="2+1") as manager:
        for step in (1, 2):
            manager.save(step, state_of(step, mib=1))
        assert_same(state_of(2, mib=1), manager.load())
        assert_same(state_of(1, mib=1), manager.load(1))
    client.delete("ckpt/pieces")


def test_what_cannot_be_saved(client: raylog.Client) -> None:
    with raylog.CheckpointManager("ckpt/bad", client=client) as manager:
        manager.save(1, state_of(1), blocking=True)
        broken = state_of(2)
        broken["model"]["b"][3] = float("nan")
        manager.save(2, broken)
        with pytest.raises(UsageError, match="tensor /model/b holds a NaN") as caught:
            manager.save(3, state_of(3))
        assert "step 2 was not stored" in caught.value.__notes__[0]
        with pytest.raises(UsageError, match="got object at /model/x"):
            manager.save(3, {"model": {"x": object()}})
        for step in (-1, True, "5"):
            with pytest.raises(UsageError, match="expected a step from 0"):
                manager.save(step, {})  # type: ignore[arg-type]
        assert manager.steps() == [1]
        with pytest.raises(UsageError, match=r"tensor '/sparse': expected a dense tensor"):
            manager.save(4, {"sparse": torch.zeros(3).to_sparse()})
    with pytest.raises(UsageError, match="ckpt/bad: this manager is closed, step 5 is not stored"):
        manager.save(5, state_of(1))
    with raylog.CheckpointManager("ckpt/bad", client=client, allow_nan=True) as manager:
        manager.save(2, broken, blocking=True)
        assert manager.load()["model"]["b"][3].isnan()
    client.put("ckpt/table", {"a": np.ones(3)})
    with raylog.CheckpointManager("ckpt/table", client=client) as manager:
        assert manager.load() is None
    for options in ({"keep": 0}, {"every": 0}, {"durability": "disc"}):
        with pytest.raises(UsageError):
            raylog.CheckpointManager("ckpt/bad", client=client, **options)  # type: ignore[arg-type]
    client.delete("ckpt/bad")
    client.delete("ckpt/table")


def test_a_killed_run_leaves_its_last_whole_step(client: raylog.Client, machine: Any) -> None:
    words = [sys.executable, str(SAVER), machine.cluster.address, str(machine.settings.state), "ckpt/killed"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        seen = 0
        for line in run.stdout:
            if line.startswith("saved"):
                seen = int(line.split()[1])
            if seen >= 3:
                os.kill(run.pid, signal.SIGKILL)
                break
    with raylog.CheckpointManager("ckpt/killed", client=client) as manager:
        last = manager.steps()[-1]
        assert last >= 3
        assert_same(state_of(last), manager.load())
        manager.save(last + 1, state_of(last + 1), blocking=True)
        assert_same(state_of(last + 1), manager.load())
    client.delete("ckpt/killed")


def on_all_ranks(managers: list[raylog.CheckpointManager], what: Any) -> list[Any]:
    with ThreadPoolExecutor(len(managers)) as executor:
        futures = [executor.submit(what, manager) for manager in managers]
        return [future.exception() or future.result() for future in futures]


def of_rank(rank: int, step: int) -> dict[str, Any]:
    return {
        "w": torch.full((200_000,), float(10 * step + rank)),
        "frozen": torch.full((300_000,), float(rank)),
        "rank": rank,
    }


def test_ranks_save_one_step_together(client: raylog.Client) -> None:
    def managers(run: str, ranks: int = 3) -> list[raylog.CheckpointManager]:
        options = {"client": client, "world_size": ranks, "run": run, "keep": 2}
        return [raylog.CheckpointManager("ckpt/ranks", rank=rank, **options) for rank in range(ranks)]  # type: ignore[arg-type]

    first = managers("first start")
    for step in (1, 2):
        on_all_ranks(first, lambda m, step=step: m.save(step, of_rank(m.rank, step)))
    assert on_all_ranks(first, lambda m: m.steps()) == [[1, 2]] * 3
    for rank, found in enumerate(on_all_ranks(first, lambda m: m.load())):
        assert_same(of_rank(rank, 2), found)
    assert [one.number for one in client.versions("ckpt/ranks")] == [1, 2]

    def spoilt(manager: raylog.CheckpointManager) -> bool:
        state = of_rank(manager.rank, 3)
        if manager.rank == 1:
            state["w"][5] = float("nan")
        return manager.save(3, state, blocking=True)

    told = on_all_ranks(first, spoilt)
    assert [type(one).__name__ for one in told] == ["Cancelled", "UsageError", "Cancelled"]
    assert "rank 1: UsageError: tensor rank1:/w holds a NaN" in str(told[0])
    assert first[0].steps() == [1, 2]
    on_all_ranks(first, lambda m: m.close())

    second = managers("second start")
    assert [found["rank"] for found in on_all_ranks(second, lambda m: m.load())] == [0, 1, 2]
    on_all_ranks(second, lambda m: m.save(3, of_rank(m.rank, 3), blocking=True))
    now, before = (client._session.manifest(parse_reference(f"ckpt/ranks@{number}")).shards for number in (3, 2))
    again = [one for one in now if one.shard.shard_id in {other.shard.shard_id for other in before}]
    assert len(again) == 3 and all(one.ranges for one in again)  # each rank named what of its own did not change
    on_all_ranks(second, lambda m: m.close())

    (fewer,) = managers("third start", 1)
    with pytest.raises(UsageError, match="saved by 3 ranks, here are 1"):
        fewer.load()
    assert_same(of_rank(2, 3), fewer.load(rank=2))
    with pytest.raises(UsageError, match="expected a rank from 0 to 2, got 3"):
        fewer.load(rank=3)
    fewer.save(4, of_rank(0, 4), blocking=True)
    assert_same(of_rank(0, 4), fewer.load())
    fewer.close()
    with pytest.raises(UsageError, match="can agree, or run="):
        raylog.CheckpointManager("ckpt/ranks", client=client, rank=0, world_size=2)
    client.delete("ckpt/ranks")
