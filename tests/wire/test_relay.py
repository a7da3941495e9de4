"""Shards on their way here, told to those who follow them."""

import threading
from collections.abc import Sequence

import pytest
from wire_parts import MemorySink, MemorySource

from raylog.errors import NotFound, UsageError
from raylog.testing.shards import sample_shard
from raylog.wire.relay import Incoming, Range, Relay

SHARD = sample_shard(1)
ALL = len(SHARD.chunks)


class Writer(MemorySink):
    """Gives nothing any more once it has ended, as a store's writer."""

    has_ended = False

    def stored_chunk(self, number: int) -> memoryview:
        if self.has_ended:
            raise UsageError("the writing has ended")
        return super().stored_chunk(number)


class Follower:
    def __init__(self) -> None:
        self.incoming: Incoming | None = None
        self.told: list[str | Range] = []

    def begun(self, incoming: Incoming, available: Sequence[Range]) -> None:
        self.incoming = incoming
        self.told += ["begun", *available]

    def more(self, ranges: Sequence[Range]) -> None:
        self.told += ranges

    def gone(self) -> None:
        self.told.append("gone")


class Node:
    """A relay over a store that has the shard once it is committed."""

    def __init__(self) -> None:
        self.source, self.is_whole = MemorySource(SHARD), False
        self.relay = Relay(self._open)
        self.incoming = self.relay.incoming(SHARD.shard_id)
        self.writer = Writer(SHARD)

    def _open(self, shard_id: str) -> object:
        if not self.is_whole:
            raise NotFound(f"shard {shard_id} is not here")
        return self.source.open(shard_id)

    def begin(self, *here: int) -> None:
        for chunk in here:
            self.writer.write_chunk(chunk, SHARD.sealed(chunk))
        self.incoming.begun(SHARD.frame, self.writer)

    def get(self, chunk: int) -> None:
        self.writer.write_chunk(chunk, SHARD.sealed(chunk))
        self.incoming.verified(chunk)

    def end(self, *, is_whole: bool) -> None:
        self.is_whole = self.writer.has_ended = is_whole
        self.incoming.ended(is_whole)

    def follow(self, *, wait: bool = False) -> tuple[Follower, bool]:
        follower = Follower()
        return follower, self.relay.follow(SHARD.shard_id, follower, wait=wait)


def test_a_follower_is_told_of_what_is_here_and_of_what_comes_in_order() -> None:
    node = Node()
    node.begin(2)
    follower, is_coming = node.follow()
    node.get(0)
    node.get(3)
    assert is_coming and follower.told == ["begun", (2, 1), (0, 1), (3, 1)]
    assert follower.incoming is not None and follower.incoming.frame is SHARD.frame
    assert bytes(follower.incoming.chunk(3)) == SHARD.chunks[3]


def test_nothing_is_told_of_what_is_not_on_its_way() -> None:
    node = Node()
    follower, is_coming = node.follow()
    node.begin()
    assert not is_coming and follower.told == []


def test_who_waits_is_told_when_it_begins_unless_it_has_left() -> None:
    node = Node()
    (stays, _), (leaves, is_coming) = node.follow(wait=True), node.follow(wait=True)
    assert not is_coming
    node.relay.unfollow(SHARD.shard_id, leaves)
    node.relay.unfollow(SHARD.shard_id, leaves)
    node.begin(1)
    node.get(0)
    assert stays.told == ["begun", (1, 1), (0, 1)] and leaves.told == []


def test_chunks_are_served_before_and_after_the_commit_and_the_last_to_go_closes_the_door() -> None:
    node = Node()
    node.begin()
    (one, _), (other, _) = node.follow(), node.follow()
    for chunk in range(ALL):
        node.get(chunk)
    assert bytes(node.incoming.chunk(0)) == SHARD.chunks[0] and not node.source.readers
    node.end(is_whole=True)
    node.incoming.close()
    assert bytes(node.incoming.chunk(1)) == SHARD.chunks[1]
    (reader,) = node.source.readers
    node.incoming.remove(one)
    assert bytes(node.incoming.chunk(2)) == SHARD.chunks[2] and not reader.is_closed
    node.incoming.remove(other)
    node.incoming.remove(other)
    assert reader.is_closed and "gone" not in one.told + other.told
    assert node.follow()[1] is False, "it is the store's business now"


def test_a_failed_pull_is_told_once_also_to_who_comes_a_moment_too_late() -> None:
    node = Node()
    node.begin(0)
    early, _ = node.follow()
    node.end(is_whole=False)
    node.end(is_whole=False)
    late, _ = node.follow()
    assert early.told == late.told == ["begun", (0, 1), "gone"]
    with pytest.raises(NotFound):
        node.incoming.chunk(0)
    node.incoming.close()
    assert node.follow()[1] is False


def test_whole_is_whole_whatever_is_said_after() -> None:
    node = Node()
    node.begin(*range(ALL))
    follower, _ = node.follow()
    node.end(is_whole=True)
    node.incoming.ended(False)
    assert "gone" not in follower.told


def test_who_left_is_told_nothing_more() -> None:
    node = Node()
    node.begin()
    follower, _ = node.follow()
    node.incoming.remove(follower)
    node.get(0)
    node.end(is_whole=False)
    assert follower.told == ["begun"]


def test_the_end_of_an_older_pull_does_not_end_a_newer_one() -> None:
    node = Node()
    node.begin()
    newer = node.relay.incoming(SHARD.shard_id)
    newer.begun(SHARD.frame, node.writer)
    node.incoming.close()
    assert node.follow()[1] is True


def test_a_follower_that_reads_slowly_holds_up_no_other_and_no_new_chunk() -> None:
    node = Node()
    node.begin(*range(ALL))
    node.follow()
    node.end(is_whole=True)
    reads, goes_on = threading.Event(), threading.Event()

    def slowly(number: int) -> memoryview:
        if number == 0:
            reads.set()
            goes_on.wait(10)
        return SHARD.sealed(number)

    node.source.chunk_of = slowly
    thread = threading.Thread(target=node.incoming.chunk, args=(0,))
    thread.start()
    assert reads.wait(10)
    done = threading.Event()

    def others() -> None:
        node.incoming.chunk(1)
        node.follow()
        done.set()

    other = threading.Thread(target=others)
    other.start()
    assert done.wait(5), "one reader blocks all"
    goes_on.set()
    thread.join()
    other.join()
