"""`verify`: every copy of a version is read and checked where it lies, and what is damaged is replaced."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import msgspec

from raylog.actors.node import ChunkReport
from raylog.actors.node_info import NodeInfo
from raylog.api.progress import OnProgress, Reporter
from raylog.api.session import Session
from raylog.errors import RaylogError
from raylog.spec import Reference, ShardRef

COPIES_AT_ONCE = 4


class ScrubReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a scrub found. A chunk is counted once per copy, a damaged frame like one. `problems` names what is not well
    even now: chunks that could not be repaired, shards with fewer whole copies than were promised."""

    replicas: int
    chunks_read: int
    damaged: int
    repaired: int
    problems: list[str] = []


def verify_version(session: Session, reference: Reference, on_progress: OnProgress | None = None) -> ScrubReport:
    """Reads every chunk of every living copy of a version, copies that are only cache included. `on_progress` gets the
    places (a shard on a node) that were looked at, and how many there are."""
    manifest = session.manifest(reference)
    kept = manifest.kept_shards()
    work = [(info, ref) for ref, _ in kept.values() for info in session.nodes()]
    reporter = Reporter(on_progress, len(work))
    with ThreadPoolExecutor(COPIES_AT_ONCE, thread_name_prefix="verify") as executor:
        found = []
        for item, report in zip(work, executor.map(lambda item: _scrub(session, *item), work), strict=True):
            found.append((item, report))
            reporter.reach(len(found))
    reports = [report for _, report in found if report]
    whole = Counter(ref.shard_id for (_, ref), report in found if report and not report.problems)
    short = [
        f"shard {shard_id} has {whole[shard_id]} whole copies on living nodes, {wanted} were promised"
        for shard_id, (_, wanted) in kept.items()
        if whole[shard_id] < wanted
    ]
    return ScrubReport(
        replicas=len(reports),
        chunks_read=sum(report.chunks_read for report in reports),
        damaged=sum(report.damaged for report in reports),
        repaired=sum(report.repaired for report in reports),
        problems=[*(problem for report in reports for problem in report.problems), *short],
    )


def _scrub(session: Session, info: NodeInfo, ref: ShardRef) -> ScrubReport | None:
    """One copy; None where there is none."""
    found: ChunkReport | None = session.on_node(info, "scrub", ref, timeout_s=session.settings.pull_deadline_s)
    if found is None:
        return None
    repaired, problems = 0, []
    if found.damaged:
        try:
            repaired = session.repair(info, ref, found.damaged)
        except RaylogError as error:
            problems.append(f"shard {ref.shard_id} on node {info.node_id}: {error}")
    return ScrubReport(
        replicas=1,
        chunks_read=found.chunks_read,
        damaged=len(found.damaged) + found.mended_frames,
        repaired=repaired + found.mended_frames,
        problems=problems,
    )
