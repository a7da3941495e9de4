"""One shard from many sources: who is connected, who is asked for what, when to give up. Pure: events in, effects out.

Sources have *ranks*. The lowest rank is asked first; the next one only when nobody of it is left, or when nothing has
come for `FALLBACK_S`. So a broadcast can name the node before each receiver as the source to use, and all others as the
ones to fall back to. Every connection to a source is an *attempt* with a number of its own, never used again.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from raylog.codec.frame import Frame
from raylog.errors import DamagedData, DeadlineExceeded, NotFound, RaylogError, Unavailable
from raylog.spec import ShardRef
from raylog.wire.schedule import WHOLE, Ask, Recall, Schedule, Stripe

SOURCES_AT_ONCE = 8
FAILURES_MAX = 4  # of one source, one after another, none of which gave a chunk
RETRY_FIRST_S = 0.1
FALLBACK_S = 1.5
DAMAGE_MAX = 2  # damaged chunks of one source, then it is given up

Range = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSpec:
    """A source by its node id. `stripe`: what it is there for first. `is_relay`: it may not have begun to get the shard
    itself, and is waited for."""

    node_id: str
    rank: int = 0
    stripe: Stripe = WHOLE
    is_relay: bool = False


@dataclass(frozen=True, slots=True)
class Connect:
    """Open the shard at this node; then `framed`, `offered`, or `failed`."""

    attempt: int
    spec: SourceSpec


@dataclass(frozen=True, slots=True)
class Create:
    """Make room for the shard; then `created` with what is missing, or `give_up`."""

    frame: Frame


@dataclass(frozen=True, slots=True)
class Ready:
    """This attempt's session may be asked for chunks from now on."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """The chunk came from elsewhere."""

    attempt: int
    chunk: int


@dataclass(frozen=True, slots=True)
class Leave:
    """Nothing more is wanted of this attempt's pull."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Complete:
    """Every chunk is verified."""


@dataclass(frozen=True, slots=True)
class Fail:
    """The shard cannot be had; what was verified stays good."""

    error: RaylogError


FetchEffect = Connect | Create | Ready | Ask | Recall | Cancel | Leave | Complete | Fail


@dataclass(slots=True, eq=False)
class _Peer:
    spec: SourceSpec
    attempt: int | None = None  # while one runs
    is_framed: bool = False
    is_gone: bool = False
    offers: list[Range] = field(default_factory=list)  # came before there was room
    failures: int = 0
    retry_at: float = 0.0
    damaged: int = 0
    rate_bytes_per_s: float | None = None
    said: list[RaylogError] = field(default_factory=list)  # since it last gave something


class Fetch:
    """See above. `deadline` and all times are seconds of one clock. After `Complete` or `Fail` nothing happens."""

    def __init__(self, ref: ShardRef, sources: Sequence[SourceSpec], deadline: float, window_bytes: int) -> None:
        self.ref = ref
        self.has_ended = False
        self._deadline = deadline
        self._window_bytes = window_bytes
        self._peers = [_Peer(spec) for spec in sources]
        self._by_attempt: dict[int, _Peer] = {}
        self._attempts = 0
        self._rank = -math.inf
        self._heard = 0.0  # when something last came
        self._gap_s = 0.0  # between chunks, smoothed
        self._is_creating = False
        self._schedule: Schedule | None = None

    # Events.

    def start(self, now: float) -> list[FetchEffect]:
        self._heard = now
        return self._go_on(now)

    def framed(self, attempt: int, frame: Frame, now: float) -> list[FetchEffect]:
        """A source has shown the frame, which is the manifest's."""
        peer = self._by_attempt.get(attempt)
        if peer is None or self.has_ended:
            return []
        peer.is_framed, self._heard = True, now
        if self._schedule is not None:
            return [*self._join(peer, self._schedule, now), *self._go_on(now)]
        if self._is_creating:
            return []
        self._is_creating = True
        return [Create(frame)]

    def created(self, sealed_bytes: Sequence[int], missing: Iterable[Range], now: float) -> list[FetchEffect]:
        """There is room. `sealed_bytes` of every chunk, and ranges of those that are not here."""
        if self.has_ended:
            return []
        chunks = [chunk for first, count in missing for chunk in range(first, first + count)]
        self._schedule, self._heard = Schedule(sealed_bytes, chunks, self._window_bytes), now
        joined = [effect for peer in self._peers if peer.is_framed for effect in self._join(peer, self._schedule, now)]
        return [*joined, *self._go_on(now)]

    def offered(self, attempt: int, ranges: Iterable[Range], now: float) -> list[FetchEffect]:
        """A source has these chunks."""
        peer = self._by_attempt.get(attempt)
        if peer is None or self.has_ended:
            return []
        self._heard = now
        if self._schedule is None or not peer.is_framed:
            peer.offers += ranges
            return []
        self._schedule.offer(attempt, _chunks(ranges))
        return self._go_on(now)

    def verified(self, attempt: int, chunk: int, now: float) -> list[FetchEffect]:
        """A chunk is stored."""
        if self.has_ended or self._schedule is None:
            return []
        if (peer := self._by_attempt.get(attempt)) is not None:
            peer.failures, peer.said = 0, []
        self._gap_s += 0.25 * (now - self._heard - self._gap_s)
        self._heard = now
        cancels = [Cancel(other, chunk) for other in self._schedule.verified(attempt, chunk, now)]
        return [*cancels, *self._go_on(now)]

    def damaged(self, attempt: int, chunk: int, error: DamagedData, now: float) -> list[FetchEffect]:
        """What came was not the chunk that was sealed. Such a source gets one more chance."""
        peer = self._by_attempt.get(attempt)
        if peer is None or self.has_ended or self._schedule is None:
            return []
        peer.damaged += 1
        self._schedule.damaged(attempt, chunk, now)
        if peer.damaged < DAMAGE_MAX:
            return self._go_on(now)
        where = f"shard {self.ref.shard_id}, chunk {chunk} from node {peer.spec.node_id}"
        message = f"{where}: came damaged ({error}): {DAMAGE_MAX} chunks from it were; scrub that node"
        given_up = DamagedData(message, shard_id=self.ref.shard_id, chunk=chunk, peer=peer.spec.node_id)
        return [Leave(attempt), *self.failed(attempt, given_up, now)]

    def failed(self, attempt: int, error: RaylogError, now: float) -> list[FetchEffect]:
        """This attempt is over. The source is tried again after a growing pause where that can help."""
        peer = self._by_attempt.pop(attempt, None)
        if peer is None or self.has_ended:
            return []
        if self._schedule is not None:
            peer.rate_bytes_per_s = self._schedule.rate_of(attempt)
            self._schedule.drop(attempt)
        peer.attempt, peer.is_framed, peer.offers = None, False, []
        if not any(str(error) == str(other) for other in peer.said):
            peer.said.append(error)
        peer.failures += 1
        peer.retry_at = now + RETRY_FIRST_S * 2 ** (peer.failures - 1)
        peer.is_gone = not _may_recover(error) or peer.failures >= FAILURES_MAX
        return self._go_on(now)

    def give_up(self, error: RaylogError) -> list[FetchEffect]:
        """Our end has had enough: cancelled, or the sink failed."""
        return [] if self.has_ended else self._end(Fail(error))

    def on_tick(self, now: float) -> list[FetchEffect]:
        """To be called when `next_deadline` has passed; earlier does nothing."""
        if self.has_ended:
            return []
        if now >= self._deadline:
            missing = "all" if self._schedule is None else self._schedule.missing
            late = (
                f"shard {self.ref.shard_id}: not here by the deadline, {missing} chunks missing; pull again to resume"
            )
            return self._end(Fail(DeadlineExceeded(f"{late}. {self._said()}", shard_id=self.ref.shard_id)))
        return self._go_on(now)

    def next_deadline(self) -> float:
        if self.has_ended:
            return math.inf
        can_connect = len(self._by_attempt) < SOURCES_AT_ONCE
        retries = [peer.retry_at for peer in self._active() if peer.attempt is None and can_connect]
        fallback = [self._fallback_at()] if self._next_rank() is not None else []
        looks = [self._schedule.next_deadline()] if self._schedule is not None else []
        return min([self._deadline, *retries, *fallback, *looks])

    # Work.

    def _go_on(self, now: float) -> list[FetchEffect]:
        """Whatever there is to do now."""
        if self._schedule is not None and self._schedule.is_complete:
            return self._end(Complete())
        effects = self._widen(now)
        if self.has_ended:
            return effects
        effects += self._connect(now)
        if self._schedule is not None:
            effects += self._schedule.deal(now)
        return effects

    def _widen(self, now: float) -> list[FetchEffect]:
        """Takes the next rank in when this one does not do; fails when there is none."""
        while not self._active() or now >= self._fallback_at():
            rank = self._next_rank()
            if rank is None:
                return [] if self._active() else self._end(Fail(self._nobody()))
            self._rank, self._heard = rank, now
        return []

    def _fallback_at(self) -> float:
        """When the next rank is taken in; not while our own sink makes room."""
        is_making_room = self._is_creating and self._schedule is None
        return math.inf if is_making_room else self._heard + max(FALLBACK_S, 4 * self._gap_s)

    def _active(self) -> list[_Peer]:
        return [peer for peer in self._peers if not peer.is_gone and peer.spec.rank <= self._rank]

    def _next_rank(self) -> int | None:
        ranks = [peer.spec.rank for peer in self._peers if not peer.is_gone and peer.spec.rank > self._rank]
        return min(ranks, default=None)

    def _connect(self, now: float) -> list[FetchEffect]:
        effects: list[FetchEffect] = []
        for peer in self._active():
            if peer.attempt is None and now >= peer.retry_at and len(self._by_attempt) < SOURCES_AT_ONCE:
                peer.attempt, self._attempts = self._attempts, self._attempts + 1
                self._by_attempt[peer.attempt] = peer
                effects.append(Connect(peer.attempt, peer.spec))
        return effects

    def _join(self, peer: _Peer, schedule: Schedule, now: float) -> list[FetchEffect]:
        assert peer.attempt is not None
        schedule.add(
            peer.attempt,
            now,
            stripe=peer.spec.stripe,
            rate_bytes_per_s=peer.rate_bytes_per_s,
            is_relay=peer.spec.is_relay,
        )
        schedule.offer(peer.attempt, _chunks(peer.offers))
        peer.offers = []
        return [Ready(peer.attempt)]

    def _end(self, last: Complete | Fail) -> list[FetchEffect]:
        self.has_ended = True
        leaves = [Leave(attempt) for attempt in self._by_attempt]
        self._by_attempt.clear()
        return [*leaves, last]

    # Words.

    def _nobody(self) -> RaylogError:
        """Why there is no source left: the one error of them all, or all of what they said."""
        errors = [error for peer in self._peers for error in peer.said]
        if len(errors) == 1 and len(self._peers) == 1:
            return errors[0]
        kinds: dict[type[RaylogError], Callable[..., RaylogError]] = {NotFound: NotFound, DamagedData: DamagedData}
        kind = kinds.get(type(errors[0]), Unavailable) if len({type(error) for error in errors}) == 1 else Unavailable
        where = f"shard {self.ref.shard_id} could not be had from {len(self._peers)} node(s)"
        return kind(f"{where}. {self._said()}", shard_id=self.ref.shard_id)

    def _said(self) -> str:
        return "; ".join(str(error) for peer in self._peers for error in peer.said)


def _chunks(ranges: Iterable[Range]) -> Iterable[int]:
    return (chunk for first, count in ranges for chunk in range(first, first + count))


def _may_recover(error: RaylogError) -> bool:
    """Whether the same source may give it a moment later: not when it has said no, broken the protocol, or been waited
    for long enough already."""
    return isinstance(error, Unavailable) and not isinstance(error, DeadlineExceeded)
