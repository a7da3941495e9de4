"""Counts what a node actor transfers, from many threads, in bounded memory."""

import threading
from dataclasses import dataclass, field

from raylog.monitor.samples import PeerCounters, TransferCounters
from raylog.spec import QosClass
from raylog.units import MIB
from raylog.wire.classes import ClassCounters

PEERS_MAX = 32
OTHER = "other"
RATED_BYTES_MIN = 4 * MIB  # a smaller pull's time is mostly that of its beginning
RATE_SHARE = 0.3  # of the newest pull in the smoothed rate


@dataclass(slots=True)
class _Peer:
    sent_bytes: int = 0
    received_bytes: int = 0


@dataclass(slots=True)
class _Totals:
    sent_bytes: int = 0
    received_bytes: int = 0
    sent_chunks: int = 0
    received_chunks: int = 0
    damaged_chunks: int = 0
    repaired_chunks: int = 0
    pulls_done: int = 0
    pulls_failed: int = 0
    pull_bytes_per_s: float | None = None
    by_peer: dict[str, _Peer] = field(default_factory=dict)
    by_class: dict[QosClass, ClassCounters] = field(default_factory=lambda: dict.fromkeys(QosClass, ClassCounters()))


class TransferMeter:
    """Counters of one node actor. Every method is thread-safe and takes about a microsecond: call them per chunk.

    `peer` is the other node's id. Once `PEERS_MAX` peers are counted apart, the one not heard of for longest is added
    to "other": sums stay right, and a peer that comes back counts from zero again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals = _Totals()

    def sent(self, peer: str, qos: QosClass, sealed_bytes: int, waited_s: float = 0.0) -> None:
        """A chunk, that had waited for its turn."""
        with self._lock:
            self._totals.sent_bytes += sealed_bytes
            self._totals.sent_chunks += 1
            self._totals.by_class[qos] = self._totals.by_class[qos].plus(sealed_bytes, 1, waited_s)
            self._peer(peer).sent_bytes += sealed_bytes

    def received(self, peer: str, sealed_bytes: int, chunks: int = 1) -> None:
        with self._lock:
            self._totals.received_bytes += sealed_bytes
            self._totals.received_chunks += chunks
            self._peer(peer).received_bytes += sealed_bytes

    def damaged(self, chunks: int = 1) -> None:
        """Chunks whose bytes were wrong, on arrival or on a disk."""
        with self._lock:
            self._totals.damaged_chunks += chunks

    def repaired(self, chunks: int = 1) -> None:
        """Damaged chunks that a good copy has replaced."""
        with self._lock:
            self._totals.repaired_chunks += chunks

    def pulled(self, sealed_bytes: int = 0, seconds: float = 0.0) -> None:
        """A pull that ended with the whole shard stored; what it moved counts for the rate if it was enough to tell."""
        with self._lock:
            self._totals.pulls_done += 1
            if sealed_bytes >= RATED_BYTES_MIN and seconds > 0:
                rate, known = sealed_bytes / seconds, self._totals.pull_bytes_per_s
                self._totals.pull_bytes_per_s = rate if known is None else known + RATE_SHARE * (rate - known)

    def pull_failed(self) -> None:
        with self._lock:
            self._totals.pulls_failed += 1

    def counters(self) -> TransferCounters:
        """All counters at one moment."""
        with self._lock:
            totals = self._totals
            return TransferCounters(
                sent_bytes=totals.sent_bytes,
                received_bytes=totals.received_bytes,
                sent_chunks=totals.sent_chunks,
                received_chunks=totals.received_chunks,
                damaged_chunks=totals.damaged_chunks,
                repaired_chunks=totals.repaired_chunks,
                pulls_done=totals.pulls_done,
                pulls_failed=totals.pulls_failed,
                pull_bytes_per_s=totals.pull_bytes_per_s,
                by_peer={
                    name: PeerCounters(sent_bytes=peer.sent_bytes, received_bytes=peer.received_bytes)
                    for name, peer in totals.by_peer.items()
                },
                by_class=dict(totals.by_class),
            )

    def _peer(self, name: str) -> _Peer:
        peers = self._totals.by_peer
        peer = peers.pop(name, None) or _Peer()
        peers[name] = peer  # the last place of the dict is the one heard of last
        if len(peers) > PEERS_MAX + (OTHER in peers):
            oldest = next(name for name in peers if name != OTHER)
            gone = peers.pop(oldest)
            other = peers.setdefault(OTHER, _Peer())
            other.sent_bytes += gone.sent_bytes
            other.received_bytes += gone.received_bytes
        return peer
