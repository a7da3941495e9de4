"""A cluster's keys, made once, and a catalog in a directory of its own."""

from collections.abc import Generator
from pathlib import Path

import pytest

from raylog.catalog.catalog import Catalog
from raylog.testing.catalog_cluster import Cluster


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture(scope="session")
def other_cluster() -> Cluster:
    return Cluster(seed=2)


@pytest.fixture
def catalog(cluster: Cluster, tmp_path: Path) -> Generator[Catalog]:
    catalog = cluster.open(tmp_path / "catalog")
    yield catalog
    catalog.close()
