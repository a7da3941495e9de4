"""Signed requests: whoever can call a Ray actor proves nothing by it, so what changes or moves something says who asks.

    request = {version, body, certificate?, signature}   body = {cluster, action, to, about, time, nonce}

The signature is over the label of the action and the body, by the key of `certificate`, or by the cluster's signing key
where there is none. A request is good for one action of one receiver, for `FRESH_S`, and once.
"""

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self, TypeVar

import msgspec

from raylog.errors import NotPermitted, Unavailable, UsageError
from raylog.security.credentials import Credentials
from raylog.security.identity import Identity
from raylog.security.keys import labelled
from raylog.security.messages import NONCE_BYTES, ReplayCache, check_fresh, check_version, decode, encode
from raylog.security.trust import Identify, Sign, Trust, Verify

VERSION = 1
SIGNED_BYTES_MAX = 512 << 10  # room for every chunk number of a shard
CLUSTER = "cluster"  # the role of whoever holds the cluster's signing key


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of what is asked for. `action` is RECEIVER.METHOD, `askers` are the roles that may: "client", "node",
    `CLUSTER`."""

    action: ClassVar[str]
    askers: ClassVar[frozenset[str]]


R = TypeVar("R", bound=Request)


class _Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    cluster_id: str
    action: str
    to: str
    about: bytes
    time_us: int
    nonce: bytes


class _Signed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: int
    body: bytes
    certificate: bytes | None
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """In whose name a process asks. `certificate` is None for the cluster's signing key."""

    cluster_id: str
    certificate: bytes | None
    sign: Sign

    @classmethod
    def of(cls, credentials: Credentials) -> Self:
        """A client or node."""
        return cls(
            cluster_id=credentials.identity.cluster_id,
            certificate=credentials.certificate_der,
            sign=credentials.sign,
        )

    @classmethod
    def of_cluster(cls, trust: Trust) -> Self:
        """The cluster itself: the catalog, and `raylog down` on the head."""
        return cls(cluster_id=trust.cluster_id, certificate=None, sign=trust.sign)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """Who signed a request: a certificate's identity, or the cluster."""

    role: str
    identity: str

    def __str__(self) -> str:
        return self.identity


def sign_request(about: Request, to: str, signer: Signer, now_s: float) -> bytes:
    """`about` as it is sent to `to`, which answers it once: sign anew for every try. Raises `UsageError` when it is too
    long to be accepted."""
    body = encode(
        _Body(
            cluster_id=signer.cluster_id,
            action=about.action,
            to=to,
            about=encode(about),
            time_us=_microseconds(now_s),
            nonce=secrets.token_bytes(NONCE_BYTES),
        )
    )
    signature = signer.sign(_signing_input(about.action, body))
    signed = encode(_Signed(version=VERSION, body=body, certificate=signer.certificate, signature=signature))
    if len(signed) > SIGNED_BYTES_MAX:
        raise UsageError(
            f"a request for {about.action} has {len(signed)} bytes, at most {SIGNED_BYTES_MAX} are accepted: ask for "
            "less at a time"
        )
    return signed


class Receiver:
    """Where the requests to one actor arrive. Thread-safe."""

    def __init__(
        self, name: str, cluster_id: str, verify: Verify, identify: Identify, clock: Callable[[], float]
    ) -> None:
        """`name` is what `sign_request` calls `to`: a node's id, or the name of an actor that is there once."""
        self._name, self._cluster_id = name, cluster_id
        self._verify, self._identify, self._clock = verify, identify, clock
        self._began_us = _microseconds(clock())
        self._replays = ReplayCache()

    def open(self, signed: bytes, kind: type[R]) -> tuple[R, Asker]:
        """What is asked for, and by whom.

        Raises `NotPermitted` unless somebody who may ask for it signed exactly this, for this receiver, just now, and
        it comes for the first time; `Unavailable` when the same request, signed anew, will be answered.
        """
        what = f"a request for {kind.action}"
        outer = decode(signed, _Signed, what, SIGNED_BYTES_MAX)
        check_version(outer.version, VERSION, what)
        body = decode(outer.body, _Body, what, SIGNED_BYTES_MAX)
        self._check_meant(body, kind.action, what)
        asker = self._asker(outer, kind.action)
        if asker.role not in kind.askers:
            raise NotPermitted(
                f"{asker} may not ask for {kind.action}: that is for a {' or the '.join(sorted(kind.askers))}"
            )
        self._check_once(body, outer, what)
        return decode(body.about, kind, what, SIGNED_BYTES_MAX), asker

    def _check_meant(self, body: _Body, action: str, what: str) -> None:
        """Whether it was meant for here, before it is known whose word that is."""
        expected = (self._cluster_id, action, self._name)
        got = (body.cluster_id, body.action, body.to)
        if got != expected:
            raise NotPermitted(
                f"expected {what} of {self._name} in cluster {self._cluster_id}, got one for {body.action[:40]} of "
                f"{body.to[:40]} in cluster {body.cluster_id[:40]}: ask the one that it is for"
            )
        if len(body.nonce) != NONCE_BYTES:
            raise NotPermitted(f"expected a nonce of {NONCE_BYTES} bytes in {what}, got {len(body.nonce)}")

    def _asker(self, outer: _Signed, action: str) -> Asker:
        data = _signing_input(action, outer.body)
        if outer.certificate is None:
            self._verify(data, outer.signature)
            return Asker(role=CLUSTER, identity=f"raylog://{self._cluster_id}/{CLUSTER}")
        identity = self._identify(outer.certificate, data, outer.signature)
        return Asker(role=Identity.parse(identity).role, identity=identity)

    def _check_once(self, body: _Body, outer: _Signed, what: str) -> None:
        now_s, time_s = self._clock(), body.time_us / 1e6
        check_fresh(time_s, now_s, what)
        if body.time_us < self._began_us:  # what was answered before a restart is not remembered
            raise Unavailable(f"{what} was signed before {self._name} (re)started: ask again")
        digest = hashlib.sha256(labelled(b"raylog/1 replay", outer.certificate or b"", outer.body)).digest()
        self._replays.check(digest, time_s, now_s, what)


def _microseconds(time_s: float) -> int:
    return int(time_s * 1e6)


def _signing_input(action: str, body: bytes) -> bytes:
    return labelled(b"raylog/1 request " + action.encode(), body)
