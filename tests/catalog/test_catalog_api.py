"""Begin, commit, read, delete: what each promises and refuses."""

import threading
from pathlib import Path

import msgspec
import pytest

from raylog.catalog.catalog import Catalog
from raylog.catalog.encoding import digest_of, encode
from raylog.catalog.manifest import Extent, SignedManifest, open_manifest
from raylog.errors import Conflict, DamagedData, NotFound, NotPermitted, Unavailable, UsageError
from raylog.spec import Durability, Kind, Reference, TierKind, new_id
from raylog.testing.catalog_cluster import TENANT, Cluster

BY = "raylog://x/client/y"


def test_put_and_read_back(catalog: Catalog, cluster: Cluster) -> None:
    manifest, version = cluster.put(catalog, labels={"b": "2", "a": "1"})
    assert (version.name, version.number, version.shards) == ("corpora/wiki", 1, 2)
    assert (version.rows, version.content_bytes, version.stored_bytes) == (20, 8000, 10000)
    assert version.digest == digest_of(encode(manifest)).hex()
    assert catalog.stat(Reference("corpora/wiki")) == catalog.stat(Reference("corpora/wiki", 1)) == version
    opened, statement = open_manifest(
        catalog.manifest(Reference("corpora/wiki")), cluster.cluster_id, cluster.trust.verify
    )
    assert opened == manifest
    assert (statement.number, statement.signer) == (1, cluster.writer.identity)
    nodes = sorted(node.id for node in cluster.nodes[:2])
    ids = list(manifest.distinct_shards())
    assert catalog.replicas([*ids, "0" * 32]) == {ids[0]: nodes, ids[1]: nodes, "0" * 32: []}
    assert catalog.verify() == 2


def test_ls_takes_exactly_the_names_that_begin_so(catalog: Catalog, cluster: Cluster) -> None:
    for name in ("ckpt/run-7", "ckpt/run-70", "ckpt/run-8", "CKPT/run-7", "ckpt", "weights/llama"):
        cluster.put(catalog, name)
    assert [one.name for one in catalog.ls("ckpt/run-7")] == ["ckpt/run-7", "ckpt/run-70"]
    assert [one.name for one in catalog.ls("ckpt")] == ["ckpt", "ckpt/run-7", "ckpt/run-70", "ckpt/run-8"]
    assert len(catalog.ls()) == 6
    for prefix in ("%", "ckpt/run_7", "\U0001f600", "\x00", "ckpt'"):
        assert catalog.ls(prefix) == []


@pytest.mark.parametrize("name", ["../x", "a/../b", "a\x00b", "\u0441orpora/wiki", "x" * 300, "", "/a"])
def test_bad_names_never_begin(catalog: Catalog, name: str) -> None:
    with pytest.raises(UsageError):
        catalog.begin(name, TENANT)


def test_of_two_writers_one_wins_and_the_other_is_told(catalog: Catalog, cluster: Cluster) -> None:
    cluster.put(catalog)
    first, second = catalog.begin("corpora/wiki", TENANT), catalog.begin("corpora/wiki", TENANT)
    assert first == second
    manifests = [cluster.manifest(artifact_id=first.artifact_id) for _ in range(2)]
    won = catalog.commit(cluster.sign(manifests[1]), cluster.receipts(manifests[1]), second.base)
    with pytest.raises(Conflict, match="corpora/wiki@2, it was corpora/wiki@1") as told:
        catalog.commit(cluster.sign(manifests[0]), cluster.receipts(manifests[0]), first.base)
    assert (told.value.latest, told.value.expected) == (2, 1)  # type: ignore[attr-defined]
    assert catalog.versions("corpora/wiki")[-1] == won
    losers = list(manifests[0].distinct_shards())
    assert catalog.replicas(losers) == {shard_id: [] for shard_id in losers}


def test_many_threads_commit_one_name_and_exactly_one_wins(catalog: Catalog, cluster: Cluster) -> None:
    outcomes: list[str] = []

    def write() -> None:
        pending = catalog.begin("busy", TENANT)
        manifest = cluster.manifest("busy", pending.artifact_id)
        barrier.wait(10)
        try:
            outcomes.append(str(catalog.commit(cluster.sign(manifest), cluster.receipts(manifest), pending.base)))
        except Conflict:
            outcomes.append("conflict")

    barrier = threading.Barrier(6)
    threads = [threading.Thread(target=write) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(outcomes) == ["busy@1", *["conflict"] * 5]


def test_a_commit_made_again_gets_the_same_answer(cluster: Cluster, tmp_path: Path) -> None:
    catalog = cluster.open(tmp_path)
    pending = catalog.begin("a", TENANT)
    manifest = cluster.manifest("a", pending.artifact_id)
    request = (cluster.sign(manifest), cluster.receipts(manifest), pending.base)
    version = catalog.commit(*request)
    catalog.close()
    catalog = cluster.open(tmp_path)
    cluster.put(catalog, "a")
    sequence = catalog.sequence
    assert catalog.commit(*request) == version
    assert catalog.sequence == sequence
    other = msgspec.structs.replace(manifest, labels={"other": "content"})
    with pytest.raises(UsageError, match="another manifest"):
        catalog.commit(cluster.sign(other), cluster.receipts(other), 2)
    catalog.delete(Reference("a", 1), BY)
    with pytest.raises(Conflict, match="a@1 and has been deleted"):
        catalog.commit(*request)
    catalog.close()


def test_numbers_and_artifact_ids_are_never_given_again(catalog: Catalog, cluster: Cluster) -> None:
    manifest, _ = cluster.put(catalog, "a")
    cluster.put(catalog, "a")
    assert [str(one) for one in catalog.delete(Reference("a"), BY)] == ["a@1", "a@2"]
    assert catalog.ls() == []
    for missing in (Reference("a"), Reference("a", 2)):
        with pytest.raises(NotFound, match="deleted"):
            catalog.stat(missing)
    pending = catalog.begin("a", TENANT)
    assert pending.artifact_id != manifest.artifact_id
    reborn = cluster.manifest("a", manifest.artifact_id)
    with pytest.raises(NotPermitted, match="deleted"):
        catalog.commit(cluster.sign(reborn), cluster.receipts(reborn), 0)
    assert cluster.put(catalog, "a")[1].number == 3
    assert catalog.verify() == 5


def test_an_artifact_id_belongs_to_one_name(catalog: Catalog, cluster: Cluster) -> None:
    manifest, _ = cluster.put(catalog, "a")
    thief = cluster.manifest("b", manifest.artifact_id)
    with pytest.raises(NotPermitted, match="another artifact"):
        catalog.commit(cluster.sign(thief), cluster.receipts(thief), 0)
    stranger = cluster.manifest("a", new_id())
    with pytest.raises(NotPermitted, match="is artifact"):
        catalog.commit(cluster.sign(stranger), cluster.receipts(stranger), 1)
    with pytest.raises(NotPermitted, match="tenant"):
        catalog.begin("a", "8" * 32)


def test_latest_steps_back_when_it_is_deleted(catalog: Catalog, cluster: Cluster) -> None:
    for _ in range(4):
        cluster.put(catalog, "a")
    assert catalog.set_latest(Reference("a", 2), BY).number == 2
    catalog.delete(Reference("a", 2), BY)
    assert catalog.stat(Reference("a")).number == 1
    catalog.delete(Reference("a", 1), BY)
    assert catalog.stat(Reference("a")).number == 3
    assert [one.number for one in catalog.versions("a")] == [3, 4]
    with pytest.raises(NotFound, match="no version a@2: the latest is a@3"):
        catalog.set_latest(Reference("a", 2), BY)
    assert cluster.put(catalog, "a")[1].number == 5
    catalog.verify()


def test_parents_must_have_existed(catalog: Catalog, cluster: Cluster) -> None:
    cluster.put(catalog, "a")
    catalog.delete(Reference("a"), BY)
    assert cluster.put(catalog, "b", parents=("a@1",))[1].number == 1
    with pytest.raises(UsageError, match="a@2, named as a parent, never existed"):
        cluster.put(catalog, "b", parents=("a@2",))


def test_too_few_replicas_name_the_shard(catalog: Catalog, cluster: Cluster) -> None:
    manifest = cluster.manifest(artifact_id=catalog.begin("corpora/wiki", TENANT).artifact_id)
    shard = manifest.shards[1].shard
    signed, enough = cluster.sign(manifest), cluster.receipts(manifest)
    twice = [*enough[:3], enough[2]]
    in_memory = [*enough[:3], cluster.receipt(shard, cluster.nodes[1], TierKind.MEMORY)]
    for receipts in (enough[:3], twice, in_memory):
        with pytest.raises(Unavailable, match=f"shard {shard.shard_id} .* has 1 of 2 replicas") as short:
            catalog.commit(signed, receipts, 0)
        assert (short.value.shard_id, short.value.missing) == (shard.shard_id, 1)  # type: ignore[attr-defined]
    assert catalog.ls() == []
    assert catalog.commit(signed, [*in_memory, enough[3]], 0).number == 1


def test_memory_counts_where_memory_was_promised(catalog: Catalog, cluster: Cluster) -> None:
    manifest = cluster.manifest("m", replicas=1, durability=Durability.MEMORY, shards=(cluster.entry(),))
    shard = manifest.shards[0].shard
    with pytest.raises(Unavailable):
        catalog.commit(
            cluster.sign(manifest), [cluster.receipt(shard, cluster.nodes[0], TierKind.REMOTE, url="s3://b")], 0
        )
    catalog.commit(cluster.sign(manifest), [cluster.receipt(shard, cluster.nodes[0], TierKind.MEMORY)], 0)


def test_receipts_that_do_not_fit_are_refused(catalog: Catalog, cluster: Cluster) -> None:
    manifest = cluster.manifest("r")
    signed, receipts = cluster.sign(manifest), cluster.receipts(manifest)
    with pytest.raises(UsageError, match="does not name"):
        catalog.commit(signed, [*receipts, cluster.receipt(cluster.shard(), cluster.nodes[0])], 0)
    wrong_frame = msgspec.structs.replace(manifest.shards[0].shard, frame_digest=bytes(32))
    with pytest.raises(UsageError, match="frame digest"):
        catalog.commit(signed, [*receipts, cluster.receipt(wrong_frame, cluster.nodes[3])], 0)


def test_what_was_not_signed_by_its_writer_is_refused(
    catalog: Catalog, cluster: Cluster, other_cluster: Cluster
) -> None:
    manifest = cluster.manifest("f")
    receipts = cluster.receipts(manifest)
    signed = msgspec.msgpack.decode(cluster.sign(manifest), type=SignedManifest)
    changed = encode(msgspec.structs.replace(manifest, replicas=1))
    forgeries = [
        cluster.sign(manifest, cluster.nodes[0]),  # another member's certificate
        other_cluster.sign(manifest),  # another authority's
        cluster.sign(manifest, cluster.member("client", lifetime_s=-60)),  # expired
        encode(msgspec.structs.replace(signed, manifest=changed)),
        encode(msgspec.structs.replace(signed, signature=bytes(64))),
        encode(msgspec.structs.replace(signed, certificate=b"")),
        cluster.sign(msgspec.structs.replace(manifest, cluster_id=other_cluster.cluster_id)),
    ]
    for forgery in forgeries:
        with pytest.raises(NotPermitted):
            catalog.commit(forgery, receipts, 0)
    for garbage in (b"", b"\x00", b"\xc1" * 100, cluster.sign(manifest)[:-1], cluster.sign(manifest) + b"\x00"):
        with pytest.raises(DamagedData):
            catalog.commit(garbage, receipts, 0)
        with pytest.raises(DamagedData):
            catalog.commit(cluster.sign(manifest), [*receipts, garbage], 0)
    assert catalog.sequence == 1


def test_extents_of_older_shards_keep_them_alive(catalog: Catalog, cluster: Cluster) -> None:
    old, _ = cluster.put(catalog, "a")
    kept, dropped = old.shards
    part = msgspec.structs.replace(kept, extents=(Extent(first=0, count=3, rows=4, content_bytes=1500),))
    with pytest.raises(UsageError, match="a table or files are made of whole shards"):
        cluster.put(catalog, "a", shards=(part, cluster.entry()))
    version = cluster.put(catalog, "a", shards=(part, cluster.entry()), replicas=1, kind=Kind.TENSORS)[1]
    assert (version.rows, version.content_bytes, version.stored_bytes) == (14, 5500, 10000)
    catalog.delete(Reference("a", 1), BY)
    (free,) = catalog.unreferenced_shards()
    assert (free.shard, free.wanted, len(free.nodes)) == (dropped.shard, 0, 2)
    with pytest.raises(UsageError, match="was deleted"):
        cluster.put(catalog, "a", shards=(dropped,))
    for node_id in free.nodes:
        catalog.remove_replica(free.shard.shard_id, node_id)
    assert catalog.unreferenced_shards() == []
    with pytest.raises(NotFound, match="no version names"):
        catalog.add_replica(cluster.receipt(dropped.shard, cluster.nodes[0]))
    with pytest.raises(UsageError, match="another artifact"):
        cluster.put(catalog, "b", shards=(kept,))
    resized = msgspec.structs.replace(kept, shard=msgspec.structs.replace(kept.shard, stored_bytes=6000))
    with pytest.raises(UsageError, match="another frame digest or size"):
        cluster.put(catalog, "a", shards=(resized,))


def test_replicas_follow_nodes(catalog: Catalog, cluster: Cluster) -> None:
    manifest, _ = cluster.put(catalog, "a")
    first, second, third = cluster.nodes[:3]
    assert catalog.short_shards() == []
    assert catalog.forget_node(second.id) == 2
    short = catalog.short_shards()
    assert {one.shard.shard_id for one in short} == set(manifest.distinct_shards())
    assert all((one.wanted, one.nodes) == (2, (first.id,)) for one in short)
    with pytest.raises(NotPermitted, match="given up"):
        catalog.add_replica(cluster.receipt(short[0].shard, second))
    with pytest.raises(Unavailable, match="1 of 2"):
        cluster.put(catalog, "b")
    catalog.add_replica(cluster.receipt(short[0].shard, third, TierKind.MEMORY))
    assert catalog.short_shards()[0].other_nodes in ((), (third.id,))
    catalog.add_replica(cluster.receipt(short[0].shard, third))
    assert [one.shard for one in catalog.short_shards()] == [short[1].shard]
    catalog.admit_node(second.id)
    assert [one.shard for one in catalog.short_shards()] == [short[1].shard]
    catalog.add_replica(cluster.receipt(short[1].shard, second))
    assert catalog.short_shards() == []
    catalog.remove_replica(short[1].shard.shard_id, first.id)
    assert len(catalog.short_shards()) == 1


def test_a_node_that_returns_counts_for_what_it_holds(catalog: Catalog, cluster: Cluster) -> None:
    manifest, _ = cluster.put(catalog, "a")
    first, second = (entry.shard for entry in manifest.shards)
    back, stranger = cluster.nodes[1], cluster.shard()
    catalog.forget_node(back.id)
    assert catalog.holding_nodes() == {cluster.nodes[0].id}
    receipts = [cluster.receipt(shard, back) for shard in (first, stranger)]
    assert catalog.reconcile(back.id, receipts) == [stranger.shard_id]
    assert catalog.shards_of(back.id) == {first.shard_id}
    assert [one.shard for one in catalog.short_shards()] == [second]
    assert catalog.reconcile(back.id, [cluster.receipt(second, back)]) == []
    assert [one.shard for one in catalog.short_shards()] == [first]
    with pytest.raises(NotPermitted, match="alone"):
        catalog.reconcile(back.id, [cluster.receipt(first, cluster.nodes[2])])
    assert catalog.shards_of(back.id) == {second.shard_id}


def test_a_reader_sees_the_old_version_or_the_new(catalog: Catalog, cluster: Cluster) -> None:
    cluster.put(catalog, "hot")
    done = threading.Event()
    problems: list[str] = []

    def read() -> None:
        last = 1
        while not done.is_set():
            version = catalog.stat(Reference("hot"))
            opened, statement = open_manifest(
                catalog.manifest(Reference("hot", version.number)), cluster.cluster_id, cluster.trust.verify
            )
            standing = catalog.replicas(list(opened.distinct_shards()))
            if statement.digest.hex() != version.digest or version.number < last:
                problems.append(f"{version} after {last}")
            if any(len(nodes) != 2 for nodes in standing.values()) or catalog.ls("hot")[0].number < version.number:
                problems.append(f"{version} half visible: {standing}")
            last = version.number

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for _ in range(25):
            cluster.put(catalog, "hot")
    finally:
        done.set()
        for reader in readers:
            reader.join(30)
    assert problems == []
    assert catalog.stat(Reference("hot")).number == 26
