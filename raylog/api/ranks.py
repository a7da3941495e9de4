"""Which of how many ranks this process is, when nobody says it, and what all ranks of a start have in common."""

import hashlib
import os
import sys
from dataclasses import dataclass

from raylog.errors import UsageError
from raylog.spec import new_id

RUN_BYTES = 32


def find_rank(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """As given; else those of torch.distributed, else of Ray Train's worker, else 0 of 1. Raises `UsageError`."""
    if (rank is None) != (world_size is None):
        raise UsageError(f"expected rank and world_size together, got rank={rank} and world_size={world_size}")
    if rank is None or world_size is None:
        rank, world_size = _of_torch() or _of_ray_train() or (0, 1)
    is_whole = isinstance(rank, int) and isinstance(world_size, int)
    if not is_whole or world_size < 1 or not 0 <= rank < world_size:
        raise UsageError(f"expected a rank from 0 to world_size - 1, got rank={rank!r} and world_size={world_size!r}")
    return rank, world_size


def _of_torch() -> tuple[int, int] | None:
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return None
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def _of_ray_train() -> tuple[int, int] | None:
    train = sys.modules.get("ray.train")
    if train is None:
        return None
    try:
        context = train.get_context()
        return context.get_world_rank(), context.get_world_size()
    except RuntimeError:  # not in a worker of Ray Train
        return None


@dataclass(frozen=True, slots=True)
class Agreement:
    """What all ranks of one start have in common: `run`, 32 bytes that no other start has, and a `number`."""

    run: bytes
    number: int

    def id_of(self, what: str) -> str:
        """An id of something in this start: the same for all ranks."""
        return hashlib.sha256(self.run + what.encode()).hexdigest()[: len(new_id())]


def agree(run: str | None, ranks: tuple[int, int], number: int) -> Agreement:
    """`run` is made of the text where one is given; else rank 0 draws it and tells the others over torch.distributed or
    Ray Train, with its `number` (so all ranks call this). `ranks`: this one, of how many. Raises `UsageError` where
    there is neither of both, or they count other ranks."""
    if run is not None:
        return Agreement(hashlib.sha256(f"raylog/1 run {run}".encode()).digest(), number)
    mine = os.urandom(RUN_BYTES) + number.to_bytes(8, "big")
    if ranks[1] == 1:
        return _agreement(mine)
    if _of_torch() == ranks:
        return _agreement(_told_by_torch(mine))
    if _of_ray_train() == ranks:
        from ray.train.collective import broadcast_from_rank_zero

        return _agreement(bytes.fromhex(broadcast_from_rank_zero(mine.hex())))
    raise UsageError(
        f"expected torch.distributed or Ray Train by which these {ranks[1]} ranks can agree, or run='...': a text "
        "that is the same for all of them and another for each start"
    )


def _agreement(told: bytes) -> Agreement:
    return Agreement(told[:RUN_BYTES], int.from_bytes(told[RUN_BYTES:], "big"))


def _told_by_torch(mine: bytes) -> bytes:
    import torch

    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    told = torch.tensor(list(mine), dtype=torch.uint8, device=device)
    torch.distributed.broadcast(told, src=0)
    return bytes(told.tolist())
