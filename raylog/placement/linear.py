"""A linear program as plain arrays: columns with bounds, sparse rows with an upper side, costs as vectors."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """`A @ x <= upper`, `0 <= x <= most`, `is_whole` columns integer. `columns` and `rows` name their meaning.

    `A` as triples: `factors[k]` stands in row `at_row[k]` and column `at_column[k]`.
    """

    columns: tuple[Hashable, ...]
    rows: tuple[Hashable, ...]
    at_row: npt.NDArray[np.int64]
    at_column: npt.NDArray[np.int64]
    factors: Vector
    upper: Vector
    most: Vector
    is_whole: npt.NDArray[np.bool_]

    def column_numbers(self) -> dict[Hashable, int]:
        """Column name -> its number."""
        return {name: number for number, name in enumerate(self.columns)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One thing to minimise: `cost @ x + constant`, to within the relative `gap`."""

    name: str
    cost: Vector
    constant: float = 0.0
    gap: float = 1e-7

    def value(self, x: Vector) -> float:
        """What `x` costs."""
        return float(self.cost @ x) + self.constant


@dataclass(slots=True)
class Builder:
    """Collects columns and rows by name."""

    columns: list[Hashable] = field(default_factory=list)
    most: list[float] = field(default_factory=list)
    is_whole: list[bool] = field(default_factory=list)
    rows: list[Hashable] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)
    entries: list[tuple[int, int, float]] = field(default_factory=list)

    def column(self, name: Hashable, most: float, *, whole: bool = True) -> int:
        """A new column between 0 and `most`; returns its number."""
        self.columns.append(name)
        self.most.append(most)
        self.is_whole.append(whole)
        return len(self.columns) - 1

    def row(self, name: Hashable, terms: Sequence[tuple[int, float]], upper: float) -> None:
        """Sum of coefficient times column is at most `upper`."""
        self.entries.extend((len(self.rows), column, factor) for column, factor in terms if factor)
        self.rows.append(name)
        self.upper.append(upper)

    def build(self) -> Linear:
        """The program as arrays."""
        rows, columns, factors = zip(*self.entries, strict=True) if self.entries else ((), (), ())
        return Linear(
            columns=tuple(self.columns),
            rows=tuple(self.rows),
            at_row=np.array(rows, dtype=np.int64),
            at_column=np.array(columns, dtype=np.int64),
            factors=np.array(factors, dtype=float),
            upper=np.array(self.upper, dtype=float),
            most=np.array(self.most, dtype=float),
            is_whole=np.array(self.is_whole, dtype=bool),
        )
