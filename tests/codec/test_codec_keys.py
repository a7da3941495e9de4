"""Data keys: what is taken, what is refused, what is derived."""

import os
import pickle

import pytest
from codec_shards import new_ids, new_key, seal_shard

from raylog.codec.keys import GroupKey, derive_shard_keys, schema_hash
from raylog.errors import DamagedData, NotPermitted, RaylogError, UsageError
from raylog.spec import Kind, new_id


@pytest.mark.parametrize(
    "key",
    ["correct horse battery staple", b"too short", os.urandom(31), os.urandom(33), bytearray(os.urandom(32)), bytes(32),
     b"a passphrase of just 32 letters!", os.urandom(16).hex().encode(), b"\x00\xff" * 16],
)  # fmt: skip
def test_what_is_no_key_is_refused_and_not_shown(key: object) -> None:
    with pytest.raises(UsageError, match="refused, not stretched") as caught:
        GroupKey(new_id(), key)  # type: ignore[arg-type]
    assert str(key) not in str(caught.value)


def test_a_key_stays_in_its_process() -> None:
    key = new_key()
    assert key.dek.hex() not in repr(key) and str(key.dek) not in repr(key)
    with pytest.raises(UsageError, match="grant"):
        pickle.dumps(key)


def test_keys_differ_by_label_group_salt_and_header() -> None:
    key = new_key()
    derived = [
        derive_shard_keys(key, group, salt, prefix)
        for group, salt, prefix in (
            (0, b"s" * 32, b"p"),
            (1, b"s" * 32, b"p"),
            (0, b"t" * 32, b"p"),
            (0, b"s" * 32, b"q"),
        )
    ]
    assert len({one.index for one in derived} | {one.commitment for one in derived}) == 8
    assert derive_shard_keys(key, 0, b"s" * 32, b"p").index == derived[0].index


def test_schema_hashes_agree_only_under_one_key() -> None:
    key = new_key()
    assert schema_hash(key, b"schema") == schema_hash(key, b"schema")
    assert len({schema_hash(key, b"schema"), schema_hash(key, b"other"), schema_hash(new_key(), b"schema")}) == 3


def test_a_wrong_key_fails_the_commitment_before_anything_is_opened() -> None:
    key = new_key()
    shard = seal_shard(Kind.FILES, b"preamble", lambda s: s.add_bytes(b"content"), keys=[key])
    with pytest.raises(DamagedData, match=key.dek_id) as caught:
        shard.opener([GroupKey(key.dek_id, os.urandom(32))])
    assert caught.value.check == "commitment"
    for keys in ([], [new_key()]):
        with pytest.raises(UsageError, match=key.dek_id):
            shard.opener(keys)


def test_a_missing_groups_key_is_named() -> None:
    keys = [new_key(), new_key()]
    shard = seal_shard(Kind.ARROW, b"preamble", lambda s: s.add_unit([b"batch"], 1, 1), keys=keys)
    assert bytes(shard.opener(keys[1:]).chunk(1)) == b"batch"
    assert shard.opener(keys[:1]).preamble() == b"preamble"
    with pytest.raises(NotPermitted, match=keys[1].dek_id):
        shard.opener(keys[:1]).chunk(1)
    with pytest.raises(NotPermitted, match=keys[0].dek_id):
        shard.opener(keys[1:]).preamble()


def test_many_groups_and_bad_arguments() -> None:
    keys = [new_key() for _ in range(64)]
    shard = seal_shard(Kind.ARROW, b"p", lambda s: [s.add_unit([bytes([g])], 1, g) for g in range(64)], keys=keys)
    opener = shard.opener(keys[10:])
    assert [bytes(opener.chunk(1 + group)) for group in range(10, 64)] == [bytes([g]) for g in range(10, 64)]
    for wrong in ({"keys": [*keys, new_key()]}, {"chunk_bytes": 0}, {"chunk_bytes": 1 << 23}, {"salt": b"short"}):
        with pytest.raises(UsageError):
            seal_shard(Kind.ARROW, b"p", lambda s: None, **wrong)
    with pytest.raises(UsageError):
        seal_shard(Kind.FILES, b"p", lambda s: None, keys=keys[:2])
    with pytest.raises(RaylogError):
        type(new_ids())(tenant="../etc", artifact=new_id(), version=new_id(), shard=new_id())
