"""`verify`: every copy of a version is read and checked where it lies, and what is damaged is replaced."""

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import msgspec

from raylog.actors.node import ChunkReport
from raylog.actors.node_info import NodeInfo
from raylog.api.progress import OnProgress, Reporter
from raylog.api.session import Session
from raylog.catalog.manifest import Manifest
from raylog.catalog.pieces import Whereabouts
from raylog.errors import DamagedData, NotFound, RaylogError
from raylog.spec import Reference, ShardRef

COPIES_AT_ONCE = 4
WRITTEN_ANEW_S = 120.0
POLL_S = 0.5


class ScrubReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a scrub found. A chunk is counted once per copy, a damaged frame like one. `problems` names what is not well
    even now: chunks that could not be repaired, shards with fewer whole copies than were promised. `backup_copies` in
    backups were read as well; a bad one counts as one damage."""

    replicas: int
    chunks_read: int
    damaged: int
    repaired: int
    backup_copies: int = 0
    problems: list[str] = []


def verify_version(
    session: Session, reference: Reference, on_progress: OnProgress | None = None, *, with_backups: bool = False
) -> ScrubReport:
    """Reads every chunk of every living copy of a version, copies that are only cache included, and `with_backups` of
    those in backups; a bad one there is written anew by a node that has the shard. `on_progress` gets the places (a
    shard on a node) that were looked at, and how many there are."""
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
    in_backups = _check_backups(session, manifest) if with_backups else None
    everything = [*reports, in_backups] if in_backups else reports
    return ScrubReport(
        replicas=len(reports),
        chunks_read=sum(report.chunks_read for report in everything),
        damaged=sum(report.damaged for report in everything),
        repaired=sum(report.repaired for report in everything),
        backup_copies=in_backups.backup_copies if in_backups else 0,
        problems=[*(problem for report in everything for problem in report.problems), *short],
    )


def _check_backups(session: Session, manifest: Manifest) -> ScrubReport:
    """Every copy in every backup, each read by one of the nodes; bad ones are written anew by nodes that hold the
    shard."""
    refs, nodes = manifest.distinct_shards(), session.nodes()
    found: dict[str, Whereabouts] = session.retried("catalog", "whereabouts", list(refs))
    work = [(ref, url) for shard_id, ref in refs.items() for url in found[shard_id].backups]
    with ThreadPoolExecutor(COPIES_AT_ONCE, thread_name_prefix="verify") as executor:
        wrong = list(executor.map(lambda item: _wrong(session, nodes[item[0] % len(nodes)], *item[1]), enumerate(work)))
    bad: dict[str, dict[str, str]] = {}
    for (ref, url), why in zip(work, wrong, strict=True):
        if why:
            bad.setdefault(url, {})[ref.shard_id] = why
    problems = [problem for url, reasons in bad.items() for problem in _write_anew(session, url, reasons)]
    damaged = sum(map(len, bad.values()))
    return ScrubReport(
        replicas=0,
        chunks_read=sum(ref.chunks for ref, _ in work),
        damaged=damaged,
        repaired=damaged - len(problems),
        backup_copies=len(work),
        problems=problems,
    )


def _wrong(session: Session, info: NodeInfo, ref: ShardRef, url: str) -> str:
    """What is wrong with a copy; "" where nothing is. Raises `Unavailable` where that cannot be seen."""
    try:
        session.check_backup(info, ref, url)
    except (NotFound, DamagedData) as error:
        return str(error)
    return ""


def _write_anew(session: Session, url: str, reasons: dict[str, str]) -> list[str]:
    """Has copies written anew; what is still wrong with which of them after a while."""
    session.doubt_copies(list(reasons), url)
    deadline = time.monotonic() + WRITTEN_ANEW_S
    while True:
        lacking: list[str] = session.retried("catalog", "not_backed_up", list(reasons), url)
        if not lacking or time.monotonic() > deadline:
            return [
                f"{reasons[shard_id]}; it was not written anew within {WRITTEN_ANEW_S:.0f} s" for shard_id in lacking
            ]
        time.sleep(POLL_S)


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
