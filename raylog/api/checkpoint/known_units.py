"""The units of a name's latest checkpoint, by tag: what of the next one need not be sealed, stored and sent again."""

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import msgspec

from raylog.api.get import Reading
from raylog.api.older import Kept, replicas_of
from raylog.api.put_options import PutOptions
from raylog.api.session import Session
from raylog.catalog.manifest import Extent, ShardEntry
from raylog.catalog.parts import positions_of
from raylog.catalog.pieces import Whereabouts
from raylog.codec.keys import GroupKey, content_tag_key
from raylog.codec.open import ShardOpener
from raylog.codec.stream import ContentStream
from raylog.codec.tensors import aligned, read_tagged
from raylog.codec.units import Slice, Unit, unit_bytes, unit_tag, units_of
from raylog.errors import RaylogError
from raylog.spec import Reference, ShardRef
from raylog.units import KIB

log = logging.getLogger("raylog.checkpoint")
SHARE_MIN = 0.5  # of a shard's content that is used again, or nothing of it: the rest of the shard stays stored with it
REST_BYTES_MAX = 256 * KIB  # less of a rest is no reason: a few changes beside a document that is not the same again


@dataclass(frozen=True, slots=True)
class Place:
    """The chunk that holds a unit. `is_seen`: this process sealed or opened it, and knows that it does."""

    entry: ShardEntry
    number: int
    size_bytes: int
    is_seen: bool


@dataclass(frozen=True, slots=True)
class Reused:
    """What a put uses again (`Older`): `places` by tag."""

    tag_key: GroupKey
    places: Mapping[bytes, Place]
    kept: Sequence[Kept]

    def find(self, content_tag: bytes) -> Kept | None:
        return None


class KnownUnits:
    """Of one name. Nothing that fails here fails a save: it stores all anew then."""

    def __init__(self, session: Session, name: str, options: PutOptions, rank: int = 0) -> None:
        self._session, self._name, self._options, self._rank = session, name, options, rank
        self._number = 0  # of the version that `_places` are of; 0: none
        self._tag_key: GroupKey | None = None
        self._places: dict[bytes, Place] = {}

    def look(self, base: int, own_key: GroupKey) -> GroupKey:
        """What to tag the version after `base` with, so that it can be compared; `own_key` where there is nothing to
        compare with."""
        if base != self._number or self._tag_key is None:
            self._number, self._tag_key, self._places = base, own_key, {}
            try:
                if base:
                    self._read(Reading(self._session, Reference(self._name, base)))
            except RaylogError as error:
                log.warning("%s is stored anew, %s@%d cannot be compared: %s", self._name, self._name, base, error)
                self._places = {}
        return self._tag_key

    def _read(self, reading: Reading) -> None:
        """What the version's writers say is in its chunks."""
        dek_id = reading.manifest.tag_dek_id
        self._tag_key = GroupKey(dek_id, self._session.read_keys([dek_id])[dek_id])
        shards = reading.manifest.shards
        positions = positions_of(reading.manifest, self._rank) or range(len(shards))
        with closing(reading.openers(positions=positions)) as openers:
            for opener, position in zip(openers, positions, strict=True):
                entry = shards[position]
                if entry.parity is None:
                    self._places |= {
                        tag: Place(entry, number, unit_bytes(unit), False) for number, unit, tag in _units(opener)
                    }

    def reuse(self, units: Mapping[bytes, Unit]) -> Reused:
        """Those of `units` (by tag) that are to be named again."""
        assert self._tag_key is not None
        by_shard: dict[str, dict[bytes, Place]] = defaultdict(dict)
        for tag in units.keys() & self._places.keys():
            place = self._places[tag]
            by_shard[place.entry.shard.shard_id][tag] = place
        places: dict[bytes, Place] = {}
        kept = []
        for found in by_shard.values():
            again = self._again(found, units)
            if again is not None:
                kept.append(again)
                places |= found
        return Reused(self._tag_key, places, kept)

    def _again(self, found: Mapping[bytes, Place], units: Mapping[bytes, Unit]) -> Kept | None:
        """One shard's, if enough of it is used, as many replicas stand as are promised, and it holds what it says."""
        entry = next(iter(found.values())).entry
        rest_bytes = entry.shard.content_bytes - sum(place.size_bytes for place in found.values())
        if rest_bytes > max((1 - SHARE_MIN) * entry.shard.content_bytes, REST_BYTES_MAX):
            return None
        try:
            receipts = replicas_of(self._session, entry.shard, self._options.kept_as)
            stands = len(receipts) >= self._options.replicas and self._is_in_backup(entry.shard)
            if not stands or not self._holds(entry, found, units):
                return None
        except RaylogError as error:
            log.info("shard %s is not used again: %s", entry.shard.shard_id, error)
            return None
        return Kept(_ranged(entry, found.values()), receipts)

    def _is_in_backup(self, shard: ShardRef) -> bool:
        """Whether there is a copy where the next version waits for one."""
        if not self._options.waits_for_backup:
            return True
        known: dict[str, Whereabouts] = self._session.retried("catalog", "whereabouts", [shard.shard_id])
        return self._options.backup in known[shard.shard_id].backups

    def _holds(self, entry: ShardEntry, found: Mapping[bytes, Place], units: Mapping[bytes, Unit]) -> bool:
        """Whether the chunks that this process has not seen hold what their writer says: it signs for them now."""
        unseen = {tag: place for tag, place in found.items() if not place.is_seen}
        if not unseen:
            return True
        granted = self._session.read_keys(entry.dek_ids)
        assert self._tag_key is not None
        key = content_tag_key(self._tag_key)
        with self._session.store.open(entry.shard.shard_id) as shard:
            opener = ShardOpener(shard.frame, [GroupKey(*one) for one in granted.items()], shard.chunk)
            return shard.frame.digest == entry.shard.frame_digest and all(
                _tag_of(opener.chunk(place.number), units[tag], key) == tag for tag, place in unseen.items()
            )

    def forget(self) -> None:
        """The next `look` reads what there is."""
        self._tag_key = None

    def learn(
        self, number: int, shards: Iterable[Sequence[tuple[Unit, bytes]]], entries: Sequence[ShardEntry], reused: Reused
    ) -> None:
        """Version `number` was committed: `entries` are its fresh shards, which hold `shards`."""
        places = {tag: replace(place, is_seen=True) for tag, place in reused.places.items()}
        for entry, tagged in zip(entries, shards, strict=True):
            first = entry.shard.chunks - len(tagged)  # after the preamble's
            for position, (unit, tag) in enumerate(tagged):
                places[tag] = Place(entry, first + position, unit_bytes(unit), True)
        self._number, self._places = number, places


def _units(opener: ShardOpener) -> list[tuple[int, Unit, bytes]]:
    """Chunk number, content and tag of what belongs to the version; nothing where the shard has no tags."""
    entries, tags = read_tagged(opener)
    if not tags:
        return []
    stream, first = ContentStream(opener), opener.frame.units[0].chunks
    units = units_of(entries, lambda one: stream.chunks(one.offset, one.offset + one.length).start)
    belonging = opener.ranges or [range(len(opener.frame.chunks))]
    return [
        (number, unit, tags[number - first])
        for number, unit in units.items()
        if any(number in one for one in belonging)
    ]


def _tag_of(content: memoryview, unit: Unit, key: bytes) -> bytes:
    """Of a chunk's content that should be this unit."""
    places: dict[Slice, memoryview] = {}
    offset = 0
    for one in unit:
        places[one] = content[offset : offset + one.length]
        offset = aligned(offset + one.length)
    return unit_tag(key, unit, places.__getitem__)


def _ranged(entry: ShardEntry, found: Iterable[Place]) -> ShardEntry:
    """The entry with the chunks of these places alone; all of it where they are all of its content."""
    places = sorted(found, key=lambda place: place.number)
    if sum(place.size_bytes for place in places) >= entry.shard.content_bytes:
        return ShardEntry.whole(entry.shard, entry.dek_ids, entry.content_tag, entry.parity)
    extents: list[Extent] = []
    for place in places:
        last = extents[-1] if extents else None
        if last and last.first + last.count == place.number:
            extents[-1] = Extent(
                first=last.first, count=last.count + 1, rows=0, content_bytes=last.content_bytes + place.size_bytes
            )
        else:
            extents.append(Extent(first=place.number, count=1, rows=0, content_bytes=place.size_bytes))
    return msgspec.structs.replace(entry, extents=tuple(extents))
