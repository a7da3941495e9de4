"""What the command shows: progress bars on a terminal, tables, one JSON line where it was asked for."""

from __future__ import annotations

import os
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from raylog.monitor.samples import NodeSample, TierSample
from raylog.spec import TierKind
from raylog.units import format_bytes, format_rate, format_seconds

if TYPE_CHECKING:  # the screen is needed before Ray is, and by commands that never load it
    from raylog.api.operate import Status
    from raylog.api.paths import NodePaths
    from raylog.catalog.lineage import Lineage, Origin
    from raylog.demo import NodeFigures, Report
    from raylog.monitor.events import Event
    from raylog.monitor.rows import NodeRow
    from raylog.monitor.training import RankRow, RunRow
    from raylog.wire.paths import PathReport

_LONG_ID = re.compile(r"\b[0-9a-f]{32}\b")
WIDTH_PIPED = 400  # where lines go to another program or a file they are not folded
_is_folded = sys.stdout.isatty() or "COLUMNS" in os.environ
out = Console(file=sys.stdout, highlight=False, width=None if _is_folded else WIDTH_PIPED)
err = Console(stderr=True, highlight=False)


def claim_standard_output() -> None:
    """From here on standard output is this module's alone: what Ray prints there by itself goes to standard error."""
    sys.stdout = sys.stderr


@contextmanager
def others_silenced() -> Iterator[None]:
    """What others print to standard output is dropped meanwhile."""
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        yield


def print_json(value: Any) -> None:
    """One line of JSON on standard output, nothing else ever mixed with it."""
    out.file.write(msgspec.json.encode(value, enc_hook=str).decode() + "\n")


def print_table(columns: list[str], rows: list[list[object]], *, right: Set[str] = frozenset()) -> None:
    """A plain table; columns named in `right` are numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        longest = max(map(len, column.split()), default=0)
        table.add_column(column, justify="right" if column in right else "left", overflow="fold", min_width=longest)
    for row in rows:
        table.add_row(*[str(cell) for cell in row])
    out.print(table)


class Bar:
    """A progress bar, on standard error and only on a terminal; appears after a second, so that quick work is quiet.
    Use as `on_progress`: called with (done, total), total 0 while unknown; bytes, or whatever `counts` names."""

    APPEARS_AFTER_S = 1.0

    def __init__(self, what: str, *, counts: str | None = None, enabled: bool = True) -> None:
        self._what = what
        self._columns: list[ProgressColumn] = (
            [MofNCompleteColumn(), TextColumn(counts)]
            if counts
            else [DownloadColumn(binary_units=True), TransferSpeedColumn()]
        )
        self._enabled = enabled and err.is_terminal
        self._started_s = time.monotonic()
        self._progress: Progress | None = None
        self._task: Any = None

    def __call__(self, done: int, total: int) -> None:
        if not self._enabled or time.monotonic() - self._started_s < self.APPEARS_AFTER_S:
            return
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                *self._columns,
                TimeRemainingColumn(),
                console=err,
                transient=True,
            )
            self._task = self._progress.add_task(self._what, total=total or None)
            self._progress.start()
        self._progress.update(self._task, completed=done, total=total or None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()


@contextmanager
def waiting(what: str, *, enabled: bool = True) -> Iterator[None]:
    """A spinner on a terminal while something of unknown length goes on."""
    if enabled and err.is_terminal:
        with err.status(what):
            yield
    else:
        yield


def show_lineage(lineage: Lineage) -> None:
    """Two trees: what it was made from, and what was made from it. What is reached twice has its branch once."""
    known = {one.version: one for one in (lineage.version, *lineage.ancestors, *lineage.descendants)}
    children: dict[str, list[str]] = {}
    for one in known.values():
        for parent in one.parents:
            children.setdefault(parent, []).append(one.version)
    root = lineage.version.version
    out.print(_tree(f"{_called(known, root)} was made from", root, known, lambda one: list(known[one].parents)))
    out.print(_tree("and into", root, known, lambda one: children.get(one, [])))
    if lineage.is_cut:
        err.print("there is more than is shown: name one of the versions above", style="yellow")


def _tree(title: str, root: str, known: Mapping[str, Origin], links: Callable[[str], list[str]]) -> Tree:
    top = Tree(Text(title if links(root) else f"{title} nothing"))
    seen, waiting = {root}, deque([(root, top)])
    while waiting:
        version, branch = waiting.popleft()
        for linked in links(version):
            is_shown = linked in seen
            below = branch.add(
                Text(_called(known, linked) + (" (its branch is shown once)" if is_shown and links(linked) else ""))
            )
            if linked in known and not is_shown:
                seen.add(linked)
                waiting.append((linked, below))
    return top


def _called(known: Mapping[str, Origin], version: str) -> str:
    return version if version not in known or known[version].exists else f"{version} (deleted)"


def show_status(status: Status) -> None:
    """One line per node, what is wrong, and the cluster's totals."""
    rows = [_node_cells(row) for row in status.monitor.rows]
    print_table(
        ["node", "host", "state", "cpu", "memory free", "gpus", "disk free", "arena free", "in", "out", "damaged"],
        rows,
        right={"cpu", "memory free", "disk free", "arena free", "in", "out", "damaged"},
    )
    for ray_node_id, problem in status.problems.items():
        err.print(f"Ray node {ray_node_id[:12]}: {problem}", markup=False, style="yellow")
    for row in status.monitor.rows:
        if row.gpus.problem:
            out.print(f"{row.hostname}: {row.gpus.problem}", markup=False, style="dim")
        if row.class_bytes_per_s:
            classes = ", ".join(f"{qos} {format_rate(rate)}" for qos, rate in row.class_bytes_per_s.items())
            out.print(f"{row.hostname} sends {classes}", markup=False, style="dim")
    totals = status.monitor.totals
    out.print(
        f"{totals.nodes} node(s), {totals.nodes_stale} silent; {totals.damaged_chunks} damaged chunks met, "
        f"{totals.repaired_chunks} repaired, {totals.pulls_failed} pulls failed since the node actors started"
    )
    for ray_node_id, is_in_sync in status.standbys.items():
        what = "has all that the head has" if is_in_sync else "is catching up, and cannot take the head's place yet"
        out.print(f"standby on Ray node {ray_node_id[:12]} {what}", markup=False, style="" if is_in_sync else "yellow")
    storage = status.monitor.storage
    if storage is None:
        out.print("the catalog does not say how what is stored stands", style="yellow")
    elif storage.short_shards or storage.copies_to_back_up:
        out.print(
            f"{storage.short_shards} shards have fewer replicas than promised, of {storage.lost_shards} there is "
            f"no copy and no backup; {storage.copies_to_back_up} copies are still to be written to backups",
            style="red" if storage.lost_shards else "yellow",
        )
    if status.monitor.training:
        show_training(status.monitor.training)


def show_training(runs: Sequence[RunRow]) -> None:
    """A line per training run."""
    columns = ["run", "state", "ranks", "step", "loss", "samples/s", "tokens/s", "step time", "slowest rank"]
    columns += ["waits for data", "rank that waits most"]
    print_table(columns, [_run_cells(run) for run in runs], right=set(columns[2:8]) | {"waits for data"})


def show_tiers(samples: Sequence[NodeSample]) -> None:
    """One line per tier of every node: room, what its device was measured at and does now, and what is wrong with
    it."""
    columns = ["host", "tier", "size", "free", "full in", "shards", "read", "write", "fsync", "errors", "state", "path"]
    rows = [[sample.hostname, *_tier_cells(tier), tier.path] for sample in samples for tier in sample.tiers]
    print_table(columns, rows, right=set(columns[2:10]))


def _tier_cells(tier: TierSample) -> list[object]:
    days = "" if tier.days_to_full is None else f"{tier.days_to_full:.0f} days"
    sizes = ["" if size is None else format_bytes(size) for size in (tier.capacity_bytes, tier.free_bytes)]
    room = [tier.kind, *sizes, days, "" if tier.shards is None else tier.shards]
    device = tier.device
    if device is None:
        return [*room, "", "", "", "", "ok"]
    return [
        *room,
        _now_and_measured(device.read_bytes_per_s, device.measured_read_bytes_per_s),
        _now_and_measured(device.write_bytes_per_s, device.measured_write_bytes_per_s),
        f"{device.sync_s * 1e3:.1f} ms",
        device.errors,
        device.problem or "ok",
    ]


def _now_and_measured(now: float, measured: float | None) -> str:
    return format_rate(now) if measured is None else f"{format_rate(now)} of {format_rate(measured)}"


def show_paths(nodes: Sequence[NodePaths]) -> None:
    """One line per node and peer, with the last decision; what nodes did not answer."""
    rows = [[node.hostname, *_path_cells(path)] for node in nodes for path in node.paths]
    columns = ["from", "to", "round trip", "probe", "lost", "sent again", "stream rate", "control", "streams"]
    print_table([*columns, "decided"], rows, right={*columns[2:7], "streams"})
    for node in nodes:
        if node.problem:
            err.print(f"{node.hostname}: {node.problem}", markup=False, style="yellow")


def show_events(events: Sequence[Event]) -> None:
    """A line each, oldest first."""
    styles = {"warning": "yellow", "error": "red"}
    for event in events:
        at = time.strftime("%m-%d %H:%M:%S", time.localtime(event.time_s))
        line = f"{at}  {event.level:7}  {event.actor[:12]:12}  {event.source}: {event.message}"
        out.print(line, markup=False, style=styles.get(event.level))
    if not events:
        out.print("nothing happened in that time")


def _path_cells(path: PathReport) -> list[object]:
    estimate, decision = path.estimate, path.decision
    return [
        path.peer_id[:12],
        "" if estimate.rtt_s is None else f"{estimate.rtt_s * 1e3:.2f} ms",
        "" if estimate.probe_rtt_s is None else f"{estimate.probe_rtt_s * 1e3:.2f} ms",
        "" if estimate.probe_loss_share is None else f"{estimate.probe_loss_share:.1%}",
        f"{estimate.retransmitted_share:.2%}",
        "" if estimate.delivery_rate_bytes_per_s is None else format_rate(estimate.delivery_rate_bytes_per_s),
        path.choice.congestion_control,
        path.streams,
        path.choice.reason if decision is None else f"{decision.before} -> {decision.after}: {decision.reason}",
    ]


def _node_cells(row: NodeRow) -> list[object]:
    free = {tier.kind: tier.free_bytes or 0 for tier in row.tiers}
    disk_bytes = sum(tier.free_bytes or 0 for tier in row.tiers if tier.kind is not TierKind.MEMORY)
    gpus = (
        f"{row.gpus.count} at {row.gpus.utilisation:.0%}" if row.gpus.utilisation is not None else str(row.gpus.count)
    )
    return [
        row.node_id[:12],
        row.hostname,
        row.detail or row.state,
        "" if row.cpu_share is None else f"{row.cpu_share:.0%} of {row.cpus}",
        format_bytes(row.memory_available_bytes),
        gpus,
        format_bytes(disk_bytes),
        format_bytes(free[TierKind.MEMORY]) if TierKind.MEMORY in free else "no memory tier",
        format_rate(row.received_bytes_per_s or 0.0),
        format_rate(row.sent_bytes_per_s or 0.0),
        row.damaged_chunks,
    ]


def _run_cells(run: RunRow) -> list[object]:
    not_finite = f" on {run.losses_not_finite}" if run.losses_not_finite else ""
    return [
        escape(run.run),
        f"no report for {run.age_s:.0f} s" if run.state == "silent" else run.state,
        f"{run.ranks} of {run.world_size}",
        run.step,
        "" if run.loss is None else f"{run.loss:.4g}{not_finite}",
        "" if run.samples_per_s is None else f"{run.samples_per_s:,.0f}",
        "" if run.tokens_per_s is None else f"{run.tokens_per_s:,.0f}",
        "" if run.step_s is None else format_seconds(run.step_s),
        _rank_cell(run.slowest, lambda rank: rank.step_s, format_seconds),
        "" if run.data_wait_share is None else f"{run.data_wait_share:.1%}",
        _rank_cell(run.waiting, lambda rank: rank.data_wait_share, "{:.1%}".format),
    ]


def _rank_cell(rank: RankRow | None, figure: Callable[[RankRow], float | None], text: Callable[[float], str]) -> str:
    value = None if rank is None else figure(rank)
    return "" if rank is None or value is None else f"{rank.rank} on {rank.hostname}: {text(value)}"


def show_demo(report: Report) -> None:
    """The demo's report."""
    saved = report.content_bytes / max(report.stored_bytes, 1)
    chunks = ", ".join(f"{count} {codec}" for codec, count in sorted(report.codecs.items()))
    lines = [
        (
            "put",
            f"{report.version}: {report.rows} rows, {_rate(report.content_bytes, report.put_seconds)}, two replicas",
        ),
        ("stored", f"{format_bytes(report.stored_bytes)} a copy, {saved:.1f} times smaller; chunks: {chunks}"),
        ("shipped", f"{_rate(report.shipped_bytes, report.ship_seconds)} sealed, to a third node"),
        ("killed", f"node {report.killed_node[:12]} with its disk and its memory"),
        ("read back", f"every byte equal, {_rate(report.content_bytes, report.read_seconds)}"),
        ("healed", f"two replicas of everything again after {format_seconds(report.healed_seconds)}"),
        ("verified", f"{report.verified_chunks} chunks on the living nodes, none damaged"),
    ]
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, text in lines:
        table.add_row(name, text)
    out.print(table)
    print_table(["shard", "replicas on nodes"], [
        [shard[:12], ", ".join(node[:12] for node in nodes)] for shard, nodes in report.replicas.items()
    ])  # fmt: skip
    for placed in report.placed:
        nodes = " and ".join(node[:12] for node in placed.nodes)
        out.print(f"why {placed.shards} of {len(report.replicas)} shards were put on {nodes}:")
        for reason in placed.reasons:
            out.print(Padding(Text(_LONG_ID.sub(lambda found: found[0][:12], reason)), (0, 0, 0, 2), expand=False))
    _show_figures(report.monitored)
    out.print(f"done in {format_seconds(report.seconds)}; nothing of it is left on this machine")


def _show_figures(figures: Sequence[NodeFigures]) -> None:
    """A line per node: what the monitor saw."""
    print_table(
        ["monitored", "received", "sent", "cpu", "memory free", "disk free", "gpus"],
        [
            [
                row.node_id[:12] + (" †" if row.is_killed else ""),
                format_bytes(row.received_bytes),
                format_bytes(row.sent_bytes),
                "" if row.cpu_share is None else f"{row.cpu_share:.0%} of {row.cpus}",
                format_bytes(row.memory_available_bytes),
                format_bytes(row.disk_free_bytes),
                row.gpus or "no GPU",
            ]
            for row in figures
        ],
        right={"received", "sent", "cpu", "memory free", "disk free"},
    )
    if any(row.is_killed for row in figures):
        out.print("† as it was before it was killed", style="dim")
    for problem in sorted({row.gpu_problem for row in figures if row.gpu_problem}):
        out.print(problem, markup=False, style="dim")


def _rate(count: float, seconds: float) -> str:
    return f"{format_bytes(count)} in {format_seconds(seconds)} ({format_rate(count / max(seconds, 1e-9))})"
