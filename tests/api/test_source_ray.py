"""A `ray.data.Dataset` as a source, on a real Ray of this machine."""

from collections.abc import Iterator

import pyarrow as pa
import pytest

from raylog.api.source import open_source
from raylog.errors import SourceError

ray = pytest.importorskip("ray")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),  # Ray Data about its own settings
]

TABLE = pa.table({"n": range(1000), "w": ["a", None] * 500})


@pytest.fixture(scope="module", autouse=True)
def a_ray_of_its_own() -> Iterator[None]:
    ray.init(address="local", num_cpus=1, include_dashboard=False, object_store_memory=80 << 20, log_to_driver=False)
    yield
    ray.shutdown()


def test_blocks_of_a_ray_dataset_are_read_in_order():
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    content = open_source(ray.data.from_arrow([TABLE.slice(0, 600), TABLE.slice(600)]))
    assert pa.Table.from_batches(content.batches(), content.schema).sort_by("n").equals(TABLE)
    frames = ray.data.from_pandas(TABLE.to_pandas())
    content = open_source(frames)
    assert pa.Table.from_batches(content.batches(), content.schema)["n"].to_pylist() == list(range(1000))


def test_a_ray_dataset_that_fails_half_way_is_named():
    import ray.data

    def fail(batch):
        if batch["id"][0] > 50:
            raise ValueError("broken on purpose")
        return batch

    content = open_source(ray.data.range(100, override_num_blocks=2).map_batches(fail, batch_size=10))
    with pytest.raises(SourceError, match=r"the Ray dataset failed after row \d+: (RayTaskError|UserCodeException)"):
        list(content.batches())


def test_a_ray_dataset_without_rows_is_refused():
    import ray.data

    with pytest.raises(SourceError, match="Ray dataset"):
        open_source(ray.data.from_items([]))
