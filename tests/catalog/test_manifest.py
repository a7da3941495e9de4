"""Manifests, receipts and records as bytes: one encoding, every change refused with the right error."""

import random
import time
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylog.catalog.encoding import decode, digest_of, encode
from raylog.catalog.manifest import (
    CommittedManifest,
    Extent,
    Manifest,
    SignedManifest,
    Statement,
    countersign,
    decode_signed,
    open_manifest,
    sign_manifest,
    verify_writer,
)
from raylog.catalog.receipt import Receipt, verify_receipt
from raylog.catalog.record import Record, SignedRecord, Tail, follow, open_record, sign_record
from raylog.codec.pieces import Parity
from raylog.errors import DamagedData, NotPermitted, RaylogError, UsageError
from raylog.security.trust import identify_by
from raylog.spec import Durability, TierKind, new_id
from raylog.testing.catalog_cluster import Cluster

CLUSTER = Cluster()


def committed(cluster: Cluster = CLUSTER, **changes: object) -> tuple[Manifest, bytes]:
    manifest = cluster.manifest(**changes)  # type: ignore[arg-type]
    signed, _ = decode_signed(cluster.sign(manifest), cluster.cluster_id)
    return manifest, countersign(signed, manifest.signer, 3, 9, 1_700_000_000_000_000, cluster.trust)


def test_a_committed_manifest_outlives_its_writers_certificate() -> None:
    brief = CLUSTER.member("client", lifetime_s=-1)
    manifest = CLUSTER.manifest(signer=brief.identity)
    signed, _ = decode_signed(CLUSTER.sign(manifest, brief), CLUSTER.cluster_id)
    with pytest.raises(NotPermitted):
        verify_writer(signed, manifest, CLUSTER.trust.identify)
    data = countersign(signed, manifest.signer, 3, 9, 17, CLUSTER.trust)
    opened, statement = open_manifest(data, CLUSTER.cluster_id, CLUSTER.trust.verify)
    assert opened == manifest
    assert (statement.number, statement.epoch, statement.time_us) == (3, 9, 17)
    assert statement.digest == digest_of(encode(manifest))


def test_a_certificate_that_was_good_is_refused_once_it_expired() -> None:
    """Its check against the authority is remembered, its time is not."""
    now_s = time.time()
    brief = CLUSTER.member("client", lifetime_s=60)
    identify = identify_by(CLUSTER.ca_der, lambda: now_s)
    assert identify(brief.certificate, b"data", brief.sign(b"data")) == brief.identity
    with pytest.raises(NotPermitted):
        identify(brief.certificate, b"other", brief.sign(b"data"))
    now_s += 61
    with pytest.raises(NotPermitted, match="expired"):
        identify(brief.certificate, b"data", brief.sign(b"data"))


labels = st.dictionaries(st.text(min_size=1, max_size=20), st.text(max_size=50), max_size=8)


@settings(max_examples=50, deadline=None)
@given(labels=labels, created_us=st.integers(0, 1 << 62), replicas=st.integers(1, 16))
def test_there_is_one_encoding(labels: dict[str, str], created_us: int, replicas: int) -> None:
    manifest = CLUSTER.manifest(labels=labels, created_us=created_us, replicas=replicas)
    backwards = msgspec.structs.replace(manifest, labels=dict(reversed(labels.items())))
    assert encode(manifest) == encode(backwards)
    assert decode(Manifest, encode(manifest), "it", 1 << 20) == manifest


def test_other_encodings_of_the_same_are_refused() -> None:
    data = encode(CLUSTER.manifest())
    fields = msgspec.msgpack.decode(data)
    others = {
        "order": msgspec.msgpack.encode(dict(reversed(fields.items()))),
        "unknown field": msgspec.msgpack.encode(fields | {"note": "x"}),
        "missing field": msgspec.msgpack.encode({key: value for key, value in fields.items() if key != "labels"}),
        "unknown in shard": msgspec.msgpack.encode(
            fields | {"shards": [one | {"shard": one["shard"] | {"note": 1}} for one in fields["shards"]]}
        ),
        "long integer": data.replace(b"\xa8replicas\x02", b"\xa8replicas\xcc\x02"),
        "extended": data + b"\x00",
    }
    for what, other in others.items():
        assert other != data, what
        with pytest.raises(DamagedData):
            decode(Manifest, other, "it", 1 << 20)


@pytest.mark.parametrize("number", [0, 2, 77])
def test_unknown_format_versions_are_named(number: int) -> None:
    fields = msgspec.msgpack.decode(encode(CLUSTER.manifest())) | {"format_version": number, "new": True}
    with pytest.raises(DamagedData, match=f"format version {number} is not known"):
        decode(Manifest, msgspec.msgpack.encode(fields), "it", 1 << 20)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_garbage_is_damage(data: bytes) -> None:
    for open_it in openers():
        with pytest.raises(DamagedData):
            open_it(data)


def test_deep_nesting_is_damage() -> None:
    for open_it in openers():
        with pytest.raises(DamagedData):
            open_it(b"\x91" * 50_000)


def openers() -> list[Callable[[bytes], object]]:
    trust = CLUSTER.trust
    return [
        lambda data: decode_signed(data, trust.cluster_id),
        lambda data: open_manifest(data, trust.cluster_id, trust.verify),
        lambda data: verify_receipt(data, trust.cluster_id, trust.identify),
        lambda data: open_record(data, trust.cluster_id, trust.verify),
    ]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(0, 7), st.sampled_from(["committed", "receipt", "record"]))
def test_any_flipped_bit_is_refused(place: int, bit: int, what: str) -> None:
    """Where the writer's own signature stands it is not looked at again: the countersignature replaced it."""
    trust = CLUSTER.trust
    expected: object = None
    if what == "committed":
        expected, data = committed()
    else:
        is_receipt = what == "receipt"
        data = CLUSTER.receipt(CLUSTER.shard(), CLUSTER.nodes[0]) if is_receipt else sign_record(record(), trust)
    flipped = bytearray(data)
    flipped[place % len(data)] ^= 1 << bit
    try:
        if what == "committed":
            opened: object = open_manifest(bytes(flipped), trust.cluster_id, trust.verify)[0]
        elif what == "receipt":
            opened = verify_receipt(bytes(flipped), trust.cluster_id, trust.identify)
        else:
            opened = open_record(bytes(flipped), trust.cluster_id, trust.verify)
    except (DamagedData, NotPermitted):
        return
    assert opened == expected


def test_a_changed_manifest_is_damage_and_a_forged_signature_is_not_permitted(other_cluster: Cluster) -> None:
    manifest, data = committed()
    whole = msgspec.msgpack.decode(data, type=CommittedManifest)
    statement = msgspec.msgpack.decode(whole.statement, type=Statement)
    other = encode(msgspec.structs.replace(manifest, replicas=1))
    stolen = encode(msgspec.structs.replace(statement, digest=digest_of(other)))
    foreign = other_cluster.cluster_key.sign(b"raylog/1 countersign\x00" + whole.statement)
    attempts: list[tuple[dict[str, bytes], type[RaylogError]]] = [
        ({"manifest": other}, DamagedData),
        ({"manifest": other, "statement": stolen}, NotPermitted),
        ({"countersignature": bytes(64)}, NotPermitted),
        ({"countersignature": b""}, NotPermitted),
        ({"countersignature": foreign}, NotPermitted),
    ]
    for changes, error in attempts:
        forged = encode(msgspec.structs.replace(whole, **changes))
        with pytest.raises(error):
            open_manifest(forged, CLUSTER.cluster_id, CLUSTER.trust.verify)
    with pytest.raises(NotPermitted, match="cluster"):
        open_manifest(committed(other_cluster)[1], CLUSTER.cluster_id, CLUSTER.trust.verify)


def test_a_signature_stands_under_no_other_label() -> None:
    """What a node signs as a receipt cannot be passed off as what a writer signs as a manifest, nor the reverse."""
    manifest = CLUSTER.manifest()
    node = CLUSTER.nodes[0]
    data = encode(manifest)
    for label in (b"raylog/1 receipt\x00", b"raylog/1 record\x00", b""):
        signature = node.sign(label + digest_of(data))
        signed = SignedManifest(manifest=data, certificate=node.certificate, signature=signature)
        with pytest.raises(NotPermitted):
            verify_writer(signed, manifest, CLUSTER.trust.identify)


def test_what_no_manifest_may_say() -> None:
    entry = CLUSTER.entry()
    twin = msgspec.structs.replace(entry, shard=msgspec.structs.replace(entry.shard, stored_bytes=1))
    bad: list[dict[str, object]] = [
        {"name": "../x"},
        {"name": "\u0441orpora"},
        {"replicas": 0},
        {"replicas": 17},
        {"shards": ()},
        {"shards": (entry, twin)},
        {"shards": (entry, msgspec.structs.replace(entry, content_tag=bytes(32)))},
        {"tag_dek_id": "x"},
        {"tenant": "x"},
        {"version_id": "../../etc/passwd"},
        {"parents": ("a",)},
        {"parents": ("a@1", "a@1")},
        {"labels": {"": "x"}},
        {"labels": {"k" * 65: "x"}},
        {"labels": {str(number): "" for number in range(65)}},
        {"created_us": -1},
    ]
    for changes in bad:
        with pytest.raises(UsageError):
            CLUSTER.manifest(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "extents",
    [(), ((0, 9),), ((8, 1),), ((0, 0),), ((-1, 2),), ((0, 4), (3, 2)), ((4, 1), (0, 1)), ((0, 1 << 60),)],
)
def test_extents_lie_in_order_within_their_shard(extents: tuple[tuple[int, int], ...]) -> None:
    parts = tuple(Extent(first=first, count=count, rows=0, content_bytes=0) for first, count in extents)
    with pytest.raises(UsageError):
        msgspec.structs.replace(CLUSTER.entry(), extents=parts)


def test_extents_have_no_more_than_their_shard() -> None:
    for rows, content_bytes in ((11, 0), (0, 4001), (-1, 0), (0, -1)):
        part = Extent(first=0, count=1, rows=rows, content_bytes=content_bytes)
        with pytest.raises(UsageError):
            msgspec.structs.replace(CLUSTER.entry(), extents=(part,))


def test_parity_has_a_digest_per_piece() -> None:
    entry = CLUSTER.entry()  # 5,000 bytes: two stripes of 4,096
    good = Parity(data_pieces=4, parity_pieces=2, stripe_bytes=4096, origin="0" * 32, digests=bytes(32 * 12))
    assert msgspec.structs.replace(entry, parity=good).parity == good
    for changes in (
        *({"digests": bytes(32 * 11)}, {"parity_pieces": 0}, {"data_pieces": 64}, {"stripe_bytes": 0}),
        *({"stripe_bytes": 4096 + 4}, {"stripe_bytes": 4 * 2**20 + 256}, {"origin": "../.."}),
    ):
        with pytest.raises(UsageError):
            msgspec.structs.replace(entry, parity=msgspec.structs.replace(good, **changes))


def test_a_manifest_that_is_too_long_is_refused_before_it_is_read() -> None:
    with pytest.raises(DamagedData, match="at most"):
        decode_signed(bytes(70 << 20), CLUSTER.cluster_id)


def test_the_largest_manifest_fits() -> None:
    """A million chunks' worth of metadata: 20,000 shards with a key each."""
    entry = CLUSTER.entry()
    entries = tuple(
        msgspec.structs.replace(entry, shard=msgspec.structs.replace(entry.shard, shard_id=random.randbytes(16).hex()))
        for _ in range(20_000)
    )
    manifest = CLUSTER.manifest(shards=entries)
    signed = sign_manifest(manifest, CLUSTER.writer.certificate, CLUSTER.writer.sign)
    assert len(signed) / len(entries) < 64 * 2**20 / 131_072
    assert decode_signed(signed, CLUSTER.cluster_id)[1].version(1, bytes(32)).shards == 20_000


def test_receipts_are_of_the_node_that_signed(other_cluster: Cluster) -> None:
    shard, (node, other) = CLUSTER.shard(), CLUSTER.nodes[:2]
    trust = CLUSTER.trust
    receipt = verify_receipt(CLUSTER.receipt(shard, node), trust.cluster_id, trust.identify)
    assert receipt.keeps(shard, Durability.DISK)
    assert not receipt.keeps(CLUSTER.shard(), Durability.DISK)
    assert not msgspec.structs.replace(receipt, tier=TierKind.MEMORY).keeps(shard, Durability.DISK)
    impostor = type(node)(node.id, other.certificate, other.sign, node.identity)
    client = CLUSTER.writer
    for forger in (impostor, client):
        with pytest.raises(NotPermitted, match="expected it to be signed by"):
            verify_receipt(CLUSTER.receipt(shard, forger), trust.cluster_id, trust.identify)
    foreign = other_cluster.receipt(shard, other_cluster.nodes[0])
    with pytest.raises(NotPermitted, match="cluster"):
        verify_receipt(foreign, trust.cluster_id, trust.identify)
    with pytest.raises(UsageError):
        msgspec.structs.replace(receipt, epoch=-1)


def record(**changes: object) -> Record:
    fields: dict[str, object] = {
        "cluster_id": CLUSTER.cluster_id,
        "sequence": 2,
        "epoch": 1,
        "kind": "delete",
        "artifact_id": "1" * 32,
        "name": "a",
        "number": 4,
        "previous": b"\x01" * 32,
        "time_us": 5,
        "by": "raylog://x/client/y",
    }
    return Record(**(fields | changes))  # type: ignore[arg-type]


def test_unknown_record_kinds_are_refused_by_name() -> None:
    data = encode(record())
    unknown = data.replace(b"\xa6delete", b"\xa6absorb")
    assert unknown != data
    signature = CLUSTER.trust.sign(b"raylog/1 record\x00" + unknown)
    signed = encode(SignedRecord(record=unknown, signature=signature))
    with pytest.raises(DamagedData, match="record kind 'absorb' is not known"):
        open_record(signed, CLUSTER.cluster_id, CLUSTER.trust.verify)


def test_what_no_record_may_say() -> None:
    bad: list[dict[str, object]] = [
        {"sequence": 0},
        {"epoch": 0},
        {"number": -1},
        {"number": 10**12},
        {"name": ".."},
        {"previous": b""},
        {"manifest_digest": bytes(32)},
        {"kind": "commit"},
        {"kind": "set-latest", "number": 0},
        {"kind": "epoch"},
        {"details": {"until": "2030"}},
    ]
    for changes in bad:
        with pytest.raises(UsageError):
            record(**changes)


def test_records_follow_one_another() -> None:
    tail = Tail(sequence=1, epoch=1, digest=b"\x01" * 32)
    assert follow(tail, record(), bytes(32)) == Tail(sequence=2, epoch=1, digest=bytes(32))
    epoch: dict[str, object] = {"kind": "epoch", "artifact_id": "", "name": "", "number": 0}
    assert follow(tail, record(**epoch, epoch=2), bytes(32)).epoch == 2
    wrong: list[tuple[dict[str, object], type[RaylogError], str]] = [
        ({"sequence": 3}, DamagedData, "missing"),
        ({"sequence": 1}, DamagedData, "expected record 2"),
        ({"previous": bytes(32)}, DamagedData, "does not follow"),
        ({"epoch": 2}, DamagedData, "no record before it began"),
        (epoch, DamagedData, "second time"),
    ]
    for changes, error, words in wrong:
        with pytest.raises(error, match=words):
            follow(tail, record(**changes), bytes(32))
    with pytest.raises(NotPermitted, match="superseded"):
        follow(Tail(sequence=1, epoch=4, digest=b"\x01" * 32), record(), bytes(32))


def test_another_clusters_record_is_refused(other_cluster: Cluster) -> None:
    foreign = sign_record(record(cluster_id=other_cluster.cluster_id), other_cluster.trust)
    with pytest.raises(NotPermitted, match="cluster"):
        open_record(foreign, CLUSTER.cluster_id, CLUSTER.trust.verify)
    forged = sign_record(record(), other_cluster.trust)
    with pytest.raises(NotPermitted):
        open_record(forged, CLUSTER.cluster_id, CLUSTER.trust.verify)


def test_receipt_struct_is_bounded() -> None:
    with pytest.raises(UsageError):
        Receipt(
            cluster_id=CLUSTER.cluster_id,
            node_id="../x",
            shard_id=new_id(),
            frame_digest=bytes(32),
            tier=TierKind.SSD,
            epoch=0,
        )
