"""What may be committed, and as what. Pure: facts in, decisions out; the journal reads the facts and writes the result.

How two writers of one name are kept apart: `begin` tells each the name's latest version, the *base*; `commit` succeeds
only while the latest is still the base. The first to commit wins, the others get `Conflict` with the winner's version.
Nothing is remembered between begin and commit, so a catalog that restarts between the two loses nothing.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from raylog.catalog.manifest import KeptShard, Manifest
from raylog.catalog.receipt import Receipt, kept_on
from raylog.errors import Conflict, NotFound, NotPermitted, Unavailable, UsageError
from raylog.spec import Durability, ShardRef, TierKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """What is known of a name. `latest` is 0 when no version is left, `last_number` the highest ever given."""

    name: str
    artifact_id: str
    tenant: str
    latest: int
    last_number: int


class Pending(msgspec.Struct, frozen=True, kw_only=True):
    """What a writer needs to seal a version of `name` and to commit it. `base` is the latest number now, 0 for none."""

    name: str
    artifact_id: str
    tenant: str
    base: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownShard:
    """A shard that a version already names (`references` > 0) or named. `replicas`: node id -> kind of its tier;
    `remotes`: URLs of the backups in which it is."""

    shard: ShardRef
    artifact_id: str
    references: int
    replicas: Mapping[str, TierKind]
    remotes: frozenset[str] = frozenset()


def begin(artifact: Artifact | None, name: str, tenant: str, fresh_artifact_id: str) -> Pending:
    """What a writer of `name` may do. An artifact of which nothing is left begins anew with a fresh id.

    Raises `NotPermitted` when the name is another tenant's.
    """
    if artifact is None:
        return Pending(name=name, artifact_id=fresh_artifact_id, tenant=tenant, base=0)
    if artifact.latest == 0:
        return Pending(name=name, artifact_id=fresh_artifact_id, tenant=tenant, base=0)
    if artifact.tenant != tenant:
        raise NotPermitted(f"{name} belongs to tenant {artifact.tenant}, not to {tenant}")
    return Pending(name=name, artifact_id=artifact.artifact_id, tenant=tenant, base=artifact.latest)


def next_number(artifact: Artifact | None, manifest: Manifest, base: int) -> int:
    """The number under which `manifest` may be committed.

    Raises `Conflict` (attributes `name`, `expected`, `latest`) when the latest is no longer `base`, `NotPermitted` when
    the manifest is made for another artifact or tenant.
    """
    latest = artifact.latest if artifact else 0
    if latest != base:
        raise Conflict(
            f"another writer was first: the latest version of {manifest.name} is {_version(manifest.name, latest)}, "
            f"it was {_version(manifest.name, base)} when this put began; put again to add a version after it",
            name=manifest.name,
            expected=base,
            latest=latest,
        )
    if artifact and latest:
        for what, expected, got in (
            ("artifact", artifact.artifact_id, manifest.artifact_id),
            ("tenant", artifact.tenant, manifest.tenant),
        ):
            if got != expected:
                raise NotPermitted(f"{manifest.name} is {what} {expected}, the manifest is made for {got}")
    return artifact.last_number + 1 if artifact else 1


def check_shards(
    manifest: Manifest,
    known: Mapping[str, KnownShard],
    receipts: Sequence[Receipt],
    gone_nodes: Collection[str],
) -> dict[str, dict[str, TierKind]]:
    """That every shard has the replicas, and for `remote` the copy in the backup, that were promised; returns the new
    replicas, shard id -> node id -> tier kind.

    Receipts of nodes that were given up do not count, nor do two of one node. Raises `UsageError` when the manifest
    names a shard that it may not, or a receipt is for another, `Unavailable` naming the first shard short of replicas.
    """
    kept = manifest.kept_shards()
    for one in known.values():
        _check_older(manifest, kept[one.shard.shard_id].shard, one)
    fresh: dict[str, dict[str, TierKind]] = {}
    for receipt in receipts:
        _check_receipt(manifest, kept, receipt)
        if receipt.node_id not in gone_nodes and receipt.tier is not TierKind.REMOTE:
            nodes = fresh.setdefault(receipt.shard_id, {})
            nodes[receipt.node_id] = _better(nodes.get(receipt.node_id), receipt.tier)
    for shard_id, (_, wanted) in kept.items():
        standing = dict(known[shard_id].replicas) if shard_id in known else {}
        standing.update(fresh.get(shard_id, {}))
        _check_standing(manifest, shard_id, wanted, standing)
    if manifest.durability is Durability.REMOTE:
        backed_up = {shard_id for shard_id, one in known.items() if manifest.backup in one.remotes}
        backed_up |= {one.shard_id for one in receipts if one.url == manifest.backup}
        _check_backed_up(manifest, [one for one in manifest.distinct_shards() if one not in backed_up])
    return fresh


def check_fence(epoch: int, seen: int) -> None:
    """Raises `Unavailable` when a higher epoch than one's own was seen: a newer catalog has taken over."""
    if seen > epoch:
        raise Unavailable(
            f"this catalog has epoch {epoch}, but epoch {seen} has begun: a newer catalog took over and this one must "
            "stop; ask again, the newer one answers",
            epoch=seen,
        )


def latest_after_delete(left: Collection[int], deleted: int) -> int:
    """Which number is the latest once `deleted`, the latest so far, is gone: the nearest older one, else the nearest
    newer; 0 when none is left. Not simply the highest: `set_latest` may have stepped back from a bad version."""
    older = [number for number in left if number < deleted]
    newer = [number for number in left if number > deleted]
    return max(older) if older else min(newer, default=0)


def _check_older(manifest: Manifest, shard: ShardRef, known: KnownShard) -> None:
    what = f"{manifest.name} names shard {shard.shard_id}"
    if known.shard != shard:
        raise UsageError(f"{what}, which is known with another frame digest or size")
    if known.artifact_id != manifest.artifact_id:
        raise UsageError(f"{what}, which belongs to another artifact: its keys open it there only")
    if known.references == 0:
        raise UsageError(f"{what}, which was deleted; seal it anew")


def _check_receipt(manifest: Manifest, kept: Mapping[str, KeptShard], receipt: Receipt) -> None:
    if receipt.shard_id not in kept:
        raise UsageError(f"a receipt is for shard {receipt.shard_id}, which {manifest.name} does not name")
    shard = kept[receipt.shard_id].shard
    if shard.frame_digest != receipt.frame_digest:
        raise UsageError(
            f"node {receipt.node_id} holds shard {receipt.shard_id} with frame digest {receipt.frame_digest.hex()}, "
            f"{manifest.name} names {shard.frame_digest.hex()}"
        )


def _check_standing(manifest: Manifest, shard_id: str, wanted: int, standing: Mapping[str, TierKind]) -> None:
    counted = sorted(node_id for node_id, tier in standing.items() if tier in kept_on(manifest.durability))
    if len(counted) < wanted:
        where = f"on {', '.join(counted)}" if counted else "on no node"
        raise Unavailable(
            f"shard {shard_id} of {manifest.name} has {len(counted)} of {wanted} replicas of durability "
            f"{manifest.durability} ({where}); bring it to more nodes and commit again",
            shard_id=shard_id,
            missing=wanted - len(counted),
        )


def _check_backed_up(manifest: Manifest, lacking: Sequence[str]) -> None:
    if lacking:
        raise Unavailable(
            f"{len(lacking)} shards of {manifest.name}, {lacking[0]} first, have no copy in {manifest.backup}, which "
            "durability remote promises: write them there and commit again",
            shard_id=lacking[0],
        )


def _better(first: TierKind | None, second: TierKind) -> TierKind:
    """Of two copies on one node, the one that counts for more."""
    return second if first is None or first not in kept_on(Durability.DISK) else first


def _version(name: str, number: int) -> str:
    return f"{name}@{number}" if number else "not there"


def not_found(name: str, number: int | None, artifact: Artifact | None) -> NotFound:
    """The error for a version that is not there, saying which are."""
    if artifact is None:
        return NotFound(f"no artifact {name!r}; 'raylog ls' shows what there is", name=name)
    if number is None or artifact.latest == 0:
        return NotFound(f"every version of {name!r} was deleted", name=name)
    return NotFound(
        f"no version {name}@{number}: the latest is {name}@{artifact.latest}, the highest ever was "
        f"{name}@{artifact.last_number}",
        name=name,
    )
