"""Reading a version back: its manifest is checked, each shard is brought to the local node if it is not there, opened
in this process, and a damaged chunk is replaced from another replica on the way."""

from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager

import msgspec
from blake3 import blake3

from raylog.api.local_copy import LocalCopy
from raylog.api.progress import OnProgress, Reporter
from raylog.api.pulls import Pulls
from raylog.api.session import Session
from raylog.catalog.encoding import digest_of, encode
from raylog.catalog.manifest import Manifest, ShardEntry
from raylog.codec.frame import Frame
from raylog.codec.keys import GroupKey
from raylog.codec.open import ShardOpener
from raylog.errors import NotFound
from raylog.spec import Kind, Reference, Version


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """What opening every chunk of a version shows: BLAKE3 (hex) of the content in order, and chunks by codec."""

    content_digest: str
    chunks: int
    codecs: dict[str, int]


READ_AHEAD = 2  # shards brought here while another one is read


class Reading:
    """One version being read: its manifest and its keys, granted to this process. `plaintext_blocks`: for Ray Data."""

    def __init__(self, session: Session, reference: Reference, *, plaintext_blocks: bool = False) -> None:
        self._session = session
        self.manifest: Manifest = session.manifest(reference)
        dek_ids = sorted({dek_id for entry in self.manifest.shards for dek_id in entry.dek_ids})
        granted = session.read_keys(dek_ids, plaintext_blocks=plaintext_blocks)
        self._keys = {dek_id: GroupKey(dek_id, key) for dek_id, key in granted.items()}

    @property
    def kind(self) -> Kind:
        return self.manifest.kind

    def openers(
        self, on_progress: OnProgress | None = None, *, positions: Sequence[int] | None = None
    ) -> Generator[ShardOpener]:
        """An opener per shard, in order, or for those at `positions` alone; each is good until the next is asked for,
        and the shards after it are brought here meanwhile. `on_progress` gets content bytes chunk by chunk. Close the
        generator when leaving early."""
        shards, pulls = self.manifest.shards, Pulls(self._session)
        entries = shards if positions is None else [shards[position] for position in positions]
        total_bytes = sum(entry.shard.content_bytes for entry in entries)
        reporter, done_bytes = Reporter(on_progress, total_bytes), 0
        with ThreadPoolExecutor(READ_AHEAD, thread_name_prefix="read-ahead") as executor:
            coming = deque(executor.submit(self._bring, pulls, entry) for entry in entries[:READ_AHEAD])
            try:
                for position, entry in enumerate(entries):
                    with coming.popleft().result() as shard:
                        coming.extend(
                            executor.submit(self._bring, pulls, later) for later in entries[position + READ_AHEAD :][:1]
                        )
                        keys = [self._keys[dek_id] for dek_id in entry.dek_ids]
                        read = _counted(shard.chunk, shard.frame, reporter, done_bytes)
                        yield ShardOpener(shard.frame, keys, read, shard.mend, entry.ranges)
                    done_bytes += entry.shard.content_bytes
                    reporter.reach(done_bytes)
                reporter.finish(total_bytes)
            finally:
                pulls.cancel()
                for future in coming:
                    future.add_done_callback(_let_go)

    @contextmanager
    def all_open(self, positions: Sequence[int] | None = None) -> Iterator[list[ShardOpener]]:
        """An opener per shard (of those at `positions`), in order, all brought to this node and held there while the
        context lasts."""
        chosen = range(len(self.manifest.shards)) if positions is None else positions
        pulls = Pulls(self._session)
        with ExitStack() as kept, ThreadPoolExecutor(READ_AHEAD, thread_name_prefix="bring") as executor:
            kept.callback(pulls.cancel)
            coming = [executor.submit(self.bring, position, pulls) for position in chosen]
            try:
                shards = [kept.enter_context(future.result()) for future in coming]
            except BaseException:
                pulls.cancel()
                for future in coming:
                    future.add_done_callback(_let_go)
                raise
            executor.shutdown()
            yield [self.opener(position, shard) for position, shard in zip(chosen, shards, strict=True)]

    @contextmanager
    def one_open(self, position: int) -> Iterator[ShardOpener]:
        """An opener of one of the version's shards, which is brought to this node and held there meanwhile."""
        pulls = self.pulls()
        try:
            shard = self.bring(position, pulls)
        except BaseException:
            pulls.cancel()
            raise
        with shard:
            yield self.opener(position, shard)

    def kept_here(self) -> list[bool]:
        """Of each shard, in order: whether this node keeps it, and not only caches it at most."""
        kept = self._session.kept_here([entry.shard.shard_id for entry in self.manifest.shards])
        return [entry.shard.shard_id in kept for entry in self.manifest.shards]

    def frame(self, position: int) -> Frame:
        """Of a shard that need not be on this node, and is not brought here. Raises as `Session.pull`."""
        return self._session.frame(self.manifest.shards[position].shard)

    def is_deleted(self) -> bool:
        """Whether the version is none any more."""
        try:
            versions: list[Version] = self._session.retried("catalog", "versions", self.manifest.name)
        except NotFound:
            return True
        return self.digest not in (version.digest for version in versions)

    def pulls(self) -> Pulls:
        """For `bring`; to be cancelled when nobody needs what is under way any more."""
        return Pulls(self._session)

    def bring(self, position: int, pulls: Pulls) -> LocalCopy:
        """A shard, held on this node until it is closed; pulled first if it is not there. Raises as `Pulls.pull`."""
        return self._bring(pulls, self.manifest.shards[position])

    def opener(self, position: int, shard: LocalCopy) -> ShardOpener:
        """For one thread."""
        keys = [self._keys[dek_id] for dek_id in self.manifest.shards[position].dek_ids]
        return ShardOpener(shard.frame, keys, shard.chunk, shard.mend, self.manifest.shards[position].ranges)

    @property
    def digest(self) -> str:
        """Of the version's manifest, hex."""
        return digest_of(encode(self.manifest)).hex()

    def inspect(self) -> Inspection:
        """Opens, and so verifies, every chunk of the version in this process."""
        digest, codecs = blake3(), Counter[str]()
        with closing(self.openers()) as openers:
            for opener in openers:
                for entry in opener.frame.chunks:
                    digest.update(opener.chunk(entry.number))
                    codecs[entry.codec.name.lower()] += 1
        return Inspection(content_digest=digest.hexdigest(), chunks=codecs.total(), codecs=dict(codecs))

    def _bring(self, pulls: Pulls, entry: ShardEntry) -> LocalCopy:
        return LocalCopy(self._session, pulls, self.manifest.name, entry.shard)


def _counted(
    read: Callable[[int], memoryview], frame: Frame, reporter: Reporter, before_bytes: int
) -> Callable[[int], memoryview]:
    """`read`, telling the content bytes of the chunks read earlier, each counted once; `before_bytes` are those of the
    shards before."""
    seen, done_bytes = set(range(frame.units[0].chunks)), before_bytes  # the preamble is no content

    def counted(number: int) -> memoryview:
        nonlocal done_bytes
        reporter.reach(done_bytes)
        sealed = read(number)
        if number not in seen:
            seen.add(number)
            done_bytes += frame.chunks[number].content_bytes
        return sealed

    return counted


def _let_go(future: Future[LocalCopy]) -> None:
    """Closes a shard that was brought here for a reader who left early."""
    if not future.cancelled() and future.exception() is None:
        future.result().close()
