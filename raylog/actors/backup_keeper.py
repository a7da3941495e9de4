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
from raylog.spec import new_id
from raylog.store.remote import RemoteObjects

log = logging.getLogger("raylog.backup")
COPIES_PER_ROUND = 64
COPIES_AT_ONCE = 4
DELETIONS_PER_ROUND = 1_000
PAUSE_FIRST_S, PAUSE_MAX_S = 2.0, 60.0  # of a backup that fails
ANSWER_GRACE_S = 5.0


class BackupKeeper:
    """A thread of the catalog actor, beside its upkeep: a slow bucket holds up no repair. Every step is repeated until
    it is done, so a restart loses nothing."""

    def __init__(self, catalog: Catalog, trust: Trust, settings: Settings, check: Callable[[], None]) -> None:
        """`check` raises when this catalog must not go on."""
        self._catalog, self._backups = catalog, catalog.backups
        self._trust, self._signer = trust, Signer.of_cluster(trust)
        self._settings, self._check = settings, check
        self._pauses: dict[str, tuple[float, float]] = {}  # URL that failed -> not before, and how long that was
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

    def _step(self) -> bool:
        """One round; whether there is more to be done at once."""
        urls = [url for url in self._backups.urls() if time.monotonic() >= self._pauses.get(url, (0.0, 0.0))[0]]
        if not urls:
            return False
        nodes: list[NodeInfo] = calls.call("launch", "nodes", timeout_s=self._settings.call_deadline_s)
        written = self._write_copies(nodes, urls)
        for url in urls:
            self._guarded(url, partial(self._write_chain, url))
        self._delete_free(nodes, urls)
        return written == COPIES_PER_ROUND and not self._pauses

    def _write_copies(self, nodes: Sequence[NodeInfo], urls: Sequence[str]) -> int:
        """Each by a node that holds the shard, the least busy; where none does, any may see whether it is there, or put
        it together from its pieces. How many were tried."""
        busy: Counter[str] = Counter()
        under_way = []
        with ThreadPoolExecutor(COPIES_AT_ONCE, thread_name_prefix="backup") as executor:
            for copy in self._backups.wanted(COPIES_PER_ROUND):
                holding = {*copy.standing.nodes, *copy.standing.other_nodes}
                able = [info for info in nodes if info.node_id in holding] or list(nodes)
                if able and copy.url in urls:
                    info = min(able, key=lambda one: busy[one.node_id])
                    busy[info.node_id] += 1
                    action = partial(self._write_copy, info, copy, nodes)
                    under_way.append(executor.submit(self._guarded, copy.url, action))
        for one in under_way:
            one.result()
        return len(under_way)

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
        self._backups.add(calls.wait(reference, limit_s + ANSWER_GRACE_S, what))

    def _write_chain(self, url: str) -> None:
        if self._backups.chain_reached(url) < self._catalog.sequence:
            reached = OffsiteChain(RemoteObjects(url), self._trust).follow(self._catalog)
            log.info("%s has the catalog up to record %d", url, reached)

    def _delete_free(self, nodes: Sequence[NodeInfo], urls: Sequence[str]) -> None:
        free: dict[str, list[str]] = {}
        for shard_id, url in self._backups.free(DELETIONS_PER_ROUND):
            free.setdefault(url, []).append(shard_id)
        for url in set(free) & set(urls):
            self._guarded(url, partial(self._delete, nodes, url, free[url][:SHARDS_MAX]))

    def _delete(self, nodes: Sequence[NodeInfo], url: str, shard_ids: Sequence[str]) -> None:
        if not nodes:
            return
        about = DeleteShards(shard_ids=tuple(shard_ids), backup=url)
        reference = ask(calls.node(nodes[0].ray_node_id), nodes[0].node_id, about, self._signer)
        calls.wait(reference, self._settings.call_deadline_s + ANSWER_GRACE_S, f"deleting from {url}")
        for shard_id in shard_ids:
            self._backups.remove(shard_id, url)

    def _guarded(self, url: str, action: Callable[[], None]) -> None:
        """What one backup refuses keeps no other from being written; it is tried again after ever longer pauses."""
        try:
            action()
        except RaylogError as error:
            if isinstance(error, NotFound) and "url" not in error.__dict__:
                log.info("not backed up: %s", error)  # the shard is nowhere now, or its version was deleted meanwhile
                return
            pause_s = min(2 * self._pauses.get(url, (0.0, PAUSE_FIRST_S / 2))[1], PAUSE_MAX_S)
            self._pauses[url] = time.monotonic() + pause_s, pause_s
            log.warning("backup %s: trying again in %.0f s: %s", url, pause_s, error)
        else:
            self._pauses.pop(url, None)
