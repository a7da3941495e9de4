"""What the catalog is asked to change, in a signed request (security/requests.py)."""

from typing import ClassVar

from raylog.catalog.encoding import check_range
from raylog.errors import UsageError
from raylog.security.requests import Request
from raylog.spec import parse_backup, parse_id, parse_reference

CATALOG = "catalog"  # to whom these requests are
_NUMBER_MAX = 10**12


class DeleteVersions(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """That `reference` (`name` or `name@3`) is to be deleted. `latest` is the newest number that the asker saw: what
    came after stays."""

    action: ClassVar[str] = "catalog.delete"
    askers: ClassVar[frozenset[str]] = frozenset({"client"})

    reference: str
    latest: int

    def __post_init__(self) -> None:
        parse_reference(self.reference)
        check_range(self.latest, 1, _NUMBER_MAX, "latest number")


class BackUpVersions(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """That the shards of `reference` (a version, or all of a name) are to have copies below `url`."""

    action: ClassVar[str] = "catalog.back_up"
    askers: ClassVar[frozenset[str]] = frozenset({"client"})

    reference: str
    url: str

    def __post_init__(self) -> None:
        parse_reference(self.reference)
        if parse_backup(self.url) != self.url:
            raise UsageError(f"expected a backup's URL without a slash at its end, got {self.url!r}")


class GovernVersions(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """That `reference` is held, released, expires or is one of so many that are kept (MANIFEST.md): a record of that
    kind with that detail."""

    action: ClassVar[str] = "catalog.govern"
    askers: ClassVar[frozenset[str]] = frozenset({"client"})

    reference: str
    kind: str
    details: dict[str, str]

    def __post_init__(self) -> None:
        parse_reference(self.reference)
        if self.kind not in ("hold", "release", "expire", "keep"):
            raise UsageError(f"expected hold, release, expire or keep, got {self.kind!r}")


class WithdrawVersion(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """That a version which several processes seal together is not to be committed, if it was not yet, and why."""

    action: ClassVar[str] = "catalog.withdraw"
    askers: ClassVar[frozenset[str]] = frozenset({"client"})

    version_id: str
    reason: str

    def __post_init__(self) -> None:
        parse_id(self.version_id, "version id")


class RebalanceCopies(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """That copies move between nodes until these are filled alike."""

    action: ClassVar[str] = "catalog.rebalance"
    askers: ClassVar[frozenset[str]] = frozenset({"client"})


class DoubtCopies(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """That these shards' copies below `url` were found missing, truncated or replaced, and are to be written anew."""

    action: ClassVar[str] = "catalog.doubt"
    askers: ClassVar[frozenset[str]] = frozenset({"client"})

    shard_ids: tuple[str, ...]
    url: str

    def __post_init__(self) -> None:
        for shard_id in self.shard_ids:
            parse_id(shard_id, "shard id")
        parse_backup(self.url)


class DiscardCopies(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """That the copies below `url` of shards that no version names go: their put has failed."""

    action: ClassVar[str] = "catalog.discard"
    askers: ClassVar[frozenset[str]] = frozenset({"client"})

    shard_ids: tuple[str, ...]
    url: str

    def __post_init__(self) -> None:
        for shard_id in self.shard_ids:
            parse_id(shard_id, "shard id")
        parse_backup(self.url)
