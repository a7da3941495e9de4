"""What versions were made from: kept with deleted ones, the same after a rebuild, refused where nothing ever was."""

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylog.catalog import lineage
from raylog.catalog.catalog import Catalog
from raylog.catalog.journal import Journal
from raylog.catalog.lineage import Origin, trace
from raylog.catalog.rebuild import rebuild
from raylog.errors import NotFound, UsageError
from raylog.spec import parse_reference
from raylog.testing.catalog_cluster import Cluster

BY = "raylog://x/client/y"


@pytest.fixture
def family(catalog: Catalog, cluster: Cluster) -> Catalog:
    """data@1 and @2; tokens@1 of data@1, tokens@2 of both; model@1 of tokens@2 and tokens@1; data@1 deleted."""
    for name, parents in (
        ("data", ()),
        ("data", ()),
        ("tokens", ("data@1",)),
        ("tokens", ("data@1", "data@2")),
        ("model", ("tokens@2", "tokens@1")),
    ):
        cluster.put(catalog, name, parents=parents)
    catalog.delete(parse_reference("data@1"), BY)
    return catalog


def test_both_ways_over_all_steps(family: Catalog, cluster: Cluster, tmp_path: Path) -> None:
    found = family.lineage(parse_reference("tokens"))
    assert found.version == Origin(version="tokens@2", parents=("data@1", "data@2"), exists=True)
    assert [(one.version, one.exists) for one in found.ancestors] == [("data@1", False), ("data@2", True)]
    assert [one.version for one in found.descendants] == ["model@1"]
    from_data = family.lineage(parse_reference("data@1"))
    assert [one.version for one in from_data.descendants] == ["tokens@1", "tokens@2", "model@1"]
    assert not from_data.version.exists
    rebuild(tmp_path / "anew", cluster.trust, family.records(0), {})
    anew = Catalog(Journal(tmp_path / "anew", cluster.trust, time.time, create=False))
    assert anew.lineage(parse_reference("tokens")) == found
    anew.close()


def test_parents_are_resolved_and_checked_before_anything_is_sealed(family: Catalog) -> None:
    assert family.parents([parse_reference("data"), parse_reference("data@1")]) == ["data@2", "data@1"]
    with pytest.raises(UsageError, match="data@9, named as a parent, never existed"):
        family.parents([parse_reference("data@9")])
    with pytest.raises(NotFound, match="no artifact 'nothing'"):
        family.parents([parse_reference("nothing")])
    with pytest.raises(NotFound, match="no version data@9"):
        family.lineage(parse_reference("data@9"))


@given(st.lists(st.sets(st.integers(0, 30), max_size=4), min_size=1, max_size=30), st.data())
def test_every_version_that_is_reached_is_listed_once(picks: list[set[int]], data: st.DataObject) -> None:
    parents = {n: sorted(one for one in pick if one < n) for n, pick in enumerate(picks)}
    start = data.draw(st.sampled_from(sorted(parents)))

    def up(n: int) -> set[int]:
        return set(parents[n]).union(*(up(one) for one in parents[n]))

    found = trace(
        f"a@{start}",
        lambda one: Origin(version=one, parents=tuple(f"a@{n}" for n in parents[int(one[2:])]), exists=True),
        lambda one: [f"a@{n}" for n in parents if int(one[2:]) in parents[n]],
    )
    listed = [int(one.version[2:]) for one in found.ancestors]
    assert len(listed) == len(set(listed)) and set(listed) == up(start)
    assert {int(one.version[2:]) for one in found.descendants} == {n for n in parents if start in up(n)}
    assert not found.is_cut


def test_an_answer_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lineage, "VERSIONS_MAX", 5)
    found = trace(
        "a@1",
        lambda one: Origin(version=one, parents=(), exists=True),
        lambda one: [f"{one}{n}" for n in range(3)] if len(one) < 8 else [],
    )
    assert found.is_cut
    assert len(found.descendants) == 5
