"""Is a plan allowed? Written from the problem alone, without the code that makes plans, so that each checks the other.

`solve` runs it on its own answer; a plan with a violation is never returned.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable

from raylog.placement.model import RESOURCES, Gpu, Job, Node, Problem
from raylog.placement.plan import Placement

_EXACT = 9  # decimals; amounts are summed as whole billionths


def violations(problem: Problem, placements: Iterable[Placement]) -> list[str]:
    """Every rule that the placements break, in words; empty if none."""
    nodes = {name: node for node in problem.nodes for name in node.ids()}
    jobs = {name: job for job in problem.jobs for name in job.ids()}
    found: list[str] = []
    known: list[Placement] = []
    for placement in placements:
        if placement.job not in jobs or placement.node not in nodes:
            found.append(f"{placement.job} on {placement.node}: no such job or node")
        elif not 0 <= placement.worker < jobs[placement.job].workers:
            found.append(f"{placement.job} has no worker {placement.worker}")
        else:
            known.append(placement)
    twice = [key for key, times in Counter((p.job, p.worker) for p in known).items() if times > 1]
    found += [f"worker {worker} of {job} stands in more than one place" for job, worker in twice]
    found += _capacity(nodes, jobs, known)
    found += _devices(nodes, jobs, known)
    found += _quotas(problem, jobs, known)
    found += _spread(nodes, jobs, known)
    return found


def _capacity(nodes: dict[str, Node], jobs: dict[str, Job], placements: list[Placement]) -> list[str]:
    cpu: Counter[str] = Counter()
    memory_bytes: Counter[str] = Counter()
    for placement in placements:
        cpu[placement.node] += _exact(jobs[placement.job].each.cpu)
        memory_bytes[placement.node] += jobs[placement.job].each.memory_bytes
    over = [f"{name}: more cpu placed than {nodes[name].cpu}" for name in cpu if cpu[name] > _exact(nodes[name].cpu)]
    return over + [
        f"{name}: more memory placed than {nodes[name].memory_bytes} bytes"
        for name in memory_bytes
        if memory_bytes[name] > nodes[name].memory_bytes
    ]


def _devices(nodes: dict[str, Node], jobs: dict[str, Job], placements: list[Placement]) -> list[str]:
    found: list[str] = []
    share: Counter[tuple[str, str]] = Counter()
    memory_bytes: Counter[tuple[str, str]] = Counter()
    for placement in placements:
        gpus = {str(index): gpu for index, gpu in enumerate(nodes[placement.node].gpus)}
        found += _wrong_devices(jobs[placement.job], gpus, placement)
        for index, part in placement.devices.items():
            share[placement.node, index] += _exact(part)
            memory_bytes[placement.node, index] += jobs[placement.job].each.gpu_memory_bytes
    for (name, index), taken in share.items():
        if int(index) < len(nodes[name].gpus):
            gpu = nodes[name].gpus[int(index)]
            if taken > _exact(gpu.share):
                found.append(f"{name}: {taken / 10**_EXACT} of GPU {index} placed, {gpu.share} of it is free")
            if memory_bytes[name, index] > gpu.memory_bytes:
                found.append(f"{name}: more memory of GPU {index} placed than {gpu.memory_bytes} bytes")
    return found


def _wrong_devices(job: Job, gpus: dict[str, Gpu], placement: Placement) -> list[str]:
    """What is wrong with one worker's devices by themselves."""
    who = f"{placement.job} worker {placement.worker} on {placement.node}"
    parts = list(placement.devices.values())
    if any(index not in gpus for index in placement.devices):
        return [f"{who}: no such GPU among {', '.join(placement.devices)}"]
    if 0 < job.each.gpu < 1:
        if [_exact(part) for part in parts] != [_exact(job.each.gpu)]:
            return [f"{who}: {job.each.gpu} of one GPU expected, got {parts}"]
    elif parts != [1.0] * int(job.each.gpu):
        return [f"{who}: {job.each.gpu:g} whole GPUs expected, got {parts}"]
    types = {gpus[index].type for index in placement.devices}
    if len(types) > 1:
        return [f"{who}: GPUs of several types: {', '.join(sorted(types))}"]
    if types and job.each.gpu_types and not types <= set(job.each.gpu_types):
        return [f"{who}: GPU of type {types.pop()}, asked for {', '.join(job.each.gpu_types)}"]
    return []


def _quotas(problem: Problem, jobs: dict[str, Job], placements: list[Placement]) -> list[str]:
    used: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for placement in placements:
        job = jobs[placement.job]
        for resource in RESOURCES:
            used[job.tenant][resource] += _exact(getattr(job.each, resource))
    return [
        f"tenant {tenant}: more {resource} placed than its quota of {getattr(quota, resource)}"
        for tenant, quota in problem.quotas.items()
        for resource in RESOURCES
        if getattr(quota, resource) is not None and used[tenant][resource] > _exact(getattr(quota, resource))
    ]


def _spread(nodes: dict[str, Node], jobs: dict[str, Job], placements: list[Placement]) -> list[str]:
    there: Counter[tuple[str, str, str]] = Counter()
    for placement in placements:
        spread = jobs[placement.job].spread
        if spread != "none":
            domain = placement.node if spread == "node" else nodes[placement.node].labels.get("rack", "(no rack label)")
            there[placement.job, spread, domain] += 1
    return [
        f"{job}: {count} workers on {spread} {domain}, spread allows one"
        for (job, spread, domain), count in there.items()
        if count > 1
    ]


def _exact(value: float) -> int:
    return max(round(value * 10**_EXACT), 1) if value else 0
