"""Ids, names, limits and the frozen structs that more than one floor speaks of."""

import enum
import re
import unicodedata
import uuid
from collections.abc import Iterable, Sequence

import msgspec

from raylog.errors import UsageError
from raylog.units import GIB, MIB

CHUNK_CONTENT_BYTES_MAX = 4 * MIB  # content of one chunk; the unit of relay and retry
SHARD_CONTENT_BYTES_MAX = 4 * GIB
SHARD_CONTENT_BYTES_DEFAULT = 256 * MIB
NAME_CHARACTERS_MAX = 200

_ID = re.compile(r"[0-9a-f]{32}")
_URL = re.compile(r"[a-z][a-z0-9+.-]*://[^\s?#@\\]+")
_NAME_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]*")


class Codec(enum.IntEnum):
    """How the content of a chunk is compressed; the value stands in FORMAT.md's index."""

    NONE = 0
    LZ4 = 1
    ZSTD = 2
    ZSTD_PLANES_2 = 3  # byte planes of items of so many bytes, then zstd: chosen for tensors, not asked for
    ZSTD_PLANES_4 = 4
    ZSTD_PLANES_8 = 5

    @property
    def planes(self) -> int:
        """How many byte planes the content is split into; 1: none."""
        return 1 << max(self - 2, 0)


class Kind(enum.IntEnum):
    """What a shard's content is; the value stands in FORMAT.md's header."""

    ARROW = 1
    FILES = 2
    TENSORS = 3
    PIECE = 4  # of an erasure-coded shard: sealed bytes, no content of its own


class TierKind(enum.StrEnum):
    MEMORY = "memory"
    SSD = "ssd"
    HDD = "hdd"
    REMOTE = "remote"


class Durability(enum.StrEnum):
    """What an acknowledgement of `put` promises: where every replica stands before it is given. Remote: on disks, and
    a copy of each shard in the backup."""

    MEMORY = "memory"
    DISK = "disk"
    REMOTE = "remote"


class Use(enum.StrEnum):
    """What a version is for, which decides on what device its shards lie."""

    DATASET = "dataset"
    CHECKPOINT = "checkpoint"
    ARCHIVE = "archive"


class QosClass(enum.StrEnum):
    """Traffic classes, most urgent first."""

    READ = "read"
    CHECKPOINT = "checkpoint"
    SHIP = "ship"
    REPAIR = "repair"


class CargoRecords(enum.StrEnum):
    """How sealed chunks travel between nodes (PROTOCOL.md, "Record"): encrypted once more, or authenticated only."""

    ENCRYPTED = "encrypted"
    AUTHENTICATED = "authenticated"


URL_CHARACTERS_MAX = 1024
CAP_BYTES_PER_S_MIN = 1_000_000  # of what a node sends: below it a puller would take its source for dead
WEIGHT_MAX = 1000


class ShardRef(msgspec.Struct, frozen=True, kw_only=True):
    """One sealed shard as manifests and messages name it. `frame_digest` pins header and index (FORMAT.md)."""

    shard_id: str
    frame_digest: bytes
    stored_bytes: int
    content_bytes: int
    rows: int
    chunks: int


class Reference(msgspec.Struct, frozen=True):
    """A parsed `name` or `name@number`."""

    name: str
    number: int | None = None

    def __str__(self) -> str:
        return self.name if self.number is None else f"{self.name}@{self.number}"


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """One immutable state of an artifact, as the client returns it.

    `shards` and `rows` are counts, `content_bytes` what was put, `stored_bytes` one sealed copy of it, `digest` the
    BLAKE3 of the manifest in hex.
    """

    name: str
    number: int
    shards: int
    rows: int
    content_bytes: int
    stored_bytes: int
    digest: str

    def __str__(self) -> str:
        return f"{self.name}@{self.number}"


def new_id() -> str:
    """A fresh random id: 32 lower-case hex digits (a version 4 UUID)."""
    return uuid.uuid4().hex


def parse_id(text: str, what: str = "id") -> str:
    """The id itself if it is one. Every id off the network or a disk passes here before it becomes a path."""
    if not _ID.fullmatch(text):
        raise UsageError(f"expected {what} of 32 lower-case hex digits, got {text[:80]!r}")
    return text


def is_name_part(text: str) -> bool:
    """Whether `text` may stand between two slashes of an artifact name."""
    return bool(_NAME_PART.fullmatch(text))


def parse_name(text: str) -> str:
    """An artifact name: parts of ASCII letters, digits and `._+=-`, joined by `/`, each starting with a letter or
    digit. So `..`, NUL, absolute paths, empty parts and unicode look-alikes are refused. Raises `UsageError`."""
    if not text or len(text) > NAME_CHARACTERS_MAX:
        raise UsageError(f"expected an artifact name of 1 to {NAME_CHARACTERS_MAX} characters, got {len(text)}")
    for character in text:
        if not character.isascii():
            raise UsageError(
                f"expected an artifact name in ASCII, got {text!r}: "
                f"{character!r} is {unicodedata.name(character, 'unnamed')} (U+{ord(character):04X})"
            )
    for part in text.split("/"):
        if not is_name_part(part):
            raise UsageError(
                f"expected an artifact name such as 'corpora/wiki', got {text!r}: its part {part!r} must start with a "
                "letter or digit and hold only letters, digits and . _ + = -"
            )
    return text


def parse_reference(text: str) -> Reference:
    """`"name"` or `"name@3"`; raises `UsageError`."""
    name, at, number = text.partition("@")
    if not at:
        return Reference(parse_name(name))
    if not number.isascii() or not number.isdigit() or len(number) > 12 or int(number) < 1:
        raise UsageError(f"expected a version number from 1 after '@', got {text!r}")
    return Reference(parse_name(name), int(number))


def parse_backup(text: str) -> str:
    """The URL of a place for remote copies, without slashes at its end. Raises `UsageError`, also for one with a user
    or key in it: URLs are written into manifests."""
    url = text.rstrip("/")
    path = url.partition("://")[2]
    if not _URL.fullmatch(url) or len(url) > URL_CHARACTERS_MAX or ".." in path.split("/"):
        raise UsageError(
            "expected a URL such as s3://bucket/path or file:///mnt/backup, without credentials, '?' and '..', got "
            f"{text[:200]!r}"
        )
    if url.startswith("raylog:"):
        raise UsageError(f"expected a place outside of raylog, which a backup is to outlive, got {text[:200]!r}")
    if url.startswith("file:") and not path.startswith("/"):
        raise UsageError(f"expected file:/// and an absolute path, got {text[:200]!r}")
    return url


def parse_labels(words: Iterable[str]) -> dict[str, str]:
    """`["team=nlp"]` -> `{"team": "nlp"}`; raises `UsageError`."""
    found = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not (key and equals):
            raise UsageError(f"expected a label as KEY=VALUE, got {word!r}")
        found[key] = value
    return found


def check_backup_allowed(url: str, allowed: Sequence[str]) -> None:
    """Raises `UsageError` unless `url` is one of `allowed` or lies below one; where none are given, all are allowed."""
    if allowed and not any(url == one or url.startswith(f"{one}/") for one in allowed):
        raise UsageError(f"{url} is none of the backups in raylog.toml ({', '.join(allowed)}): add it there")


def parse_codec(text: str) -> Codec | None:
    """`"auto"` -> None (chosen per chunk by sampling), `"lz4"` -> `Codec.LZ4`; raises `UsageError`."""
    known: dict[str, Codec | None] = {
        "auto": None,
        **{codec.name.lower(): codec for codec in Codec if codec.planes == 1},
    }
    if text not in known:
        raise UsageError(f"expected a codec of {', '.join(known)}, got {text!r}")
    return known[text]


def parse_qos(text: str) -> QosClass:
    """`"ship"` -> `QosClass.SHIP`; raises `UsageError`."""
    if text not in tuple(QosClass):
        raise UsageError(f"expected a traffic class of {', '.join(QosClass)}, got {text!r}")
    return QosClass(text)


class TenantUsage(msgspec.Struct, frozen=True, kw_only=True):
    """What a tenant has stored: versions that exist and their content, the sealed shards they name (each once), and all
    copies of these that count, on nodes."""

    tenant: str
    versions: int
    content_bytes: int
    stored_bytes: int
    kept_bytes: int


class StorageStanding(msgspec.Struct, frozen=True, kw_only=True):
    """What of all that is stored is not as it was promised: shards with fewer replicas (or, where backups alone were to
    have it, no whole copy), those among them of which there is no copy anywhere, and copies that are still to be
    written to backups."""

    short_shards: int
    lost_shards: int
    copies_to_back_up: int


class ShardStanding(msgspec.Struct, frozen=True, kw_only=True):
    """How a shard stands: `wanted` replicas were promised (0: no version names it any more, or nodes are not to keep
    it), `nodes` hold one that counts, `other_nodes` hold a copy that does not (in memory where disk was promised),
    `backups` are URLs where one may be had, the surest first. A piece of the erasure-coded shard `piece_of` can be made
    anew from `pieces_needed` of its `siblings`, each given by the nodes that hold it; those are to hold no second one.
    """

    shard: ShardRef
    wanted: int
    nodes: tuple[str, ...]
    other_nodes: tuple[str, ...] = ()
    backups: tuple[str, ...] = ()
    piece_of: str = ""
    siblings: tuple[tuple[str, ...], ...] = ()
    pieces_needed: int = 0
