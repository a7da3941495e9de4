"""A plan as text for people."""

from collections import Counter

from raylog.placement.plan import Plan, Shortfall
from raylog.units import format_seconds

LINES_MAX = 20  # of one section; what is left out is counted


def explain(plan: Plan) -> str:
    """Who runs where; what is missing, what binds and what would make it fit; how good the plan is."""
    sections = [
        _head(plan),
        _section("placed", _placed(plan)),
        _section("short", _short(plan.shortfall)),
        _section("binds", [binding.text for binding in plan.binding]),
        _section("would fit with", [f"{other.job}: {other.change}" for other in plan.counterfactuals]),
        _section("prices (shortfall saved per part of the cluster)", _prices(plan)),
        _section("minimised", _minimised(plan)),
        _section("notes", list(plan.notes)),
    ]
    return "\n".join(section for section in sections if section)


def _head(plan: Plan) -> str:
    workers = len(plan.placements)
    missing = sum(short.workers for short in plan.shortfall)
    placed = f"{workers} of {workers + missing} workers placed" if missing else f"all {workers} workers placed"
    nodes = len(plan.by_node())
    moves = f", {plan.moves} moved" if plan.moves else ""
    gap = f", at most {plan.gap:.2%} from the best" if plan.gap else ""
    return f"{placed} on {nodes} nodes{moves}; {plan.status}{gap}, {format_seconds(plan.seconds)}"


def _placed(plan: Plan) -> list[str]:
    """A line per node: how many workers of which job, on which devices."""
    by_node: dict[str, Counter[str]] = {}
    devices: dict[str, set[str]] = {}
    for placement in plan.placements:
        by_node.setdefault(placement.node, Counter())[placement.job] += 1
        devices.setdefault(placement.node, set()).update(placement.devices)
    lines: list[str] = []
    for node, jobs in by_node.items():
        parts = [f"{count} of {job}" for job, count in jobs.items()]
        gpus = f" (GPU {', '.join(sorted(devices[node], key=int))})" if devices[node] else ""
        lines.append(f"{node}: {_some(parts)}{gpus}")
    return lines


def _short(shortfall: tuple[Shortfall, ...]) -> list[str]:
    """Jobs that lack the same for the same reason share a line."""
    jobs: dict[tuple[int, str], list[str]] = {}
    for short in shortfall:
        jobs.setdefault((short.workers, short.reason), []).append(short.job)
    return [
        f"{_some(names)}: {workers} worker{'s' if workers > 1 else ''} missing; {reason}"
        for (workers, reason), names in jobs.items()
    ]


def _prices(plan: Plan) -> list[str]:
    return [f"{price.resource.removesuffix('_bytes')} at {price.nodes}: {price.price:.3g}" for price in plan.prices]


def _minimised(plan: Plan) -> list[str]:
    lines = []
    for measure in plan.measures:
        bound = f" (no plan has less than {max(measure.bound, 0.0):.4g})" if measure.bound is not None else ""
        lines.append(f"{measure.name}: {measure.value:.4g}{bound}")
    return [*lines, plan.secondary]


def _some(parts: list[str], most: int = 4) -> str:
    if len(parts) <= most:
        return ", ".join(parts)
    return f"{', '.join(parts[: most - 1])} and {len(parts) - most + 1} more"


def _section(title: str, lines: list[str]) -> str:
    if not lines:
        return ""
    shown = lines[:LINES_MAX]
    if len(lines) > LINES_MAX:
        shown.append(f"… and {len(lines) - LINES_MAX} more")
    return f"{title}:\n" + "\n".join(f"  {line}" for line in shown)
