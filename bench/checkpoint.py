"""A checkpoint of 1 GiB (bf16 and f32, as a model with its optimizer has them): saved, loaded, and how long the
training loop stands still, beside torch.save, safetensors and torch.distributed.checkpoint.

To the memory tier (peers: to /dev/shm) and to disk, where every side ends with fsync. raylog's are encrypted, verified
by the node, checked for NaN, and found again chunk by chunk. Peers that are not installed are left out and named.
Medians of five rounds that alternate between the sides. `stall`: until the loop goes on, of those that save in the
background; `copy`: the tensors into memory that is there (`copy_fresh`: new). `load`: into tensors that are there, as a
resumed run has them; `load_fresh`: into new ones.

    python bench/checkpoint.py [--json] [--quick]
"""

import importlib.util
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from common import parser, report

import raylog
from raylog.settings import Settings
from raylog.spec import parse_reference
from raylog.units import GIB, MIB

ROUNDS = 5
State = dict[str, torch.Tensor]
Times = dict[str, list[float]]


def make_state(size_bytes: int) -> State:
    layers, generator = 16, torch.Generator().manual_seed(0)
    state = {}
    for layer in range(layers):
        items = size_bytes // layers // 2 // 4
        state[f"layers.{layer}.weight"] = torch.randn(2 * items, generator=generator).to(torch.bfloat16)
        state[f"optimizer.{layer}.moment"] = torch.randn(items, generator=generator)
    return state


def zeros_like(state: State) -> State:
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


def step(state: State) -> None:
    """A training step: every value changes."""
    for tensor in state.values():
        tensor.add_(1)


def fsynced(path: Path) -> None:
    for one in [path, *path.rglob("*")] if path.is_dir() else [path]:
        descriptor = os.open(one, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


@contextmanager
def timed(times: Times, what: str) -> Iterator[None]:
    began_s = time.perf_counter()
    yield
    times.setdefault(what, []).append(time.perf_counter() - began_s)


class TorchSave:
    name = "torch.save"

    def __init__(self, folder: Path, durably: bool) -> None:
        self._path, self._durably = folder / "state.pt", durably

    def save(self, state: State, times: Times) -> None:
        with timed(times, "save"):
            torch.save(state, self._path)
            if self._durably:
                fsynced(self._path)

    def load(self, into: State, times: Times) -> None:
        with timed(times, "load_fresh"):
            found = torch.load(self._path, mmap=False)
        del found
        with timed(times, "load"):
            found = torch.load(self._path, mmap=False)
            for name, tensor in into.items():
                tensor.copy_(found[name])


class Safetensors:
    name = "safetensors"

    def __init__(self, folder: Path, durably: bool) -> None:
        from safetensors import torch as safetensors

        self._lib, self._path, self._durably = safetensors, folder / "state.safetensors", durably

    def save(self, state: State, times: Times) -> None:
        with timed(times, "save"):
            self._lib.save_file(state, self._path)
            if self._durably:
                fsynced(self._path)

    def load(self, into: State, times: Times) -> None:
        with timed(times, "load_fresh"):
            found = {name: tensor.clone() for name, tensor in self._lib.load_file(self._path).items()}
        del found
        with timed(times, "load"):
            for name, tensor in self._lib.load_file(self._path).items():
                into[name].copy_(tensor)


class Dcp:
    name = "dcp"

    def __init__(self, folder: Path, durably: bool) -> None:
        self._folder, self._durably = folder, durably
        self._number = 0

    def save(self, state: State, times: Times) -> None:
        self._number += 1
        with timed(times, "save"):
            dcp.save(state, storage_writer=self._writer("sync"), no_dist=True)
        with timed(times, "stall_and_save"):
            with timed(times, "stall"):
                saving = dcp.async_save(state, storage_writer=self._writer("async"), no_dist=True)
            saving.result()

    def _writer(self, what: str) -> dcp.FileSystemWriter:
        return dcp.FileSystemWriter(self._folder / what, sync_files=self._durably, overwrite=True)

    def load(self, into: State, times: Times) -> None:
        with timed(times, "load"):
            dcp.load(into, storage_reader=dcp.FileSystemReader(self._folder / "sync"), no_dist=True)


class Raylog:
    name = "raylog"

    def __init__(self, client: raylog.Client, durability: str) -> None:
        self._client, self._artifact = client, f"ckpt/{durability}"
        self._manager = raylog.CheckpointManager(self._artifact, client=client, durability=durability, keep=1)
        self._step = 0

    def save(self, state: State, times: Times) -> None:
        with timed(times, "save"):
            self._next(state, blocking=True)
        self._settle()
        full_bytes = self._client.stat(self._artifact).stored_bytes
        step(state)
        with timed(times, "stall_and_save"):
            with timed(times, "stall"):
                self._next(state, blocking=False)
            self._manager.wait()
        self._settle()
        before = self._shards()
        with timed(times, "unchanged_save"):
            self._next(state, blocking=True)
        fresh_bytes = sum(bytes_ for shard_id, bytes_ in self._shards().items() if shard_id not in before)
        times.setdefault("unchanged_bytes_share", []).append(fresh_bytes / full_bytes)
        self._settle()

    def _next(self, state: State, *, blocking: bool) -> None:
        self._step += 1
        self._manager.save(self._step, state, blocking=blocking)

    def _shards(self) -> dict[str, int]:
        manifest = self._client._session.manifest(parse_reference(self._artifact))
        return {entry.shard.shard_id: entry.shard.stored_bytes for entry in manifest.shards}

    def _settle(self) -> None:
        """Until older steps are deleted and their room is free again, as it is between the steps of a run."""
        until = time.monotonic() + 10
        while len(self._client.versions(self._artifact)) > 1 and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(2.5)  # what is promised in memory is written to disk meanwhile

    def load(self, into: State, times: Times) -> None:
        with timed(times, "load_fresh"):
            found = self._manager.load()
        del found
        with timed(times, "load"):
            self._manager.load(into=into)

    def close(self) -> None:
        self._manager.close()


def have_memory(size_bytes: int) -> None:
    """Touches and frees as much memory: the host of a virtual machine takes free memory away, and giving it again
    takes longer than a load, of whichever side comes first."""
    torch.ones(size_bytes, dtype=torch.uint8)


def copies(state: State, into: State, times: Times) -> None:
    with timed(times, "copy"):
        for name, tensor in state.items():
            into[name].copy_(tensor)
    with timed(times, "copy_fresh"):
        found = {name: tensor.clone() for name, tensor in state.items()}
    del found


def run(sides: list[Any], state: State, rounds: int) -> dict[str, dict[str, float]]:
    into, times = zeros_like(state), {side.name: Times() for side in sides} | {"copy": Times()}
    needed_bytes = 2 * sum(tensor.nbytes for tensor in state.values())
    for number in range(rounds + 1):  # the first warms up
        have_memory(needed_bytes)
        copies(state, into, times["copy"])
        for side in sides:
            step(state)
            side.save(state, times[side.name])
            have_memory(needed_bytes)
            side.load(into, times[side.name])
            assert all(torch.equal(into[name], tensor) for name, tensor in state.items()), side.name
        if not number and rounds > 1:
            times = {name: Times() for name in times}
    return {
        side: {what: round(statistics.median(one), 4) for what, one in found.items()} for side, found in times.items()
    }


def bench(quick: bool) -> dict[str, Any]:
    size_bytes, rounds = (32 * MIB, 1) if quick else (GIB, ROUNDS)
    is_there = importlib.util.find_spec("safetensors") is not None
    peers: list[Callable[[Path, bool], Any]] = [TorchSave, *([Safetensors] if is_there else []), Dcp]
    state = make_state(size_bytes)
    result: dict[str, Any] = {"bytes": size_bytes, "left_out": [] if is_there else ["safetensors"]}
    with tempfile.TemporaryDirectory() as disk, tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        settings = Settings(
            state=Path(disk) / "state",
            arena_bytes=4 * size_bytes,
            disk_reserve_bytes=0,
            shard_bytes=max(size_bytes // 4, MIB),  # of 1 GiB as by default
        )
        with raylog.connect("local", settings=settings) as client:
            time.sleep(0 if quick else 5)  # until the arena's pages are there
            for durability, folder in (("memory", memory), ("disk", disk)):
                ours = Raylog(client, durability)
                sides = [ours, *(peer(Path(folder), durability == "disk") for peer in peers)]
                result[durability] = found = run(sides, state, rounds)
                ours.close()
                client.delete(f"ckpt/{durability}")
                result |= ratios(found, "" if durability == "memory" else "disk_")
    return result


def ratios(found: dict[str, dict[str, float]], prefix: str) -> dict[str, float]:
    ours, torch_save, copy = found["raylog"], found["torch.save"], found["copy"]
    values = {
        "stall_ratio_copy": ours["stall"] / copy["copy"],
        "save_ratio_torch": torch_save["save"] / ours["save"],
        "load_ratio_torch": torch_save["load"] / ours["load"],
        "load_fresh_ratio_torch": torch_save["load_fresh"] / ours["load_fresh"],
        "unchanged_time_share": ours["unchanged_save"] / ours["save"],
        "unchanged_bytes_share": ours["unchanged_bytes_share"],
    }
    return {prefix + name: round(value, 4) for name, value in values.items()}


if __name__ == "__main__":
    arguments = parser(__doc__ or "").parse_args()
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
    report(bench(arguments.quick), arguments.json)
