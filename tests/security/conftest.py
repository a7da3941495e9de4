"""A cluster's keys in a directory of their own: keyring, authority, envelope store, and who joined."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raylog.security import join
from raylog.security.certs import Authority, Credentials
from raylog.security.envelopes import EnvelopeStore
from raylog.security.grants import Granter
from raylog.security.join import JoinToken
from raylog.security.providers.file import FileKeyring
from raylog.spec import new_id

NewCluster = Callable[[str], Authority]
JoinAs = Callable[..., Credentials]


@pytest.fixture
def now_s() -> float:
    return time.time()


@pytest.fixture
def keyring_path(tmp_path: Path) -> Path:
    return tmp_path / "keyring" / "keyring.json"


@pytest.fixture
def keyring(keyring_path: Path) -> FileKeyring:
    return FileKeyring.create(keyring_path, new_id())


@pytest.fixture
def authority(tmp_path: Path, keyring: FileKeyring) -> Iterator[Authority]:
    with Authority.create(tmp_path / "keyring" / "authority.sealed", keyring) as authority:
        yield authority


@pytest.fixture
def foreign(tmp_path: Path) -> Iterator[Authority]:
    """The authority of another cluster."""
    keyring = FileKeyring.create(tmp_path / "foreign" / "keyring.json", new_id())
    with Authority.create(tmp_path / "foreign" / "authority.sealed", keyring) as authority:
        yield authority


@pytest.fixture
def token(authority: Authority) -> JoinToken:
    return authority.make_join_token()


@pytest.fixture
def join_as(now_s: float) -> JoinAs:
    def join_as(authority: Authority, role: str, holder_id: str | None = None) -> Credentials:
        pending = join.request_with_token(authority.make_join_token(), role, holder_id or new_id(), now_s)
        return pending.accept(authority.admit(pending.request, now_s), now_s)

    return join_as


@pytest.fixture
def store(tmp_path: Path, keyring: FileKeyring) -> Iterator[EnvelopeStore]:
    with EnvelopeStore(tmp_path / "keys" / "envelopes.sqlite", keyring) as store:
        yield store


@pytest.fixture
def granter(store: EnvelopeStore, authority: Authority) -> Granter:
    return Granter(store, authority)
