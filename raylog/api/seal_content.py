"""Content into sealed shards, each written into a place that the caller opens: what `put` and `seal` share."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, Protocol, TypeAlias, TypeVar

import pyarrow as pa

from raylog.api.sources.content import (
    Content,
    FilesContent,
    StreamContent,
    TableContent,
    TensorsContent,
    UnitsContent,
)
from raylog.codec import arrow, files, tensors, units
from raylog.codec.compress import is_compressed_format
from raylog.codec.frame import Frame, sealed_bytes_max
from raylog.codec.header import ShardIds
from raylog.codec.keys import GroupKey, content_tag_key
from raylog.codec.seal import ShardSealer
from raylog.spec import Codec, new_id

CHUNKS_SPARE = 256  # of a shard's 65,536: room for the last batch, however it is cut
THREADS = 2  # that seal units, a shard each


class ShardPlace(Protocol):
    """Where one shard is written: a staging of the node's store, or a file."""

    def write_at(self, offset: int, data: memoryview) -> None: ...
    def discard(self) -> None:
        """Ends it and keeps nothing."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SealPlan:
    """How content is cut and sealed. `codec` None chooses per chunk; `key` seals everything (one key group),
    `tag_key` is for content tags, if there are to be any. `on_sealed` is told after every chunk how many content bytes
    of its shard are sealed."""

    tenant: str
    artifact_id: str
    version_id: str
    key: GroupKey
    codec: Codec | None
    shard_bytes: int
    chunk_bytes: int
    link_bytes_per_s: float | None = None  # that shards are likely to be sent over; None: not known
    tag_key: GroupKey | None = None
    on_sealed: Callable[[int], None] | None = None


P = TypeVar("P", bound=ShardPlace)
Begin: TypeAlias = Callable[[int], P]


@dataclass(frozen=True, slots=True)
class Sealed(Generic[P]):
    """One finished shard and the place it was written to, which is the taker's to keep or discard. `content_tag` is
    empty where the plan has no key for it."""

    place: P
    frame: Frame
    content_tag: bytes


def seal_content(content: Content, plan: SealPlan, begin: Begin[P]) -> Iterator[Sealed[P]]:
    """Seals `content` shard by shard; a table without rows gives one shard. `begin` is told how many bytes the sealed
    shard will have at most, 0 where that is not known. A place whose shard was not finished is discarded. Raises
    `SourceError` when the source is malformed or changed."""
    if isinstance(content, TableContent):
        yield from _seal_table(content, plan, begin)
    elif isinstance(content, FilesContent):
        yield from _seal_files(content, plan, begin)
    elif isinstance(content, UnitsContent):
        yield from _seal_units(content, plan, begin)
    elif isinstance(content, StreamContent):
        yield from _seal_stream(content, plan, begin)
    else:
        yield from _seal_tensors(content, plan, begin)
    content.check_unchanged()


@contextmanager
def _shard(
    content: Content, plan: SealPlan, begin: Begin[P], preamble: bytes, sealed_bytes_max: int = 0
) -> Iterator[tuple[P, ShardSealer]]:
    place = begin(sealed_bytes_max)
    try:
        yield (
            place,
            ShardSealer(
                ids=ShardIds(tenant=plan.tenant, artifact=plan.artifact_id, version=plan.version_id, shard=new_id()),
                kind=content.kind,
                keys=[plan.key],
                preamble=preamble,
                write_at=place.write_at,
                codec=plan.codec,
                link_bytes_per_s=plan.link_bytes_per_s,
                chunk_bytes=plan.chunk_bytes,
                on_sealed=plan.on_sealed,
                tag_key=plan.tag_key,
            ),
        )
    except BaseException:
        place.discard()
        raise


def _finished(place: P, sealer: ShardSealer) -> Sealed[P]:
    return Sealed(place, sealer.finish(), sealer.content_tag)


def _seal_table(content: TableContent, plan: SealPlan, begin: Begin[P]) -> Iterator[Sealed[P]]:
    preamble = arrow.arrow_preamble(content.schema)
    batches = arrow.coalesce(content.batches(), plan.chunk_bytes)
    batch = next(batches, None)
    while True:
        with _shard(content, plan, begin, preamble) as (place, sealer):
            while batch is not None and _has_room(sealer, batch, plan.shard_bytes):
                arrow.add_batch(sealer, batch)
                batch = next(batches, None)
            sealed = _finished(place, sealer)
        yield sealed
        if batch is None:
            return


def _has_room(sealer: ShardSealer, batch: pa.RecordBatch, shard_bytes: int) -> bool:
    """Whether the shard comes nearer to `shard_bytes` by the batch than without it."""
    is_near = sealer.content_bytes + batch.nbytes // 2 >= shard_bytes
    return not sealer.content_bytes or (not is_near and sealer.chunks_left > CHUNKS_SPARE)


def _seal_files(content: FilesContent, plan: SealPlan, begin: Begin[P]) -> Iterator[Sealed[P]]:
    sources = {file.path: file for file in content.files}
    for extents in files.plan_files([(file.path, file.size_bytes) for file in content.files], plan.shard_bytes):
        with _shard(content, plan, begin, files.files_preamble(extents)) as (place, sealer):
            for extent in extents:
                with sources[extent.path].open() as stream:
                    files.add_extent(sealer, extent, stream)
            sealed = _finished(place, sealer)
        yield sealed


def _seal_stream(content: StreamContent, plan: SealPlan, begin: Begin[P]) -> Iterator[Sealed[P]]:
    offset, compressible = 0, True
    for block in content.read():
        extent = files.FileExtent(
            path=content.path, offset=offset, length=block.nbytes, size=offset + block.nbytes
        )  # as far as it is known
        if not offset:
            compressible = not is_compressed_format(bytes(block[:8]))
        with _shard(content, plan, begin, files.files_preamble([extent])) as (place, sealer):
            sealer.add_bytes(block, compressible=compressible)
            sealed = _finished(place, sealer)
        yield sealed
        offset = extent.size


def _seal_tensors(content: TensorsContent, plan: SealPlan, begin: Begin[P]) -> Iterator[Sealed[P]]:
    by_name = {tensor.name: tensor for tensor in content.tensors}
    specs = [tensors.TensorSpec(tensor.name, tensor.dtype, tensor.shape) for tensor in content.tensors]
    for entries in tensors.plan_tensors(specs, plan.shard_bytes):
        arrays = {
            entry.name: by_name[entry.name].load(entry.begin // entry.item_bytes, entry.end // entry.item_bytes)
            for entry in entries
        }
        preamble = tensors.tensors_preamble(entries)
        content_bytes = len(preamble) + entries[-1].offset + entries[-1].length
        chunks = 2 + content_bytes // plan.chunk_bytes
        with _shard(content, plan, begin, preamble, sealed_bytes_max(content_bytes, chunks)) as (place, sealer):
            tensors.add_tensors(sealer, entries, arrays)
            sealed = _finished(place, sealer)
        yield sealed


def _seal_units(content: UnitsContent, plan: SealPlan, begin: Begin[P]) -> Iterator[Sealed[P]]:
    """Several shards at a time, given in order."""
    coming: deque[Future[Sealed[P]]] = deque()
    following = iter(content.shards(plan.shard_bytes))
    with ThreadPoolExecutor(THREADS, thread_name_prefix="seal") as executor:
        try:
            while True:
                while len(coming) < THREADS and (tagged := next(following, None)) is not None:
                    coming.append(executor.submit(partial(_seal_tagged, content, tagged, plan, begin)))
                if not coming:
                    return
                yield coming.popleft().result()
        finally:
            for future in coming:
                future.add_done_callback(_discard)


def _seal_tagged(content: UnitsContent, tagged: list[units.TaggedUnit], plan: SealPlan, begin: Begin[P]) -> Sealed[P]:
    assert plan.tag_key is not None
    parts, tags = zip(*tagged, strict=True)
    preamble = units.units_preamble(parts, tags)
    untagged = replace(plan, tag_key=None, on_sealed=None)  # its tag is made of theirs
    content_bytes = len(preamble) + sum(units.unit_bytes(unit) for unit in parts)
    chunks = len(parts) + -(-len(preamble) // plan.chunk_bytes)
    with _shard(content, untagged, begin, preamble, sealed_bytes_max(content_bytes, chunks)) as (place, sealer):
        units.add_units(sealer, parts, content.load)
        frame = sealer.finish()
    return Sealed(place, frame, units.shard_tag(content_tag_key(plan.tag_key), preamble))


def _discard(future: Future[Sealed[P]]) -> None:
    """Of a shard that nobody asks for any more."""
    if not future.cancelled() and future.exception() is None:
        future.result().place.discard()
