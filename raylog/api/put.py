"""`put`: content is sealed shard by shard into the local node's store, replicas are pulled from there while the next
shard is sealed, and one commit makes all of it visible at once."""

import logging
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TypeAlias

from raylog.actors import calls
from raylog.api.lease import Lease
from raylog.api.older import Kept, Older, OlderShards
from raylog.api.pieces import cut_into_pieces
from raylog.api.progress import OnProgress, Reporter
from raylog.api.pulls import Pulls, on_node, whole
from raylog.api.put_options import PutOptions
from raylog.api.replicas import Replicas
from raylog.api.seal_content import Sealed, SealPlan, seal_content
from raylog.api.session import Session
from raylog.api.sources.content import Content
from raylog.api.together import Together
from raylog.catalog.encoding import digest_of, encode
from raylog.catalog.manifest import Manifest, ShardEntry, sign_manifest
from raylog.catalog.parts import counts_label, part_labels
from raylog.catalog.state import Pending
from raylog.codec.keys import GroupKey
from raylog.codec.pieces import Erasure, piece_id
from raylog.errors import Cancelled, NoSpace, RaylogError, Unavailable
from raylog.spec import (
    Durability,
    Kind,
    Reference,
    Version,
    new_id,
)
from raylog.wire.local_client import LocalStaging

log = logging.getLogger("raylog.put")
Prepare = Callable[[Pending, GroupKey], tuple[Content, Older]]
RATES_TIMEOUT_S = 1.0
KEPT_AT_ONCE = 2  # shards that nodes take while the next ones are sealed
_Outcome: TypeAlias = tuple[ShardEntry, list[bytes]]  # what the manifest says of a shard, and its nodes' receipts


class Put:
    """One `put`: seals, replicates, commits; or leaves nothing behind."""

    def __init__(
        self,
        session: Session,
        name: str,
        options: PutOptions,
        on_progress: OnProgress | None,
        *,
        check: Callable[[], None] | None = None,
        together: Together | None = None,
    ) -> None:
        """`check` looks at the name's versions and raises where this put should not be: between what it sees and the
        commit no other version comes, or that is a `Conflict`. `together`: with which other processes it is made."""
        self._session = session
        self._check, self._together = check, together
        self._name = name
        self._options = options
        self._on_progress = on_progress
        self._rates: dict[str, float] = {}  # bytes per second, of nodes of which it is known
        self._parents: tuple[str, ...] = ()  # by number
        self._content_bytes = 0  # of the shards that are sealed whole
        self._entries: list[ShardEntry] = []
        self._receipts: list[bytes] = []
        self._pulls = Pulls(session)
        self._replicas = Replicas(session, options, self._pulls, self._rates)
        self._shard_ids: list[str] = []  # of which something may lie on nodes
        self._whole_ids: list[str] = []  # of which something may lie in the backup
        self._may_be_visible = False
        self._cutting = threading.Lock()  # a shard at a time: all its pieces are open at once

    @property
    def entries(self) -> Sequence[ShardEntry]:
        """The shards that this process put into the version, those first that were known to be used again."""
        return self._entries

    def run(self, content: Content) -> Version:
        """Seals `content` and commits it as the name's next version. After an error, Ctrl-C included, nothing of it is
        visible. Raises as `Client.put`."""
        return self.run_prepared(lambda order, key: (content, self._older(order.base, key)))

    def run_prepared(self, prepare: Prepare) -> Version:
        """As `run`, with the content, and what is to be used again, that `prepare` gives once the put's key is
        there."""
        try:
            return self._run(prepare)
        except BaseException as error:
            if not self._may_be_visible and self._is_given_up(error):
                self._discard()
            elif isinstance(error, RaylogError) and (found := self._is_there_nevertheless()):
                return found
            raise

    def _is_there_nevertheless(self) -> Version | None:
        """The version that is made together, where only the answer was lost."""
        with suppress(RaylogError):
            return self._together.committed(self._session) if self._together else None
        return None

    def commit_parts(self, kind: Kind) -> Version:
        """Commits what the others have handed in, without anything of this process's own. Raises as `run`."""
        assert self._together is not None and not self._together.rank
        try:
            order = self._together.order(self._session.retried("catalog", "begin", self._name))
            parts = self._together.gather(self._session, order)
            entries = [entry for manifest, _ in parts for entry in manifest.shards]
            receipts = [receipt for _, part in parts for receipt in part.receipts]
            first, version_id = parts[0][0], self._together.version_id
            signed, digest = self._sign(
                entries, order, kind, version_id=version_id, tag_dek_id=first.tag_dek_id, labels={}
            )
            return whole(lambda: self._commit(signed, digest, receipts, order.base, version_id))
        except BaseException as error:
            if not self._may_be_visible:
                self._is_given_up(error)
            raise

    def _run(self, prepare: Prepare) -> Version:
        if self._options.backup:
            self._session.probe_backup(self._options.backup)
        order = self._session.retried("catalog", "begin", self._name)
        if self._together:
            order = self._together.order(order)
        if self._check is not None:
            self._check()
        if self._options.parents:
            self._parents = tuple(self._session.retried("catalog", "parents", self._options.parents))
        dek_id, dek = self._session.write_key(order.artifact_id, order.tenant)
        key = GroupKey(dek_id, dek)
        content, older = prepare(order, key)
        self._rates.update(self._known_rates())
        reporter = Reporter(self._on_progress, content.bytes or 0)
        plan = self._plan(order, key, older.tag_key, reporter)
        with Lease(self._session, plan.version_id):
            self._seal_and_replicate(content, plan, older)
            reporter.finish(self._content_bytes)
            if self._together and self._together.rank:
                return self._hand_in(self._together, order, content.kind, older.tag_key.dek_id)
            entries, receipts, labels = self._gathered(order)
            signed, digest = self._sign(
                entries,
                order,
                content.kind,
                version_id=plan.version_id,
                tag_dek_id=older.tag_key.dek_id,
                labels=labels,
            )
            return whole(lambda: self._commit(signed, digest, receipts, order.base, plan.version_id))

    def _plan(self, order: Pending, key: GroupKey, tag_key: GroupKey, reporter: Reporter) -> SealPlan:
        settings = self._session.settings
        return SealPlan(
            tenant=order.tenant,
            artifact_id=order.artifact_id,
            version_id=self._together.version_id if self._together else new_id(),
            key=key,
            codec=self._options.codec,
            link_bytes_per_s=statistics.median(self._rates.values()) if self._rates else None,
            shard_bytes=settings.shard_bytes,
            chunk_bytes=settings.chunk_bytes,
            tag_key=tag_key,
            on_sealed=lambda shard_bytes: reporter.reach(self._content_bytes + shard_bytes),
        )

    def _gathered(self, order: Pending) -> tuple[Sequence[ShardEntry], Sequence[bytes], Mapping[str, str]]:
        """What goes into the manifest: of the first of several processes, what all of them have, rank by rank."""
        entries, receipts, counts = list(self._entries), list(self._receipts), [len(self._entries)]
        if self._together is None:
            return entries, receipts, {}
        for manifest, part in self._together.gather(self._session, order):
            entries += manifest.shards
            receipts += part.receipts
            counts.append(len(manifest.shards))
        return entries, receipts, counts_label(counts)

    def _hand_in(self, together: Together, order: Pending, kind: Kind, tag_dek_id: str) -> Version:
        signed, _ = self._sign(
            self._entries,
            order,
            kind,
            version_id=together.version_id,
            tag_dek_id=tag_dek_id,
            labels=part_labels(together.rank, order.base),
        )
        ids = {entry.shard.shard_id for entry in self._entries}
        return whole(lambda: together.hand_in(self._session, signed, self._receipts, ids))

    def _is_given_up(self, error: BaseException) -> bool:
        """Whether the version will never be there: of one that is made together, only the catalog can say."""
        if self._together is None:
            return True
        try:
            return self._together.give_up(self._session, f"{type(error).__name__}: {error}")
        except Unavailable as unknown:
            log.warning("%s: what was sealed is left to the nodes' upkeep: %s", self._name, unknown)
            return False

    def _older(self, base: int, key: GroupKey) -> OlderShards:
        """Of the version before; of an erasure-coded one no node holds a whole shard to compare with."""
        before = Reference(self._name, base) if base and self._options.erasure is None else None
        return OlderShards.of(self._session, before, key, self._options.replicas, self._options.kept_as)

    def _known_rates(self) -> dict[str, float]:
        """What nodes received at lately. A put goes on without: it does not wait for the monitor, nor fail with it."""
        try:
            rates = self._session.pull_rates(timeout_s=RATES_TIMEOUT_S)
        except RaylogError as error:
            log.warning("put goes on as if nothing were known of the links: %s", error)
            return {}
        return {node_id: rate for node_id, rate in rates.items() if rate}

    def _commit(self, signed: bytes, digest: str, receipts: Sequence[bytes], base: int, version_id: str) -> Version:
        self._may_be_visible = True
        try:
            version: Version = self._session.retried("catalog", "commit", signed, receipts, base)
        except RaylogError as error:
            # The answer may have been lost. Raises when the catalog does not say.
            committed: Version | None = self._session.retried("catalog", "committed", self._name, digest)
            if committed is None and error.is_retryable and not self._session.withdraw(version_id, str(error)):
                committed = self._session.retried("catalog", "committed", self._name, digest)  # it was under way still
            if committed is None:
                self._may_be_visible = False
                raise
            return committed
        return version

    def _seal_and_replicate(self, content: Content, plan: SealPlan, older: Older) -> None:
        """A shard is kept, here and on other nodes, while the next ones are sealed."""
        executor = ThreadPoolExecutor(KEPT_AT_ONCE, thread_name_prefix="keep")
        under_way: deque[Future[_Outcome]] = deque()
        try:
            for again in older.kept:
                self._entries.append(again.entry)
                self._receipts += again.receipts
            expected_bytes = min(plan.shard_bytes, content.bytes or plan.shard_bytes)
            for sealed in seal_content(content, plan, partial(self._stage, expected_bytes, is_apart=True)):
                self._whole_ids.append(sealed.frame.header.shard_id)
                self._content_bytes += sealed.frame.content_bytes
                keep = partial(self._keep, sealed, older, plan.key)
                under_way.append(whole(partial(_submit, executor, sealed.place, keep)))
                if len(under_way) > KEPT_AT_ONCE:  # bounds what is sealed ahead of its replicas
                    self._take(under_way.popleft())
            for future in under_way:
                self._take(future)
        finally:
            self._pulls.cancel()
            executor.shutdown(wait=True, cancel_futures=True)  # no replica is made after `_discard`

    def _take(self, keeping: Future[_Outcome]) -> None:
        entry, receipts = keeping.result()
        self._entries.append(entry)
        self._receipts += receipts

    def _keep(self, sealed: Sealed[LocalStaging], older: Older, key: GroupKey) -> _Outcome:
        """Makes what was promised of one shard, or finds an older version's that is the same."""
        with sealed.place:
            if same := older.find(sealed.content_tag):
                entry, keep = same.entry, partial(self._keep_older, same)
            elif self._options.erasure:
                erasure = self._cut(sealed)
                entry = ShardEntry.whole(erasure.shard, (key.dek_id,), sealed.content_tag, parity=erasure.parity)
                keep = partial(self._surely, partial(self._replicas.spread, erasure))
            else:
                entry = self._adopt(sealed, key)
                keep = partial(self._surely, partial(self._replicas.replicate, entry.shard))
        return entry, keep()

    def _keep_older(self, same: Kept) -> list[bytes]:
        backed_up = self._options.waits_for_backup
        return same.receipts + (self._replicas.back_up(same.entry.shard, self._session.local) if backed_up else [])

    def _stage(self, expected_bytes: int, sealed_bytes_max: int = 0, *, is_apart: bool = False) -> LocalStaging:
        """In memory where that is promised and the shard's length is known well enough."""
        store, use = self._session.store, self._options.use
        try:
            if sealed_bytes_max and self._options.kept_as is Durability.MEMORY:
                return store.stage_in_memory(sealed_bytes_max, use, is_apart=is_apart)
            return store.stage(expected_bytes, use, is_apart=is_apart)
        except NoSpace as error:
            raise on_node(error, self._session.local) from error
        except Unavailable:
            if store.is_alive:
                raise
            # The node was restarted, and with it went what was staged.
            return self._stage(expected_bytes, sealed_bytes_max, is_apart=is_apart)

    def _adopt(self, sealed: Sealed[LocalStaging], key: GroupKey) -> ShardEntry:
        self._shard_ids.append(sealed.frame.header.shard_id)
        try:
            ref = sealed.place.adopt(sealed.frame.digest, self._options.kept_as)
        except NoSpace as error:
            raise on_node(error, self._session.local) from error
        return ShardEntry.whole(ref, (key.dek_id,), sealed.content_tag)

    def _cut(self, sealed: Sealed[LocalStaging]) -> Erasure:
        """The shard in pieces, which this machine's node has all of at first."""
        assert self._options.erasure is not None
        shard_id, (data, parity) = sealed.frame.header.shard_id, self._options.erasure
        self._shard_ids += [piece_id(shard_id, number) for number in range(data + parity)]
        try:
            with self._cutting:
                return cut_into_pieces(sealed, data, parity, self._stage)
        except NoSpace as error:
            raise on_node(error, self._session.local) from error

    def _surely(self, action: Callable[[], list[bytes]]) -> list[bytes]:
        """A target that fails or leaves in between is made up for: the placement actor is asked again."""

        def attempt(left_s: float) -> list[bytes]:
            if self._pulls.is_cancelled:
                raise Cancelled(f"{self._name}: the put ended before a shard of it was replicated")
            return action()

        return calls.retried(attempt, self._session.settings.call_deadline_s)

    def _sign(
        self,
        entries: Sequence[ShardEntry],
        order: Pending,
        kind: Kind,
        *,
        version_id: str,
        tag_dek_id: str,
        labels: Mapping[str, str],
    ) -> tuple[bytes, str]:
        """The signed manifest, and the digest (hex) that its version will have."""
        credentials = self._session.credentials()
        manifest = Manifest(
            cluster_id=credentials.identity.cluster_id,
            tenant=order.tenant,
            artifact_id=order.artifact_id,
            version_id=version_id,
            name=self._name,
            kind=kind,
            parents=self._parents,
            labels={**self._options.labels, **labels},
            replicas=self._options.replicas,
            durability=self._options.durability,
            backup=self._options.backup,
            created_us=time.time_ns() // 1000,
            signer=str(credentials.identity),
            tag_dek_id=tag_dek_id,
            shards=tuple(entries),
        )
        signed = sign_manifest(manifest, credentials.certificate_der, credentials.sign)
        return signed, digest_of(encode(manifest)).hex()

    def _discard(self) -> None:
        """Takes away what lies on nodes already; a node that does not answer is cleaned by its next inventory."""
        ids = self._shard_ids
        with suppress(RaylogError):
            for info in self._session.nodes() if ids else []:
                with suppress(RaylogError):
                    self._session.delete_shards(info, ids)
        if ids and self._options.waits_for_backup:
            with suppress(RaylogError):
                self._session.discard_copies(self._whole_ids, self._options.backup)


def _submit(executor: ThreadPoolExecutor, place: LocalStaging, keep: Callable[[], _Outcome]) -> Future[_Outcome]:
    """`place` is discarded if it never comes to `keep`."""
    future = executor.submit(keep)
    future.add_done_callback(lambda ended: place.discard() if ended.cancelled() else None)
    return future
