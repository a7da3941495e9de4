"""What is known of the way to one peer, and which congestion control and how many streams that asks for. Pure.

A loss-based congestion control (cubic, reno) takes every lost packet for a full queue: its rate falls with the square
root of the loss (Mathis et al. 1997), however much of the link is free. bbr (Cardwell et al. 2016) goes by measured
rate and round trip instead and minds no loss below a few percent. Where there is no loss the default stays: it is the
operator's choice, and shares a full queue fairly.

Record size is not chosen: a record is a chunk, and its size was settled when the shard was sealed.
"""

import math
from dataclasses import dataclass, replace

LOSSY_SHARE = 0.003  # of segments sent again: more than a queue that fills now and then makes
CLEAN_SHARE = 0.0005
LOSSY_FOR_S = 0.15  # a burst at the start of a stream, when it finds the end of the queue, is shorter
CLEAN_FOR_S = 10.0
STAY_S = 30.0  # a choice made for loss is not taken back sooner
_SEGMENTS_TO_FORGET = 2000  # the weight of the past falls to 1/e in so many segments
_FRESH_SHARE = 0.125  # of a new round trip in the smoothed one, as TCP does it (RFC 6298)
STREAMS_AGAINST_LOSS = 8  # where bbr may not be used


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What one stream has sent since it was last looked at."""

    segments: int  # with data in them, the retransmitted ones too
    retransmitted_segments: int
    rtt_s: float
    min_rtt_s: float | None
    delivery_rate_bytes_per_s: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PathEstimate:
    """Smoothed. None: not known yet. Times are seconds of the clock that events come with."""

    rtt_s: float | None = None
    min_rtt_s: float | None = None
    retransmitted_share: float = 0.0  # of segments, 0 to 1
    delivery_rate_bytes_per_s: float | None = None  # of one stream
    probe_rtt_s: float | None = None
    probe_loss_share: float | None = None
    lossy_since: float | None = None  # the share has been above `LOSSY_SHARE` all the time
    clean_since: float | None = None  # below `CLEAN_SHARE`

    def sent(self, sent: Sent, now: float) -> "PathEstimate":
        """After a stream was looked at."""
        if sent.segments <= 0:
            return self
        kept = math.exp(-sent.segments / _SEGMENTS_TO_FORGET)
        fresh_share = min(1.0, sent.retransmitted_segments / sent.segments)
        share = self.retransmitted_share * kept + fresh_share * (1 - kept)
        rate = sent.delivery_rate_bytes_per_s
        return replace(
            self,
            rtt_s=_smooth(self.rtt_s, sent.rtt_s),
            min_rtt_s=_least(self.min_rtt_s, sent.min_rtt_s),
            retransmitted_share=share,
            delivery_rate_bytes_per_s=_smooth(self.delivery_rate_bytes_per_s, rate),
            lossy_since=_since(self.lossy_since, share >= LOSSY_SHARE, now),
            clean_since=_since(self.clean_since, share < CLEAN_SHARE, now),
        )

    def probed(self, rtt_s: float | None) -> "PathEstimate":
        """After a probe came back, or did not (None)."""
        lost = float(rtt_s is None)
        loss_share = _smooth(self.probe_loss_share, lost)
        return replace(self, probe_rtt_s=_smooth(self.probe_rtt_s, rtt_s), probe_loss_share=loss_share)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the kernel gives: the default congestion control, and whether this process may use bbr."""

    default: str
    has_bbr: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PathChoice:
    """How to send to a peer. `streams`: None for as many as the puller likes."""

    congestion_control: str
    streams: int | None = None
    since: float = -math.inf
    reason: str = "the default, no loss was seen"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One choice that changed: `what` of the way to `peer_id` went from `before` to `after`, since `reason`."""

    time_s: float  # of the wall clock
    peer_id: str
    what: str
    before: str
    after: str
    reason: str

    def __str__(self) -> str:
        return f"{self.what} to {self.peer_id}: {self.before} -> {self.after}, since {self.reason}"


def choose(estimate: PathEstimate, current: PathChoice, facts: Facts, now: float) -> PathChoice:
    """What to use from now on; `current` itself where there is nothing to change."""
    is_plain = current.streams is None and current.congestion_control == facts.default
    if is_plain and _for_at_least(estimate.lossy_since, LOSSY_FOR_S, now):
        return _against_loss(estimate, current, facts, now)
    is_bbr_lost = current.congestion_control == "bbr" and not facts.has_bbr
    has_cleared = _for_at_least(estimate.clean_since, CLEAN_FOR_S, now) and now - current.since >= STAY_S
    if is_bbr_lost or (not is_plain and has_cleared):
        why = "the kernel refuses bbr" if is_bbr_lost else f"no loss for {now - (estimate.clean_since or now):.0f} s"
        return PathChoice(congestion_control=facts.default, since=now, reason=why)
    return current


def _against_loss(estimate: PathEstimate, current: PathChoice, facts: Facts, now: float) -> PathChoice:
    loss = f"{estimate.retransmitted_share:.1%} of the segments were sent again"
    if facts.default == "bbr":
        return current
    if facts.has_bbr:
        reason = f"{loss}, which {facts.default} takes for a full queue and bbr does not"
        return PathChoice(congestion_control="bbr", since=now, reason=reason)
    reason = f"{loss}, bbr may not be used here, and each stream is held down by its own losses only"
    return PathChoice(congestion_control=facts.default, streams=STREAMS_AGAINST_LOSS, since=now, reason=reason)


def _for_at_least(since: float | None, seconds: float, now: float) -> bool:
    return since is not None and now - since >= seconds


def _since(since: float | None, holds: bool, now: float) -> float | None:
    if not holds:
        return None
    return now if since is None else since


def _smooth(old: float | None, new: float | None) -> float | None:
    if old is None or new is None:
        return old if new is None else new
    return old + _FRESH_SHARE * (new - old)


def _least(one: float | None, other: float | None) -> float | None:
    return min((value for value in (one, other) if value is not None), default=None)
