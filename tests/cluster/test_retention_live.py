"""Holds, expiry and how many versions are kept, on a real cluster: carried out by the catalog without being asked."""

from collections.abc import Iterator

import pytest
from three_nodes import wait_until, wait_until_settled

import raylog
from raylog.errors import NotFound, NotPermitted, UsageError

NAME = "retention/run"
WITHIN_S = 20.0


@pytest.fixture(autouse=True)
def cleaned(client: raylog.Client) -> Iterator[None]:
    yield
    for one in client.ls("retention/"):
        client.delete(one.name)
    wait_until_settled(client, 60)


def numbers(client: raylog.Client) -> list[int]:
    return [one.number for one in client.versions(NAME)]


def test_old_versions_go_and_held_ones_stay(client: raylog.Client) -> None:
    for number in range(5):
        client.put(NAME, f"state {number}".encode(), labels={"step": str(number), "use": "checkpoint"})
    assert client.hold(f"{NAME}@2", "an audit").holds == {2: "an audit"}
    assert client.keep(NAME, 2).keep == 2
    wait_until(lambda: numbers(client) == [2, 4, 5], WITHIN_S, "two are kept, and the held one")
    with pytest.raises(NotPermitted, match="an audit"):
        client.delete(f"{NAME}@2")
    with pytest.raises(NotPermitted, match="an audit"):
        client.delete(NAME)
    client.release(f"{NAME}@2")
    wait_until(lambda: numbers(client) == [4, 5], WITHIN_S, "it goes once it is released")
    assert client.expire(f"{NAME}@4", 0.1).expires_us.keys() == {4}
    wait_until(lambda: numbers(client) == [5], WITHIN_S, "it has expired")
    assert [str(one) for one in client.ls("retention/", labels={"step": "4"})] == [f"{NAME}@5"]
    assert client.ls("retention/", labels={"step": "3"}) == []
    told = [event.message for event in client.events(0)]
    assert any(f"{NAME}@4 was deleted, since it has expired" in one for one in told)
    (usage,) = client.usage()
    assert usage.versions >= 1 and usage.kept_bytes >= usage.stored_bytes > 0


def test_what_makes_no_sense(client: raylog.Client) -> None:
    client.put(NAME, b"x")
    for call in (
        lambda: client.expire(NAME, 5),
        lambda: client.keep(NAME, 0),
        lambda: client.hold(NAME, ""),
        lambda: client.put(NAME, b"y", labels={"use": "nonsense"}),
    ):
        with pytest.raises(UsageError):
            call()
    with pytest.raises(NotFound):
        client.hold("retention/nothing", "why")
