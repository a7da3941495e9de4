"""torch.distributed.checkpoint on raylog: states whose tensors are spread over ranks (FSDP, DTensor), saved by many and
loaded by any other number of them.

Every rank seals what it is to write, and the coordinator commits one version of all, with DCP's metadata as msgpack.
Objects that are no tensors are what DCP makes of them: pickled bytes, unpickled by DCP when they are loaded.
"""

import concurrent.futures
import io
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadItemType,
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from raylog.api.checkpoint.load import document_of, read_arrays, tensor_of
from raylog.api.checkpoint.save import Saver
from raylog.api.checkpoint.tree import Taken, put_together, take_apart
from raylog.api.client import Client, connect
from raylog.api.get import Reading
from raylog.api.put_options import PutOptions
from raylog.api.together import Together
from raylog.catalog.parts import positions_of
from raylog.errors import RaylogError, UsageError
from raylog.spec import Use, Version, new_id, parse_name, parse_reference

SCHEME = "raylog://"
FORMAT = "raylog_dcp"
COMMIT_TIMEOUT_S = 900.0


class RaylogStorageWriter(StorageWriter):
    """Where `dcp.save` and `dcp.async_save` write to: each save is the next version of the artifact `name`, or of the
    one that `checkpoint_id` names (`raylog://ckpt/run`). The other arguments are `CheckpointManager`'s.

    It is there whole or not at all. Raises `UsageError`, and while saving as `CheckpointManager.save`.
    """

    def __init__(
        self,
        name: str,
        *,
        client: Client | None = None,
        replicas: int = 1,
        backup: str | None = None,
        durability: str = "disk",
        codec: str = "none",
        allow_nan: bool = False,
    ) -> None:
        super().__init__()
        options = PutOptions.parse(
            replicas=replicas,
            durability=durability,
            codec=codec,
            labels={"use": Use.CHECKPOINT},
            backup=backup,
        )
        with ExitStack() as kept:
            self._session = (client or kept.enter_context(connect()))._session
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="dcp")
            kept.callback(self._end_savers)
            kept.callback(self._executor.shutdown)
            self._kept = kept.pop_all()
        self._options, self._allow_nan = options, allow_nan
        self._savers: dict[int, Saver] = {}  # of this name, by rank: the coordinator is another one besides
        self._name = parse_name(name)
        self._last_version_id = ""
        self._together: Together | None = None

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return str(checkpoint_id).startswith(SCHEME)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        name = _name_of(self._name, checkpoint_id)
        if name != self._name:
            self._executor.submit(self._end_savers).result()  # after what is under way
            self._name = name

    def _end_savers(self) -> None:
        for saver in self._savers.values():
            saver.close(is_interrupted=False)
        self._savers.clear()

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Every rank is told what it needs with its plan. Raises `UsageError` where ranks do not tell each other."""
        if kwargs.get("use_collectives") is False and _ranks() > 1:
            raise UsageError("expected dcp.save with use_collectives=True: raylog commits one version of all ranks")

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Gives all ranks the version that they write together, in which the metadata come first."""
        common = {"version_id": new_id(), "artifact_id": new_id(), "others": list(range(1, len(plans) + 1))}
        told = [{**common, "rank": number} for number in range(1, len(plans) + 1)]
        self._together = _together({**common, "rank": 0})
        return [replace(plan, storage_data=data) for plan, data in zip(plans, told, strict=True)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Returns at once; done when this rank's tensors are stored, before the version is there."""
        told = plan.storage_data
        if not isinstance(told, Mapping) or told.get("version_id") == self._last_version_id:
            raise UsageError("expected a plan made for this save: give dcp.save a planner without plan caching")
        self._last_version_id = told["version_id"]
        try:
            arrays = {_stored_name(item.index): _resolved(item, planner) for item in plan.items}
        except BaseException as error:
            self._give_up(_together(told), error)
            raise
        stored: Future[list[WriteResult]] = Future()
        rank = _together(told).rank
        results = [WriteResult(index=item.index, size_in_bytes=0, storage_data=rank) for item in plan.items]
        together = replace(_together(told), on_offered=lambda: stored.set_result(results))
        taken = Taken(take_apart(None).document, {name: array for name, array in arrays.items() if array.numel()})

        def ended(writing: concurrent.futures.Future[Version]) -> None:
            error = writing.exception()
            if error is not None and not stored.done():
                stored.set_exception(error)  # type: ignore[arg-type]  # torch's annotation names the result's type

        self._executor.submit(self._save, taken, together).add_done_callback(ended)
        return stored

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Commits the version. Raises `Conflict` when another writer was first."""
        assert self._together is not None
        try:
            ranks = {_stored_name(one.index): one.storage_data for several in results for one in several}
            taken = Taken(take_apart({FORMAT: 1, **_described(metadata), "ranks": ranks}).document)
        except BaseException as error:
            self._give_up(self._together, error)
            raise
        self._save(taken, self._together)

    def _give_up(self, together: Together, error: BaseException) -> None:
        with suppress(RaylogError):  # the other ranks find out by their deadline
            together.give_up(self._session, f"{type(error).__name__}: {error}")

    def _save(self, taken: Taken, together: Together) -> Version:
        rank = together.rank
        if rank not in self._savers:
            self._savers[rank] = Saver(self._session, self._name, self._options, rank=rank, allow_nan=self._allow_nan)
        return self._savers[rank].save(taken, {}, together)

    def close(self) -> None:
        """Waits for what was begun, and ends the writer's own connection."""
        self._kept.close()


class RaylogStorageReader(StorageReader):
    """Where `dcp.load` reads from: the version `name@3`, or the latest of `name`. Raises `NotFound`, `UsageError` for
    what no `RaylogStorageWriter` wrote, `DamagedData`."""

    def __init__(self, name: str, *, client: Client | None = None) -> None:
        super().__init__()
        with ExitStack() as kept:
            self._session = (client or kept.enter_context(connect()))._session
            self._kept = kept.pop_all()
        self._name = name
        self._reading: Reading | None = None
        self._ranks: Mapping[str, int] = {}  # who wrote what

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return str(checkpoint_id).startswith(SCHEME)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        self._name, self._reading = _name_of(self._name, checkpoint_id), None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        self._reading = Reading(self._session, parse_reference(self._name))
        with self._reading.all_open(positions_of(self._reading.manifest, 0)) as openers:
            document = document_of(openers, "", self._name)
        return _metadata(put_together(document, lambda name, is_torch: None), self._name)

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self._ranks = metadata.storage_data

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        reading = self._reading or Reading(self._session, parse_reference(self._name))
        items = [item for item in plan.items if item.type is LoadItemType.BYTE_IO or all(item.lengths)]
        names = sorted({_stored_name(item.storage_index) for item in items})
        with reading.all_open(self._positions(reading, names)) as openers:
            arrays = read_arrays(openers, names)
        for item in items:
            _give(item, planner, *arrays[_stored_name(item.storage_index)])
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _positions(self, reading: Reading, names: Sequence[str]) -> list[int] | None:
        """Of the shards of those who wrote these; None where it is not known."""
        parts = [positions_of(reading.manifest, rank) for rank in sorted({self._ranks[name] for name in names})]
        return None if None in parts else [position for part in parts for position in part or ()]

    def close(self) -> None:
        """Ends the reader's own connection."""
        self._kept.close()


def _name_of(name: str, checkpoint_id: str | os.PathLike[str] | None) -> str:
    return name if checkpoint_id is None else str(checkpoint_id).removeprefix(SCHEME)


def _together(told: Mapping[str, Any]) -> Together:
    return Together(**told, timeout_s=COMMIT_TIMEOUT_S)


def _stored_name(index: MetadataIndex) -> str:
    """A tensor's name and where in it the part lies that one rank writes; no other name begins with a slash."""
    place = f":{','.join(map(str, index.offset))}" if index.offset and any(index.offset) else ""
    return f"/{index.fqn}{place}"


def _ranks() -> int:
    is_there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if is_there else 1


def _resolved(item: WriteItem, planner: SavePlanner) -> torch.Tensor:
    found = planner.resolve_data(item)
    if item.type is WriteItemType.BYTE_IO:
        assert isinstance(found, io.BytesIO)
        return torch.frombuffer(bytearray(found.getbuffer()), dtype=torch.uint8)
    assert isinstance(found, torch.Tensor)
    return found.detach().cpu().contiguous()


def _give(item: ReadItem, planner: LoadPlanner, dtype: str, array: np.ndarray[Any, Any]) -> None:
    if item.type is LoadItemType.BYTE_IO:
        planner.load_bytes(item, io.BytesIO(array.tobytes()))
        return
    found = tensor_of(dtype, array)
    for dimension, (start, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
        found = found.narrow(dimension, start, length)
    target = planner.resolve_tensor(item).detach()
    target.copy_(found)
    planner.commit_tensor(item, target)


def _described(metadata: Metadata) -> dict[str, Any]:
    """DCP's metadata as plain values."""
    tensors, blobs = {}, []
    for fqn, one in metadata.state_dict_metadata.items():
        if isinstance(one, TensorStorageMetadata):
            chunks = [(tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in one.chunks]
            dtype = str(one.properties.dtype).removeprefix("torch.")
            tensors[fqn] = {"dtype": dtype, "requires_grad": one.properties.requires_grad, "size": tuple(one.size)}
            tensors[fqn]["chunks"] = chunks
        else:
            blobs.append(fqn)
    return {"tensors": tensors, "bytes": blobs, "planner": metadata.planner_data}


def _metadata(described: Any, name: str) -> Metadata:
    if not isinstance(described, Mapping) or described.get(FORMAT) != 1:
        raise UsageError(f"expected a checkpoint of raylog.RaylogStorageWriter, {name} is none")
    found: dict[str, Any] = {fqn: BytesStorageMetadata() for fqn in described["bytes"]}
    for fqn, one in described["tensors"].items():
        properties = TensorProperties(dtype=getattr(torch, one["dtype"]), requires_grad=one["requires_grad"])
        chunks = [ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)) for offsets, sizes in one["chunks"]]
        found[fqn] = TensorStorageMetadata(properties, torch.Size(one["size"]), chunks)
    return Metadata(found, planner_data=described["planner"], storage_data=dict(described["ranks"]))
