"""`verify`: every replica of a version is read and checked where it lies, and what is damaged is replaced."""

from concurrent.futures import ThreadPoolExecutor

import msgspec

from raylog.actors.node import NodeInfo
from raylog.api.session import Session
from raylog.spec import Reference, ShardRef

REPLICAS_AT_ONCE = 4


class ScrubReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a scrub found. A chunk is counted once per replica; `repaired` equals `damaged` when all is well again."""

    replicas: int
    chunks_read: int
    damaged: int
    repaired: int


def verify_version(session: Session, reference: Reference) -> ScrubReport:
    """Reads every chunk of every living replica of a version, copies that are only cache included."""
    manifest = session.manifest(reference)
    nodes = session.nodes()
    work = [(info, entry.shard) for entry in manifest.shards for info in nodes]

    def scrub(item: tuple[NodeInfo, ShardRef]) -> ScrubReport | None:
        report: ScrubReport | None = session.scrub(*item)
        return report

    with ThreadPoolExecutor(REPLICAS_AT_ONCE, thread_name_prefix="verify") as executor:
        reports = [report for report in executor.map(scrub, work) if report is not None]
    return ScrubReport(
        replicas=len(reports),
        chunks_read=sum(report.chunks_read for report in reports),
        damaged=sum(report.damaged for report in reports),
        repaired=sum(report.repaired for report in reports),
    )
