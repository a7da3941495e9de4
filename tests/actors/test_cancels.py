"""Cancels and pulls may reach a node in either order."""

from raylog.actors.pull import CANCELS_KEPT, Cancels


def test_a_pull_under_way_is_told() -> None:
    cancels = Cancels()
    with cancels.watched("one") as one, cancels.watched("two") as two:
        cancels.cancel("one")
        assert (one.is_set(), two.is_set()) == (True, False)


def test_a_cancel_that_overtook_its_pull_is_kept_and_their_number_bounded() -> None:
    cancels = Cancels()
    cancels.cancel("early")
    with cancels.watched("early") as event:
        assert event.is_set()
    for number in range(CANCELS_KEPT):
        cancels.cancel(str(number))
    with cancels.watched("early") as event:
        assert not event.is_set()
