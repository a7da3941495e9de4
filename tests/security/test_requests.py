"""Signed requests: what is done for a member of the cluster who asks now, and for nobody else."""

from collections.abc import Callable
from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylog.errors import NotPermitted, RaylogError, Unavailable, UsageError
from raylog.security.certs import Authority, Credentials
from raylog.security.keys import labelled
from raylog.security.messages import FRESH_S
from raylog.security.requests import CLUSTER, SIGNED_BYTES_MAX, Receiver, Request, Signer, sign_request
from raylog.security.trust import trust_of
from raylog.spec import new_id

JoinAs = Callable[..., Credentials]
NODE = "5" * 32


class Drop(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    action: ClassVar[str] = "node.drop"
    askers: ClassVar[frozenset[str]] = frozenset({"client", CLUSTER})

    shard_ids: tuple[str, ...]


class Keep(Drop, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The same fields, another action."""

    action: ClassVar[str] = "node.keep"


class Halt(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    action: ClassVar[str] = "node.halt"
    askers: ClassVar[frozenset[str]] = frozenset({CLUSTER})


class Clock:
    """Seconds since 1970, moved by hand."""

    def __init__(self, now_s: float) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


DROP = Drop(shard_ids=("a" * 32,))


@pytest.fixture
def clock(now_s: float) -> Clock:
    return Clock(now_s)


def receiver_of(authority: Authority, clock: Clock, name: str = NODE) -> Receiver:
    trust = trust_of(authority, clock)
    return Receiver(name, trust.cluster_id, trust.verify, trust.identify, clock)


@pytest.fixture
def receiver(authority: Authority, clock: Clock) -> Receiver:
    return receiver_of(authority, clock)


@pytest.fixture
def client(authority: Authority, join_as: JoinAs) -> Credentials:
    return join_as(authority, "client")


def unpacked(message: bytes) -> dict[str, Any]:
    values: dict[str, Any] = msgspec.msgpack.decode(message)
    return values


def changed(signed: bytes, **fields: object) -> bytes:
    """With other values in its body under the old signature."""
    outer = unpacked(signed)
    return msgspec.msgpack.encode(outer | {"body": msgspec.msgpack.encode(unpacked(outer["body"]) | fields)})


def test_who_asked_and_for_what(receiver: Receiver, authority: Authority, client: Credentials, clock: Clock) -> None:
    asked, asker = receiver.open(sign_request(DROP, NODE, Signer.of(client), clock()), Drop)
    assert (asked, asker.role, str(asker)) == (DROP, "client", str(client.identity))
    cluster = Signer.of_cluster(trust_of(authority, clock))
    asked, asker = receiver.open(sign_request(DROP, NODE, cluster, clock()), Drop)
    assert (asked, asker.role, str(asker)) == (DROP, CLUSTER, f"raylog://{authority.cluster_id}/cluster")
    receiver.open(sign_request(Halt(), NODE, cluster, clock()), Halt)


def test_a_role_that_may_not_ask(receiver: Receiver, authority: Authority, join_as: JoinAs, clock: Clock) -> None:
    for role, about in (("node", DROP), ("node", Halt()), ("client", Halt())):
        signed = sign_request(about, NODE, Signer.of(join_as(authority, role)), clock())
        with pytest.raises(NotPermitted, match=f"/{role}/.* may not ask for {about.action}"):
            receiver.open(signed, type(about))


def test_changed_or_signed_by_another_key(receiver: Receiver, client: Credentials, join_as: JoinAs,
                                          authority: Authority, clock: Clock) -> None:  # fmt: skip
    signed = sign_request(DROP, NODE, Signer.of(client), clock())
    outer, other = unpacked(signed), join_as(authority, "client")
    unlabelled = client.sign(labelled(b"raylog/1 grant request", outer["body"]))
    forgeries = [
        changed(signed, about=msgspec.msgpack.encode(Drop(shard_ids=()))),
        changed(signed, nonce=bytes(16)),
        changed(signed, time_us=int(clock() * 1e6) + 1),
        msgspec.msgpack.encode(outer | {"signature": bytes(64)}),
        msgspec.msgpack.encode(outer | {"signature": b""}),
        msgspec.msgpack.encode(outer | {"signature": unlabelled}),
        msgspec.msgpack.encode(outer | {"certificate": other.certificate_der}),
        msgspec.msgpack.encode(outer | {"certificate": None}),  # a client's signature is not the cluster's
        msgspec.msgpack.encode(outer | {"certificate": authority.ca_der}),
    ]
    for forgery in forgeries:
        with pytest.raises(NotPermitted):
            receiver.open(forgery, Drop)
    receiver.open(signed, Drop)


def test_another_clusters(receiver: Receiver, foreign: Authority, authority: Authority, join_as: JoinAs,
                          clock: Clock) -> None:  # fmt: skip
    stranger = Signer.of(join_as(foreign, "client"))
    with pytest.raises(NotPermitted, match=f"in cluster {foreign.cluster_id}"):
        receiver.open(sign_request(DROP, NODE, stranger, clock()), Drop)
    cluster_of_theirs = Signer.of_cluster(trust_of(foreign, clock))
    for signer in (stranger, cluster_of_theirs):
        claimed = claiming(signer, authority.cluster_id)
        with pytest.raises(NotPermitted):
            receiver.open(sign_request(DROP, NODE, claimed, clock()), Drop)


def claiming(signer: Signer, cluster_id: str) -> Signer:
    return Signer(cluster_id=cluster_id, certificate=signer.certificate, sign=signer.sign)


def test_another_nodes_and_another_actions(receiver: Receiver, client: Credentials, clock: Clock) -> None:
    signer, other = Signer.of(client), new_id()
    with pytest.raises(NotPermitted, match=f"expected a request for node.drop of {NODE}.*of {other}"):
        receiver.open(sign_request(DROP, other, signer, clock()), Drop)
    keep = sign_request(Keep(shard_ids=DROP.shard_ids), NODE, signer, clock())
    with pytest.raises(NotPermitted, match=r"expected a request for node.drop .* got one for node.keep"):
        receiver.open(keep, Drop)
    with pytest.raises(NotPermitted, match="the signature is not by"):  # renamed, the label gives it away
        receiver.open(changed(keep, action="node.drop"), Drop)


def test_stale_and_early(receiver: Receiver, client: Credentials, clock: Clock) -> None:
    clock.now_s += FRESH_S * 2
    signer = Signer.of(client)
    for apart_s, word in ((-FRESH_S - 1, "behind"), (FRESH_S + 1, "ahead of")):
        with pytest.raises(NotPermitted, match=f"made {FRESH_S + 1} s {word}"):
            receiver.open(sign_request(DROP, NODE, signer, clock() + apart_s), Drop)
    for apart_s in (1 - FRESH_S, FRESH_S - 1):
        receiver.open(sign_request(DROP, NODE, signer, clock() + apart_s), Drop)


def test_an_expired_certificate(authority: Authority, client: Credentials, clock: Clock) -> None:
    clock.now_s = client.not_after_s - 1
    receiver, signer = receiver_of(authority, clock), Signer.of(client)
    receiver.open(sign_request(DROP, NODE, signer, clock()), Drop)
    clock.now_s = client.not_after_s + 1  # the certificate was read before: its time is looked at each time
    with pytest.raises(NotPermitted, match="expired"):
        receiver.open(sign_request(DROP, NODE, signer, clock()), Drop)


def test_a_second_time(receiver: Receiver, authority: Authority, client: Credentials, clock: Clock) -> None:
    signed = sign_request(DROP, NODE, Signer.of(client), clock())
    receiver.open(signed, Drop)
    clock.now_s += FRESH_S - 1
    with pytest.raises(NotPermitted, match="replayed"):
        receiver.open(signed, Drop)
    receiver.open(sign_request(DROP, NODE, Signer.of(client), clock()), Drop)
    restarted = receiver_of(authority, clock)
    with pytest.raises(Unavailable, match="started: ask again"):
        restarted.open(signed, Drop)


def test_a_copied_body_does_not_use_up_the_original(receiver: Receiver, authority: Authority, join_as: JoinAs,
                                                    client: Credentials, clock: Clock) -> None:  # fmt: skip
    signed = sign_request(DROP, NODE, Signer.of(client), clock())
    outer, thief = unpacked(signed), join_as(authority, "client")
    signature = thief.sign(labelled(b"raylog/1 request node.drop", outer["body"]))
    receiver.open(msgspec.msgpack.encode(outer | {"certificate": thief.certificate_der, "signature": signature}), Drop)
    receiver.open(signed, Drop)


def test_too_long_to_send(client: Credentials, clock: Clock) -> None:
    with pytest.raises(UsageError, match=f"at most {SIGNED_BYTES_MAX}"):
        sign_request(Drop(shard_ids=("a" * 32,) * 20_000), NODE, Signer.of(client), clock())


@pytest.mark.parametrize("call", [None, "a" * 32, ["a" * 32], {"shard_ids": []}, b"", b"drop everything", bytes(2**20)])
def test_no_request_at_all(receiver: Receiver, call: Any) -> None:
    with pytest.raises(NotPermitted, match=r"a request for node\.drop"):
        receiver.open(call, Drop)


@given(data=st.data())
def test_no_changed_byte_passes(fuzz_cluster: tuple[Authority, bytes, bytes], data: st.DataObject) -> None:
    authority, clock = fuzz_cluster[0], Clock(1.8e9)
    trust = trust_of(authority, clock)
    signed = bytearray(sign_request(DROP, NODE, Signer.of_cluster(trust), clock()))
    place = data.draw(st.integers(0, len(signed) - 1))
    signed[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(RaylogError):
        receiver_of(authority, clock).open(bytes(signed), Drop)
