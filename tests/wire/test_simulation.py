"""Whole broadcasts over a simulated network, by the real machines. At every step the simulator itself (raylog/testing)
asserts that credit and window hold, that nobody sends what it does not have, and that both ends derive the same keys;
at the end of every history the shard is whole on every node.
"""

from collections import Counter
from functools import partial

import pytest

from raylog.testing.shards import sample_shard
from raylog.testing.sim import History, broadcast, play, specs
from raylog.testing.simnet import Faults, Link, World
from raylog.units import MIB
from raylog.wire.bounds import SEALED_CHUNK_BYTES_MAX, Bounds
from raylog.wire.schedule import HEDGE_SHARE
from raylog.wire.tree import plan_broadcast

SEEDS, BLOCK = 2000, 250


@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
def test_any_history_ends_with_the_shard_whole(first: int) -> None:
    for seed in range(first, first + BLOCK):
        play(seed)


@pytest.mark.parametrize("seed", [11, 390, 1096, 1182, 2034])
def test_a_seed_is_one_history(seed: int) -> None:
    assert play(seed) == play(seed)


def many(seeds: int, **faults: float) -> list[History]:
    return [play(seed, Faults(**faults)) for seed in range(seeds)]


def test_without_faults_nothing_fails_and_little_comes_twice() -> None:
    for history in many(150):
        assert history.errors == (), history
        # Hedging may bring this much twice to each receiver, and a stall what one source was asked for.
        allowed = max(HEDGE_SHARE * history.shard_bytes, 4 * 1536 * 1024) * history.receivers
        assert history.twice_bytes <= allowed, history
        if history.nodes == 2:
            assert history.twice_bytes == 0, "one source and no fault: every chunk comes once"


def test_lost_streams_lose_no_credit() -> None:
    for history in many(100, cut_stream=0.1):
        assert not any("no chunk for" in error for error in history.errors), history


def test_a_chunk_that_comes_damaged_is_had_again() -> None:
    """Also of the only source, until two of its chunks were damaged: then whoever wants the shard asks anew."""
    errors = Counter("damaged" in error for history in many(100, corrupt=0.05) for error in history.errors)
    assert errors[True] and not errors[False], errors


def test_a_repeated_chunk_ends_the_session_as_the_peers_fault() -> None:
    errors = [error for history in many(60, repeat=0.1) for error in history.errors]
    assert errors and all("it was not asked for" in error or "pull has ended" in error for error in errors)


def test_a_stalled_source_is_given_up_by_the_time_that_the_bounds_say() -> None:
    errors = [error for history in many(60, stall=0.1) for error in history.errors]
    assert errors and all("no chunk for 15 s" in error or "its own pull has ended" in error for error in errors)


# Interrupted, and resumed.


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("who", ["sender", "receiver", "both"])
@pytest.mark.parametrize("is_silent", [True, False])
def test_only_what_was_in_flight_is_sent_again(share: float, who: str, is_silent: bool) -> None:
    shard = sample_shard(3, (MIB,) * 100)
    world = World(1, shard, Bounds(window_bytes=SEALED_CHUNK_BYTES_MAX), Faults())
    holder, receiver = world.add("h", is_holder=True), world.add("r")
    receiver.want(specs(plan_broadcast([holder.id], [receiver.id])[receiver.id]))
    assert world.run(lambda: len(receiver.here) >= 100 * share, 60)
    here = set(receiver.here)
    in_flight_bytes = holder.sent_bytes - len(here) * MIB
    for node in [holder] * (who != "receiver") + [receiver] * (who != "sender"):
        node.crash(keeps=1.0, is_silent=is_silent)
        world.later(1.0, node.restart)
    assert world.run(lambda: receiver.whole_at is not None, 120)
    assert 0 <= in_flight_bytes <= world.bounds.window_bytes
    assert holder.sent_bytes - 100 * MIB <= in_flight_bytes, "more than what was in flight was sent again"


# Many nodes.


def test_a_broadcast_to_200_nodes_takes_little_more_than_one_hop() -> None:
    seen = broadcast(200, size=256 * MIB, chunk_bytes=2 * MIB)
    assert seen["hop_ratio"] < 1.6 and seen["pipeline_chunks"] < 60, seen
    assert seen["sent_by_holder_share"] < 1.1 and seen["twice_share"] < 0.02, seen
    assert seen["control_messages_per_node"] < 300, seen


@pytest.mark.slow
def test_a_broadcast_to_1000_nodes_takes_little_more_than_one_hop() -> None:
    seen = broadcast(1000, size=256 * MIB, chunk_bytes=2 * MIB)
    assert seen["hop_ratio"] < 1.8, seen
    assert seen["sent_by_holder_share"] < 1.1 and seen["control_messages_per_node"] < 300, seen


def test_a_slow_node_does_not_hold_up_those_that_it_passes_on_to() -> None:
    shard = sample_shard(1, (MIB,) * 64)
    world = World(1, shard, Bounds(), Faults())
    holder = world.add("h", is_holder=True)
    nodes = [world.add(f"r{n}", Link(rate_bytes_per_s=10e6 if n == 1 else 125e6)) for n in range(20)]
    plan = plan_broadcast([holder.id], [node.id for node in nodes])
    for node in nodes:
        world.later(0.0, partial(node.want, specs(plan[node.id])))
    assert world.run(lambda: all(node.whole_at is not None for node in nodes), 600)
    slow_s = 64 * MIB / 10e6
    ended = [node.whole_at or 0.0 for node in nodes if node is not nodes[1]]
    assert max(ended) < slow_s / 2, ended
