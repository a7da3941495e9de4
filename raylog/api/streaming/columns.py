"""Rows of record batches as Arrow, numpy or torch columns: shuffled, cast and joined without needless copies."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raylog.errors import UsageError


class Output(StrEnum):
    """What a batch is: a `pa.RecordBatch`, or a dict of columns as arrays, or as tensors."""

    ARROW = "arrow"
    NUMPY = "numpy"
    TORCH = "torch"


class Rows:
    """Some rows, one after another in the order in which they are given out."""

    def __init__(self, content: pa.RecordBatch | Mapping[str, NDArray[Any]], count: int) -> None:
        self.content, self.count = content, count

    @classmethod
    def of_chunk(cls, batch: pa.RecordBatch, order: NDArray[np.int64], output: Output) -> "Rows":
        """The rows `order` of a batch. Raises `UsageError` for a column that no array can hold."""
        if output is Output.ARROW:
            return cls(batch.take(pa.array(order)), len(order))
        columns = zip(batch.schema.names, batch.columns, strict=True)
        return cls({name: to_numpy(name, column)[order] for name, column in columns}, len(order))

    def slice(self, start: int, count: int) -> "Rows":
        if isinstance(self.content, pa.RecordBatch):
            return Rows(self.content.slice(start, count), count)
        return Rows({name: column[start : start + count] for name, column in self.content.items()}, count)


def as_batch(parts: Sequence[Rows], output: Output, dtypes: Mapping[str, np.dtype[Any]]) -> Any:
    """These rows as the dataset's user gets them; `dtypes` casts columns by name. Without a cast, and from one chunk,
    they are views of its rows, which nobody else is given. Raises `UsageError` for a column that no tensor can hold."""
    if output is Output.ARROW:
        return parts[0].content if len(parts) == 1 else pa.concat_batches([part.content for part in parts])
    batch = {name: _column(parts, name, dtypes.get(name)) for name in parts[0].content}
    if output is Output.NUMPY:
        return batch
    import torch  # only who asks for tensors needs it

    def tensor(name: str, column: NDArray[Any]) -> Any:
        try:
            return torch.from_numpy(column)
        except TypeError:
            raise UsageError(
                f"column {name!r} has {column.dtype} values, which no tensor holds: ask for output='numpy', or cast "
                f"it with dtypes={{{name!r}: 'int64'}}"
            ) from None

    return {
        name: tensor(name, column) if column.dtype != np.object_ else column.tolist() for name, column in batch.items()
    }


def _column(parts: Sequence[Rows], name: str, dtype: np.dtype[Any] | None) -> NDArray[Any]:
    columns = [part.content[name] for part in parts]
    if dtype is not None:
        columns = [column.astype(dtype, copy=False) for column in columns]
    found: NDArray[Any] = columns[0] if len(columns) == 1 else np.concatenate(columns)
    return found


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
