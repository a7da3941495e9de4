"""A cluster's keys in a directory of their own: keyring, authority, envelope store, and who joined."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raylog.security import join
from raylog.security.certs import Authority, Credentials
from raylog.security.envelopes import EnvelopeStore
from raylog.security.grants import Granter, PendingGrant, WriteScope, request_grant
from raylog.security.join import JoinToken
from raylog.security.providers.file import FileKeyring
from raylog.spec import new_id

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


@pytest.fixture(scope="session")
def fuzz_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Authority, bytes, bytes]]:
    """An authority, a join request that it has answered, and the answer."""
    folder = tmp_path_factory.mktemp("fuzz") / "keys"
    with Authority.create(folder / "authority", FileKeyring.create(folder / "keyring.json", new_id())) as authority:
        pending = join.request_with_token(authority.make_join_token(), "client", new_id(), 1.8e9)
        yield authority, pending.request, authority.admit(pending.request, 1.8e9)


@pytest.fixture(scope="session")
def fuzz_grant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Granter, PendingGrant, bytes, bytes]]:
    """A granter, a request that it has answered, the grant, and the cluster's public key; the time is 1.8e9."""
    folder = tmp_path_factory.mktemp("fuzz") / "keys"
    keyring = FileKeyring.create(folder / "keyring.json", new_id())
    with Authority.create(folder / "authority", keyring) as authority, EnvelopeStore(folder / "e", keyring) as store:
        joining = join.request_with_token(authority.make_join_token(), "client", new_id(), 1.8e9)
        client = joining.accept(authority.admit(joining.request, 1.8e9), 1.8e9)
        granter = Granter(store, authority)
        pending = request_grant(client, WriteScope(artifact_id=new_id(), tenant=new_id()), 1.8e9)
        yield granter, pending, granter.handle(pending.request, 1.8e9), authority.cluster_public_key
