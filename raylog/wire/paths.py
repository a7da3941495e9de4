"""The ways from this node to its peers: looks at the streams that send, and switches them as path.py chooses."""

import errno
import logging
import socket
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace

from raylog.wire.path import Decision, Facts, PathChoice, PathEstimate, Sent, choose
from raylog.wire.tcp_info import (
    TcpInfo,
    can_use,
    congestion_control,
    default_congestion_control,
    set_congestion_control,
    tcp_info,
)

log = logging.getLogger(__name__)

PEERS_MAX = 256  # the least recently used is forgotten
DECISIONS_MAX = 256
PROBES_WITHIN_S = 3.0  # of cargo
_LOOK_S = 0.1  # a stream is looked at no more often


@dataclass(frozen=True, slots=True, kw_only=True)
class PathReport:
    """What `raylog status --paths` shows of one peer."""

    peer_id: str
    streams: int  # that send now
    estimate: PathEstimate
    choice: PathChoice
    decision: Decision | None  # the last one


@dataclass(slots=True)
class _Path:
    choice: PathChoice
    estimate: PathEstimate = field(default_factory=PathEstimate)
    streams: int = 0
    decision: Decision | None = None
    sent_since: float | None = None
    awaits_probes: bool = True
    shares_memory: bool = False


class Paths:
    """One per server. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._lock = threading.Lock()
        self._facts = Facts(default=default_congestion_control(), has_bbr=can_use("bbr"))
        self._paths: OrderedDict[str, _Path] = OrderedDict()
        self._decisions: deque[Decision] = deque(maxlen=DECISIONS_MAX)

    def watch(self, peer_id: str, connection: socket.socket) -> "StreamWatch":
        """For a stream that is about to send to a peer; `end` when it has."""
        return StreamWatch(self, peer_id, connection)

    def shares_memory(self, peer_id: str) -> None:
        """Chunks of this peer are copied from its memory: said once."""
        with self._lock:
            path = self._path(peer_id)
            if path.shares_memory:
                return
            path.shares_memory = True
            path.decision = Decision(
                time_s=time.time(),
                peer_id=peer_id,
                what="transport",
                before="TCP",
                after="shared memory",
                reason="both nodes are on this machine and belong to one user",
            )
            self._decisions.append(path.decision)
        log.info("%s", path.decision)

    def report(self) -> list[PathReport]:
        """The peers that were sent to, the last one last."""
        with self._lock:
            return [
                PathReport(
                    peer_id=peer_id, streams=path.streams, estimate=path.estimate, choice=path.choice,
                    decision=path.decision,
                )
                for peer_id, path in self._paths.items()
            ]  # fmt: skip

    def decisions(self) -> list[Decision]:
        """The last ones, oldest first."""
        with self._lock:
            return list(self._decisions)

    # What watches call.

    def counts(self, peer_id: str, streams: int) -> PathChoice:
        """So many streams more send to a peer."""
        with self._lock:
            path = self._path(peer_id)
            path.streams = max(0, path.streams + streams)
            return path.choice

    def sent(self, peer_id: str, sent: Sent) -> PathChoice:
        """What a stream has sent; how it should go on."""
        now = self.clock()
        with self._lock:
            path = self._path(peer_id)
            path.estimate = path.estimate.sent(sent, now)
            decisions = [*self._choose(peer_id, path, now), *self._miss_probes(peer_id, path, now)]
            choice = path.choice
        for decision in decisions:
            log.info("%s", decision)
        return choice

    def probed(self, peer_id: str, rtt_s: float | None) -> None:
        """A probe came back after so long, or did not (None)."""
        with self._lock:
            path = self._path(peer_id)
            path.estimate = path.estimate.probed(rtt_s)

    def refused(self, congestion_control: str, why: OSError) -> None:
        """The kernel does not let a stream use what it was found to offer: it is not chosen again."""
        log.warning("the kernel refuses congestion control %s (%s): it is not used any more", congestion_control, why)
        with self._lock:
            self._facts = replace(self._facts, has_bbr=False)

    # Under the lock.

    def _path(self, peer_id: str) -> _Path:
        path = self._paths.get(peer_id)
        if path is None:
            path = self._paths[peer_id] = _Path(PathChoice(congestion_control=self._facts.default))
        self._paths.move_to_end(peer_id)
        while len(self._paths) > PEERS_MAX:
            self._paths.popitem(last=False)
        return path

    def _choose(self, peer_id: str, path: _Path, now: float) -> list[Decision]:
        before, after = path.choice, choose(path.estimate, path.choice, self._facts, now)
        if after is before:
            return []
        path.choice = after
        changes = [
            ("congestion control", before.congestion_control, after.congestion_control),
            ("streams", before.streams, after.streams),
        ]
        decisions = [
            Decision(
                time_s=time.time(),
                peer_id=peer_id,
                what=what,
                before=str(old or "as the puller likes"),
                after=str(new or "as the puller likes"),
                reason=after.reason,
            )
            for what, old, new in changes
            if old != new
        ]
        self._decisions.extend(decisions)
        path.decision = decisions[-1] if decisions else path.decision
        return decisions

    def _miss_probes(self, peer_id: str, path: _Path, now: float) -> list[Decision]:
        """Says once that a path is known from TCP alone."""
        if path.estimate.probe_rtt_s is not None or not path.awaits_probes:
            return []
        path.sent_since = now if path.sent_since is None else path.sent_since
        if now - path.sent_since < PROBES_WITHIN_S:
            return []
        path.awaits_probes = False
        reason = f"none came back within {PROBES_WITHIN_S:g} s (is UDP blocked?): TCP_INFO alone tells of this path"
        decision = Decision(
            time_s=time.time(), peer_id=peer_id, what="probes", before="awaited", after="none", reason=reason
        )
        self._decisions.append(decision)
        return [decision]


class StreamWatch:
    """One stream that sends, for the thread that sends."""

    def __init__(self, paths: Paths, peer_id: str, connection: socket.socket) -> None:
        self._paths, self._peer_id, self._connection = paths, peer_id, connection
        self._looked = paths.clock()
        self._seen: TcpInfo | None = None
        self.streams_wanted: int | None = None  # by the path, to this peer
        self._congestion_control = congestion_control(connection)
        self._use(paths.counts(peer_id, 1))

    def look(self) -> None:
        """To be called after each record: now and then it asks the kernel how the stream does, and switches it."""
        now = self._paths.clock()
        if now - self._looked < _LOOK_S:
            return
        self._looked = now
        with suppress(OSError):  # the connection is gone, which the next record meets
            info = tcp_info(self._connection)
            sent, self._seen = _since_seen(info, self._seen), info
            if sent is not None:
                self._use(self._paths.sent(self._peer_id, sent))

    def end(self) -> None:
        """The stream sends no more."""
        self._paths.counts(self._peer_id, -1)

    def _use(self, choice: PathChoice) -> None:
        self.streams_wanted, wanted = choice.streams, choice.congestion_control
        if wanted == self._congestion_control:
            return
        try:
            set_congestion_control(self._connection, wanted)
            self._congestion_control = wanted
        except OSError as error:
            if error.errno in (errno.EPERM, errno.ENOENT):  # else the connection is gone, which the next record meets
                self._paths.refused(wanted, error)


def _since_seen(info: TcpInfo, seen: TcpInfo | None) -> Sent | None:
    """None for kernels that do not count what they send: nothing is known there, and nothing chosen."""
    if info.sent_segments is None:
        return None
    return Sent(
        segments=info.sent_segments - ((seen.sent_segments or 0) if seen else 0),
        retransmitted_segments=info.retransmitted_segments - (seen.retransmitted_segments if seen else 0),
        rtt_s=info.rtt_s,
        min_rtt_s=info.min_rtt_s,
        delivery_rate_bytes_per_s=info.delivery_rate_bytes_per_s,
    )
