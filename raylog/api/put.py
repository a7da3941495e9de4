"""`put`: content is sealed shard by shard into the local node's store, replicas are pulled from there while the next
shard is sealed, and one commit makes all of it visible at once."""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from raylog.actors import calls
from raylog.actors.catalog import PutOrder
from raylog.api.seal_content import Sealed, SealPlan, seal_content
from raylog.api.session import Session
from raylog.api.sources.content import Content
from raylog.catalog.manifest import Manifest, ShardEntry, sign_manifest
from raylog.codec.keys import GroupKey
from raylog.errors import RaylogError, UsageError
from raylog.spec import Codec, Durability, QosClass, ShardRef, Version, new_id
from raylog.wire.local_client import LocalStaging

log = logging.getLogger("raylog.put")
REPLICATIONS_AT_ONCE = 2  # shards whose replicas are on their way while the next one is sealed

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class PutOptions:
    """What `client.put` was asked for, checked."""

    replicas: int
    durability: Durability
    codec: Codec | None
    labels: Mapping[str, str] = field(default_factory=dict)
    parents: Sequence[str] = ()


def parse_options(
    replicas: int, durability: str, codec: str, labels: Mapping[str, str] | None, parents: Sequence[str]
) -> PutOptions:
    """Checks what can be checked before anything is read; raises `UsageError`."""
    codecs: dict[str, Codec | None] = {"auto": None} | {one.name.lower(): one for one in Codec}
    if codec not in codecs:
        raise UsageError(f"expected a codec of {', '.join(codecs)}, got {codec!r}")
    if durability not in list(Durability):
        raise UsageError(f"expected a durability of {', '.join(Durability)}, got {durability!r}")
    if isinstance(replicas, bool) or not isinstance(replicas, int) or not 1 <= replicas <= 16:
        raise UsageError(f"expected 1 to 16 replicas, got {replicas!r}")
    return PutOptions(
        replicas=replicas,
        durability=Durability(durability),
        codec=codecs[codec],
        labels=dict(labels or {}),
        parents=tuple(parents),
    )


class Put:
    """One `put`: seals, replicates, commits; or leaves nothing behind."""

    def __init__(self, session: Session, name: str, options: PutOptions, on_progress: OnProgress | None) -> None:
        self._session = session
        self._name = name
        self._options = options
        self._on_progress = on_progress
        self._refs: list[ShardRef] = []
        self._receipts: list[bytes] = []

    def run(self, content: Content) -> Version:
        """Seals `content` and commits it as the name's next version.

        Raises `SourceError`, `NoSpace`, `Conflict` when another writer committed this name meanwhile, `Unavailable`
        when there are fewer nodes than replicas. After an error, Ctrl-C included, nothing of it is visible.
        """
        order: PutOrder = self._session.retried("catalog", "begin", self._name)
        dek_id, dek = self._session.write_key(order.artifact_id, order.tenant)
        plan = SealPlan(
            tenant=order.tenant,
            artifact_id=order.artifact_id,
            version_id=new_id(),
            key=GroupKey(dek_id, dek),
            codec=self._options.codec,
            shard_bytes=self._session.settings.shard_bytes,
            chunk_bytes=self._session.settings.chunk_bytes,
        )
        try:
            self._seal_and_replicate(content, plan)
            return self._commit(content, plan, order)
        except BaseException:
            self._discard()
            raise
