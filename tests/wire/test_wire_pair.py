"""Both machines against each other over a faulty link, many histories; see wire_simulation.py for what it asserts at
every step: credit and window hold, nothing is verified twice or asked for when it is here, every attempt ends."""

from collections import Counter

import pytest
from wire_simulation import Faults, World

from raylog.errors import DamagedData, PeerFault, Unavailable

SEEDS = 600


@pytest.mark.parametrize("first", range(0, SEEDS, 100))
def test_any_history_ends_with_the_shard_whole(first: int) -> None:
    for seed in range(first, first + 100):
        world = World(seed)
        world.run()
        assert world.verified == set(range(len(world.shard.chunks))), f"seed {seed}"
        for error in world.errors:
            assert isinstance(error, PeerFault | Unavailable | DamagedData), f"seed {seed}"
            if not world.faults.stall:
                assert "no chunk for" not in str(error), f"seed {seed}: stalled by itself"


def run(seed: int, **faults: float) -> World:
    world = World(seed, Faults(**faults))
    world.run()
    return world


def test_without_faults_there_are_no_errors() -> None:
    for seed in range(50):
        assert run(seed).errors == []


def test_a_lost_stream_loses_no_credit_and_its_chunks_come_over_others() -> None:
    for seed in range(100):
        errors = run(seed, cut_stream=0.1).errors
        assert all("cargo streams were lost" in str(error) for error in errors), f"seed {seed}: {errors}"


def test_a_chunk_that_comes_damaged_once_is_asked_for_again_in_the_same_session() -> None:
    outcomes: Counter[type] = Counter()
    for seed in range(100):
        outcomes.update(type(error) for error in run(seed, corrupt=0.05).errors)
    assert set(outcomes) <= {DamagedData} and outcomes[DamagedData] < 20, outcomes  # twice running: 1 in 400


def test_a_repeated_chunk_ends_the_session_as_the_peers_fault() -> None:
    errors = [error for seed in range(50) for error in run(seed, repeat=0.1).errors]
    assert errors and all(isinstance(error, PeerFault) for error in errors)
    assert any("it was not asked for" in str(error) for error in errors)


def test_a_stalled_source_is_given_up_by_the_time_that_the_bounds_say() -> None:
    errors = [error for seed in range(50) for error in run(seed, stall=0.1).errors]
    assert errors and all("no chunk for 15 s" in str(error) for error in errors)
    assert all(error.peer == "b" * 32 for error in errors)  # type: ignore[attr-defined]


def test_a_seed_is_one_history() -> None:
    first, second = World(11), World(11)
    first.run()
    second.run()
    assert first.errors and [str(error) for error in first.errors] == [str(error) for error in second.errors]
    assert first.now == second.now
