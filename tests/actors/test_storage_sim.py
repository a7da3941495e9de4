"""The storage simulator itself: it plays the same history again, and finds what it is there to find."""

from collections.abc import Callable

import pytest

from raylog.actors.record_copies import RecordCopies
from raylog.actors.upkeep import Upkeep
from raylog.catalog.catalog import Catalog
from raylog.errors import DamagedData
from raylog.store.tiered import Mending, TieredStore
from raylog.testing.storage_sim import play

SEEDS = range(25)


def nothing(*_: object, **__: object) -> None:
    """What a broken part does."""


def test_a_history_is_played_again_by_its_seed() -> None:
    assert play(7) == play(7)


@pytest.mark.parametrize(
    ("part", "name", "broken"),
    [
        (Upkeep, "_restore", nothing),  # no replica is made again
        (Upkeep, "_mend", nothing),  # damage stays
        (RecordCopies, "copy_to_another_node", nothing),  # acknowledged while one disk has the record
        (Upkeep, "_collect", nothing),  # leftovers stay
        (Catalog, "forget_node", nothing),  # replicas on a node that is gone count on
        (TieredStore, "mend", lambda *_: Mending(replaced=1, missing=[])),  # said to be mended
    ],
)
def test_a_broken_part_is_found(
    monkeypatch: pytest.MonkeyPatch, part: type, name: str, broken: Callable[..., object]
) -> None:
    monkeypatch.setattr(part, name, broken)
    monkeypatch.setattr("raylog.testing.storage_sim.SETTLE_ROUNDS", 25)
    with pytest.raises((AssertionError, KeyError, DamagedData)):
        for seed in SEEDS:
            play(seed)
