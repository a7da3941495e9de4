"""Grants: data keys reach the asker who proved itself, and nobody else in any other way."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylog.errors import NotFound, NotPermitted, RaylogError, UsageError
from raylog.security import grants
from raylog.security.certs import LIFETIME_S, Authority, Credentials
from raylog.security.envelopes import EnvelopeStore
from raylog.security.grants import DEKS_MAX, Granter, PendingGrant, ReadScope, WriteScope, open_grant, request_grant
from raylog.security.keys import labelled
from raylog.security.recipient import Recipient, Suite, best_suite
from raylog.spec import new_id

JoinAs = Callable[..., Credentials]
Message = dict[str, Any]


@pytest.fixture
def client(authority: Authority, join_as: JoinAs) -> Credentials:
    return join_as(authority, "client")


@pytest.fixture
def dek_ids(store: EnvelopeStore) -> tuple[str, ...]:
    return tuple(store.create_dek(new_id(), new_id()) for _ in range(3))


@pytest.fixture
def pending(client: Credentials, dek_ids: tuple[str, ...], now_s: float) -> PendingGrant:
    return request_grant(client, ReadScope(dek_ids=dek_ids), now_s)


def unpacked(message: bytes) -> Message:
    values: Message = msgspec.msgpack.decode(message)
    return values


def signed_again(request: bytes, credentials: Credentials, **fields: object) -> bytes:
    """The request with other values in its body, properly signed: what a wicked but admitted client sends."""
    outer = unpacked(request)
    body = msgspec.msgpack.encode(unpacked(outer["body"]) | fields)
    signature = credentials.sign(labelled(b"raylog/1 grant request", body))
    return msgspec.msgpack.encode(outer | {"body": body, "signature": signature})


def granted_again(grant: bytes, authority: Authority, **fields: object) -> bytes:
    """The grant with other values in its body, properly signed by the cluster."""
    outer = unpacked(grant)
    body = msgspec.msgpack.encode(unpacked(outer["body"]) | fields)
    return msgspec.msgpack.encode(
        outer | {"body": body, "signature": authority.sign(labelled(b"raylog/1 grant", body))}
    )


# What is granted


def test_a_read_grant_gives_the_keys_asked_for(
    granter: Granter,
    store: EnvelopeStore,
    client: Credentials,
    dek_ids: tuple[str, ...],
    pending: PendingGrant,
    now_s: float,
) -> None:
    grant = granter.handle(pending.request, now_s)
    keys = open_grant(grant, pending, client.cluster_public_key, now_s)
    assert list(keys.items()) == [(dek_id, store.dek(dek_id)) for dek_id in dek_ids]
    assert not any(key in grant + pending.request for key in keys.values())
    (entry,) = store.audit.entries()
    assert (entry.event, entry.subject, entry.time_s) == ("read granted", str(client.identity), now_s)
    detail = json.loads(entry.detail)
    assert detail["deks"] == list(dek_ids)
    assert detail["artifacts"] == sorted(store.artifact_of(dek_id) for dek_id in dek_ids)
    assert detail["request"] == hashlib.sha256(pending.request).hexdigest()


def test_a_grant_for_plaintext_blocks_says_so(
    granter: Granter, store: EnvelopeStore, client: Credentials, dek_ids: tuple[str, ...], now_s: float
) -> None:
    """And other requests are as they were before that could be said."""
    for plaintext_blocks, more in ((False, {}), (True, {"plaintext_blocks": True})):
        scope = ReadScope(dek_ids=dek_ids, plaintext_blocks=plaintext_blocks)
        assert unpacked(msgspec.msgpack.encode(scope)) == {"type": "read", "dek_ids": list(dek_ids)} | more
        pending = request_grant(client, scope, now_s)
        keys = open_grant(granter.handle(pending.request, now_s), pending, client.cluster_public_key, now_s)
        assert list(keys) == list(dek_ids)
        detail = json.loads(store.audit.entries()[-1].detail)
        assert {name: detail[name] for name in detail if name == "plaintext_blocks"} == more


def test_a_write_grant_makes_a_key_of_that_artifact(
    granter: Granter, store: EnvelopeStore, client: Credentials, now_s: float
) -> None:
    artifact, tenant = new_id(), new_id()
    pending = request_grant(client, WriteScope(artifact_id=artifact, tenant=tenant), now_s)
    grant = granter.handle(pending.request, now_s)
    ((dek_id, key),) = open_grant(grant, pending, client.cluster_public_key, now_s).items()
    assert store.dek(dek_id) == key
    assert store.artifact_of(dek_id) == artifact
    assert store.audit.entries()[-1].event == "write granted"


def test_the_most_keys_that_one_grant_may_hold(
    granter: Granter, store: EnvelopeStore, client: Credentials, now_s: float
) -> None:
    artifact, tenant = new_id(), new_id()
    with store._database.transaction():
        deks = tuple(store.create_dek(artifact, tenant) for _ in range(DEKS_MAX + 1))
    pending = request_grant(client, ReadScope(dek_ids=deks[:-1]), now_s)
    keys = open_grant(granter.handle(pending.request, now_s), pending, client.cluster_public_key, now_s)
    assert len(set(keys.values())) == DEKS_MAX
    with pytest.raises(UsageError, match="expected 1 to 1024 different DEK ids in a grant request, got 1025"):
        request_grant(client, ReadScope(dek_ids=deks), now_s)
    with pytest.raises(NotPermitted, match="got 1025"):
        granter.handle(
            signed_again(pending.request, client, scope={"type": "read", "dek_ids": deks}, nonce=bytes(16)), now_s
        )


@pytest.mark.parametrize("suite", list(Suite))
def test_both_suites_seal_and_open(
    granter: Granter,
    client: Credentials,
    dek_ids: tuple[str, ...],
    now_s: float,
    suite: Suite,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    best_suite.cache_clear()
    if best_suite() is not Suite.MLKEM768_X25519 and suite is Suite.MLKEM768_X25519:
        pytest.skip("no ML-KEM in this build of cryptography")
    monkeypatch.setattr("raylog.security.recipient.best_suite", lambda: suite)
    pending = request_grant(client, ReadScope(dek_ids=dek_ids), now_s)
    assert pending.recipient.suite is suite
    grant = granter.handle(pending.request, now_s)
    assert len(open_grant(grant, pending, client.cluster_public_key, now_s)) == 3


# Who gets nothing


def test_a_node_never_gets_a_data_key(
    granter: Granter,
    store: EnvelopeStore,
    authority: Authority,
    join_as: JoinAs,
    dek_ids: tuple[str, ...],
    now_s: float,
) -> None:
    node = join_as(authority, "node")
    for scope in (ReadScope(dek_ids=dek_ids), WriteScope(artifact_id=new_id(), tenant=new_id())):
        with pytest.raises(NotPermitted, match=f"{node.identity} asks for data keys, which a node never gets"):
            granter.handle(request_grant(node, scope, now_s).request, now_s)
    assert [entry.event for entry in store.audit.entries()] == ["grant refused"] * 2


def test_a_foreign_certificate_gets_nothing(
    granter: Granter, foreign: Authority, join_as: JoinAs, dek_ids: tuple[str, ...], now_s: float
) -> None:
    stranger = join_as(foreign, "client")
    with pytest.raises(NotPermitted, match="it did not sign"):
        granter.handle(request_grant(stranger, ReadScope(dek_ids=dek_ids), now_s).request, now_s)


def test_an_expired_or_future_certificate_gets_nothing(
    granter: Granter, client: Credentials, dek_ids: tuple[str, ...], now_s: float
) -> None:
    for moment_s, message in ((now_s + LIFETIME_S + 60, "expired"), (now_s - 3600, "becomes valid in")):
        request = request_grant(client, ReadScope(dek_ids=dek_ids), moment_s).request
        with pytest.raises(NotPermitted, match=f"certificate of {client.identity} {message}"):
            granter.handle(request, moment_s)


def test_somebody_elses_certificate_is_not_enough(
    granter: Granter, authority: Authority, client: Credentials, join_as: JoinAs, pending: PendingGrant, now_s: float
) -> None:
    victim = join_as(authority, "client")
    stolen = msgspec.msgpack.encode(unpacked(pending.request) | {"certificate": victim.certificate_der})
    with pytest.raises(NotPermitted, match=f"the signature is not by {victim.identity}"):
        granter.handle(stolen, now_s)


def test_a_signature_for_another_purpose_is_not_enough(
    granter: Granter, client: Credentials, pending: PendingGrant, now_s: float
) -> None:
    outer = unpacked(pending.request)
    for label in (b"raylog/1 renewal", b"raylog/1 grant", b""):
        signature = client.sign(labelled(label, outer["body"]))
        with pytest.raises(NotPermitted, match="what it signs was changed"):
            granter.handle(msgspec.msgpack.encode(outer | {"signature": signature}), now_s)


def test_a_replayed_request_gets_nothing_and_fills_no_log(
    granter: Granter, store: EnvelopeStore, pending: PendingGrant, now_s: float
) -> None:
    granter.handle(pending.request, now_s)
    other_order = msgspec.msgpack.encode(dict(reversed(unpacked(pending.request).items())))
    for again in (pending.request, other_order):
        with pytest.raises(NotPermitted, match="came a second time"):
            granter.handle(again, now_s + 100)
    with pytest.raises(NotPermitted, match="behind this machine's clock"):
        granter.handle(pending.request, now_s + 400)
    assert len(store.audit.entries()) == 1


def test_who_copies_a_request_keeps_nobody_else_out(
    granter: Granter, authority: Authority, join_as: JoinAs, pending: PendingGrant, now_s: float
) -> None:
    thief = join_as(authority, "client")
    copied = signed_again(pending.request, thief)
    copied = msgspec.msgpack.encode(unpacked(copied) | {"certificate": thief.certificate_der})
    granter.handle(copied, now_s)
    assert granter.handle(pending.request, now_s)


@pytest.mark.parametrize(("apart_s", "direction"), [(400, "ahead of"), (-400, "behind")])
def test_a_stale_clock_is_told(
    granter: Granter, client: Credentials, dek_ids: tuple[str, ...], now_s: float, apart_s: float, direction: str
) -> None:
    request = request_grant(client, ReadScope(dek_ids=dek_ids), now_s + apart_s).request
    with pytest.raises(NotPermitted, match=rf"s {direction} this machine's clock.*clock skew"):
        granter.handle(request, now_s)


def test_wicked_bodies_of_an_admitted_client_are_refused(
    granter: Granter, client: Credentials, dek_ids: tuple[str, ...], pending: PendingGrant, now_s: float
) -> None:
    now = int(now_s)
    wicked: list[tuple[Message, str]] = [
        ({"expiry_s": now + 10_000}, "for 1 to 900 s, got"),
        ({"expiry_s": now - 10}, "for 1 to 900 s, got"),
        ({"time_s": now - 200, "expiry_s": now - 100}, "expired 10[01] s ago"),
        ({"nonce": b""}, "expected a nonce of 16 bytes"),
        ({"suite": 9}, "in the form that this version"),
        ({"recipient_key": b"short"}, "recipient key of suite"),
        ({"recipient_key": bytes(1216)}, "recipient key of suite"),
        ({"recipient_key": bytes(32), "suite": 2}, "recipient key of suite X25519"),
        ({"scope": {"type": "read", "dek_ids": []}}, "1 to 1024 different DEK ids"),
        ({"scope": {"type": "read", "dek_ids": [dek_ids[0]] * 2}}, "1 to 1024 different DEK ids"),
        ({"scope": {"type": "read", "dek_ids": ["../../x"]}}, "expected DEK id"),
        ({"scope": {"type": "write", "artifact_id": "x", "tenant": new_id()}}, "expected artifact id"),
        ({"scope": {"type": "destroy"}}, "in the form that this version"),
        ({"time_s": float("nan")}, "in the form that this version"),
        ({"more": 1}, "in the form that this version"),
    ]
    for number, (fields, message) in enumerate(wicked):
        request = signed_again(pending.request, client, **({"nonce": number.to_bytes(16)} | fields))
        with pytest.raises(NotPermitted, match=message):
            granter.handle(request, now_s)


def test_an_unknown_or_destroyed_key_grants_nothing_at_all(
    granter: Granter, store: EnvelopeStore, client: Credentials, dek_ids: tuple[str, ...], now_s: float
) -> None:
    with pytest.raises(NotFound, match="holds no data key"):
        granter.handle(request_grant(client, ReadScope(dek_ids=(*dek_ids, new_id())), now_s).request, now_s)
    store.destroy_artifact(store.artifact_of(dek_ids[1]))
    with pytest.raises(NotFound, match="destroyed"):
        granter.handle(request_grant(client, ReadScope(dek_ids=dek_ids), now_s).request, now_s)
    assert [entry.event for entry in store.audit.entries()] == ["grant refused", "artifact destroyed", "grant refused"]


def test_nothing_is_granted_that_the_audit_log_does_not_hold(
    granter: Granter, store: EnvelopeStore, pending: PendingGrant, now_s: float
) -> None:
    store._database.execute("CREATE TRIGGER full BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'disk trouble'); END")
    with pytest.raises(RaylogError, match="disk trouble"):
        granter.handle(pending.request, now_s)


# What the asker believes


def test_a_grant_opens_for_its_own_request_only(
    granter: Granter, client: Credentials, dek_ids: tuple[str, ...], pending: PendingGrant, now_s: float
) -> None:
    grant = granter.handle(pending.request, now_s)
    other = request_grant(client, ReadScope(dek_ids=dek_ids), now_s)
    with pytest.raises(NotPermitted, match="answers another request"):
        open_grant(grant, other, client.cluster_public_key, now_s)


def test_another_recipient_opens_nothing(
    granter: Granter, client: Credentials, pending: PendingGrant, now_s: float
) -> None:
    grant = granter.handle(pending.request, now_s)
    pending.recipient = Recipient.fresh()
    with pytest.raises(NotPermitted, match="sealed to another recipient"):
        open_grant(grant, pending, client.cluster_public_key, now_s)


def test_an_expired_grant_does_not_open(
    granter: Granter, client: Credentials, pending: PendingGrant, now_s: float
) -> None:
    grant = granter.handle(pending.request, now_s)
    assert open_grant(grant, pending, client.cluster_public_key, now_s + grants.LIFETIME_S - 1)
    with pytest.raises(NotPermitted, match=r"the grant expired 10[01] s ago"):
        open_grant(grant, pending, client.cluster_public_key, now_s + grants.LIFETIME_S + 100)


def test_a_modified_grant_does_not_open(
    granter: Granter,
    authority: Authority,
    foreign: Authority,
    client: Credentials,
    dek_ids: tuple[str, ...],
    pending: PendingGrant,
    now_s: float,
) -> None:
    grant = granter.handle(pending.request, now_s)
    body = unpacked(unpacked(grant)["body"])
    forged = granted_again(grant, foreign)
    with pytest.raises(NotPermitted, match="not by the cluster's key"):
        open_grant(forged, pending, client.cluster_public_key, now_s)
    # Even with the cluster's signature: nothing of it can be exchanged.
    sealed = bytearray(body["sealed"])
    sealed[-1] ^= 1
    for fields, message in (
        ({"dek_ids": dek_ids[::-1]}, "other data keys than were asked for"),
        ({"dek_ids": dek_ids[:1]}, "other data keys than were asked for"),
        ({"sealed": bytes(sealed)}, "does not open"),
        ({"sealed": b""}, "does not open"),
        ({"request_digest": bytes(32)}, "answers another request"),
    ):
        with pytest.raises(NotPermitted, match=message):
            open_grant(granted_again(grant, authority, **fields), pending, client.cluster_public_key, now_s)
    assert len(open_grant(granted_again(grant, authority), pending, client.cluster_public_key, now_s)) == 3


@pytest.mark.parametrize("lifetime_s", [0, -1, 901])
def test_a_lifetime_that_no_grant_can_have_is_refused(client: Credentials, now_s: float, lifetime_s: int) -> None:
    with pytest.raises(UsageError, match="expected a lifetime of 1 to 900 s"):
        request_grant(client, ReadScope(dek_ids=(new_id(),)), now_s, lifetime_s)


# Malformed


@given(data=st.data())
def test_no_changed_request_or_grant_passes(
    fuzz_grant: tuple[Granter, PendingGrant, bytes, bytes], data: st.DataObject
) -> None:
    granter, pending, grant, cluster_public_key = fuzz_grant

    def mutated(message: bytes) -> bytes:
        changed = bytearray(message)
        for _ in range(data.draw(st.integers(1, 4))):
            changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
        return bytes(changed)

    with pytest.raises(RaylogError):
        granter.handle(mutated(pending.request), 1.8e9)  # restored by chance, it is a replay
    changed = mutated(grant)
    if changed != grant:
        with pytest.raises(NotPermitted):
            open_grant(changed, pending, cluster_public_key, 1.8e9)


@given(
    message=st.one_of(st.binary(max_size=300), st.sampled_from([b"\x91" * 60_000, bytes(70_000), b"\x81\xa7version"]))
)
def test_other_bytes_are_refused_on_both_ends(
    fuzz_grant: tuple[Granter, PendingGrant, bytes, bytes], message: bytes
) -> None:
    granter, pending, _, cluster_public_key = fuzz_grant
    with pytest.raises(NotPermitted):
        granter.handle(message, 1.8e9)
    with pytest.raises(NotPermitted):
        open_grant(message, pending, cluster_public_key, 1.8e9)


def test_what_is_no_bytes_is_refused(granter: Granter, now_s: float) -> None:
    with pytest.raises(NotPermitted, match="expected a grant request as bytes, got str"):
        granter.handle("request", now_s)  # type: ignore[arg-type]
