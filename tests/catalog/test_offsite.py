"""The chain in a backup: it follows the catalog, and a catalog that is made of it says the same."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_rebuild import STEPS, Step, folder, opened, play, says

from raylog.catalog import offsite
from raylog.catalog.catalog import Catalog
from raylog.catalog.copy import RecordCopy
from raylog.catalog.journal import Entry
from raylog.catalog.offsite import OffsiteChain, Segment
from raylog.catalog.rebuild import rebuild
from raylog.errors import Conflict, DamagedData, NotFound, NotPermitted, RaylogError, Unavailable
from raylog.spec import Durability, Reference, TierKind
from raylog.store.remote import RemoteObjects
from raylog.testing.catalog_cluster import Cluster

URL = "file:///backup"
BY = "raylog://x/client/y"


def chain_in(path: Path, cluster: Cluster) -> OffsiteChain:
    return OffsiteChain(RemoteObjects(path.as_uri()), cluster.trust)


def files(path: Path, kind: str) -> list[Path]:
    return sorted(one for one in path.glob(f"*/{kind}/**/*") if one.is_file())


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, more=STEPS, per_segment=st.integers(1, 4))
def test_what_is_made_of_it_says_the_same(
    cluster: Cluster, steps: list[Step], more: list[Step], per_segment: int
) -> None:
    with folder() as top, pytest.MonkeyPatch.context() as patch:
        patch.setattr(offsite, "RECORDS_PER_SEGMENT", per_segment)
        catalog = cluster.open(top / "catalog")
        copy = RecordCopy(top / "copy", cluster.cluster_id, cluster.trust.verify)
        chain = chain_in(top / "backup", cluster)
        for some in (steps, more):
            play(cluster, catalog, copy, some)
            assert chain.follow(catalog) == catalog.sequence
        expected, sequence = says(catalog), catalog.sequence
        existing = {one.digest for name in ("a", "b") for one in expected.get(f"{name}", []) if name in expected
                    and not isinstance(expected[name], str)}  # type: ignore[attr-defined]  # fmt: skip
        assert {path.name for path in files(top / "backup", "manifests")} == existing
        catalog.close()
        copy.close()
        assert rebuild(top / "anew", cluster.trust, chain.entries(), {}) == sequence
        anew = opened(cluster, top / "anew")
        assert says(anew) == expected
        anew.close()


def backed_up(cluster: Cluster, catalog: Catalog, path: Path) -> OffsiteChain:
    for name in ("a", "b", "a"):
        cluster.put(catalog, name)
    chain = chain_in(path, cluster)
    chain.follow(catalog)
    return chain


@pytest.mark.parametrize("trouble", ["no record", "record changed", "manifest changed", "manifest gone", "cut short"])
def test_what_was_tampered_with_is_refused(cluster: Cluster, catalog: Catalog, tmp_path: Path, trouble: str) -> None:
    chain = backed_up(cluster, catalog, tmp_path / "backup")
    (segment,) = files(tmp_path / "backup", "records")
    manifest = files(tmp_path / "backup", "manifests")[0]
    records = list(msgspec.msgpack.decode(segment.read_bytes(), type=Segment).records)
    if trouble == "no record":
        segment.write_bytes(msgspec.msgpack.encode(Segment(records=(records[0], *records[2:]))))
    elif trouble == "record changed":
        records[1] = records[1][:-1] + bytes([records[1][-1] ^ 1])
        segment.write_bytes(msgspec.msgpack.encode(Segment(records=tuple(records))))
    elif trouble == "manifest changed":
        data = manifest.read_bytes()
        manifest.write_bytes(data[:200] + bytes([data[200] ^ 1]) + data[201:])
    elif trouble == "manifest gone":
        manifest.unlink()
    else:
        segment.write_bytes(segment.read_bytes()[:-10])
    with pytest.raises((DamagedData, NotPermitted)):
        rebuild(tmp_path / "anew", cluster.trust, chain.entries(), {})
    assert not (tmp_path / "anew" / "journal.sqlite").exists()


def test_two_catalogs_do_not_write_to_one_backup(cluster: Cluster, catalog: Catalog, tmp_path: Path) -> None:
    chain = backed_up(cluster, catalog, tmp_path / "backup")
    rebuild(tmp_path / "drill", cluster.trust, chain.entries(), {})
    drill = opened(cluster, tmp_path / "drill")
    drill.begin_epoch(drill.epoch_seen() + 1)
    chain.follow(drill)  # a restore goes on where the backup ended
    cluster.put(catalog, "a")
    (segment,) = files(tmp_path / "backup", "records")
    before = segment.read_bytes()
    with pytest.raises(Conflict, match="another catalog, restored from there, writes to it"):
        chain.follow(catalog)
    assert segment.read_bytes() == before
    drill.close()


def test_it_goes_on_after_a_part_was_written(
    cluster: Cluster, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offsite, "RECORDS_PER_SEGMENT", 2)
    for _ in range(5):
        cluster.put(catalog, "a")
    chain = chain_in(tmp_path / "backup", cluster)
    written: list[str] = []
    real = RemoteObjects.write

    def failing(self: RemoteObjects, key: str, *rest: object) -> None:
        if len(written) == 4:
            raise Unavailable("the network is gone")
        written.append(key)
        real(self, key, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(RemoteObjects, "write", failing)
    with pytest.raises(Unavailable):
        chain.follow(catalog)
    assert 0 < catalog.backups.chain_reached(chain._objects.url) < catalog.sequence
    monkeypatch.setattr(RemoteObjects, "write", real)
    assert chain.follow(catalog) == catalog.sequence
    assert list(chain.entries()) == catalog.records(0)


def test_another_clusters_backup_is_not_found(
    cluster: Cluster, other_cluster: Cluster, catalog: Catalog, tmp_path: Path
) -> None:
    backed_up(cluster, catalog, tmp_path / "backup")
    with pytest.raises(NotFound, match=f"no backup of cluster {other_cluster.cluster_id}"):
        list(chain_in(tmp_path / "backup", other_cluster).entries())


def test_an_older_state_that_was_put_back_ends_earlier(cluster: Cluster, catalog: Catalog, tmp_path: Path) -> None:
    chain = backed_up(cluster, catalog, tmp_path / "backup")
    (segment,) = files(tmp_path / "backup", "records")
    older = segment.read_bytes()
    cluster.put(catalog, "a")
    chain.follow(catalog)
    segment.write_bytes(older)
    assert len(list(chain.entries())) == catalog.sequence - 1


def test_which_copies_are_wanted(cluster: Cluster, catalog: Catalog) -> None:
    manifest, _ = cluster.put(catalog, "a", backup=URL)
    shards = list(manifest.distinct_shards().values())
    assert {one.standing.shard for one in catalog.backups.wanted(URL, 10)} == set(shards)
    assert catalog.storage_standing().copies_to_back_up == 2
    receipt = cluster.receipt(shards[0], cluster.nodes[0], TierKind.REMOTE, url=URL)
    catalog.backups.add(receipt)
    (wanted,) = catalog.backups.wanted(URL, 10)
    assert (wanted.standing.shard, wanted.url, wanted.is_damaged) == (shards[1], URL, False)
    catalog.backups.doubt(shards[0].shard_id, URL)
    assert [one.is_damaged for one in catalog.backups.wanted(URL, 10) if one.standing.shard == shards[0]] == [True]
    assert catalog.whereabouts([shards[0].shard_id])[shards[0].shard_id].backups == (URL,)
    with pytest.raises(NotFound, match="no version wants"):
        catalog.backups.add(cluster.receipt(shards[0], cluster.nodes[0], TierKind.REMOTE, url="file:///other"))
    catalog.delete(Reference("a"), BY)
    assert catalog.backups.wanted(URL, 10) == []
    assert set(catalog.backups.free(URL, 10)) == {one.shard_id for one in shards}
    for shard_id in catalog.backups.free(URL, 10):
        catalog.backups.remove(shard_id, URL)
    assert catalog.backups.free(URL, 10) == []


def test_an_older_version_gets_a_backup_and_keeps_it_when_the_catalog_is_made_anew(
    cluster: Cluster, catalog: Catalog, tmp_path: Path
) -> None:
    for _ in range(2):
        cluster.put(catalog, "a")
    assert [str(one) for one in catalog.back_up(Reference("a"), URL, BY)] == ["a@1", "a@2"]
    assert [str(one) for one in catalog.back_up(Reference("a", 2), "file:///second", BY)] == ["a@2"]

    def wanted(one: Catalog) -> list[tuple[str, str]]:
        urls = (URL, "file:///second")
        return sorted((copy.standing.shard.shard_id, url) for url in urls for copy in one.backups.wanted(url, 100))

    before = wanted(catalog)
    assert len(before) == 6
    rebuild(tmp_path / "anew", cluster.trust, catalog.records(0), {})
    anew = opened(cluster, tmp_path / "anew")
    assert wanted(anew) == before
    anew.close()


def test_remote_durability_needs_the_copies_first(cluster: Cluster, catalog: Catalog) -> None:
    manifest = cluster.manifest("cold", replicas=0, durability=Durability.REMOTE, backup=URL)
    signed = cluster.sign(manifest)
    shards = manifest.distinct_shards().values()
    receipts = [cluster.receipt(shard, cluster.nodes[0], TierKind.REMOTE, url=URL) for shard in shards]
    for some in ([], receipts[:1], [receipts[0], receipts[0]]):
        with pytest.raises(RaylogError, match="have no copy in file:///backup"):
            catalog.commit(signed, some, 0)
    assert catalog.commit(signed, receipts, 0).number == 1
    assert catalog.backups.wanted(URL, 10) == [] and catalog.short_shards() == []
    assert catalog.storage_standing().lost_shards == 0


def test_an_entry_of_no_commit_has_no_manifest(cluster: Cluster, catalog: Catalog, tmp_path: Path) -> None:
    chain = backed_up(cluster, catalog, tmp_path / "backup")
    found: list[Entry] = list(chain.entries())
    assert found == catalog.records(0)
