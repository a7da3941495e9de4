"""How a table's rows are dealt out to tasks of Ray Data: which node is to read which shard, in how many tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raylog.units import MIB

BLOCK_BYTES_MIN, BLOCK_BYTES_MAX = 8 * MIB, 128 * MIB  # of a task, where nobody says how many there are to be
TASKS_PER_CPU = 2


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows of the version's shard number `shard`: `rows` of them from `first` on."""

    shard: int
    first: int
    rows: int


def default_blocks(content_bytes: int, cpus: int) -> int:
    """How many tasks read a table: a few for each CPU, within what is too small and what too large for a block."""
    least, most = -(-content_bytes // BLOCK_BYTES_MAX), -(-content_bytes // BLOCK_BYTES_MIN)
    return max(1, least, min(most, TASKS_PER_CPU * cpus))


def choose_nodes(rows: Sequence[int], holders: Sequence[Sequence[str]], nodes_max: int) -> dict[str, list[int]]:
    """Node -> the shards that it reads, by number; the largest go first, each to the holder that has least to read so
    far. The node "" stands for any: of shards without a holder, and of all but the `nodes_max` that have most."""
    loads: dict[str, int] = {}
    chosen: dict[str, list[int]] = {}
    for number in sorted(range(len(rows)), key=lambda number: (-rows[number], number)):
        node = min(holders[number], key=lambda one: (loads.get(one, 0), one), default="")
        loads[node] = loads.get(node, 0) + rows[number]
        chosen.setdefault(node, []).append(number)
    named = sorted(chosen.keys() - {""}, key=lambda node: (-loads[node], node))[:nodes_max]
    anywhere = sorted(number for node, numbers in chosen.items() if node not in named for number in numbers)
    return {node: sorted(chosen[node]) for node in named} | ({"": anywhere} if anywhere else {})


def plan_slices(rows: Mapping[int, int], tasks: int) -> list[list[Slice]]:
    """The rows of shards, by number, for so many tasks, or about as many: each has part of one shard, or where there
    are fewer tasks than shards, several that follow one another."""
    shards = list(rows)
    if tasks <= len(shards):
        ends = [len(shards) * (task + 1) // tasks for task in range(tasks)]
        starts = [0, *ends[:-1]]
        return [
            [Slice(shard, 0, rows[shard]) for shard in shards[start:end]]
            for start, end in zip(starts, ends, strict=True)
        ]
    total = max(sum(rows.values()), 1)
    return [[piece] for shard in shards for piece in _pieces(shard, rows[shard], round(tasks * rows[shard] / total))]


def _pieces(shard: int, rows: int, parts: int) -> list[Slice]:
    count = max(1, min(parts, rows))
    ends = [rows * (part + 1) // count for part in range(count)]
    return [Slice(shard, first, end - first) for first, end in zip([0, *ends[:-1]], ends, strict=True)]
