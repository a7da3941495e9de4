"""The tensors of a subscriber that versions are switched into, and the memory in which the next version waits."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from raylog.api.checkpoint.load import load
from raylog.api.checkpoint.snapshot import buffer_for
from raylog.api.checkpoint.tree import is_tensor, put_together, take_apart
from raylog.api.get import Reading


class Target:
    """Of the state `into`; None: every version comes in memory of its own. Raises `UsageError`."""

    def __init__(self, into: Any) -> None:
        taken = take_apart({} if into is None else into)
        self._into: Mapping[str, Any] = taken.arrays
        self._waiting = {name: buffer_for(value) for name, value in taken.arrays.items()}
        self._state = put_together(taken.document, lambda name, is_torch: self._waiting[name]) if self._into else None

    def read(self, reading: Reading, key: str) -> Any:
        """The part of a version at `key`, for `switch`: it is good until the next is read. Raises as `load`."""
        return load(reading, "", key, self._state)

    def switch(self, state: Any) -> Any:
        """What was read, now in the target's own tensors."""
        if not self._into:
            return state
        taken = take_apart(state)
        devices = set()
        for name, value in self._into.items():
            if is_tensor(value):
                value.detach().copy_(taken.arrays[name], non_blocking=value.is_cuda)
                devices |= {value.device} if value.is_cuda else set()
            else:
                np.copyto(value, taken.arrays[name])
        for device in devices:
            import torch

            torch.cuda.synchronize(device)
        return put_together(taken.document, lambda name, is_torch: self._into.get(name, taken.arrays[name]))
