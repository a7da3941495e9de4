"""The smallest simple changes with which a job would fit whole, each on top of the plan as it stands."""

from collections.abc import Iterator, Sequence

from raylog.placement.packing import Packing
from raylog.placement.room import fit_node, lacking, nearest_nodes, nodes_of
from raylog.placement.shapes import need
from raylog.placement.words import resource_text

CHANGES_MAX = 4
NODES_MAX = 100  # looked at per job: those with the most free


def changes(packing: Packing, job: int, groups: Sequence[int], name: str, workers: int) -> list[str]:
    """Sentences, at most CHANGES_MAX; `workers` of job `name` (of the group) have no place. `groups`: the groups of
    nodes that take a worker when empty."""
    nodes = nodes_of(packing.shapes, groups)
    nearest = nearest_nodes(packing, nodes or range(len(packing.shapes.node_ids)), NODES_MAX)
    found = [*_quota(packing, job, nearest, workers), *_spread(packing, job, nearest, workers)]
    found += [*_more_on_one_node(packing, job, nearest, workers), *_more_nodes(packing, job, groups, workers)]
    placed = packing.shapes.jobs[job].workers_each - workers
    if placed:
        found.append(f"job {name} with {placed} workers instead of {placed + workers}")
    return found[:CHANGES_MAX]


def _quota(packing: Packing, job: int, nodes: Sequence[int], workers: int) -> Iterator[str]:
    """Raised quotas, where room is left for the workers that they stop."""
    group = packing.shapes.jobs[job]
    if packing.quota_room(job) >= workers or _room_beyond(packing, job, nodes, workers) < workers:
        return
    raised: list[str] = []
    for (tenant, resource), limit in packing.shapes.quotas.items():
        asked = packing.tenant_used.get((tenant, resource), 0) + need(group.worker, resource) * workers
        if tenant == group.tenant and need(group.worker, resource) and asked > limit:
            raised.append(f"{resource_text(asked, resource)} instead of {resource_text(limit, resource)}")
    yield f"a quota of tenant {group.tenant} of {' and '.join(raised)}"


def _spread(packing: Packing, job: int, nodes: Sequence[int], workers: int) -> Iterator[str]:
    group = packing.shapes.jobs[job]
    if group.spread == "none" or packing.quota_room(job) < workers:
        return
    if _room_beyond(packing, job, nodes, workers, with_spread=False) >= workers:
        yield f"spread none instead of {group.spread}"
    yield f"{workers} more {group.spread}s with room for one worker each"


def _room_beyond(packing: Packing, job: int, nodes: Sequence[int], workers: int, *, with_spread: bool = True) -> int:
    """How many more workers there is room for, quotas (and the spread) left aside."""
    worker = packing.shapes.jobs[job].worker
    room = 0
    racks: set[str] = set()
    for node in nodes:
        here = 0
        allowed = packing.spread_room(job, node) if with_spread else workers
        if with_spread and packing.shapes.jobs[job].spread == "rack":
            allowed = 0 if packing.rack(node) in racks else min(allowed, 1)
        while here < min(allowed, workers - room) and not lacking(packing, worker, node, here + 1):
            here += 1
        if here:
            racks.add(packing.rack(node))
        room += here
    return room


def _more_on_one_node(packing: Packing, job: int, nodes: Sequence[int], workers: int) -> Iterator[str]:
    """The least that one node would have to have more, if the job may stand there."""
    shapes = packing.shapes
    if packing.quota_room(job) < workers or shapes.jobs[job].spread != "none":
        return
    texts: dict[str, list[int]] = {}
    cost: dict[str, float] = {}
    for node in nodes:
        lacks = lacking(packing, shapes.jobs[job].worker, node, workers)
        if lacks:
            text = " and ".join(resource_text(lack, resource) for resource, lack in lacks.items())
            texts.setdefault(text, []).append(node)
            cost[text] = sum(lack / shapes.totals[resource] for resource, lack in lacks.items())
    if texts:
        best = min(texts, key=lambda text: (cost[text], texts[text][0]))
        where = f"node {shapes.node_ids[texts[best][0]]}"
        if len(texts[best]) > 1:
            where = (
                "any node" if len(texts[best]) == len(shapes.node_ids) else f"{where} or {len(texts[best]) - 1} like it"
            )
        more = best.split(" ", 1)
        yield f"{more[0]} more {more[1]} on {where}"


def _more_nodes(packing: Packing, job: int, groups: Sequence[int], workers: int) -> Iterator[str]:
    """Further nodes of the smallest shape that takes the workers."""
    shapes = packing.shapes
    if packing.quota_room(job) < workers or shapes.jobs[job].spread == "rack":
        return
    group = shapes.jobs[job]
    best: tuple[float, str] | None = None
    for number in groups[:NODES_MAX]:
        node = shapes.nodes[number]
        each = fit_node(group, node, number)
        if each:
            count = -(-workers // (1 if group.spread == "node" else each))
            text = f"{count} more node{'s' if count > 1 else ''} like {node.ids[0]}"
            best = min(best or (float("inf"), ""), (count * shapes.node_size(number), text))
    if best:
        yield best[1]
