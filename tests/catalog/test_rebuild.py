"""A journal made anew from nodes' copies says what the lost one said, or nothing at all."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raylog.catalog.catalog import Catalog
from raylog.catalog.copy import RecordCopy
from raylog.catalog.journal import Entry, Journal
from raylog.catalog.rebuild import best_copy, rebuild
from raylog.catalog.record import Tail
from raylog.errors import Conflict, DamagedData, NotFound, NotPermitted
from raylog.spec import Reference
from raylog.testing.catalog_cluster import TENANT, Cluster

BY = "raylog://x/client/y"
NAMES = ("a", "b")


@contextmanager
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="raylog-test-"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def opened(cluster: Cluster, directory: Path) -> Catalog:
    return Catalog(Journal(directory, cluster.trust, lambda: 1_800_000_000.0, create=False))


def says(catalog: Catalog) -> dict[str, object]:
    """All that a listing shows, and what each name would get next."""
    found: dict[str, object] = {"ls": catalog.ls()}
    for name in NAMES:
        try:
            versions = catalog.versions(name)
        except NotFound as error:
            found[name] = str(error)
            continue
        found[name] = versions
        found[f"{name} begins"] = catalog.begin(name, TENANT)
        found[f"{name} manifests"] = [catalog.manifest(Reference(name, one.number)) for one in versions]
    return found


Step = tuple[str, str, int]
STEPS = st.lists(
    st.tuples(st.sampled_from(["put", "put", "delete", "delete all", "latest", "copy"]), st.sampled_from(NAMES),
              st.integers(0, 5)), max_size=14,
)  # fmt: skip


def play(cluster: Cluster, catalog: Catalog, copy: RecordCopy, steps: list[Step]) -> None:
    for action, name, which in steps:
        try:
            numbers = [one.number for one in catalog.versions(name)]
        except NotFound:
            numbers = []
        if action == "put":
            cluster.put(catalog, name)
        elif action == "copy":
            copy.append(catalog.records(copy.tail.sequence))
        elif numbers:
            reference = Reference(name, numbers[which % len(numbers)])
            if action == "latest":
                catalog.set_latest(reference, BY)
            else:
                catalog.delete(Reference(name) if action == "delete all" else reference, BY)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_it_says_what_the_lost_one_said(cluster: Cluster, steps: list[Step]) -> None:
    with folder() as top:
        catalog = cluster.open(top / "catalog")
        copy = RecordCopy(top / "copy", cluster.cluster_id, cluster.trust.verify)
        play(cluster, catalog, copy, steps)
        copy.append(catalog.records(copy.tail.sequence))
        expected, sequence = says(catalog), catalog.sequence
        catalog.close()
        assert rebuild(top / "anew", cluster.trust, copy.page(0, 1000), {}) == sequence
        copy.close()
        anew = opened(cluster, top / "anew")
        assert says(anew) == expected
        anew.begin_epoch(anew.epoch_seen() + 1)
        for name in NAMES:  # numbers go on where they were
            before = anew.begin(name, TENANT).base
            assert cluster.put(anew, name)[1].number > before
        assert anew.verify() == sequence + 3
        anew.close()


def test_replicas_are_asked_for_again(cluster: Cluster, catalog: Catalog, tmp_path: Path) -> None:
    manifest, _ = cluster.put(catalog)
    rebuild(tmp_path / "anew", cluster.trust, catalog.records(0), {})
    anew = opened(cluster, tmp_path / "anew")
    assert len(anew.short_shards()) == 2
    anew.begin_epoch(anew.epoch_seen() + 1)
    for receipt in cluster.receipts(manifest):
        anew.add_replica(receipt)
    assert anew.short_shards() == []
    anew.close()


def entries(cluster: Cluster, catalog: Catalog) -> list[Entry]:
    for name in ("a", "b", "a"):
        cluster.put(catalog, name)
    return catalog.records(0)


def test_a_manifest_that_one_copy_lacks_comes_from_another(cluster: Cluster, catalog: Catalog, tmp_path: Path) -> None:
    whole = entries(cluster, catalog)
    lacking = [*whole[:2], msgspec.structs.replace(whole[2], manifest=b""), *whole[3:]]
    with pytest.raises(DamagedData, match="no copy has the manifest of b@1"):
        rebuild(tmp_path / "anew", cluster.trust, lacking, {})
    assert not (tmp_path / "anew").exists()
    rebuild(tmp_path / "anew", cluster.trust, lacking, {3: whole[2].manifest})
    anew = opened(cluster, tmp_path / "anew")
    assert says(anew) == says(catalog)
    anew.close()


def test_forged_swapped_and_missing_entries_are_refused(
    cluster: Cluster, other_cluster: Cluster, catalog: Catalog, tmp_path: Path
) -> None:
    good = entries(cluster, catalog)
    theirs = entries(other_cluster, other_cluster.open(tmp_path / "theirs"))
    forged = bytearray(good[2].manifest)
    forged[len(forged) // 2] ^= 1
    bad: list[tuple[list[Entry], type[Exception]]] = [
        ([*good[:1], *good[2:]], DamagedData),
        ([good[0], good[1], good[3]], DamagedData),
        ([*good[:2], msgspec.structs.replace(good[2], manifest=good[1].manifest), *good[3:]], DamagedData),
        ([*good[:2], msgspec.structs.replace(good[2], manifest=theirs[2].manifest), *good[3:]], NotPermitted),
        (theirs, NotPermitted),
    ]
    for chain, error in bad:
        with pytest.raises(error):
            rebuild(tmp_path / "anew", cluster.trust, chain, {})
        assert not (tmp_path / "anew").exists()
    with pytest.raises((DamagedData, NotPermitted)):
        rebuild(tmp_path / "anew", cluster.trust, [*good[:2], Entry(record=good[2].record, manifest=bytes(forged))], {})


def test_a_journal_that_is_there_is_not_replaced(cluster: Cluster, catalog: Catalog, tmp_path: Path) -> None:
    good = entries(cluster, catalog)
    with pytest.raises(Conflict, match="is not replaced"):
        rebuild(tmp_path / "catalog", cluster.trust, good, {})
    (tmp_path / "anew.rebuilding").mkdir()
    (tmp_path / "anew.rebuilding" / "journal.sqlite").write_bytes(b"of a rebuild that was killed")
    rebuild(tmp_path / "anew", cluster.trust, good, {})
    assert not (tmp_path / "anew.rebuilding").exists()


def test_the_newest_epoch_counts_then_the_length() -> None:
    tails = {
        "a": Tail(sequence=9, epoch=1),
        "b": Tail(sequence=5, epoch=2),
        "c": Tail(sequence=7, epoch=2),
        "d": Tail(),
    }
    assert best_copy(tails) == "c"
    assert best_copy({"d": Tail()}) is None
    assert best_copy({}) is None
