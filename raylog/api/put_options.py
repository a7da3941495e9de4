"""What a put is asked for, checked before anything is read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from raylog.codec.pieces import parse_erasure
from raylog.errors import UsageError
from raylog.spec import Codec, Durability, Reference, Use, parse_backup, parse_codec, parse_reference


@dataclass(frozen=True, slots=True, kw_only=True)
class PutOptions:
    """Of `client.put`."""

    replicas: int
    durability: Durability
    codec: Codec | None
    labels: Mapping[str, str]
    parents: tuple[Reference, ...] = ()
    backup: str = ""
    erasure: tuple[int, int] | None = None  # data and parity pieces

    @property
    def kept_as(self) -> Durability:
        """What is asked of the nodes; the copy in the backup comes on top."""
        return Durability.DISK if self.durability is Durability.REMOTE else self.durability

    def labelled(self, more: Mapping[str, str]) -> Self:
        """The same with these labels too."""
        return replace(self, labels={**self.labels, **more})

    @property
    def use(self) -> Use:
        """What the version is for, by its label."""
        return Use(self.labels.get("use", Use.DATASET))

    @property
    def waits_for_backup(self) -> bool:
        return self.durability is Durability.REMOTE

    @classmethod
    def parse(
        cls,
        *,
        replicas: int,
        durability: str,
        codec: str,
        labels: Mapping[str, str] | None,
        parents: Sequence[str] = (),
        backup: str | None = None,
        erasure: str | None = None,
    ) -> Self:
        """Raises `UsageError`."""
        use = (labels or {}).get("use", Use.DATASET)
        if use not in list(Use):
            raise UsageError(f"expected the label use to be one of {', '.join(Use)}, got {use!r}")
        if erasure and replicas != 1:
            raise UsageError(f"expected replicas or erasure, got {replicas} replicas and erasure {erasure!r}")
        if erasure and durability == Durability.MEMORY:
            raise UsageError("pieces of an erasure-coded version are kept on disks: expected durability disk or remote")
        if isinstance(parents, str):
            raise UsageError(
                f"expected a sequence of versions as parents, got the text {parents!r}: put it into a list"
            )
        if durability not in list(Durability):
            raise UsageError(f"expected a durability of {', '.join(Durability)}, got {durability!r}")
        is_remote = durability == Durability.REMOTE
        if is_remote and not backup:
            raise UsageError(
                "durability remote promises copies in a backup: name one, such as backup='s3://bucket/path'"
            )
        least = 0 if is_remote else 1
        if isinstance(replicas, bool) or not isinstance(replicas, int) or not least <= replicas <= 16:
            raise UsageError(f"expected {least} to 16 replicas with durability {durability}, got {replicas!r}")
        return cls(
            replicas=replicas,
            durability=Durability(durability),
            codec=parse_codec(codec),
            labels=dict(labels or {}),
            parents=tuple(parse_reference(parent) for parent in parents),
            backup=parse_backup(backup) if backup else "",
            erasure=parse_erasure(erasure) if erasure else None,
        )
