"""What the catalog actor does for backups: shards that are to be there are written by the nodes that hold them, what no
version names any more is deleted there, and the chain with its manifests goes along (store/REMOTE.md)."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import msgspec

from raylog.actors import calls
from raylog.actors.node_info import NodeInfo, elsewhere_for
from raylog.actors.requests import SHARDS_MAX, BackUpShard, DeleteShards, ask
from raylog.catalog.backups import WantedCopy
from raylog.catalog.catalog import Catalog
from raylog.catalog.offsite import OffsiteChain
from raylog.errors import NotFound, RaylogError
from raylog.security.requests import Signer
from raylog.security.trust import Trust
from raylog.settings import Settings
from raylog.spec import check_backup_allowed, new_id
from raylog.store.remote import RemoteObjects

log = logging.getLogger("raylog.backup")
COPIES_PER_ROUND = 64
COPIES_AT_ONCE = 4
DELETIONS_PER_ROUND = 1_000
PAUSE_FIRST_S, PAUSE_MAX_S = 2.0, 60.0  # of a backup that fails
ANSWER_GRACE_S = 5.0


class BackupKeeper:
    """A thread of the catalog actor, beside its upkeep: a slow bucket holds up no repair. Every step is repeated until
    it is done, so a restart loses nothing but which copies of failed puts were to go."""

    def __init__(
        self,
        catalog: Catalog,
        trust: Trust,
        settings: Settings,
        check: Callable[[], None],
        acknowledge: Callable[[], None],
    ) -> None:
        """`check` raises when this catalog must not go on; `acknowledge` returns once another machine has all records
        that there are: what only this one has may be gone again, while a backup is not told."""
        self._catalog, self._backups = catalog, catalog.backups
        self._trust, self._signer = trust, Signer.of_cluster(trust)
        self._settings, self._check, self._acknowledge = settings, check, acknowledge
        self._tried: dict[str, str] = {}  # by URL, up to which shard a round has come
        self._discarded: dict[str, list[str]] = {}
        self._lock = threading.Lock()  # of what is discarded
        self._pauses: dict[str, tuple[float, float]] = {}  # URL that failed -> not before, and how long that was
        if settings.drill_path.exists():
            log.info("this cluster was restored as a drill: nothing is written to backups, nor deleted there")
        else:
            threading.Thread(target=self._run, name="backups", daemon=True).start()

    def _run(self) -> None:
        while True:
            is_more = False
            try:
                self._check()
                is_more = self._step()
            except RaylogError as error:
                log.warning("backups go on in a moment: %s", error)
            except Exception:
                log.exception("backups failed, trying again")
            if not is_more:
                time.sleep(self._settings.reconcile_period_s)

    def discard(self, url: str, shard_ids: Sequence[str]) -> None:
        """Copies of a put that failed go, in a moment; none of them is named by a version."""
        with self._lock:
            self._discarded.setdefault(url, []).extend(shard_ids)

    def _step(self) -> bool:
        """One round; whether there is more to be done at once."""
        urls = [url for url in self._backups.urls() if not self._is_paused(url)]
        if not urls and not self._discarded:
            return False
        nodes: list[NodeInfo] = calls.call("launch", "nodes", timeout_s=self._settings.call_deadline_s)
        is_more = False
        for url in urls:
            free = self._backups.free(url, DELETIONS_PER_ROUND)
            if self._guarded(url, partial(self._write_chain, url)):
                self._delete(nodes, url, free)  # what was freed by records that are there now
                is_more |= self._write_copies(nodes, url)
        with self._lock:
            discarded = {url: self._discarded.pop(url) for url in list(self._discarded) if not self._is_paused(url)}
        for url, shard_ids in discarded.items():
            left = self._delete(nodes, url, self._catalog.unnamed(shard_ids))
            if left:
                self.discard(url, left)
        return is_more

    def _is_paused(self, url: str) -> bool:
        return time.monotonic() < self._pauses.get(url, (0.0, 0.0))[0]

    def _write_copies(self, nodes: Sequence[NodeInfo], url: str) -> bool:
        """Each by a node that holds the shard, the least busy; where none does, any may see whether it is there, or put
        it together from its pieces. Whether more are left, after some were written."""
        wanted = self._backups.wanted(url, COPIES_PER_ROUND, self._tried.get(url, ""))
        self._tried[url] = wanted[-1].standing.shard.shard_id if len(wanted) == COPIES_PER_ROUND else ""
        busy: Counter[str] = Counter()
        under_way = []
        with ThreadPoolExecutor(COPIES_AT_ONCE, thread_name_prefix="backup") as executor:
            for copy in wanted:
                holding = {*copy.standing.nodes, *copy.standing.other_nodes}
                able = [info for info in nodes if info.node_id in holding] or list(nodes)
                if able:
                    info = min(able, key=lambda one: busy[one.node_id])
                    busy[info.node_id] += 1
                    action = partial(self._write_copy, info, copy, nodes)
                    under_way.append(executor.submit(self._guarded, url, action))
        return len(wanted) == COPIES_PER_ROUND and any(one.result() for one in under_way)

    def _write_copy(self, info: NodeInfo, copy: WantedCopy, nodes: Sequence[NodeInfo]) -> None:
        limit_s, shard_id = self._settings.pull_deadline_s, copy.standing.shard.shard_id
        found = self._catalog.whereabouts([shard_id])[shard_id]
        others = tuple(url for url in found.backups if url != copy.url)
        about = BackUpShard(
            pull_id=new_id(),
            shard=copy.standing.shard,
            url=copy.url,
            is_anew=copy.is_damaged,
            deadline_s=limit_s,
            elsewhere=elsewhere_for(info, msgspec.structs.replace(found, backups=others), nodes),
        )
        reference = ask(calls.node(info.ray_node_id), info.node_id, about, self._signer)
        what = f"backing shard {shard_id} up from node {info.node_id[:12]}"
        try:
            receipt = calls.wait(reference, limit_s + ANSWER_GRACE_S, what)
        except NotFound as error:
            if "url" not in error.__dict__:  # neither on a node nor there
                self._backups.doubt(shard_id, copy.url)
            raise
        self._backups.add(receipt)

    def _write_chain(self, url: str) -> None:
        check_backup_allowed(url, self._settings.backup_urls)
        sequence = self._catalog.sequence
        if self._backups.chain_reached(url) < sequence:
            self._acknowledge()
            reached = OffsiteChain(RemoteObjects(url), self._trust).follow(self._catalog, sequence)
            log.debug("%s has the catalog up to record %d", url, reached)
        self._backups.end(url)

    def _delete(self, nodes: Sequence[NodeInfo], url: str, shard_ids: Sequence[str]) -> Sequence[str]:
        """As many as there is time for; which are left."""
        done: list[str] = []
        if shard_ids and nodes:
            self._guarded(url, lambda: done.extend(self._delete_by(nodes[0], url, shard_ids[:SHARDS_MAX])))
        return shard_ids[len(done) :]

    def _delete_by(self, info: NodeInfo, url: str, shard_ids: Sequence[str]) -> Sequence[str]:
        about = DeleteShards(shard_ids=tuple(shard_ids), backup=url)
        reference = ask(calls.node(info.ray_node_id), info.node_id, about, self._signer)
        done: int = calls.wait(reference, self._settings.call_deadline_s + ANSWER_GRACE_S, f"deleting from {url}")
        for shard_id in shard_ids[:done]:
            self._backups.remove(shard_id, url)
        return shard_ids[:done]

    def _guarded(self, url: str, action: Callable[[], None]) -> bool:
        """Whether it was done. What one backup refuses keeps no other from being written; it is tried again after ever
        longer pauses."""
        try:
            action()
        except RaylogError as error:
            if isinstance(error, NotFound) and "url" not in error.__dict__:
                log.info("not backed up: %s", error)  # the shard is nowhere now, or its version was deleted meanwhile
                return False
            pause_s = min(2 * self._pauses.get(url, (0.0, PAUSE_FIRST_S / 2))[1], PAUSE_MAX_S)
            self._pauses[url] = time.monotonic() + pause_s, pause_s
            log.warning("backup %s: trying again in %.0f s: %s", url, pause_s, error)
            return False
        self._pauses.pop(url, None)
        return True
