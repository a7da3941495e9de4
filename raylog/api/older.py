"""The shards of the version that a put comes after: where one of them holds what was just sealed, the new version names
it, and nothing is stored or sent twice."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from raylog.api.session import Session
from raylog.catalog.manifest import ShardEntry
from raylog.catalog.receipt import peek_receipt
from raylog.codec.content_tag import ContentTag
from raylog.codec.keys import GroupKey
from raylog.codec.open import ShardOpener
from raylog.errors import RaylogError
from raylog.spec import Durability, Reference, ShardRef

log = logging.getLogger("raylog.put")


class Older(Protocol):
    """What a put may use again. `tag_key`: what content is tagged with, so that it can be compared; `kept`: shards, or
    ranges of them, that are known to go into the new version before it is sealed, and are where it promises its own."""

    @property
    def tag_key(self) -> GroupKey: ...
    @property
    def kept(self) -> Sequence["Kept"]: ...
    def find(self, content_tag: bytes) -> "Kept | None":
        """A shard that holds what has this tag, if there is one that will do."""
        ...


@dataclass(frozen=True, slots=True)
class Kept:
    """An older shard that goes into the new version, with receipts of the nodes that hold it."""

    entry: ShardEntry
    receipts: list[bytes]


class OlderShards:
    """Those of one version, found again whole."""

    kept: Sequence[Kept] = ()

    def __init__(
        self,
        session: Session,
        tag_key: GroupKey,
        entries: Mapping[bytes, ShardEntry],
        replicas: int,
        durability: Durability,
    ) -> None:
        self.tag_key = tag_key
        self._session, self._entries = session, entries
        self._replicas, self._durability = replicas, durability

    @classmethod
    def of(
        cls, session: Session, before: Reference | None, own_key: GroupKey, replicas: int, durability: Durability
    ) -> Self:
        """Those of the version `before` (None: there is none). A put goes on without them, whatever keeps it from
        seeing them, and tags with `own_key` then."""
        entries: dict[bytes, ShardEntry] = {}
        try:
            if before is not None:
                manifest = session.manifest(before)
                ((dek_id, dek),) = session.read_keys([manifest.tag_dek_id]).items()
                entries = {entry.content_tag: entry for entry in manifest.shards if entry.is_whole}
                own_key = GroupKey(dek_id, dek)
        except RaylogError as error:
            log.warning("put stores all shards anew, those of %s cannot be compared: %s", before, error)
        return cls(session, own_key, entries, replicas, durability)

    def find(self, content_tag: bytes) -> Kept | None:
        """An older shard that holds what has this tag, of which a copy here has been opened to see it, and of which
        as many replicas stand as the new version promises; else None, and never an error: the new shard will do."""
        entry = self._entries.get(content_tag)
        if entry is None:
            return None
        try:
            receipts = replicas_of(self._session, entry.shard, self._durability)
            if len(receipts) >= self._replicas and self._is_tagged_rightly(entry):
                return Kept(entry, receipts)
        except RaylogError as error:
            log.info("shard %s of the version before is not used again: %s", entry.shard.shard_id, error)
        return None

    def _is_tagged_rightly(self, entry: ShardEntry) -> bool:
        """Whether the content of this node's copy has the tag that the entry's writer gave it."""
        granted = self._session.read_keys(entry.dek_ids)
        keys = [GroupKey(dek_id, key) for dek_id, key in granted.items()]
        with self._session.store.open(entry.shard.shard_id) as shard:
            if shard.frame.digest != entry.shard.frame_digest:
                return False
            tag = ContentTag.of_shard(ShardOpener(shard.frame, keys, shard.chunk), self.tag_key)
        return tag.digest() == entry.content_tag


def replicas_of(session: Session, shard: ShardRef, durability: Durability) -> list[bytes]:
    """Receipts of the nodes that hold a replica with the promise of `durability`."""
    receipts = [receipt for info in session.holders(shard.shard_id) for receipt in session.receipts(info, [shard])]
    return [receipt for receipt in receipts if peek_receipt(receipt).keeps(shard, durability)]
