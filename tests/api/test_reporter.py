"""What a listener hears: never less than before, and the whole at last."""

import pytest

from raylog.api.progress import Reporter


@pytest.mark.parametrize(
    ("total", "reached", "finished", "heard"),
    [
        (10, [3, 2, 3, 10], 10, [(3, 10), (10, 10)]),
        (10, [], 10, [(10, 10)]),
        (10, [0, 4, 12, 5], 14, [(0, 10), (4, 10), (12, 12), (14, 14)]),  # the total was a guess, too low
        (10, [4], 6, [(4, 10), (6, 6)]),  # or too high
        (0, [4, 8], 8, [(4, 0), (8, 0), (8, 8)]),  # or unknown
        (0, [], 0, [(0, 0)]),
    ],
)
def test_done_never_falls_and_ends_at_the_total(
    total: int, reached: list[int], finished: int, heard: list[tuple[int, int]]
) -> None:
    told: list[tuple[int, int]] = []
    reporter = Reporter(lambda done, whole: told.append((done, whole)), total)
    for done in reached:
        reporter.reach(done)
    reporter.finish(finished)
    assert told == heard


def test_nobody_listens() -> None:
    reporter = Reporter(None, 10)
    reporter.reach(4)
    reporter.finish(10)
