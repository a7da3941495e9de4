"""torch.distributed.checkpoint over raylog: one process, and several ranks saving and others loading."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import raylog
from raylog.spec import parse_reference

torch = pytest.importorskip("torch")
RANK = Path(__file__).parent / "dcp_rank.py"
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")  # that is what no_dist says


def test_one_process_saves_and_loads(client: raylog.Client) -> None:
    import torch.distributed.checkpoint as dcp

    model = torch.nn.Sequential(torch.nn.Linear(300, 500), torch.nn.Linear(500, 3, dtype=torch.bfloat16))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 7, "empty": torch.empty(0, 4)}
    writer, reader = (
        make("ckpt/dcp", client=client) for make in (raylog.RaylogStorageWriter, raylog.RaylogStorageReader)
    )
    dcp.save(state, storage_writer=writer, no_dist=True)
    first = client.stat("ckpt/dcp")
    found: dict[str, Any] = {
        "model": {key: torch.zeros_like(value) for key, value in state["model"].items()},
        "optimizer": torch.optim.AdamW(model.parameters(), lr=0.1).state_dict(),
        "step": 0,
        "empty": torch.empty(0, 4),
    }
    for moments in ("exp_avg", "exp_avg_sq"):
        for number, parameter in enumerate(model.parameters()):
            found["optimizer"]["state"].setdefault(number, {"step": torch.tensor(0.0)})[moments] = torch.zeros_like(
                parameter
            )
    dcp.load(found, storage_reader=reader, no_dist=True)
    assert found["step"] == 7 and found["optimizer"]["param_groups"][0]["lr"] == 0.5
    for key, value in state["model"].items():
        assert torch.equal(found["model"][key], value)
    assert torch.equal(found["optimizer"]["state"][0]["exp_avg"], state["optimizer"]["state"][0]["exp_avg"])

    dcp.async_save(state | {"step": 8}, checkpoint_id="raylog://ckpt/dcp", storage_writer=writer, no_dist=True).result()
    second = client.stat("ckpt/dcp")
    assert (first.number, second.number) == (1, 2)
    dcp.load(found, checkpoint_id="raylog://ckpt/dcp@1", storage_reader=reader, no_dist=True)
    assert found["step"] == 7
    dcp.load(found, checkpoint_id="raylog://ckpt/dcp@2", storage_reader=reader, no_dist=True)
    assert found["step"] == 8
    dcp.save(state | {"step": 9}, storage_writer=writer, no_dist=True)
    shards = [client._session.manifest(parse_reference(f"ckpt/dcp@{number}")).shards for number in (2, 3)]
    assert len({one.shard.shard_id for both in shards for one in both}) < sum(map(len, shards))  # what did not change
    with pytest.raises(dcp.CheckpointException, match="no artifact 'ckpt/none'"):
        dcp.load(found, checkpoint_id="raylog://ckpt/none", storage_reader=reader, no_dist=True)
    client.put("ckpt/other", {"w": torch.ones(3)})
    with pytest.raises(dcp.CheckpointException, match="expected a checkpoint"):
        dcp.load(found, checkpoint_id="raylog://ckpt/other", storage_reader=reader, no_dist=True)
    with pytest.raises(dcp.CheckpointException, match="holds a NaN"):
        dcp.save(
            {"w": torch.tensor([float("nan")])}, checkpoint_id="raylog://ckpt/dcp", storage_writer=writer, no_dist=True
        )
    assert client.stat("ckpt/dcp").number == 3
    for one in (writer, reader):
        one.close()
    client.delete("ckpt/dcp")
    client.delete("ckpt/other")


def run_ranks(machine: Any, what: str, world_size: int, folder: Path) -> None:
    where = [machine.cluster.address, str(machine.settings.state), f"file://{folder / what}"]
    words = [[sys.executable, str(RANK), *where, what, str(rank), str(world_size)] for rank in range(world_size)]
    ranks = [subprocess.Popen(one, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for one in words]
    for rank in ranks:
        output, _ = rank.communicate(timeout=120)
        assert rank.returncode == 0, output


def test_sharded_tensors_go_to_another_number_of_ranks(client: raylog.Client, machine: Any, tmp_path: Path) -> None:
    run_ranks(machine, "save", 3, tmp_path)
    assert client.stat("ckpt/sharded").number == 1
    run_ranks(machine, "load", 2, tmp_path)
    run_ranks(machine, "resume", 3, tmp_path)
    client.delete("ckpt/sharded")
