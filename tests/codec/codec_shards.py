"""Shards in memory for the codec's tests: sealing, opening, and forging as a holder of the key could."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from blake3 import blake3

from raylog.codec.chunk import ChunkPlace, seal_chunk
from raylog.codec.frame import ENTRY_BYTES, INDEX_START_BYTES, ChunkEntry, Frame, encode_index
from raylog.codec.header import ShardIds
from raylog.codec.keys import GroupKey, derive_shard_keys
from raylog.codec.open import ShardOpener
from raylog.codec.seal import ShardSealer
from raylog.codec.tensors import TensorEntry, TensorSpec, add_tensors, plan_tensors, tensors_preamble
from raylog.spec import SHARD_CONTENT_BYTES_MAX, Kind, new_id


def new_key() -> GroupKey:
    return GroupKey(new_id(), os.urandom(32))


def new_ids() -> ShardIds:
    return ShardIds(tenant=new_id(), artifact=new_id(), version=new_id(), shard=new_id())


@dataclass(frozen=True)
class Sealed:
    """A shard file and the keys to it."""

    data: bytes
    keys: Sequence[GroupKey]
    frame: Frame

    def chunk(self, number: int) -> bytes:
        entry = self.frame.chunks[number]
        return self.data[entry.offset : entry.offset + entry.sealed_bytes]

    def opener(self, keys: Sequence[GroupKey] | None = None) -> ShardOpener:
        return open_shard(self.data, self.keys if keys is None else keys)


def seal_shard(
    kind: Kind, preamble: bytes, add: Callable[[ShardSealer], Any], keys: Sequence[GroupKey] = (), **options: Any
) -> Sealed:
    keys, data = keys or [new_key()], bytearray()

    def write_at(offset: int, sealed: memoryview) -> None:
        assert offset == len(data)  # no gaps, nothing twice
        data.extend(sealed)

    options.setdefault("ids", new_ids())
    sealer = ShardSealer(kind=kind, keys=keys, preamble=preamble, write_at=write_at, **options)
    add(sealer)
    return Sealed(frame=sealer.finish(), data=bytes(data), keys=keys)


def plan_arrays(
    arrays: Mapping[str, Any], dtypes: Mapping[str, str] | None = None, shard_bytes: int = SHARD_CONTENT_BYTES_MAX
) -> list[list[TensorEntry]]:
    """Places arrays in shards; `dtypes` names the type of those that carry a payload."""
    names = dtypes or {}
    specs = [TensorSpec(name, names.get(name, array.dtype.name), array.shape) for name, array in arrays.items()]
    return plan_tensors(specs, shard_bytes)


def seal_parts(arrays: Mapping[str, Any], shard_bytes: int, **options: Any) -> list[Sealed]:
    """Arrays in as many shards as they need, under one key."""
    keys = [new_key()]
    shards = []
    for entries in plan_arrays(arrays, shard_bytes=shard_bytes):
        parts = {e.name: _items(arrays[e.name], e) for e in entries}
        add = partial(add_tensors, entries=entries, arrays=parts)
        shards.append(seal_shard(Kind.TENSORS, tensors_preamble(entries), add, keys=keys, **options))
    return shards


def _items(array: Any, entry: TensorEntry) -> Any:
    return array.reshape(-1)[entry.begin // entry.item_bytes : entry.end // entry.item_bytes]


def read_frame(data: bytes, expected_digest: bytes | None = None) -> Frame:
    return Frame.read(lambda offset, length: data[offset : offset + length], len(data), expected_digest)


def open_shard(data: bytes, keys: Sequence[GroupKey], on_read: Callable[[int], Any] = id) -> ShardOpener:
    frame = read_frame(data)

    def read_chunk(number: int) -> memoryview:
        on_read(number)
        entry = frame.chunks[number]
        return memoryview(data)[entry.offset : entry.offset + entry.sealed_bytes]

    return ShardOpener(frame, keys, read_chunk)


def forge(shard: Sealed, change: Callable[[list[ChunkEntry]], Any]) -> bytes:
    """The shard with another index, correctly tagged and with a correct trailer: what a holder of the key can do."""
    entries = list(shard.frame.chunks)
    change(entries)
    untagged = shard.frame.header_bytes + encode_index(entries)
    prefix, salt = shard.frame.header.prefix(), shard.frame.header.salt
    tags = [
        blake3(untagged, key=derive_shard_keys(k, g, salt, prefix).index).digest() for g, k in enumerate(shard.keys)
    ]
    end = entries[-1].offset + entries[-1].sealed_bytes
    return _with_tail(shard.data[:end], shard.frame, untagged + b"".join(tags))


def reseal(shard: Sealed, number: int, body: bytes, **place: Any) -> bytes:
    """The shard with one chunk sealed again under the key: another body of the same length, or another place."""
    entry, header = shard.frame.chunks[number], shard.frame.header
    keys = derive_shard_keys(shard.keys[entry.group], entry.group, header.salt, header.prefix())
    final = number == len(shard.frame.chunks) - 1
    stands = ChunkPlace(number, entry.content_bytes, entry.codec, entry.group, entry.continues, final)._replace(**place)
    sealed = bytes(seal_chunk(keys.chunk, stands, body, memoryview(bytearray(len(body) + 16))))
    assert len(sealed) == entry.sealed_bytes
    data = shard.data[: entry.offset] + sealed + shard.data[entry.offset + len(sealed) :]

    def change(entries: list[ChunkEntry]) -> None:
        digest = blake3(sealed).digest()
        entries[number] = entry._replace(digest=digest, content_bytes=stands.content_bytes, codec=stands.codec)

    return forge(replace(shard, data=data), change)


def with_metadata(shard: Sealed, change: Callable[[bytearray], Any]) -> bytes:
    """The shard with header ‖ index changed by somebody without a key, who puts the frame digest right."""
    metadata = bytearray(shard.frame.metadata)
    change(metadata)
    data = bytes(metadata[: len(shard.frame.header_bytes)]) + shard.data[len(shard.frame.header_bytes) :]
    return _with_tail(data[: shard.frame.index_offset], shard.frame, bytes(metadata))


def entry_offset(shard: Sealed, number: int) -> int:
    """Where a chunk's entry stands in the metadata."""
    return len(shard.frame.header_bytes) + INDEX_START_BYTES + ENTRY_BYTES * number


def _with_tail(data: bytes, frame: Frame, metadata: bytes) -> bytes:
    tail = bytearray(frame.tail_bytes[len(frame.index_bytes) :])
    index = metadata[len(frame.header_bytes) :]
    tail[0:8] = len(data).to_bytes(8, "little")
    tail[8:12] = len(index).to_bytes(4, "little")
    tail[24:56] = blake3(metadata).digest()
    return data + index + bytes(tail)
