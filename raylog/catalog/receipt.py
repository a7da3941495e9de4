"""Receipts: a node's signed word that it holds a verified copy of a shard. Only these count as replicas."""

import msgspec

from raylog.catalog.encoding import (
    DIGEST_BYTES,
    FORMAT_VERSION,
    check_bytes,
    check_cluster,
    check_range,
    decode,
    encode,
    signing_input,
)
from raylog.errors import NotPermitted, UsageError
from raylog.security.trust import Identify, Sign
from raylog.spec import Durability, ShardRef, TierKind, parse_backup, parse_id

EPOCH_MAX = 1 << 62

_LABEL = "raylog/1 receipt"
_KEPT_ON = {
    Durability.MEMORY: frozenset({TierKind.MEMORY, TierKind.SSD, TierKind.HDD}),
    Durability.DISK: frozenset({TierKind.SSD, TierKind.HDD}),
    Durability.REMOTE: frozenset({TierKind.SSD, TierKind.HDD}),  # of the replicas; the copy in the backup comes on top
}


class Receipt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """That `node_id` holds the shard with this frame digest, verified, on a tier of this kind; of tier `remote`: that
    it has written the copy below `url`, or has seen that its frame is there."""

    format_version: int = FORMAT_VERSION
    cluster_id: str
    node_id: str
    shard_id: str
    frame_digest: bytes
    tier: TierKind
    url: str = ""
    epoch: int

    def __post_init__(self) -> None:
        parse_id(self.cluster_id, "cluster id")
        parse_id(self.node_id, "node id")
        parse_id(self.shard_id, "shard id")
        check_bytes(self.frame_digest, DIGEST_BYTES, "frame digest")
        check_range(self.epoch, 0, EPOCH_MAX, "epoch")
        if (self.tier is TierKind.REMOTE) != bool(self.url) or (self.url and parse_backup(self.url) != self.url):
            raise UsageError(f"a receipt of tier {self.tier} has the URL {self.url!r}")

    def keeps(self, shard: ShardRef, durability: Durability) -> bool:
        """Whether this is a replica of `shard` that `durability` counts."""
        same = (self.shard_id, self.frame_digest) == (shard.shard_id, shard.frame_digest)
        return same and self.tier in _KEPT_ON[durability]


class SignedReceipt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    receipt: bytes
    certificate: bytes
    signature: bytes


def kept_on(durability: Durability) -> frozenset[TierKind]:
    """The kinds of tier on which a copy counts for `durability`."""
    return _KEPT_ON[durability]


def make_receipt(receipt: Receipt, certificate: bytes, sign: Sign) -> bytes:
    """A node's signed receipt. Misuse: make it only after the tier's `commit` of the shard has returned."""
    data = encode(receipt)
    signature = sign(signing_input(_LABEL, data))
    return encode(SignedReceipt(receipt=data, certificate=certificate, signature=signature))


def peek_receipt(data: bytes) -> Receipt:
    """What a signed receipt says, *signature not checked*: see `verify_receipt`. Raises `DamagedData`."""
    return decode(Receipt, decode(SignedReceipt, data, "a signed receipt").receipt, "a receipt")


def verify_receipt(data: bytes, cluster_id: str, identify: Identify) -> Receipt:
    """The receipt, if the node that it names signed it. Raises `DamagedData`, `NotPermitted`."""
    signed = decode(SignedReceipt, data, "a signed receipt")
    receipt = decode(Receipt, signed.receipt, "a receipt")
    what = f"a receipt for shard {receipt.shard_id}"
    check_cluster(cluster_id, receipt.cluster_id, what)
    identity = identify(signed.certificate, signing_input(_LABEL, signed.receipt), signed.signature)
    expected = f"raylog://{cluster_id}/node/{receipt.node_id}"
    if identity != expected:
        raise NotPermitted(f"{what}: expected it to be signed by {expected}, it was by {identity}")
    return receipt
