"""The last replica plans, by shard, so that whoever asks later hears why replicas lie where they do."""

from collections.abc import Iterable, Sequence

from raylog.placement.replicas import ReplicaPlan

LINES_MAX = 100_000  # reasons of all plans kept: one per node and plan, about 100 bytes each


class PlanMemory:
    """Plans by shard id. The oldest are forgotten, so that at most `lines_max` reasons are kept. Not thread-safe."""

    def __init__(self, lines_max: int = LINES_MAX) -> None:
        self._plans: dict[str, ReplicaPlan] = {}  # oldest first
        self._lines = 0
        self._lines_max = lines_max

    def remember(self, plan: ReplicaPlan) -> None:
        """Keeps a plan for each of its shards, in place of an earlier one."""
        for shard_id in plan.targets:
            self._forget(shard_id)
            self._plans[shard_id] = plan
            self._lines += _lines(plan)
        while self._lines > self._lines_max:
            self._forget(next(iter(self._plans)))

    def recall(self, shard_ids: Sequence[str]) -> dict[str, ReplicaPlan]:
        """The plans that are still known."""
        return {shard_id: self._plans[shard_id] for shard_id in shard_ids if shard_id in self._plans}

    def _forget(self, shard_id: str) -> None:
        plan = self._plans.pop(shard_id, None)
        self._lines -= _lines(plan) if plan else 0


def _lines(plan: ReplicaPlan) -> int:
    return len(plan.reasons) + 1


def reasons_by_nodes(plans: Iterable[ReplicaPlan]) -> dict[tuple[str, ...], tuple[int, tuple[str, ...]]]:
    """Chosen nodes (sorted) -> shards placed on just these, and the reasons that were given for the first of them."""
    found: dict[tuple[str, ...], tuple[int, tuple[str, ...]]] = {}
    for plan in plans:
        for nodes in plan.targets.values():
            shards, reasons = found.get(tuple(sorted(nodes)), (0, plan.reasons))
            found[tuple(sorted(nodes))] = shards + 1, reasons
    return found
