"""Path probes: small sealed datagrams that a session's two ends exchange over UDP (PROTOCOL.md, "Probes"). Pure.

Guarantees: an opener returns what the other end of this session sealed, each datagram at most once and never an older
one after a newer; anything else opens to None. Misuse to avoid: two sealers of one key.
"""

import enum
import struct
from dataclasses import dataclass, field
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

ID_BYTES = 16
_COUNTER = struct.Struct(">Q")
_BODY = struct.Struct("<BxxxI8x")
_CLEAR_BYTES = ID_BYTES + _COUNTER.size
DATAGRAM_BYTES = _CLEAR_BYTES + _BODY.size + 16

LOST_AFTER_S = 1.0  # without an echo
OUTSTANDING_MAX = 64
NONCE_PREFIX = bytes(4)


class ProbeKind(enum.IntEnum):
    CALL = 1  # puller: send me a probe
    PROBE = 2  # source
    ECHO = 3  # puller, at once


class Probe(NamedTuple):
    kind: ProbeKind
    number: int


class ProbeKeys(NamedTuple):
    """`id` names the session in every datagram, in the clear; it tells nothing of the keys, which come beside it."""

    id: bytes
    from_puller: bytes
    from_source: bytes

    def __repr__(self) -> str:
        return f"<ProbeKeys of {self.id.hex()}>"


def derive_probe_keys(
    puller_secret: bytes, source_secret: bytes, cluster_id: str, puller_id: str, source_id: str
) -> ProbeKeys:
    """Keys of a session's probes (HKDF-SHA-256, RFC 5869), under labels of their own."""
    ids = bytes.fromhex(cluster_id + puller_id + source_id)

    def expand(purpose: bytes, length: int) -> bytes:
        info = b"raylog/1 probe\0" + purpose + ids
        return HKDF(algorithm=SHA256(), length=length, salt=None, info=info).derive(puller_secret + source_secret)

    return ProbeKeys(expand(b"i", ID_BYTES), expand(b"p", 32), expand(b"s", 32))


def session_of(datagram: bytes) -> bytes | None:
    """The id of the session that a datagram says it is of; None when it cannot be a probe."""
    return datagram[:ID_BYTES] if len(datagram) == DATAGRAM_BYTES else None


class ProbeSealer:
    """One direction's outgoing datagrams."""

    def __init__(self, session_id: bytes, key: bytes) -> None:
        self._id, self._cipher, self._next = session_id, AESGCM(key), 0

    def seal(self, probe: Probe) -> bytes:
        counter, self._next = _COUNTER.pack(self._next), self._next + 1
        body = _BODY.pack(probe.kind, probe.number)
        clear = self._id + counter
        return clear + self._cipher.encrypt(NONCE_PREFIX + counter, body, clear)


class ProbeOpener:
    """One direction's incoming datagrams."""

    def __init__(self, session_id: bytes, key: bytes) -> None:
        self._id, self._cipher, self._next = session_id, AESGCM(key), 0

    def open(self, datagram: bytes) -> Probe | None:
        """None for what was not sealed by the other end, or is no newer than what came already."""
        if session_of(datagram) != self._id:
            return None
        counter = datagram[ID_BYTES:_CLEAR_BYTES]
        (number,) = _COUNTER.unpack(counter)
        if number < self._next:
            return None
        try:
            body = self._cipher.decrypt(NONCE_PREFIX + counter, datagram[_CLEAR_BYTES:], datagram[:_CLEAR_BYTES])
        except InvalidTag:
            return None
        self._next = number + 1
        kind, probe = _BODY.unpack(body)
        return Probe(ProbeKind(kind), probe) if kind in ProbeKind.__members__.values() else None


@dataclass(slots=True)
class Rate:
    """At most `per_s` a second, and as many at once (a token bucket)."""

    per_s: float
    _tokens: float = field(init=False)
    _at: float | None = None

    def __post_init__(self) -> None:
        self._tokens = self.per_s

    def take(self, now: float) -> bool:
        """Whether one more may pass now."""
        if self._at is not None:
            self._tokens = min(self.per_s, self._tokens + (now - self._at) * self.per_s)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Outstanding:
    """Probes that wait for their echo: the round trip of each, or that it was lost."""

    def __init__(self) -> None:
        self._sent: dict[int, float] = {}
        self._next = 0

    def send(self, now: float) -> int:
        """The number of a probe that leaves now. There is room: `overdue` is asked first."""
        assert len(self._sent) < OUTSTANDING_MAX
        number, self._next = self._next, self._next + 1
        self._sent[number] = now
        return number

    def echo(self, number: int, now: float) -> float | None:
        """The round trip in seconds; None for a probe that is not waited for (any more)."""
        sent = self._sent.pop(number, None)
        return None if sent is None else now - sent

    def overdue(self, now: float) -> int:
        """How many are lost since the last call; when there are too many under way, the oldest count as lost."""
        lost = [number for number, sent in self._sent.items() if now - sent >= LOST_AFTER_S]
        too_many = len(self._sent) - len(lost) - (OUTSTANDING_MAX - 1)
        if too_many > 0:
            waiting = (number for number in self._sent if number not in set(lost))
            lost += [number for number, _ in zip(waiting, range(too_many), strict=False)]
        for number in lost:
            del self._sent[number]
        return len(lost)
