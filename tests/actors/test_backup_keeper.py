"""Copies that failed puts left in a backup: deleted in the end, whatever the backup refuses meanwhile."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raylog.actors import backup_keeper
from raylog.actors.backup_keeper import BackupKeeper
from raylog.errors import Unavailable
from raylog.settings import Settings

URL, OTHER = "s3://bucket/a", "s3://bucket/b"


@pytest.fixture
def keeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BackupKeeper:
    monkeypatch.setattr(backup_keeper.Signer, "of_cluster", lambda _: None)
    monkeypatch.setattr(backup_keeper.calls, "call", lambda *_, **__: ["a node"])
    backups: Any = SimpleNamespace(urls=list, remove=lambda *_: None)
    catalog: Any = SimpleNamespace(backups=backups, unnamed=lambda ids: [one for one in ids if one != "named"])
    settings = Settings(state=tmp_path)
    settings.catalog_path.mkdir()
    settings.drill_path.touch()  # its thread does not run: the test steps
    nothing: Any = None
    return BackupKeeper(catalog, nothing, settings, lambda: None, lambda _: None)


def test_discarded_copies_go_in_the_end(keeper: BackupKeeper, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, deleted, refused = [0.0], [], [URL]

    def delete(_: object, url: str, shard_ids: list[str]) -> list[str]:
        if url in refused:
            raise Unavailable("not now")
        deleted.extend((url, one) for one in shard_ids[:2])
        return shard_ids[:2]

    monkeypatch.setattr(backup_keeper.time, "monotonic", lambda: now_s[0])
    monkeypatch.setattr(keeper, "_delete_by", delete)
    keeper.discard(URL, ["1", "2", "named", "3"])
    keeper.discard(OTHER, ["4"])
    keeper._step()
    assert deleted == [(OTHER, "4")]
    refused.clear()
    keeper._step()
    assert deleted == [(OTHER, "4")], "it waits after a failure"
    now_s[0] = 60.0
    keeper._step()
    keeper._step()
    keeper._step()
    assert deleted == [(OTHER, "4"), (URL, "1"), (URL, "2"), (URL, "3")], "two at a time"
