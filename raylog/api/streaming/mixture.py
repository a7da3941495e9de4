"""Several tables as one stream: which, by what weights, and that their rows are of one form. Pure."""

import math
from collections.abc import Mapping, Sequence

import pyarrow as pa

from raylog.catalog.encoding import digest_of
from raylog.errors import UsageError


def parse_weights(name: str | Mapping[str, float]) -> dict[str, float]:
    """Table -> weight, 1 for a name alone. Raises `UsageError`."""
    if isinstance(name, str):
        return {name: 1.0}
    if not name:
        raise UsageError("expected the names of tables with their weights, got none")
    for one, weight in name.items():
        if not math.isfinite(weight) or weight <= 0:
            raise UsageError(
                f"expected a weight above 0 for {one}, got {weight}: leave it out if it is to give nothing"
            )
    return {one: float(weight) for one, weight in name.items()}


def check_alike(schemas: Mapping[str, pa.Schema]) -> None:
    """Raises `UsageError`, naming table and column, unless all have the same columns, in whatever order."""
    (first, expected), *others = schemas.items()
    for name, schema in others:
        for column in sorted({*expected.names, *schema.names}):
            theirs, ours = (_type_of(column, one) for one in (schema, expected))
            if theirs != ours:
                raise UsageError(
                    f"expected one form of rows in a mixture: column {column!r} is {theirs} in {name} and {ours} in "
                    f"{first}: say which columns are wanted, or put {name} anew"
                )


def check_filled(rows: Mapping[str, int]) -> None:
    """Raises `UsageError` for a table that has no rows to give for its weight."""
    empty = [name for name, count in rows.items() if not count]
    if empty and len(rows) > 1:
        raise UsageError(f"expected tables with rows in a mixture, {empty[0]} has none: leave it out")


def mixture_digest(digests: Sequence[str], weights: Sequence[float]) -> str:
    """What tells a mixture from another: of one version its own, hex."""
    if len(digests) == 1:
        return digests[0]
    lines = [f"{digest} {weight.hex()}" for digest, weight in zip(digests, weights, strict=True)]
    return digest_of("\n".join(lines).encode()).hex()


def _type_of(column: str, schema: pa.Schema) -> str:
    return " and ".join(str(schema.field(at).type) for at in schema.get_all_field_indices(column)) or "missing"
