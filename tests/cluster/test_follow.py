"""Files collected as they arrive: a version per batch, each file once, whenever the collecting process ends."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from three_nodes import wait_until_settled

import raylog
from raylog.api.follow import Follower, Ingested
from raylog.api.put import Put
from raylog.errors import Conflict, SourceError, UsageError

SETTLE_S = 0.3


@pytest.fixture(autouse=True)
def cleaned(client: raylog.Client) -> Iterator[None]:
    yield
    for one in client.ls("follow/"):
        client.delete(one.name)
    wait_until_settled(client, 60)


def name_for(folder: Path) -> str:
    """A name that was never given to another test's versions."""
    return f"follow/{folder.parent.name}"


def follower(client: raylog.Client, folder: Path) -> Follower:
    return client.follow(name_for(folder), folder, settle_s=SETTLE_S)


def stepped(one: Follower, within_s: float = 20) -> Ingested:
    deadline = time.monotonic() + within_s
    while (found := one.step()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def files_of(client: raylog.Client, tmp_path: Path, version: raylog.Version) -> dict[str, str]:
    target = tmp_path / f"out-{version.number}"
    client.download(str(version), target)
    return {path.relative_to(target).as_posix(): path.read_text() for path in target.rglob("*") if path.is_file()}


def test_a_version_per_batch_and_each_file_once(client: raylog.Client, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    one = follower(client, folder)
    assert one.step() is None, "nothing is there"
    (folder / "a.log").write_text("a")
    (folder / "sub").mkdir()
    (folder / "sub" / "b.log").write_text("b")
    for unfinished in (".hidden", "c.log.part", "d.tmp"):
        (folder / unfinished).write_text("not yet")
    assert one.step() is None, "it may still grow"
    first = stepped(one)
    assert (first.files, str(first.version)) == (2, f"{name_for(folder)}@1")
    assert files_of(client, tmp_path, first.version) == {"a.log": "a", "sub/b.log": "b"}
    assert one.step() is None
    (folder / "c.log.part").rename(folder / "c.log")
    second = stepped(follower(client, folder))
    assert files_of(client, tmp_path, second.version) == {"c.log": "not yet"}
    assert follower(client, folder).step() is None


def test_a_batch_that_was_cut_off_is_finished_as_it_was_begun(
    client: raylog.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.log").write_text("a")
    real = Put.run

    def killed(self: Put, content: object) -> raylog.Version:
        if self._name == name_for(folder):
            raise KeyboardInterrupt
        return real(self, content)  # type: ignore[arg-type]

    monkeypatch.setattr(Put, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        stepped(follower(client, folder))
    monkeypatch.undo()
    (folder / "b.log").write_text("b")
    again = follower(client, folder)
    first = again.step()
    assert first is not None and files_of(client, tmp_path, first.version) == {"a.log": "a"}
    second = stepped(again)
    assert files_of(client, tmp_path, second.version) == {"b.log": "b"}
    assert [str(one) for one in client.versions(name_for(folder))] == [f"{name_for(folder)}@1", f"{name_for(folder)}@2"]


def test_a_batch_whose_answer_was_lost_is_not_put_again(
    client: raylog.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.log").write_text("a")
    real = Put.run

    def killed(self: Put, content: object) -> raylog.Version:
        version = real(self, content)  # type: ignore[arg-type]
        if self._name == name_for(folder):
            raise KeyboardInterrupt
        return version

    monkeypatch.setattr(Put, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        stepped(follower(client, folder))
    monkeypatch.undo()
    assert follower(client, folder).step() is None
    assert len(client.versions(name_for(folder))) == 1


def test_of_two_followers_one_puts_each_batch(client: raylog.Client, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.log").write_text("a")
    one, other = follower(client, folder), follower(client, folder)
    assert other.step() is None
    stepped(one)
    with pytest.raises(Conflict, match="another follower has begun a batch"):
        stepped(other)
    (folder / "b.log").write_text("b")
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patched:
        patched.setattr(Follower, "_put", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        stepped(one)
    late = follower(client, folder)  # both know that batch 2 was begun and not put
    early = follower(client, folder)
    batch = late._batch
    assert batch is not None and batch.number == 2
    early.step()
    with pytest.raises(Conflict, match="another follower has put batch 2"):
        late._put(batch, late._again(batch, late._list()))
    assert [str(found) for found in client.versions(name_for(folder))] == [f"{name_for(folder)}@{n}" for n in (1, 2)]


def test_a_file_that_was_changed_under_a_begun_batch_is_told(
    client: raylog.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.log").write_text("a")
    monkeypatch.setattr(Follower, "_put", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        stepped(follower(client, folder))
    monkeypatch.undo()
    (folder / "a.log").write_text("longer")
    with pytest.raises(SourceError, match=r"batch 1 of follow/.* was begun with a.log of 1 bytes, which has 6 bytes"):
        follower(client, folder).step()
    with pytest.raises(UsageError, match="the follower's own"):
        client.follow(name_for(folder), folder, labels={"follow": "1"})
