"""`verify`: every copy of a version is read and checked where it lies, and what is damaged is replaced."""

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
from raylog.spec import Reference, ShardRef, new_id

COPIES_AT_ONCE = 4


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
    in_backups = _check_backups(session, manifest) if with_backups else []
    everything = [*reports, *in_backups]
    return ScrubReport(
        replicas=len(reports),
        chunks_read=sum(report.chunks_read for report in everything),
        damaged=sum(report.damaged for report in everything),
        repaired=sum(report.repaired for report in everything),
        backup_copies=len(in_backups),
        problems=[*(problem for report in everything for problem in report.problems), *short],
    )


def _check_backups(session: Session, manifest: Manifest) -> list[ScrubReport]:
    """Every copy in every backup, each read by one of the nodes."""
    refs = manifest.distinct_shards()
    found: dict[str, Whereabouts] = session.retried("catalog", "whereabouts", list(refs))
    nodes = session.nodes()
    work = [(ref, url) for shard_id, ref in refs.items() for url in found[shard_id].backups]
    with ThreadPoolExecutor(COPIES_AT_ONCE, thread_name_prefix="verify") as executor:
        return list(
            executor.map(lambda item: _check_backup(session, nodes[item[0] % len(nodes)], *item[1]), enumerate(work))
        )


def _check_backup(session: Session, info: NodeInfo, ref: ShardRef, url: str) -> ScrubReport:
    repaired, damaged, problems = 0, 0, []
    try:
        session.check_backup(info, ref, url)
    except (NotFound, DamagedData) as bad:
        damaged = 1
        holder = next(iter(session.holders(ref.shard_id)), info)
        elsewhere = session.elsewhere(holder, ref.shard_id)
        others = tuple(other for other in elsewhere.backups if other != url)
        elsewhere = msgspec.structs.replace(elsewhere, backups=others)
        try:
            session.back_up(holder, ref, url, elsewhere, pull_id=new_id(), is_anew=True)
            repaired = 1
        except RaylogError as error:
            problems.append(f"{bad}; it was not written anew: {error}")
    except RaylogError as error:
        problems.append(str(error))
    return ScrubReport(replicas=0, chunks_read=ref.chunks, damaged=damaged, repaired=repaired, problems=problems)


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
