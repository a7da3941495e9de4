"""A copy of a state's tensors in this process's own memory, so that training may go on while it is saved."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from raylog.api.checkpoint.tree import is_tensor


class Snapshot:
    """Keeps the memory of the last copy and fills it again: fresh pages cost several times the copy itself. Tensors on
    an accelerator come over pinned memory, all at once."""

    def __init__(self) -> None:
        self._buffers: dict[str, Any] = {}

    def take(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """Contiguous copies on the CPU by name, which are good until the next call."""
        self._buffers = {name: buffer_for(value, self._buffers.get(name)) for name, value in arrays.items()}
        devices = set()
        for name, value in arrays.items():
            if is_tensor(value):
                self._buffers[name].copy_(value.detach(), non_blocking=value.is_cuda)
                devices |= {value.device} if value.is_cuda else set()
            else:
                np.copyto(self._buffers[name], value)
        for device in devices:
            import torch

            torch.cuda.synchronize(device)
        return dict(self._buffers)


def lies_ready(value: Any) -> bool:
    """Whether it can be sealed from where it lies."""
    if is_tensor(value):
        return value.device.type == "cpu" and bool(value.is_contiguous())
    return bool(value.flags.c_contiguous)


def buffer_for(value: Any, buffer: Any = None) -> Any:
    """`buffer` if `value` can be copied into it, else a new one: on the CPU, in pinned memory for what is on CUDA."""
    if is_tensor(value):
        import torch

        if is_tensor(buffer) and (buffer.shape, buffer.dtype) == (value.shape, value.dtype):
            return buffer
        return torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
    fits = isinstance(buffer, np.ndarray) and (buffer.shape, buffer.dtype) == (value.shape, value.dtype)
    return buffer if fits else np.empty(value.shape, value.dtype)
