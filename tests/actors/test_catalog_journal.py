"""When the catalog actor may begin an empty journal."""

from pathlib import Path

import pytest

from raylog.actors.catalog import may_create
from raylog.catalog.copy import RecordCopy
from raylog.errors import Unavailable
from raylog.settings import Settings
from raylog.testing.catalog_cluster import Cluster


@pytest.mark.parametrize("kept_in", ["standby", "nodes/slot-0/records"])
def test_none_beside_a_copy_of_another_one(tmp_path: Path, kept_in: str) -> None:
    settings, cluster = Settings(state=tmp_path), Cluster()
    assert may_create(settings)
    RecordCopy(tmp_path / kept_in, cluster.cluster_id, cluster.trust.verify).close()
    with pytest.raises(Unavailable, match="raylog catalog rebuild"):
        may_create(settings)
    cluster.open(settings.catalog_path).close()
    assert not may_create(settings), "the one that is there is opened"
