"""Which congestion control and how many streams a path asks for: pure, one event at a time."""

from hypothesis import given
from hypothesis import strategies as st

from raylog.wire.path import (
    CLEAN_FOR_S,
    STAY_S,
    STREAMS_AGAINST_LOSS,
    Facts,
    PathChoice,
    PathEstimate,
    Sent,
    choose,
)

CUBIC = Facts(default="cubic", has_bbr=True)
NO_BBR = Facts(default="cubic", has_bbr=False)
PLAIN = PathChoice(congestion_control="cubic")


def sent(segments: int, retransmitted: int, rtt_s: float = 0.001) -> Sent:
    return Sent(segments=segments, retransmitted_segments=retransmitted, rtt_s=rtt_s, min_rtt_s=rtt_s,
                delivery_rate_bytes_per_s=10**8)  # fmt: skip


def drive(facts: Facts, choice: PathChoice, shares: list[float], step_s: float = 0.1) -> list[PathChoice]:
    """The choices after each step of 5000 segments."""
    estimate, now, choices = PathEstimate(), 1000.0, []
    for share in shares:
        estimate = estimate.sent(sent(5000, round(5000 * share)), now)
        choice = choose(estimate, choice, facts, now)
        choices.append(choice)
        now += step_s
    return choices


def test_without_loss_the_default_stays() -> None:
    assert all(choice is PLAIN for choice in drive(CUBIC, PLAIN, [0.0005] * 50))


def test_loss_that_lasts_brings_bbr_within_half_a_second() -> None:
    choices = drive(CUBIC, PLAIN, [0.0, *[0.01] * 5])
    assert choices[-1].congestion_control == "bbr"
    assert "sent again" in choices[-1].reason
    assert choices[-1].streams is None


def test_a_burst_is_no_loss_that_lasts() -> None:
    assert all(choice is PLAIN for choice in drive(CUBIC, PLAIN, [0.03, *[0.0] * 20]))


def test_without_bbr_there_are_more_streams() -> None:
    last = drive(NO_BBR, PLAIN, [0.01] * 5)[-1]
    assert (last.congestion_control, last.streams) == ("cubic", STREAMS_AGAINST_LOSS)
    assert "bbr may not be used" in last.reason


def test_where_bbr_is_the_default_nothing_is_changed() -> None:
    plain = PathChoice(congestion_control="bbr")
    assert all(choice is plain for choice in drive(Facts(default="bbr", has_bbr=True), plain, [0.03] * 20))


def test_the_default_returns_when_the_loss_is_long_over() -> None:
    quiet = int(STAY_S / 0.1) + 20
    choices = drive(CUBIC, PLAIN, [*[0.01] * 5, *[0.0] * quiet])
    changes = [choice for before, choice in zip([PLAIN, *choices], choices, strict=False) if choice is not before]
    assert [choice.congestion_control for choice in changes] == ["bbr", "cubic"]
    assert changes[1].since - changes[0].since >= STAY_S > CLEAN_FOR_S


def test_what_the_kernel_takes_away_is_given_up_at_once() -> None:
    bbr = PathChoice(congestion_control="bbr", since=1000.0)
    assert drive(NO_BBR, bbr, [0.01])[-1].congestion_control == "cubic"


@given(st.lists(st.floats(0, 0.05), max_size=400), st.booleans())
def test_choices_do_not_flap_and_are_never_refused_ones(shares: list[float], has_bbr: bool) -> None:
    choices = drive(Facts(default="cubic", has_bbr=has_bbr), PLAIN, shares)
    changed = [choice for before, choice in zip([PLAIN, *choices], choices, strict=False) if choice is not before]
    assert all(choice.congestion_control == "cubic" or has_bbr for choice in choices)
    assert len(changed) <= 2 * (1 + len(shares) * 0.1 / STAY_S)


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6), st.floats(0, 100)), max_size=50))
def test_shares_stay_shares(counts: list[tuple[int, int, float]]) -> None:
    estimate = PathEstimate()
    for now, (segments, retransmitted, rtt_s) in enumerate(counts):
        estimate = estimate.sent(sent(segments, retransmitted, rtt_s), float(now)).probed(rtt_s if now % 3 else None)
    assert 0 <= estimate.retransmitted_share <= 1
    assert estimate.probe_loss_share is None or 0 <= estimate.probe_loss_share <= 1
