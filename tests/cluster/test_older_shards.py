"""A new version names the older one's shards where they hold the same: they are neither stored nor sent again."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from three_nodes import lying, wait_until

import raylog
from raylog.api import put
from raylog.catalog.manifest import Manifest
from raylog.errors import NotPermitted
from raylog.security.grants import ReadScope
from raylog.spec import parse_reference

ITEMS = 1 << 20  # of 4 bytes: each array fills one shard of the test cluster


def weights(*seeds: int) -> dict[str, np.ndarray]:
    return {f"layer-{n}": np.random.default_rng(seed).random(ITEMS, np.float32) for n, seed in enumerate(seeds)}


def manifest(client: raylog.Client, reference: str) -> Manifest:
    return client._session.manifest(parse_reference(reference))


def shard_ids(client: raylog.Client, reference: str) -> list[str]:
    return [entry.shard.shard_id for entry in manifest(client, reference).shards]


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    return found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in expected)


@pytest.fixture
def two_versions(client: raylog.Client, request: pytest.FixtureRequest) -> str:
    """Of four shards each, the third of which differs."""
    name = f"tests/older/{request.node.name}"
    client.put(name, weights(1, 2, 3, 4))
    client.put(name, weights(1, 2, 30, 4))
    return name


def test_only_what_changed_is_stored_and_shipped(client: raylog.Client, two_versions: str) -> None:
    first, second = manifest(client, f"{two_versions}@1").shards, manifest(client, f"{two_versions}@2").shards
    assert [new == old for new, old in zip(second, first, strict=True)] == [True, True, False, True]
    client.ship(f"{two_versions}@1", to="all", pin=True).result(60)  # cached copies may give way meanwhile
    report = client.ship(two_versions, to="all").result(60)
    client.unpin(f"{two_versions}@1")
    assert report.moved_bytes == pytest.approx(2 * second[2].shard.stored_bytes, rel=0.01)  # two nodes lacked it
    assert same(client.get(two_versions), weights(1, 2, 30, 4))
    assert same(client.get(f"{two_versions}@1"), weights(1, 2, 3, 4))


def test_what_another_version_names_outlives_the_older_one(client: raylog.Client, two_versions: str) -> None:
    gone = shard_ids(client, f"{two_versions}@1")[2]
    client.delete(f"{two_versions}@1")
    wait_until(lambda: not any(gone in one for one in lying(client)), 30, "the shard that nothing names is removed")
    assert same(client.get(two_versions), weights(1, 2, 30, 4))
    client.put(two_versions, weights(1, 2, 3, 4))
    assert set(shard_ids(client, f"{two_versions}@3")) & set(shard_ids(client, f"{two_versions}@2"))
    kept = shard_ids(client, two_versions)
    client.delete(two_versions)
    wait_until(lambda: not any(one in path for path in lying(client) for one in kept), 30, "all of it is removed")


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_rows_that_are_added_leave_the_shards_before_alone(client: raylog.Client, codec: str) -> None:
    noise = np.random.default_rng(5).integers(0, 1 << 40, 1_600_000)
    name = f"tests/older/rows-{codec}"
    client.put(name, pa.table({"n": noise[:1_200_000]}))
    client.put(name, pa.table({"n": noise}), codec=codec)
    before, after = shard_ids(client, f"{name}@1"), shard_ids(client, f"{name}@2")
    assert len(before) >= 3
    assert after[: len(before) - 1] == before[:-1]
    assert after[-1] not in before
    assert client.get(name).column("n").to_numpy().tolist() == noise.tolist()


def test_files_too(client: raylog.Client, tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"part-{number}").write_bytes(np.random.default_rng(number).bytes(4 << 20))
    client.put("tests/older/files", tmp_path)
    (tmp_path / "part-2").write_bytes(b"changed")
    client.put("tests/older/files", tmp_path)
    before, after = shard_ids(client, "tests/older/files@1"), shard_ids(client, "tests/older/files@2")
    assert after[:2] == before[:2]
    assert after[2] != before[2]
    client.download("tests/older/files", tmp_path / "back")
    assert (tmp_path / "back" / "part-2").read_bytes() == b"changed"


def test_equal_shards_of_one_version_become_one(client: raylog.Client) -> None:
    table = pa.table({"n": np.zeros(1_600_000, np.int64)})
    client.put("tests/older/zeros", table)
    again = client.put("tests/older/zeros", table)
    assert again.shards < len(shard_ids(client, "tests/older/zeros"))
    assert client.get("tests/older/zeros") == table
    assert client.ship("tests/older/zeros", to="all").result(60).shards >= again.shards
    assert client.verify("tests/older/zeros").problems == []


def test_more_replicas_than_stand_are_sealed_anew(client: raylog.Client) -> None:
    client.put("tests/older/replicas", weights(1))
    client.put("tests/older/replicas", weights(1), replicas=2)
    assert shard_ids(client, "tests/older/replicas@1") != shard_ids(client, "tests/older/replicas@2")
    assert [len(nodes) for nodes in client.replicas("tests/older/replicas").values()] == [2]
    client.put("tests/older/replicas", weights(1), replicas=1)
    assert shard_ids(client, "tests/older/replicas@3") == shard_ids(client, "tests/older/replicas@2")


def test_who_may_not_read_the_version_before_stores_all_anew(
    client: raylog.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.put("tests/older/secret", weights(1))
    granted = client._session._granted

    def refused(scope: object) -> dict[str, bytes]:
        if isinstance(scope, ReadScope):
            raise NotPermitted("not for you")
        return granted(scope)

    with monkeypatch.context() as patch:
        patch.setattr(client._session, "_granted", refused)
        client.put("tests/older/secret", weights(1))
    first, second = manifest(client, "tests/older/secret@1"), manifest(client, "tests/older/secret@2")
    assert first.shards[0].shard.shard_id != second.shards[0].shard.shard_id
    assert first.tag_dek_id != second.tag_dek_id
    assert same(client.get("tests/older/secret"), weights(1))


def test_a_tag_that_lies_is_found_out(client: raylog.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer who sealed one thing and tagged it as another would have the next one sign for it."""
    true_tag: list[bytes] = []
    whole: Callable[..., put.ShardEntry] = put.ShardEntry.whole

    def lying_entry(shard: object, dek_ids: tuple[str, ...], content_tag: bytes) -> put.ShardEntry:
        return whole(shard, dek_ids, true_tag[0]) if true_tag else whole(shard, dek_ids, content_tag)

    client.put("tests/older/lie", weights(1))
    true_tag.append(manifest(client, "tests/older/lie").shards[0].content_tag)
    with monkeypatch.context() as patch:
        patch.setattr(put.ShardEntry, "whole", lying_entry)
        client.put("tests/older/lie", weights(2))
    assert manifest(client, "tests/older/lie").shards[0].content_tag == true_tag[0]
    client.put("tests/older/lie", weights(1))
    assert same(client.get("tests/older/lie"), weights(1))
    assert shard_ids(client, "tests/older/lie@3") != shard_ids(client, "tests/older/lie@2")


def test_a_put_that_fails_leaves_the_older_version_whole(client: raylog.Client, two_versions: str) -> None:
    before = lying(client)

    def stop(done_bytes: int, total_bytes: int) -> None:
        if done_bytes > 0.9 * total_bytes:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.put(two_versions, weights(1, 2, 300, 4), on_progress=stop)
    wait_until(lambda: lying(client) <= before, 10, "nothing new is left")
    assert same(client.get(two_versions), weights(1, 2, 30, 4))
