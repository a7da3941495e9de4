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
    """Some rows in the order in which they are given out: `content` as it was opened, of which `order` chooses; None:
    all, as they stand."""

    def __init__(
        self,
        content: pa.RecordBatch | Mapping[str, NDArray[Any]],
        count: int,
        order: NDArray[np.int64] | None = None,
    ) -> None:
        self.content, self.count, self.order = content, count, order

    @classmethod
    def of_chunk(cls, batch: pa.RecordBatch, order: NDArray[np.int64], output: Output) -> "Rows":
        """The rows `order` of a batch. Raises `UsageError` for a column that no array can hold."""
        if output is Output.ARROW:
            return cls(batch.take(pa.array(order)), len(order))
        columns = zip(batch.schema.names, batch.columns, strict=True)
        return cls({name: to_numpy(name, column) for name, column in columns}, len(order), order)

    def slice(self, start: int, count: int) -> "Rows":
        if isinstance(self.content, pa.RecordBatch):
            return Rows(self.content.slice(start, count), count)
        assert self.order is not None
        return Rows(self.content, count, self.order[start : start + count])

    def column(self, name: str) -> NDArray[Any]:
        """A copy: the one that puts the rows in order, batch by batch, while they are in the cache."""
        assert self.order is not None
        found: NDArray[Any] = self.content[name].take(self.order, axis=0)
        return found


def as_batch(
    parts: Sequence[Rows],
    output: Output,
    dtypes: Mapping[str, np.dtype[Any]],
    places: NDArray[np.int64] | None = None,
) -> Any:
    """These rows as the dataset's user gets them; `dtypes` casts columns by name, `places` are where in the batch each
    of the rows stands, one after another without. Raises `UsageError` for a column that no array or tensor can hold."""
    if output is Output.ARROW:
        whole: Any = parts[0].content if len(parts) == 1 else pa.concat_batches([part.content for part in parts])
        return whole if places is None else whole.take(pa.array(np.argsort(places)))
    batch = {name: _column(parts, name, dtypes.get(name), places) for name in parts[0].content}
    if output is Output.NUMPY:
        return batch
    return {
        name: _tensor(name, column) if column.dtype != np.object_ else column.tolist() for name, column in batch.items()
    }


def _tensor(name: str, column: NDArray[Any]) -> Any:
    import torch  # only who asks for tensors needs it

    try:
        return torch.from_numpy(column)
    except TypeError:
        raise UsageError(
            f"column {name!r} has {column.dtype} values, which no tensor holds: ask for output='numpy', or cast it "
            f"with dtypes={{{name!r}: 'int64'}}"
        ) from None


def _column(
    parts: Sequence[Rows], name: str, dtype: np.dtype[Any] | None, places: NDArray[np.int64] | None
) -> NDArray[Any]:
    columns = [part.column(name) for part in parts]
    if len({column.shape[1:] for column in columns}) > 1:
        lengths = sorted({column.shape[1] for column in columns})
        raise _uneven(name, lengths[0], lengths[-1])
    if places is not None:
        found = np.empty((len(places), *columns[0].shape[1:]), dtype or columns[0].dtype)
        ends = np.cumsum([len(column) for column in columns])
        for column, end in zip(columns, ends, strict=True):
            found[places[end - len(column) : end]] = column
        return found
    if dtype is not None:
        columns = [column.astype(dtype, copy=False) for column in columns]
    return columns[0] if len(columns) == 1 else np.concatenate(columns)


def _uneven(name: str, shortest: int, longest: int) -> UsageError:
    return UsageError(
        f"column {name!r} has lists of {shortest} to {longest} values, which no array holds: ask for output='arrow', "
        "or store them all of one length"
    )


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
            raise _uneven(name, int(lengths.min()), int(lengths.max()))
        return _nested(name, column.flatten(), len(column), int(lengths[0]) if len(lengths) else 0)
    is_plain = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    found: NDArray[Any] = column.to_numpy(zero_copy_only=is_plain)
    return found


def _nested(name: str, values: pa.Array, rows: int, length: int) -> NDArray[Any]:
    inner = to_numpy(name, values)
    return inner.reshape(rows, length, *inner.shape[1:])
