"""A cluster's keys, nodes and writers for the catalog's tests: real certificates, repeatable from a seed."""

# ruff: noqa: S311 - repeatable bytes, no secrets

import random
import time
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from raylog.catalog.catalog import Catalog
from raylog.catalog.journal import Journal
from raylog.catalog.manifest import Manifest, ShardEntry, sign_manifest
from raylog.catalog.receipt import Receipt, make_receipt
from raylog.security.identity import Identity, issue_authority, issue_certificate
from raylog.security.trust import Sign, Trust, identify_by, verify_by
from raylog.spec import Durability, Kind, ShardRef, TierKind, Version, new_id

TENANT = "7" * 32
DAY_S = 86400.0


@dataclass(frozen=True)
class Member:
    """A node or client with a certificate."""

    id: str
    certificate: bytes
    sign: Sign
    identity: str


class Cluster:
    def __init__(self, seed: int = 1) -> None:
        self._random = random.Random(seed)
        self.cluster_id = self.random_id()
        self._ca_key = self._key()
        self.cluster_key = self._key()
        now_s = time.time()
        self.ca_der = issue_authority(self._ca_key, self.cluster_id, now_s - DAY_S, now_s + DAY_S)
        self.trust = Trust(
            cluster_id=self.cluster_id,
            sign=self.cluster_key.sign,
            verify=verify_by(self.cluster_key.public_key().public_bytes_raw()),
            identify=identify_by(self.ca_der, time.time),
        )
        self.nodes = [self.member("node") for _ in range(4)]
        self.writer = self.member("client")

    def random_id(self) -> str:
        return self._random.randbytes(16).hex()

    def _key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self._random.randbytes(32))

    def member(self, role: str, lifetime_s: float = DAY_S) -> Member:
        key = self._key()
        identity = Identity(role=role, id=self.random_id(), cluster_id=self.cluster_id)
        now_s = time.time()
        public_key = key.public_key().public_bytes_raw()
        certificate = issue_certificate(
            self._ca_key, self.ca_der, public_key, identity, now_s - DAY_S / 2, now_s + lifetime_s
        )
        return Member(identity.id, certificate, key.sign, str(identity))

    def open(self, directory: Path, epoch: int | None = None, create: bool = True) -> Catalog:
        """The catalog in `directory`, its next epoch (or this one) begun."""
        catalog = Catalog(Journal(directory, self.trust, time.time, create=create))
        catalog.begin_epoch(epoch or catalog.epoch_seen() + 1)
        return catalog

    def sign(self, manifest: Manifest, writer: Member | None = None) -> bytes:
        writer = writer or self.writer
        return sign_manifest(manifest, writer.certificate, writer.sign)

    def receipt(
        self, shard: ShardRef, node: Member, tier: TierKind = TierKind.SSD, epoch: int = 0, url: str = ""
    ) -> bytes:
        receipt = Receipt(
            cluster_id=self.cluster_id,
            node_id=node.id,
            shard_id=shard.shard_id,
            frame_digest=shard.frame_digest,
            tier=tier,
            url=url,
            epoch=epoch,
        )
        return make_receipt(receipt, node.certificate, node.sign)

    def receipts(self, manifest: Manifest) -> list[bytes]:
        """As many as the manifest wants, from the first nodes."""
        shards = manifest.distinct_shards().values()
        return [self.receipt(shard, node) for shard in shards for node in self.nodes[: manifest.replicas]]

    def manifest(self, name: str = "corpora/wiki", artifact_id: str = "", **changes: object) -> Manifest:
        fields: dict[str, object] = {
            "cluster_id": self.cluster_id,
            "tenant": TENANT,
            "artifact_id": artifact_id or new_id(),
            "version_id": new_id(),
            "name": name,
            "kind": Kind.ARROW,
            "replicas": 2,
            "durability": Durability.DISK,
            "created_us": 1_700_000_000_000_000,
            "signer": self.writer.identity,
            "tag_dek_id": new_id(),
            "shards": (self.entry(), self.entry()),
        }
        return Manifest(**(fields | changes))  # type: ignore[arg-type]

    def entry(self) -> ShardEntry:
        return ShardEntry.whole(self.shard(), (new_id(),), random.randbytes(32))

    def shard(self) -> ShardRef:
        digest = random.randbytes(32)
        return ShardRef(
            shard_id=new_id(), frame_digest=digest, stored_bytes=5000, content_bytes=4000, rows=10, chunks=8
        )

    def put(self, catalog: Catalog, name: str = "corpora/wiki", **changes: object) -> tuple[Manifest, Version]:
        """One more version of `name`; the manifest and the version."""
        pending = catalog.begin(name, TENANT)
        manifest = self.manifest(name, pending.artifact_id, **changes)
        return manifest, catalog.commit(self.sign(manifest), self.receipts(manifest), pending.base)
