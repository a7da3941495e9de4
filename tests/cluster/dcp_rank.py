"""One rank that saves or loads a tensor spread over all: `python dcp_rank.py ADDRESS STATE STORE save|load|resume RANK
RANKS`. `load` spreads it another way than `save`, `resume` the same."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import raylog
from raylog.api.get import Reading
from raylog.api.local_copy import LocalCopy
from raylog.api.pulls import Pulls
from raylog.settings import Settings


def main(address: str, state: str, store: str, what: str, rank: str, world_size: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store, rank=int(rank), world_size=int(world_size))
    mesh = init_device_mesh("cpu", (int(world_size),))
    whole = torch.arange(101 * 3000, dtype=torch.float32).reshape(101, 3000)
    with raylog.connect(address, settings=Settings(state=Path(state))) as client:
        if what == "save":
            spread = {"w": distribute_tensor(whole, mesh, [Shard(0)]), "same": torch.ones(5)}
            writer = raylog.RaylogStorageWriter("ckpt/sharded", client=client)
            dcp.save(spread, storage_writer=writer)
            writer.close()
        else:
            spread = {"w": distribute_tensor(torch.zeros_like(whole), mesh, [Shard(what == "load")])}
            spread["same"] = torch.zeros(5)
            brought = note_brought()
            reader = raylog.RaylogStorageReader("ckpt/sharded", client=client)
            dcp.load(spread, storage_reader=reader)
            reader.close()
            if what == "resume":  # the metadata, its own part, and that of whoever wrote `same`
                assert brought < set(range(1 + int(world_size))) and len(brought) <= 3, brought
            assert torch.equal(spread["w"].full_tensor(), whole) and torch.equal(spread["same"], torch.ones(5))
    dist.destroy_process_group()


def note_brought() -> set[int]:
    """The positions of the shards that are brought from now on."""
    brought, bring = set(), Reading.bring

    def noting(self: Reading, position: int, pulls: Pulls) -> LocalCopy:
        brought.add(position)
        return bring(self, position, pulls)

    Reading.bring = noting  # type: ignore[method-assign]
    return brought


if __name__ == "__main__":
    main(*sys.argv[1:])
