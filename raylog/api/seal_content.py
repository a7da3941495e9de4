"""Content into sealed shards, each written into a place that the caller opens: what `put` and `seal` share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from raylog.api.sources.content import Content, FilesContent, StreamContent, TableContent, TensorsContent
from raylog.codec import arrow, files, tensors
from raylog.codec.compress import is_compressed_format
from raylog.codec.frame import Frame
from raylog.codec.header import ShardIds
from raylog.codec.keys import GroupKey
from raylog.codec.seal import ShardSealer
from raylog.spec import Codec, new_id

CHUNKS_SPARE = 256  # of a shard's 65,536: room for the last batch, however it is cut


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


@dataclass(frozen=True, slots=True)
class Sealed(Generic[P]):
    """One finished shard and the place it was written to, which is the taker's to keep or discard. `content_tag` is
    empty where the plan has no key for it."""

    place: P
    frame: Frame
    content_tag: bytes


def seal_content(content: Content, plan: SealPlan, begin: Callable[[], P]) -> Iterator[Sealed[P]]:
    """Seals `content` shard by shard; a table without rows gives one shard. A place whose shard was not finished is
    discarded. Raises `SourceError` when the source is malformed or changed."""
    if isinstance(content, TableContent):
        yield from _seal_table(content, plan, begin)
    elif isinstance(content, FilesContent):
        yield from _seal_files(content, plan, begin)
    elif isinstance(content, StreamContent):
        yield from _seal_stream(content, plan, begin)
    else:
        yield from _seal_tensors(content, plan, begin)
    content.check_unchanged()


@contextmanager
def _shard(
    content: Content, plan: SealPlan, begin: Callable[[], P], preamble: bytes
) -> Iterator[tuple[P, ShardSealer]]:
    place = begin()
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


def _seal_table(content: TableContent, plan: SealPlan, begin: Callable[[], P]) -> Iterator[Sealed[P]]:
    preamble = arrow.arrow_preamble(content.schema)
    batches = arrow.coalesce(content.batches(), plan.chunk_bytes)
    batch = next(batches, None)
    while True:
        with _shard(content, plan, begin, preamble) as (place, sealer):
            while batch is not None and sealer.content_bytes < plan.shard_bytes and sealer.chunks_left > CHUNKS_SPARE:
                arrow.add_batch(sealer, batch)
                batch = next(batches, None)
            sealed = _finished(place, sealer)
        yield sealed
        if batch is None:
            return


def _seal_files(content: FilesContent, plan: SealPlan, begin: Callable[[], P]) -> Iterator[Sealed[P]]:
    sources = {file.path: file for file in content.files}
    for extents in files.plan_files([(file.path, file.size_bytes) for file in content.files], plan.shard_bytes):
        with _shard(content, plan, begin, files.files_preamble(extents)) as (place, sealer):
            for extent in extents:
                with sources[extent.path].open() as stream:
                    files.add_extent(sealer, extent, stream)
            sealed = _finished(place, sealer)
        yield sealed


def _seal_stream(content: StreamContent, plan: SealPlan, begin: Callable[[], P]) -> Iterator[Sealed[P]]:
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


def _seal_tensors(content: TensorsContent, plan: SealPlan, begin: Callable[[], P]) -> Iterator[Sealed[P]]:
    by_name = {tensor.name: tensor for tensor in content.tensors}
    specs = [tensors.TensorSpec(tensor.name, tensor.dtype, tensor.shape) for tensor in content.tensors]
    for entries in tensors.plan_tensors(specs, plan.shard_bytes):
        arrays = {
            entry.name: by_name[entry.name].load(entry.begin // entry.item_bytes, entry.end // entry.item_bytes)
            for entry in entries
        }
        with _shard(content, plan, begin, tensors.tensors_preamble(entries)) as (place, sealer):
            tensors.add_tensors(sealer, entries, arrays)
            sealed = _finished(place, sealer)
        yield sealed
