"""No secret in a repr, a message, a pickle or a copy."""

import copy
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raylog.errors import NotPermitted, RaylogError, UsageError
from raylog.security import join
from raylog.security.certs import Authority, Credentials, CurrentCredentials
from raylog.security.envelopes import EnvelopeStore
from raylog.security.grants import Granter, WriteScope, request_grant
from raylog.security.join import JoinToken
from raylog.security.keys import KeyHolder, labelled
from raylog.security.providers.file import FileKeyring
from raylog.spec import new_id

JoinAs = Callable[..., Credentials]


@pytest.fixture
def holders(
    keyring: FileKeyring,
    authority: Authority,
    token: JoinToken,
    store: EnvelopeStore,
    granter: Granter,
    join_as: JoinAs,
    now_s: float,
) -> list[KeyHolder]:
    client = join_as(authority, "client")
    grant = request_grant(client, WriteScope(artifact_id=new_id(), tenant=new_id()), now_s)
    joining = join.request_with_token(token, "node", new_id(), now_s)
    return [
        keyring, authority, authority.audit, token, store, granter, client, CurrentCredentials(client), grant,
        grant.recipient, joining,
    ]  # fmt: skip


def subclasses(kind: type[Any]) -> set[type[Any]]:
    return {kind}.union(*(subclasses(one) for one in kind.__subclasses__()))


def secrets_in(holders: list[KeyHolder]) -> list[bytes]:
    keyring, authority, _, token, store, _, client = holders[:7]
    assert isinstance(keyring, FileKeyring)
    assert isinstance(authority, Authority)
    assert isinstance(token, JoinToken)
    assert isinstance(store, EnvelopeStore)
    assert isinstance(client, Credentials)
    keys = [authority._ca_key, authority._cluster_key, client.private_key]
    return [*keyring._keks.values(), token.secret, store.audit._key, *(key.private_bytes_raw() for key in keys)]


def shows(text: str, secret: bytes) -> bool:
    return secret.hex() in text or repr(secret)[2:-1] in text


def test_every_class_that_holds_keys_is_looked_at(holders: list[KeyHolder]) -> None:
    ours = {kind.__qualname__ for kind in subclasses(KeyHolder) if kind.__module__.startswith("raylog.security")}
    assert {type(holder).__qualname__ for holder in holders} == ours - {"KeyHolder"}


def test_no_holder_shows_its_secrets(holders: list[KeyHolder]) -> None:
    secrets = secrets_in(holders)
    assert len(secrets) == 6
    for holder in holders:
        text = f"{holder!r} {holder!s} {[holder]} {holder:}"
        assert not any(shows(text, secret) for secret in secrets)
        assert len(text) < 1000


def test_no_holder_can_be_pickled_or_copied(holders: list[KeyHolder]) -> None:
    for holder in holders:
        for carry_off in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(UsageError, match=f"{type(holder).__name__} holds keys and does not leave its process"):
                carry_off(holder)


def test_no_error_shows_a_secret(
    keyring: FileKeyring,
    keyring_path: Path,
    authority: Authority,
    token: JoinToken,
    join_as: JoinAs,
    tmp_path: Path,
    now_s: float,
) -> None:
    client = join_as(authority, "client")
    client.save(tmp_path / "client")
    token.save(tmp_path / "join" / "token.json")
    request = join.request_with_token(token, "node", new_id(), now_s).request
    authority.revoke_join_token(token.token_id)
    credentials_path = tmp_path / "client" / "credentials.json"
    for path in (keyring_path, credentials_path, tmp_path / "join" / "token.json"):
        path.write_bytes(path.read_bytes()[:-4] + b"x")
    attempts: list[Callable[[], object]] = [
        lambda: FileKeyring.load(keyring_path),
        lambda: JoinToken.load(tmp_path / "join" / "token.json"),
        lambda: Credentials.load(tmp_path / "client"),
        lambda: authority.admit(request, now_s),
        lambda: keyring.unwrap(b"other", keyring.wrap(b"one", bytes(range(32)))),
    ]
    secrets = [token.secret, client.private_key.private_bytes_raw(), *keyring._keks.values(), bytes(range(32))]
    for attempt in attempts:
        with pytest.raises(RaylogError) as caught:
            attempt()
        text = "".join(traceback.format_exception(caught.value))
        assert not any(shows(text, secret) for secret in secrets)
        assert caught.value.__cause__ is None


def test_errors_survive_pickling_with_their_words(authority: Authority, now_s: float) -> None:
    with pytest.raises(NotPermitted) as caught:
        authority.admit(b"garbage", now_s)
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert again.exit_status == 4


def test_labels_and_parts_cannot_be_moved_into_each_other() -> None:
    forms = [
        labelled(b"a", b"b", b"c"), labelled(b"a", b"bc"), labelled(b"a", b"bc", b""), labelled(b"ab", b"c"),
        labelled(b"a"), labelled(b"a", b""), labelled(b"a", labelled(b"b", b"c")),
    ]  # fmt: skip
    assert len(set(forms)) == len(forms)
