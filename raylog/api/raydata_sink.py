"""`RaylogDatasink`: a dataset of Ray Data as one version, each block sealed by the task that has it."""

import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
from ray.data.block import Block, BlockAccessor
from ray.data.datasource import Datasink, WriteResult

from raylog.api.lease import Lease
from raylog.api.put import Put
from raylog.api.put_options import PutOptions
from raylog.api.shared import shared_client
from raylog.api.sources.content import TableContent
from raylog.api.sources.tables import table_batches
from raylog.api.together import Together
from raylog.errors import RaylogError, SourceError, UsageError
from raylog.spec import Kind, Version, new_id, parse_name

COMMIT_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Written:
    """What a task has stored: as which rank, and the schema of its rows."""

    rank: int
    schema: pa.Schema


class RaylogDatasink(Datasink[Written | None]):
    """Where `dataset.write_datasink` writes to: the next version of the artifact `name`, a table whose rows are in the
    order of Ray Data's tasks. The rows never gather in one place: each task seals its own, with a connection of its
    own, and the version is there once all are stored. After an error nothing of it is visible. `version` is it then.

    For one write. Raises `UsageError`, and while writing as `Client.put`; `SourceError` for a dataset without rows and
    for blocks of different schemas.
    """

    def __init__(
        self,
        name: str,
        *,
        replicas: int = 1,
        backup: str | None = None,
        durability: str = "disk",
        codec: str = "auto",
        labels: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.name = parse_name(name)
        self.version: Version | None = None
        self._options = PutOptions.parse(
            replicas=replicas, durability=durability, codec=codec, labels=labels, backup=backup
        )
        self._version_id, self._artifact_id = new_id(), new_id()
        self._lease: Lease | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_lease": None}  # the driver's

    def on_write_start(self, schema: pa.Schema | None = None) -> None:
        if self.version is not None or self._lease is not None:
            raise UsageError(f"this RaylogDatasink of {self.name} has been used: make a new one for each write")
        self._lease = Lease(shared_client().session, self._version_id)
        self._lease.__enter__()

    def write(self, blocks: Iterable[Block], ctx: Any) -> Written | None:
        """In a task: seals its blocks, and returns once they are stored and known to the catalog."""
        tables = [BlockAccessor.for_block(block).to_arrow() for block in blocks]
        tables = [table for table in tables if table.num_rows]
        if not tables:
            return None
        rank, where, offered = ctx.task_idx + 1, f"task {ctx.task_idx} of the Ray dataset", threading.Event()
        if any(not table.schema.equals(tables[0].schema) for table in tables):
            raise SourceError(f"{where} has blocks of different schemas: cast the dataset's columns first")
        together = replace(self._together(rank), on_offered=offered.set)
        put = Put(shared_client().session, self.name, self._options, None, together=together)
        content = TableContent(where=where, schema=tables[0].schema, read=lambda: _batches(tables))
        executor = ThreadPoolExecutor(1, thread_name_prefix="datasink")
        storing = executor.submit(put.run, content)
        storing.add_done_callback(lambda _: offered.set())
        executor.shutdown(wait=False)  # it ends by itself once the driver has committed
        offered.wait()
        if storing.done():
            storing.result()
        return Written(rank, tables[0].schema)

    def on_write_complete(self, write_result: WriteResult[Written | None]) -> None:
        """On the driver: commits what the tasks have stored."""
        written = [one for one in write_result.write_returns if one is not None]
        if not written:
            raise SourceError(f"the Ray dataset has no rows: nothing to put as {self.name}")
        for one in written:
            if not one.schema.equals(written[0].schema):
                raise SourceError(
                    f"blocks of the Ray dataset differ: {written[0].schema} and {one.schema}; cast its columns first"
                )
        together = self._together(0, tuple(one.rank for one in written))
        put = Put(shared_client().session, self.name, self._options, None, together=together)
        self.version = put.commit_parts(Kind.ARROW)
        self._end()

    def on_write_failed(self, error: Exception) -> None:
        try:
            self._together(0).give_up(shared_client().session, f"{type(error).__name__}: {error}")
        except RaylogError as unknown:
            raise RaylogError(f"{self.name}: what was stored is left to the nodes' upkeep: {unknown}") from error
        finally:
            self._end()

    def _end(self) -> None:
        if self._lease is not None:
            self._lease.__exit__(None, None, None)

    def _together(self, rank: int, others: tuple[int, ...] = ()) -> Together:
        return Together(
            rank=rank,
            others=others,
            version_id=self._version_id,
            artifact_id=self._artifact_id,
            timeout_s=COMMIT_TIMEOUT_S,
        )


def _batches(tables: Iterable[pa.Table]) -> Iterator[pa.RecordBatch]:
    for table in tables:
        yield from table_batches(table)
