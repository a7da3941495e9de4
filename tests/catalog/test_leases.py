"""Leases and leftovers: pure, with times passed in; and what a catalog does with a put that was revoked."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylog.catalog.catalog import Catalog
from raylog.catalog.leases import Leases, Orphans
from raylog.catalog.rebuild import rebuild
from raylog.errors import Conflict
from raylog.spec import new_id
from raylog.testing.catalog_cluster import TENANT, Cluster

LEASE_S = 10.0
GRACE_S = 10.0


def test_a_lease_lasts_from_its_last_renewal() -> None:
    leases = Leases(LEASE_S, 0.0)
    leases.renew("a", 20.0)
    leases.renew("a", 28.0)
    assert leases.is_live("a", 37.9)
    assert not leases.is_live("a", 38.0)
    assert not leases.is_live("b", 30.0)


def test_a_catalog_that_has_just_begun_takes_every_put_for_one_under_way() -> None:
    leases = Leases(LEASE_S, 100.0)
    assert leases.is_live("never heard of", 109.9)
    assert not leases.is_live("never heard of", 110.0)


def test_what_has_run_out_is_forgotten() -> None:
    leases = Leases(LEASE_S, 0.0)
    for number in range(1000):
        leases.renew(f"{number}", float(number))
    assert len(leases._renewed) <= 2 * LEASE_S
    assert not leases.is_live("3", 1000.0)


def test_a_leftover_is_due_after_the_grace_period_and_not_before() -> None:
    leases, orphans = Leases(LEASE_S, -100.0), Orphans(GRACE_S)
    assert orphans.look({"s": "put"}, leases, 0.0) == {}
    assert orphans.look({"s": "put", "t": "put"}, leases, 9.9) == {}
    assert orphans.look({"s": "put", "t": "put"}, leases, 10.0) == {"put": ["s"]}
    assert orphans.look({"t": "put"}, leases, 20.0) == {"put": ["t"]}


def test_a_shard_that_was_named_in_between_begins_again() -> None:
    leases, orphans = Leases(LEASE_S, -100.0), Orphans(GRACE_S)
    orphans.look({"s": "put"}, leases, 0.0)
    orphans.look({}, leases, 5.0)
    assert orphans.look({"s": "put"}, leases, 12.0) == {}
    assert orphans.look({"s": "put"}, leases, 22.0) == {"put": ["s"]}


@given(st.lists(st.tuples(st.floats(0.1, 5.0), st.booleans()), max_size=60))
def test_a_put_that_renews_loses_nothing(steps: list[tuple[float, bool]]) -> None:
    """However time passes: nothing is due within the grace period after the lease was live."""
    leases, orphans, now, live_until = Leases(LEASE_S, 0.0), Orphans(GRACE_S), 0.0, LEASE_S
    for passed_s, renews in steps:
        now += passed_s
        if renews:
            leases.renew("put", now)
            live_until = now + LEASE_S
        due = orphans.look({"s": "put"}, leases, now)
        assert due == {} or now >= live_until + GRACE_S


def test_a_revoked_put_cannot_commit(cluster: Cluster, catalog: Catalog) -> None:
    pending = catalog.begin("corpora/wiki", TENANT)
    manifest = cluster.manifest(artifact_id=pending.artifact_id)
    assert catalog.unnamed(list(manifest.distinct_shards())) == list(manifest.distinct_shards())
    assert catalog.revoke(manifest.version_id, "raylog://c/catalog")
    with pytest.raises(Conflict, match="put again"):
        catalog.commit(cluster.sign(manifest), cluster.receipts(manifest), pending.base)


def test_a_put_stays_revoked_in_a_catalog_that_is_made_anew(cluster: Cluster, catalog: Catalog, tmp_path: Path) -> None:
    pending = catalog.begin("corpora/wiki", TENANT)
    manifest = cluster.manifest(artifact_id=pending.artifact_id)
    for _ in range(2):
        assert catalog.revoke(manifest.version_id, "raylog://c/catalog")
    rebuild(tmp_path / "anew", cluster.trust, catalog.records(0), {})
    anew = cluster.open(tmp_path / "anew", epoch=9)
    assert len(anew.records(0)) == 3, "two epochs, and one revocation"
    with pytest.raises(Conflict, match="put again"):
        anew.commit(cluster.sign(manifest), cluster.receipts(manifest), pending.base)
    anew.close()


def test_a_committed_put_is_not_revoked(cluster: Cluster, catalog: Catalog) -> None:
    manifest, version = cluster.put(catalog)
    assert not catalog.revoke(manifest.version_id, "raylog://c/catalog")
    assert catalog.unnamed([*manifest.distinct_shards(), new_id()])[0] not in manifest.distinct_shards()
    assert catalog.commit(cluster.sign(manifest), cluster.receipts(manifest), 0) == version
