"""Which of how many ranks this process is, when nobody says it."""

import sys

from raylog.errors import UsageError


def find_rank(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """As given; else those of torch.distributed, else of Ray Train's worker, else 0 of 1. Raises `UsageError`."""
    if (rank is None) != (world_size is None):
        raise UsageError(f"expected rank and world_size together, got rank={rank} and world_size={world_size}")
    if rank is None or world_size is None:
        rank, world_size = _of_torch() or _of_ray_train() or (0, 1)
    if world_size < 1 or not 0 <= rank < world_size:
        raise UsageError(f"expected a rank from 0 to world_size - 1, got rank={rank} and world_size={world_size}")
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
