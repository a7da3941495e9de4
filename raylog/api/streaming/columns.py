"""Rows of record batches as Arrow, numpy or torch columns: shuffled, cast and joined without needless copies."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raylog.errors import UsageError

Columns = Mapping[str, NDArray[Any]]


class Output(StrEnum):
    """What a batch is: a `pa.RecordBatch`, or a dict of columns as arrays, or as tensors."""

    ARROW = "arrow"
    NUMPY = "numpy"
    TORCH = "torch"


class Rows:
    """Some rows, in their order."""

    def __init__(self, content: pa.RecordBatch | Columns, count: int) -> None:
        self._content, self.count = content, count

    @classmethod
    def shuffled(
        cls, batch: pa.RecordBatch, order: NDArray[np.int64], output: Output, dtypes: Mapping[str, np.dtype[Any]]
    ) -> "Rows":
        """The rows `order` (int64, shape (n,)) of a batch. Raises `UsageError` for a column that no array can hold."""
        if output is Output.ARROW:
            return cls(batch.take(pa.array(order)), len(order))
        columns = {}
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            taken = to_numpy(name, column)[order]
            columns[name] = taken.astype(dtypes[name], copy=False) if name in dtypes else taken
        return cls(columns, len(order))

    def slice(self, start: int, count: int) -> "Rows":
        if isinstance(self._content, pa.RecordBatch):
            return Rows(self._content.slice(start, count), count)
        return Rows({name: column[start : start + count] for name, column in self._content.items()}, count)

    @classmethod
    def joined(cls, parts: Sequence["Rows"]) -> "Rows":
        if len(parts) == 1:
            return parts[0]
        count = sum(part.count for part in parts)
        contents = [part._content for part in parts]
        if isinstance(contents[0], pa.RecordBatch):
            return cls(pa.concat_batches(contents), count)
        return cls({name: np.concatenate([one[name] for one in contents]) for name in contents[0]}, count)

    def given(self, output: Output) -> Any:
        """As the dataset's user gets it."""
        if output is not Output.TORCH:
            return self._content
        import torch  # only who asks for tensors needs it

        return {
            name: torch.from_numpy(column) if column.dtype != np.object_ else column.tolist()
            for name, column in self._content.items()
        }


def to_numpy(name: str, column: pa.Array) -> NDArray[Any]:
    """A column as an array whose first axis is the rows: lists of one length become further axes; texts and bytes
    become Python objects. Raises `UsageError` for nulls and lists of several lengths."""
    if column.null_count:
        raise UsageError(f"column {name!r} has missing values, which no array holds: ask for output='arrow'")
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return to_numpy(name, column.storage)
    if pa.types.is_fixed_size_list(kind):
        return _nested(name, column.flatten(), len(column), kind.list_size)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        lengths = np.diff(column.offsets.to_numpy())
        if len(set(lengths.tolist())) > 1:
            raise UsageError(
                f"column {name!r} has lists of {lengths.min()} to {lengths.max()} values, which no array holds: ask "
                "for output='arrow', or store them all of one length"
            )
        return _nested(name, column.flatten(), len(column), int(lengths[0]) if len(lengths) else 0)
    is_plain = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    found: NDArray[Any] = column.to_numpy(zero_copy_only=is_plain)
    return found


def _nested(name: str, values: pa.Array, rows: int, length: int) -> NDArray[Any]:
    inner = to_numpy(name, values)
    return inner.reshape(rows, length, *inner.shape[1:])
