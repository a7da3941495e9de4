"""What is to lie in backups, and what does: the catalog's knowledge of remote copies and of the chain's copy there."""

from collections.abc import Sequence
from dataclasses import dataclass

from raylog.catalog import remotes, tables
from raylog.catalog.journal import Journal
from raylog.catalog.receipt import verify_receipt
from raylog.errors import NotFound, UsageError
from raylog.spec import ShardStanding


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedCopy:
    """A shard that is to have a copy below `url`. `is_damaged`: the one that is there must be written anew; otherwise
    it may be there, unknown to this catalog."""

    standing: ShardStanding
    url: str
    is_damaged: bool


class Backups:
    """Over the catalog's journal. Threads may share it."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._database = journal.database
        self._trust = journal.trust

    def urls(self) -> list[str]:
        """Every backup that holds anything of this cluster or is to."""
        with self._database.read() as connection:
            return remotes.urls(connection)

    def wanted(self, url: str, count_max: int, after: str = "") -> list[WantedCopy]:
        """Copies that are to be written below `url`, or looked for, of the shards whose ids come after `after`."""
        with self._database.read() as connection:
            found = []
            for shard_id, is_damaged in remotes.wanted(connection, url, after, count_max):
                standing = tables.standing(connection, shard_id)
                if standing is not None:
                    found.append(WantedCopy(standing=standing, url=url, is_damaged=is_damaged))
            return found

    def lacking(self, shard_ids: Sequence[str], url: str) -> list[str]:
        """Those of the shards that are still to be written below `url`."""
        with self._database.read() as connection:
            return remotes.lacking(connection, shard_ids, url)

    def add(self, receipt: bytes) -> None:
        """A node has written a copy or seen that it is there. Raises `NotFound` when none is wanted there, as of a
        version that was deleted meanwhile, `NotPermitted`, `DamagedData`."""
        verified = verify_receipt(receipt, self._trust.cluster_id, self._trust.identify)
        if not verified.url:
            raise UsageError(f"expected the receipt of a copy in a backup, got one of tier {verified.tier}")
        with self._journal.change() as change:
            is_named = tables.is_referenced(change.connection, verified)
            if not is_named or not remotes.put(change.connection, verified.shard_id, verified.url):
                raise NotFound(f"no version wants shard {verified.shard_id} in {verified.url}")

    def doubt(self, shard_id: str, url: str) -> None:
        """The copy was found missing, truncated or replaced."""
        with self._journal.change() as change:
            remotes.doubt(change.connection, shard_id, url)

    def free(self, url: str, count_max: int) -> list[str]:
        """Shards whose copies below `url` no version names any more. Delete them, then `remove` each."""
        with self._database.read() as connection:
            return remotes.free(connection, url, count_max)

    def remove(self, shard_id: str, url: str) -> None:
        """A copy that no version names was deleted."""
        with self._journal.change() as change:
            remotes.take(change.connection, shard_id, url)
            tables.drop_if_free(change.connection, shard_id)

    def end(self, url: str) -> None:
        """Once nothing lies below `url` any more, and is to, the chain is not kept up there either."""
        with self._journal.change() as change:
            if not remotes.is_used(change.connection, url):
                remotes.forget_chain(change.connection, url)

    def chain_reached(self, url: str) -> int:
        """Up to which record the chain lies below `url`."""
        with self._database.read() as connection:
            return remotes.chain_reached(connection, url)

    def signed_records(self, after: int, count_max: int) -> list[bytes]:
        """Records after number `after` as they were signed."""
        with self._database.read() as connection:
            return tables.signed_records(connection, after, count_max)

    def deleted_manifests(self, after: int) -> list[bytes]:
        """Digests of versions that were deleted by records after number `after`."""
        with self._database.read() as connection:
            return tables.deleted_digests(connection, after)

    def note_chain(self, url: str, sequence: int) -> None:
        """The chain lies below `url` up to this record."""
        with self._journal.change() as change:
            remotes.note_chain(change.connection, url, sequence)
