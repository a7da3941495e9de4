"""The chunks of a table, all shards of a version in one row: opened one by one, in any order, by one thread."""

from bisect import bisect_right
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import accumulate

import pyarrow as pa

from raylog.api.get import Reading
from raylog.codec.arrow import BatchOpener
from raylog.errors import UsageError
from raylog.spec import Kind


class TableChunks:
    """`rows` and `content_bytes`: of every chunk, in the order in which it was put; `schema`: of the chosen columns.
    The shards are in this node's store, and stay there until `close`."""

    def __init__(self, reading: Reading, columns: Sequence[str] | None) -> None:
        """Raises `UsageError` for what is no table and for unknown columns, and as `Client.get`."""
        if reading.kind is not Kind.ARROW:
            raise UsageError(
                f"expected a table to stream from, got {reading.manifest.name} with {reading.kind.name.lower()}: put "
                "its samples as the rows of a table"
            )
        self._kept = ExitStack()
        try:
            self._shards = [BatchOpener(opener, columns) for opener in self._kept.enter_context(reading.all_open())]
        except BaseException:
            self._kept.close()
            raise
        self.schema: pa.Schema = self._shards[0].schema
        self.rows = [count for shard in self._shards for count in shard.rows]
        self.content_bytes = [count for shard in self._shards for count in shard.content_bytes]
        self._ends = list(accumulate(len(shard.rows) for shard in self._shards))

    def batch(self, number: int) -> pa.RecordBatch:
        """Raises `DamagedData` when no copy of it can be had whole."""
        shard = bisect_right(self._ends, number)
        before = self._ends[shard - 1] if shard else 0
        return self._shards[shard].batch(number - before)

    def close(self) -> None:
        """Nothing may be opened afterwards."""
        self._kept.close()
