"""Copies in a backup of versions that were put without, and waiting until they are there."""

import time

import msgspec

from raylog.api.progress import OnProgress, Reporter
from raylog.api.session import Session
from raylog.errors import DeadlineExceeded, NotFound
from raylog.spec import Reference, ShardRef, Version

POLL_S = 0.5


class BackupReport(msgspec.Struct, frozen=True, kw_only=True):
    """`versions` lie below `url` now: `shards` sealed files of `stored_bytes` together, and all of the catalog's
    records."""

    url: str
    versions: list[str]
    shards: int
    stored_bytes: int
    seconds: float


def back_up(
    session: Session, reference: Reference, url: str, timeout_s: float, on_progress: OnProgress | None
) -> BackupReport:
    """As `Client.back_up`."""
    started_s = time.monotonic()
    session.probe_backup(url)
    versions = session.want_backup(reference, url)
    sequence: int = session.retried("catalog", "sequence")  # commits of others, which come later, are not waited for
    shards = {shard_id: ref for one in versions for shard_id, ref in _shards_of(session, one).items()}
    reporter = Reporter(on_progress, len(shards))
    while True:
        lacking: list[str] = session.retried("catalog", "not_backed_up", list(shards), url)
        reporter.reach(len(shards) - len(lacking))
        if not lacking and session.retried("catalog", "chain_backed_up", url, sequence):
            return BackupReport(
                url=url,
                versions=[str(one) for one in versions],
                shards=len(shards),
                stored_bytes=sum(ref.stored_bytes for ref in shards.values()),
                seconds=time.monotonic() - started_s,
            )
        if time.monotonic() - started_s > timeout_s:
            raise DeadlineExceeded(
                f"{reference}: {len(lacking)} of {len(shards)} shards are not in {url} after {timeout_s:.0f} s; it "
                "goes on by itself, 'raylog status --events' says what keeps it"
            )
        time.sleep(POLL_S)


def _shards_of(session: Session, version: Version) -> dict[str, ShardRef]:
    try:
        return session.manifest(Reference(version.name, version.number)).distinct_shards()
    except NotFound:  # deleted meanwhile
        return {}
