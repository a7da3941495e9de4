"""What replica targets are decided on, and the greedy plan for it: good at once, and a bound for the solver's. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Group:
    """Shards of a size class with the same holders. `bytes_each` is the largest one's: room for it is room for all."""

    shard_ids: tuple[str, ...]
    bytes_each: int
    held: tuple[int, ...]

    @property
    def count(self) -> int:
        return len(self.shard_ids)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node that may take replicas. `weight`: 1 for an idle node, more for a busy one."""

    node_id: str
    domain: str
    free_bytes: int
    weight: float
    is_local: bool


@dataclass(frozen=True, slots=True)
class Case:
    """Everything that is decided on."""

    groups: tuple[Group, ...]
    nodes: tuple[Candidate, ...]
    replicas: int

    @property
    def domains(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for number, node in enumerate(self.nodes):
            found.setdefault(node.domain, []).append(number)
        return found


def greedy(case: Case) -> list[list[int]]:
    """Replicas per group and node: shard by shard, each to the emptiest node of a domain that has none yet."""
    counts = [[0] * len(case.nodes) for _ in case.groups]
    left = [node.free_bytes for node in case.nodes]
    in_domain: list[dict[str, int]] = [{} for _ in case.groups]
    for g, group in enumerate(case.groups):
        keep = group.held[: case.replicas]
        order = list(keep)
        for n in keep:
            counts[g][n] = group.count
            in_domain[g][case.nodes[n].domain] = in_domain[g].get(case.nodes[n].domain, 0) + group.count
        for _ in range((case.replicas - len(keep)) * group.count):
            fits = [
                n
                for n in range(len(left))
                if n not in order and counts[g][n] < group.count and left[n] >= group.bytes_each
            ]
            if not fits:
                break
            best = min(fits, key=lambda n: _preference(case, in_domain[g], left, g, n))
            counts[g][best] += 1
            left[best] -= group.bytes_each
            in_domain[g][case.nodes[best].domain] = in_domain[g].get(case.nodes[best].domain, 0) + 1
    return counts


def _preference(
    case: Case, in_domain: dict[str, int], left: list[int], g: int, n: int
) -> tuple[bool, bool, float, int]:
    node, group = case.nodes[n], case.groups[g]
    used = node.free_bytes - left[n] + group.bytes_each
    is_doubled = in_domain.get(node.domain, 0) >= group.count
    return is_doubled, not node.is_local, used * node.weight / node.free_bytes, n
