"""Certificates and the authority: who is believed, and each way of not being."""

import datetime
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from raylog.errors import Conflict, DamagedData, NotPermitted, RaylogError, UsageError
from raylog.security.certs import (
    LIFETIME_S,
    Authority,
    Credentials,
    CurrentCredentials,
    Identity,
    verify_certificate,
    verify_ed25519,
    verify_signature,
)
from raylog.security.identity import BACKDATED_S, make_csr
from raylog.security.providers.file import FileKeyring
from raylog.spec import new_id

JoinAs = Callable[..., Credentials]


@pytest.fixture
def key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


@pytest.fixture
def identity(authority: Authority) -> Identity:
    return Identity(role="node", id=new_id(), cluster_id=authority.cluster_id)


@pytest.fixture
def certificate(authority: Authority, key: Ed25519PrivateKey, identity: Identity, now_s: float) -> bytes:
    return authority.issue(make_csr(key), identity, now_s=now_s)


def made_by_hand(authority: Authority, key: Ed25519PrivateKey, *extensions: x509.ExtensionType) -> bytes:
    """A certificate that the authority's key signed, but not as raylog would."""
    ca = x509.load_der_x509_certificate(authority.ca_der)
    moment = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(ca.subject, ca.subject, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(moment).not_valid_after(moment + datetime.timedelta(hours=1))
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(authority._ca_key, None).public_bytes(Encoding.DER)


# Certificates


def test_a_certificate_says_who(authority: Authority, certificate: bytes, identity: Identity, now_s: float) -> None:
    assert verify_certificate(certificate, authority.ca_der, now_s) == identity
    assert Identity.parse(str(identity)) == identity
    parsed = x509.load_der_x509_certificate(certificate)
    lifetime_s = (parsed.not_valid_after_utc - parsed.not_valid_before_utc).total_seconds()
    assert lifetime_s == pytest.approx(LIFETIME_S + BACKDATED_S, abs=1)
    ca = x509.load_der_x509_certificate(authority.ca_der)
    assert ca.extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(True, 0)


def test_a_clock_five_minutes_behind_is_no_trouble(authority: Authority, certificate: bytes, now_s: float) -> None:
    verify_certificate(certificate, authority.ca_der, now_s - BACKDATED_S + 2)


def test_an_expired_certificate_is_refused(authority: Authority, certificate: bytes, now_s: float) -> None:
    with pytest.raises(NotPermitted, match=r"expired 10\d s ago: join again"):
        verify_certificate(certificate, authority.ca_der, now_s + LIFETIME_S + 100)


def test_a_certificate_of_the_future_is_refused(authority: Authority, certificate: bytes, now_s: float) -> None:
    with pytest.raises(NotPermitted, match=r"becomes valid in .* s: the clock"):
        verify_certificate(certificate, authority.ca_der, now_s - 1000)


def test_another_authoritys_certificate_is_refused(
    authority: Authority, foreign: Authority, certificate: bytes, now_s: float
) -> None:
    with pytest.raises(NotPermitted, match=f"expected a certificate of the authority 'raylog {foreign.cluster_id}'"):
        verify_certificate(certificate, foreign.ca_der, now_s)


def test_an_authority_of_the_same_name_with_another_key_is_refused(
    authority: Authority, certificate: bytes, now_s: float, tmp_path: Path
) -> None:
    keyring = FileKeyring.create(tmp_path / "twin" / "keyring.json", authority.cluster_id)
    with (
        Authority.create(tmp_path / "twin" / "authority.sealed", keyring) as twin,
        pytest.raises(NotPermitted, match="it did not sign"),
    ):
        verify_certificate(certificate, twin.ca_der, now_s)


def test_the_authoritys_own_certificate_is_nobodys(authority: Authority, now_s: float) -> None:
    with pytest.raises(NotPermitted, match="got an authority's"):
        verify_certificate(authority.ca_der, authority.ca_der, now_s)


def uri(text: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(text)])


def test_signed_by_the_authority_is_not_enough(authority: Authority, key: Ed25519PrivateKey, now_s: float) -> None:
    usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
    both = x509.ExtendedKeyUsage([x509.OID_SERVER_AUTH, x509.OID_CLIENT_AUTH])
    leaf = x509.BasicConstraints(False, None)
    right = f"raylog://{authority.cluster_id}/node/{new_id()}"
    verify_certificate(made_by_hand(authority, key, leaf, usage, both, uri(right)), authority.ca_der, now_s + 2)
    wrong = [
        ([usage, both, uri(right)], "not one that raylog issues"),
        ([leaf, both, uri(right)], "not one that raylog issues"),
        ([leaf, usage, uri(right)], "not one that raylog issues"),
        ([leaf, usage, both], "not one that raylog issues"),
        ([leaf, usage, x509.ExtendedKeyUsage([x509.OID_CLIENT_AUTH]), uri(right)], "TLS servers and clients"),
        ([leaf, usage, both, uri(f"raylog://{new_id()}/node/{new_id()}")], "got one of"),
        ([leaf, usage, both, uri(f"raylog://{authority.cluster_id}/admin/{new_id()}")], "expected a role of"),
        ([leaf, usage, both, uri("https://example.org/")], "expected an identity"),
        ([leaf, usage, both, x509.SubjectAlternativeName([x509.DNSName("node-1")])], "expected one URI"),
        (
            [leaf, usage, both, x509.SubjectAlternativeName([x509.UniformResourceIdentifier(right)] * 2)],
            "expected one URI",
        ),
    ]
    for extensions, message in wrong:
        with pytest.raises(NotPermitted, match=message):
            verify_certificate(made_by_hand(authority, key, *extensions), authority.ca_der, now_s + 2)


@pytest.mark.parametrize("der", [b"", b"\x30\x82", b"GET / HTTP/1.1\r\n", bytes(5000)])
def test_other_bytes_are_no_certificate(authority: Authority, der: bytes, now_s: float) -> None:
    with pytest.raises(NotPermitted, match="expected a certificate"):
        verify_certificate(der, authority.ca_der, now_s)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[bytes, bytes]]:
    folder = tmp_path_factory.mktemp("fuzz") / "keys"
    with Authority.create(folder / "a", FileKeyring.create(folder / "keyring.json", new_id())) as authority:
        identity = Identity(role="client", id=new_id(), cluster_id=authority.cluster_id)
        csr = make_csr(Ed25519PrivateKey.generate())
        yield authority.issue(csr, identity, now_s=1.8e9), authority.ca_der


@given(data=st.data())
def test_no_changed_certificate_passes(fuzzed: tuple[bytes, bytes], data: st.DataObject) -> None:
    certificate, ca_der = fuzzed
    changed = bytearray(certificate)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    if bytes(changed) != certificate:
        with pytest.raises(NotPermitted):
            verify_certificate(bytes(changed), ca_der, 1.8e9)


@given(text=st.one_of(st.text(max_size=120), st.from_regex(r"raylog://[0-9a-f]{32}/(node|root)/.{0,40}")))
def test_any_text_is_an_identity_or_refused(text: str) -> None:
    try:
        assert str(Identity.parse(text)) == text
    except RaylogError as error:
        assert isinstance(error, UsageError)


# Signatures


def test_a_signature_is_one_keys_over_one_text(certificate: bytes, key: Ed25519PrivateKey) -> None:
    verify_signature(certificate, b"text", key.sign(b"text"))
    for data, signature in [
        (b"texT", key.sign(b"text")),
        (b"text", Ed25519PrivateKey.generate().sign(b"text")),
        (b"text", b""),
    ]:
        with pytest.raises(NotPermitted, match="not by the certificate's key, or what it signs was changed"):
            verify_signature(certificate, data, signature)


def test_the_clusters_key_signs_for_good(authority: Authority, foreign: Authority, tmp_path: Path) -> None:
    public_key = authority.cluster_public_key
    signature = authority.sign(b"manifest")
    verify_ed25519(public_key, b"manifest", signature, "the cluster's key")
    with pytest.raises(NotPermitted, match="not by the cluster's key"):
        verify_ed25519(foreign.cluster_public_key, b"manifest", signature, "the cluster's key")
    for malformed in (b"", bytes(31)):
        with pytest.raises(NotPermitted):
            verify_ed25519(malformed, b"manifest", signature, "the cluster's key")


# Requests for certificates


def test_a_request_must_be_signed_by_its_own_key(
    authority: Authority, key: Ed25519PrivateKey, identity: Identity
) -> None:
    csr = bytearray(make_csr(key))
    csr[-1] ^= 1
    with pytest.raises(NotPermitted, match="not signed by its own key"):
        authority.issue(bytes(csr), identity, now_s=0)


def test_a_request_for_another_kind_of_key_is_refused(authority: Authority, identity: Identity) -> None:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    csr = builder.sign(ec.generate_private_key(ec.SECP256R1()), SHA256()).public_bytes(Encoding.DER)
    with pytest.raises(NotPermitted, match="for an Ed25519 key"):
        authority.issue(csr, identity, now_s=0)


@pytest.mark.parametrize("csr", [b"", b"\x30\x03", bytes(5000)])
def test_other_bytes_are_no_request(authority: Authority, identity: Identity, csr: bytes) -> None:
    with pytest.raises(NotPermitted, match=r"expected a (certificate )?request"):
        authority.issue(csr, identity, now_s=0)


def test_no_certificate_for_another_cluster_or_for_years(
    authority: Authority, key: Ed25519PrivateKey, identity: Identity, now_s: float
) -> None:
    with pytest.raises(NotPermitted, match="this is the authority of cluster"):
        authority.issue(make_csr(key), Identity(role="node", id=new_id(), cluster_id=new_id()), now_s=now_s)
    with pytest.raises(UsageError, match="expected a lifetime of 60 to 2592000 s"):
        authority.issue(make_csr(key), identity, now_s=now_s, lifetime_s=1e9)


# The authority's file


def test_the_authority_comes_back_after_a_restart(
    authority: Authority, keyring: FileKeyring, tmp_path: Path, certificate: bytes, now_s: float
) -> None:
    path = tmp_path / "keyring" / "authority.sealed"
    authority.close()
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(file.name for file in path.parent.iterdir()) == ["authority.sealed", "keyring.json"]
    with Authority.load(path, keyring) as again:
        assert again.cluster_public_key == authority.cluster_public_key
        verify_certificate(certificate, again.ca_der, now_s)
    content = path.read_bytes()
    assert authority._ca_key.private_bytes_raw() not in content
    assert authority._cluster_key.private_bytes_raw() not in content


def test_an_existing_authority_is_never_overwritten(authority: Authority, keyring: FileKeyring, tmp_path: Path) -> None:
    path = tmp_path / "keyring" / "authority.sealed"
    with pytest.raises(Conflict, match="never overwritten"):
        Authority.create(path, keyring)
    assert not [file for file in path.parent.iterdir() if file.name.endswith(".new")]


def test_a_missing_lax_foreign_or_changed_authority_is_refused(
    authority: Authority, keyring: FileKeyring, tmp_path: Path
) -> None:
    path = tmp_path / "keyring" / "authority.sealed"
    with pytest.raises(NotPermitted, match=r"no authority at .*'raylog up' makes one"):
        Authority.load(path.with_name("missing"), keyring)
    assert not path.with_name("missing").exists()
    other = FileKeyring.create(tmp_path / "other" / "keyring.json", new_id())
    with pytest.raises(NotPermitted, match=f"expected authority of format 1 of cluster {other.cluster_id}"):
        Authority.load(path, other)
    connection = sqlite3.connect(path)
    connection.execute("UPDATE authority SET sealed = zeroblob(92)")
    connection.commit()
    connection.close()
    with pytest.raises(DamagedData, match="the authority does not open"):
        Authority.load(path, keyring)
    path.chmod(0o640)
    with pytest.raises(NotPermitted, match="has mode 0640, expected 0600"):
        Authority.load(path, keyring)


def test_a_rotation_rewraps_the_authority(
    authority: Authority, keyring: FileKeyring, tmp_path: Path, join_as: JoinAs, now_s: float
) -> None:
    authority.make_join_token()
    keyring.add_version()
    assert authority.rewrap() == 3  # its keys, the token, the audit log's key
    assert authority.rewrap() == 0
    public_key = authority.cluster_public_key
    with Authority.load(tmp_path / "keyring" / "authority.sealed", keyring) as again:
        assert again.cluster_public_key == public_key
        verify_certificate(join_as(again, "node").certificate_der, again.ca_der, now_s)


# Credentials


def test_credentials_come_back_after_a_restart(authority: Authority, join_as: JoinAs, tmp_path: Path) -> None:
    credentials = join_as(authority, "node")
    credentials.save(tmp_path / "node")
    credentials.save(tmp_path / "node")
    (file,) = (tmp_path / "node").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "node").stat().st_mode & 0o777 == 0o700
    again = Credentials.load(tmp_path / "node")
    assert again.identity == credentials.identity
    assert again.cluster_public_key == authority.cluster_public_key
    assert again.not_after_s == credentials.not_after_s
    verify_signature(credentials.certificate_der, b"data", again.sign(b"data"))


def test_missing_lax_and_damaged_credentials_are_refused(authority: Authority, join_as: JoinAs, tmp_path: Path) -> None:
    with pytest.raises(NotPermitted, match=r"no credentials in .*join token"):
        Credentials.load(tmp_path / "node")
    credentials = join_as(authority, "node")
    credentials.save(tmp_path / "node")
    (file,) = (tmp_path / "node").iterdir()
    content = file.read_bytes()
    for damaged in (content[:-30], b"", b"[]", content.replace(b'format":1', b'format":2')):
        file.write_bytes(damaged)
        with pytest.raises(DamagedData):
            Credentials.load(tmp_path / "node")
    file.chmod(0o644)
    with pytest.raises(NotPermitted, match="has mode 0644"):
        Credentials.load(tmp_path / "node")


def test_a_key_that_is_not_the_certificates_is_refused(authority: Authority, join_as: JoinAs) -> None:
    theirs = join_as(authority, "node")
    with pytest.raises(NotPermitted, match="is for another key"):
        Credentials(Ed25519PrivateKey.generate(), theirs.certificate_der, theirs.ca_der, theirs.cluster_public_key)


def test_renewal_is_due_after_two_thirds(authority: Authority, join_as: JoinAs, now_s: float) -> None:
    credentials = join_as(authority, "node")
    assert not credentials.needs_renewal(now_s + LIFETIME_S * 0.6)
    assert credentials.needs_renewal(now_s + LIFETIME_S * 0.7)


def test_current_credentials_are_replaced_by_the_same_identity_only(authority: Authority, join_as: JoinAs) -> None:
    first = join_as(authority, "node")
    current = CurrentCredentials(first)
    assert current() is first
    with pytest.raises(NotPermitted, match=f"expected credentials of {first.identity}"):
        current.replace(join_as(authority, "node"))
    assert current() is first
