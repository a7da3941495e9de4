"""`raylog.read`: a table as a `ray.data.Dataset`, each shard read on a node that has it."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray

from raylog.api.get import Reading
from raylog.api.raydata_plan import Slice, choose_nodes, default_blocks, plan_slices
from raylog.api.session import Session
from raylog.api.shared import shared_client
from raylog.codec.arrow import BatchOpener
from raylog.errors import NotPermitted, UsageError
from raylog.spec import Kind, Reference, ShardRef, Version, parse_reference

try:
    from ray.data import read_datasource
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask
except ImportError as error:
    raise UsageError(
        f"raylog.read needs Ray Data, which cannot be imported ({error}): pip install 'ray[data]'"
    ) from None

if TYPE_CHECKING:
    from ray.data import Dataset

NODES_MAX = 16  # told apart for locality; each is an operator of its own in the dataset's plan


def read(
    name: str,
    *,
    columns: Sequence[str] | None = None,
    plaintext_blocks: bool = False,
    override_num_blocks: int | None = None,
) -> "Dataset":
    """The table `name` or `name@3` as a dataset of Ray Data, of `columns` (all for None).

    Ray Data keeps blocks in Ray's object store, readable to whoever reaches that store or what it spills to disks; they
    are the only data of raylog's that ever lies there. So it is to be asked for by `plaintext_blocks=True`, and the
    audit log records it for this call and for every task. Each task asks for its own keys, in its process.

    A task reads part of a shard, or several shards where `override_num_blocks` says so; Ray is asked to run it on a
    node that has them, and may choose another. The rows of different tasks come in no order. A plain name is the
    version that is the latest at this call.

    Raises `NotPermitted` without `plaintext_blocks`, `NotFound`, `UsageError` for what is no table, unknown columns.
    """
    if not plaintext_blocks:
        raise NotPermitted(
            f"raylog.read({name!r}) puts rows into Ray's object store as they are, where raylog cannot protect them: "
            "say plaintext_blocks=True if that may be, or use raylog.StreamingDataset, which needs no such permission"
        )
    if override_num_blocks is not None and override_num_blocks < 1:
        raise UsageError(f"expected override_num_blocks from 1, got {override_num_blocks}")
    session = shared_client().session
    version: Version = session.retried("catalog", "stat", parse_reference(name))
    reference = Reference(version.name, version.number)
    reading = Reading(session, reference, plaintext_blocks=True)
    if reading.kind is not Kind.ARROW:
        raise UsageError(f"expected a table, got {reference} with {reading.kind.name.lower()}: use client.get")
    if columns is not None:
        with reading.one_open(0) as opener:
            BatchOpener(opener, columns)  # refuses unknown ones
    cpus = int(ray.cluster_resources().get("CPU", 1))
    blocks = override_num_blocks or default_blocks(version.content_bytes, cpus)
    return _dataset(session, reading, reference, columns, blocks)


def _dataset(
    session: Session, reading: Reading, reference: Reference, columns: Sequence[str] | None, blocks: int
) -> "Dataset":
    shards = [entry.shard for entry in reading.manifest.shards]
    rows = [shard.rows for shard in shards]
    ray_ids = {info.node_id: info.ray_node_id for info in session.nodes()}
    held: dict[str, list[str]] = session.retried("catalog", "replicas", list({shard.shard_id for shard in shards}))
    holders = [[ray_ids[one] for one in held.get(shard.shard_id, []) if one in ray_ids] for shard in shards]
    parts = []
    for ray_node_id, numbers in choose_nodes(rows, holders, NODES_MAX).items():
        source = RaylogDatasource(reference, columns, {number: shards[number] for number in numbers})
        share = round(blocks * sum(rows[number] for number in numbers) / max(sum(rows), 1))
        options = {} if not ray_node_id else _near(ray_node_id)
        parts.append(read_datasource(source, override_num_blocks=max(share, 1), **options))
    together: Dataset = parts[0].union(*parts[1:]) if len(parts) > 1 else parts[0]
    return together


def _near(ray_node_id: str) -> dict[str, Any]:
    """On that node, or anywhere when it has no room or has gone."""
    return {"label_selector": {"ray.io/node-id": ray_node_id}, "fallback_strategy": [{"label_selector": {}}]}


class RaylogDatasource(Datasource):
    """Some shards of one version, for `ray.data.read_datasource`; made by `read`."""

    def __init__(self, reference: Reference, columns: Sequence[str] | None, shards: Mapping[int, ShardRef]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._reference, self._columns = reference, columns
        self._shards = dict(shards)

    def estimate_inmemory_data_size(self) -> int:
        return sum(shard.content_bytes for shard in self._shards.values())

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        rows = {number: shard.rows for number, shard in self._shards.items()}
        return [
            ReadTask(
                partial(_read_slices, self._reference, self._columns, slices),
                self._metadata(slices),
                per_task_row_limit=per_task_row_limit,
            )
            for slices in plan_slices(rows, parallelism)
        ]

    def _metadata(self, slices: Sequence[Slice]) -> BlockMetadata:
        size_bytes = sum(
            self._shards[one.shard].content_bytes * one.rows // max(self._shards[one.shard].rows, 1) for one in slices
        )
        rows = sum(one.rows for one in slices)
        return BlockMetadata(num_rows=rows, size_bytes=size_bytes, exec_stats=None, input_files=None)


def _read_slices(reference: Reference, columns: Sequence[str] | None, slices: Sequence[Slice]) -> Iterator[pa.Table]:
    """What a task does, in a worker of Ray's; its arguments hold no key."""
    reading = Reading(shared_client().session, reference, plaintext_blocks=True)
    for one in slices:
        with reading.one_open(one.shard) as opener:
            batches = BatchOpener(opener, columns)
            before = 0
            for number, rows in enumerate(batches.rows):
                start, stop = max(one.first - before, 0), min(one.first + one.rows - before, rows)
                if start < stop:
                    yield pa.Table.from_batches([batches.batch(number).slice(start, stop - start)])
                before += rows
            if not one.rows:
                yield batches.schema.empty_table()
