"""Joining: tokens, renewals, and everybody who should stay outside."""

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylog.errors import DamagedData, NotFound, NotPermitted, RaylogError, Unavailable, UsageError
from raylog.security import join
from raylog.security.certs import LIFETIME_S, Authority, Credentials, Identity, verify_certificate
from raylog.security.join import JoinToken, PendingJoin
from raylog.security.keys import new_key
from raylog.security.messages import ReplayCache
from raylog.spec import new_id

JoinAs = Callable[..., Credentials]


def changed(message: bytes, **fields: object) -> bytes:
    return msgspec.msgpack.encode(msgspec.msgpack.decode(message) | fields)


def field(message: bytes, name: str) -> bytes:
    value: bytes = msgspec.msgpack.decode(message)[name]
    return value


def admit(authority: Authority, pending: PendingJoin, now_s: float) -> bytes:
    return authority.admit(pending.request, now_s)


# The token's file


def test_a_token_comes_back_from_its_file(token: JoinToken, tmp_path: Path) -> None:
    path = tmp_path / "join" / "token.json"
    token.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert JoinToken.load(path) == token


def test_a_missing_lax_or_damaged_token_is_refused(token: JoinToken, tmp_path: Path) -> None:
    path = tmp_path / "join" / "token.json"
    with pytest.raises(NotPermitted, match=r"no join token at .*'raylog up' made it"):
        JoinToken.load(path)
    token.save(path)
    path.chmod(0o644)
    with pytest.raises(NotPermitted, match=f"has mode 0644, expected 0600.*chmod 600 {path}"):
        JoinToken.load(path)
    path.chmod(0o600)
    content = json.loads(path.read_text())
    for damaged in ({"secret": "c2hvcnQ="}, {"raylog_join_token_format": 2}, {"token_id": "../../x"}, {"secret": 7}):
        path.write_text(json.dumps(content | damaged))
        with pytest.raises(DamagedData, match="is no join token"):
            JoinToken.load(path)


# Who is let in


@pytest.mark.parametrize("role", ["node", "client"])
def test_a_token_lets_in_and_its_secret_never_travels(
    authority: Authority, token: JoinToken, role: str, now_s: float
) -> None:
    pending = join.request_with_token(token, role, new_id(), now_s)
    response = admit(authority, pending, now_s)
    credentials = pending.accept(response, now_s)
    assert verify_certificate(credentials.certificate_der, authority.ca_der, now_s).role == role
    assert credentials.cluster_public_key == authority.cluster_public_key
    assert token.secret not in pending.request + response
    entry = authority.audit.entries()[-1]
    assert (entry.event, entry.subject) == ("admitted", str(credentials.identity))
    assert token.token_id in entry.detail


def test_a_wrong_secret_is_refused(authority: Authority, token: JoinToken, now_s: float) -> None:
    forged = JoinToken(
        cluster_id=token.cluster_id, token_id=token.token_id, secret=new_key(), ca_fingerprint=token.ca_fingerprint
    )
    with pytest.raises(NotPermitted, match=f"not proven by join token {token.token_id}"):
        admit(authority, join.request_with_token(forged, "node", new_id(), now_s), now_s)


def test_an_unknown_token_is_refused(authority: Authority, token: JoinToken, now_s: float) -> None:
    unknown = JoinToken(
        cluster_id=token.cluster_id, token_id=new_id(), secret=new_key(), ca_fingerprint=token.ca_fingerprint
    )
    with pytest.raises(NotPermitted, match=f"has no join token '{unknown.token_id}'"):
        admit(authority, join.request_with_token(unknown, "node", new_id(), now_s), now_s)


def test_another_clusters_token_is_refused(authority: Authority, foreign: Authority, now_s: float) -> None:
    pending = join.request_with_token(foreign.make_join_token(), "node", new_id(), now_s)
    with pytest.raises(NotPermitted, match=f"the request is for cluster {foreign.cluster_id}"):
        admit(authority, pending, now_s)


def test_a_revoked_token_admits_nobody_and_renews_nobody(authority: Authority, token: JoinToken, now_s: float) -> None:
    pending = join.request_with_token(token, "node", new_id(), now_s)
    credentials = pending.accept(admit(authority, pending, now_s), now_s)
    authority.revoke_join_token(token.token_id)
    with pytest.raises(NotPermitted, match=f"join token {token.token_id} was revoked"):
        admit(authority, join.request_with_token(token, "node", new_id(), now_s), now_s)
    with pytest.raises(NotPermitted, match=f"join token {token.token_id} was revoked"):
        admit(authority, join.request_renewal(credentials, now_s), now_s)
    with pytest.raises(NotFound, match="no valid join token"):
        authority.revoke_join_token(token.token_id)
    # With the next token the node comes back under its id and key, and renews again.
    again = join.request_with_token(
        authority.make_join_token(), "node", credentials.identity.id, now_s, credentials.private_key
    )
    renewed = join.request_renewal(again.accept(admit(authority, again, now_s), now_s), now_s)
    renewed.accept(admit(authority, renewed, now_s), now_s)


def test_a_token_for_nodes_makes_no_client(authority: Authority, now_s: float) -> None:
    token = authority.make_join_token(["node"])
    with pytest.raises(NotPermitted, match=f"join token {token.token_id} is for node, not for a client"):
        admit(authority, join.request_with_token(token, "client", new_id(), now_s), now_s)
    pending = join.request_with_token(token, "node", new_id(), now_s)
    assert pending.accept(admit(authority, pending, now_s), now_s).identity.role == "node"
    for roles in ([], ["root"]):
        with pytest.raises(UsageError, match="expected roles of node, client"):
            authority.make_join_token(roles)


@pytest.mark.parametrize("apart_s", [-301, 301, -86400])
def test_clocks_apart_are_told(authority: Authority, token: JoinToken, now_s: float, apart_s: float) -> None:
    pending = join.request_with_token(token, "node", new_id(), now_s)
    with pytest.raises(NotPermitted, match=r"at most 300 s are accepted.*clock skew"):
        admit(authority, pending, int(now_s) + apart_s)


def test_a_request_is_answered_once(authority: Authority, token: JoinToken, now_s: float) -> None:
    pending = join.request_with_token(token, "node", new_id(), now_s)
    admit(authority, pending, now_s)
    for again in (
        pending.request,
        msgspec.msgpack.encode(dict(reversed(msgspec.msgpack.decode(pending.request).items()))),
    ):
        with pytest.raises(NotPermitted, match="came a second time"):
            authority.admit(again, now_s + 1)


def test_an_id_stays_its_keys(authority: Authority, token: JoinToken, now_s: float) -> None:
    first = join.request_with_token(token, "node", node := new_id(), now_s)
    credentials = first.accept(admit(authority, first, now_s), now_s)
    with pytest.raises(NotPermitted, match=f"/node/{node} is bound to another key.*somebody else tries to become it"):
        admit(authority, join.request_with_token(token, "node", node, now_s), now_s)
    # The same key comes back after a long sleep, though its certificate has expired.
    later_s = now_s + 10 * LIFETIME_S
    again = join.request_with_token(token, "node", node, later_s, credentials.private_key)
    assert again.accept(admit(authority, again, later_s), later_s).not_after_s > later_s
    # A client of that id is somebody else.
    admit(authority, join.request_with_token(token, "client", node, later_s), later_s)


def test_a_forgotten_id_may_be_had_by_another_key_and_not_renewed(
    authority: Authority, token: JoinToken, now_s: float, join_as: JoinAs
) -> None:
    lost = join_as(authority, "node")
    authority.forget(lost.identity)
    with pytest.raises(NotPermitted, match="was forgotten here: join again"):
        admit(authority, join.request_renewal(lost, now_s), now_s)
    successor = join.request_with_token(token, "node", lost.identity.id, now_s)
    assert successor.accept(admit(authority, successor, now_s), now_s).identity == lost.identity
    with pytest.raises(NotPermitted, match="was forgotten here"):
        admit(authority, join.request_renewal(lost, now_s), now_s)
    with pytest.raises(NotFound, match="never certified here"):
        authority.forget(Identity(role="node", id=new_id(), cluster_id=authority.cluster_id))


# Renewal


def test_a_certificate_renews_itself_without_a_token(authority: Authority, join_as: JoinAs, now_s: float) -> None:
    credentials = join_as(authority, "node")
    later_s = now_s + LIFETIME_S * 0.7
    pending = join.request_renewal(credentials, later_s)
    admit(authority, pending, later_s)  # the answer was lost on its way
    pending = join.request_renewal(credentials, later_s)
    renewed = pending.accept(admit(authority, pending, later_s), later_s)
    assert renewed.identity == credentials.identity
    assert renewed.not_after_s == pytest.approx(later_s + LIFETIME_S, abs=1)


def test_an_expired_certificate_renews_nothing(authority: Authority, join_as: JoinAs, now_s: float) -> None:
    later_s = now_s + LIFETIME_S + 10
    with pytest.raises(NotPermitted, match=r"expired .* join again with the join token"):
        admit(authority, join.request_renewal(join_as(authority, "node"), later_s), later_s)


def test_nobody_renews_another_identity(authority: Authority, join_as: JoinAs, now_s: float) -> None:
    mine, theirs = join_as(authority, "client"), join_as(authority, "client")
    request = join.request_renewal(mine, now_s).request
    stolen = changed(request, certificate=theirs.certificate_der)
    with pytest.raises(NotPermitted, match=f"{theirs.identity} asked for a certificate of {mine.identity}"):
        authority.admit(stolen, now_s)
    body = changed(field(request, "body"), id=theirs.identity.id)
    with pytest.raises(NotPermitted, match=f"the signature is not by {theirs.identity}"):
        authority.admit(changed(stolen, body=body), now_s)


def test_a_foreign_certificate_renews_nothing(
    authority: Authority, foreign: Authority, join_as: JoinAs, now_s: float
) -> None:
    stranger = join_as(foreign, "node")
    request = join.request_renewal(stranger, now_s).request
    body = changed(field(request, "body"), cluster_id=authority.cluster_id)
    with pytest.raises(NotPermitted, match="it did not sign"):
        authority.admit(changed(request, body=body), now_s)


# What the joiner believes


def test_the_answer_of_another_authority_is_refused(
    authority: Authority, foreign: Authority, token: JoinToken, now_s: float
) -> None:
    pending = join.request_with_token(token, "node", new_id(), now_s)
    other = join.request_with_token(foreign.make_join_token(), "node", new_id(), now_s)
    answer = admit(foreign, other, now_s)
    with pytest.raises(NotPermitted, match="another cluster answered, or somebody in between"):
        pending.accept(answer, now_s)
    # The right authority's certificate beside somebody else's words.
    with pytest.raises(NotPermitted, match="not by the authority"):
        pending.accept(changed(answer, ca=authority.ca_der), now_s)


def test_the_answer_to_another_request_or_a_changed_one_is_refused(
    authority: Authority, token: JoinToken, now_s: float
) -> None:
    first, second = (join.request_with_token(token, "node", new_id(), now_s) for _ in range(2))
    answer = admit(authority, first, now_s)
    with pytest.raises(NotPermitted, match="answers another join request"):
        second.accept(answer, now_s)
    body = changed(field(answer, "body"), cluster_public_key=bytes(32))
    with pytest.raises(NotPermitted, match="not by the authority, or what it signs was changed"):
        first.accept(changed(answer, body=body), now_s)
    with pytest.raises(NotPermitted, match="has version 2, expected 1"):
        first.accept(changed(answer, version=2), now_s)
    with pytest.raises(NotPermitted, match="becomes valid in"):
        first.accept(answer, now_s - 3600)


# Malformed


def test_a_request_with_both_proofs_or_none_is_refused(authority: Authority, token: JoinToken, now_s: float) -> None:
    request = join.request_with_token(token, "node", new_id(), now_s).request
    for wrong, message in (
        (changed(request, certificate=b"x"), "either a join token or a certificate"),
        (changed(request, version=7), "has version 7, expected 1"),
        (changed(request, more=1), "in the form that this version"),
        (changed(request, body=changed(field(request, "body"), nonce=b"short")), "expected a nonce of 16 bytes"),
        (changed(request, body=changed(field(request, "body"), role="root")), "expected a role of node, client"),
        (changed(request, body=changed(field(request, "body"), id="../x")), "expected node id"),
        (bytes(70_000), "at most 65536 bytes, got 70000"),
        (b"\x91" * 60_000, "in the form that this version"),
    ):
        with pytest.raises(NotPermitted, match=message):
            authority.admit(wrong, now_s)


def test_a_full_replay_cache_refuses_instead_of_forgetting() -> None:
    cache = ReplayCache(remembered_max=2)
    cache.check(b"1", 1000, 1000, "it")
    cache.check(b"2", 1100, 1100, "it")
    with pytest.raises(Unavailable, match="ask again later"):
        cache.check(b"3", 1100, 1100, "it")
    with pytest.raises(NotPermitted, match="second time"):
        cache.check(b"1", 1000, 1300, "it")
    cache.check(b"3", 1301, 1301, "it")


@given(data=st.data())
def test_no_changed_request_is_admitted(fuzz_cluster: tuple[Authority, bytes, bytes], data: st.DataObject) -> None:
    authority, request, answer = fuzz_cluster
    for message in (request, answer):
        mutated = bytearray(message)
        for _ in range(data.draw(st.integers(1, 4))):
            mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
        with pytest.raises(RaylogError):
            # An unchanged one was answered before, so it is refused as well.
            authority.admit(bytes(mutated), 1.8e9)


@given(message=st.binary(max_size=400))
def test_other_bytes_are_refused(fuzz_cluster: tuple[Authority, bytes, bytes], message: bytes) -> None:
    with pytest.raises(NotPermitted):
        fuzz_cluster[0].admit(message, 1.8e9)
