"""`raylog.toml`: one frozen set of settings for a cluster, read once at the edge and handed to every actor."""

import tomllib
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from raylog.addresses import check_choice
from raylog.errors import UsageError
from raylog.spec import (
    CAP_BYTES_PER_S_MIN,
    CHUNK_CONTENT_BYTES_MAX,
    SHARD_CONTENT_BYTES_DEFAULT,
    SHARD_CONTENT_BYTES_MAX,
    WEIGHT_MAX,
    CargoRecords,
    QosClass,
    parse_backup,
)
from raylog.units import GIB, MIB, parse_bytes, parse_rate, parse_seconds

STATE_DEFAULT = Path("~/.raylog")
CONFIG_NAME = "raylog.toml"
SHARD_SPARE_BYTES = 64 * MIB  # of a shard's 4 GiB: for the preamble and a last batch that is longer than planned


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every setting, its default and its unit. In the file a table's name is not part of a key.

    `state` holds what must survive: keyring, authority, envelopes and the catalog's journal (on the head), the join
    token and the nodes' tier directories (on every machine).
    """

    state: Path = STATE_DEFAULT
    # node
    arena_bytes: int = 0  # memory tier; 0: a quarter of what /dev/shm leaves, at most 4 GiB
    disk_reserve_bytes: int = GIB  # never filled
    disks: str = ""  # folders on further devices of every node that has them, by commas: their kinds are found out
    checkpoint_reserve_bytes: int = 0  # of every disk, kept free for what has the label use = checkpoint
    # An address, or what each node finds its own by: a network such as "10.0.0.0/16", an interface such as "eth1".
    bind: str = ""  # "": the address that Ray knows the node by
    advertise: str = ""  # "": the bind address; several networks, by commas, carry shards side by side
    port_first: int = 0  # control and cargo listen on free ports from here on; 0: any
    port_last: int = 0
    backups: str = ""  # URLs below which remote copies may lie, by commas; "": anywhere
    # transfer
    streams: int = 2  # cargo streams of one pull
    shared_memory: bool = True  # nodes on one machine copy from each other's arenas, without network and encryption
    cargo_records: CargoRecords = CargoRecords.ENCRYPTED  # "authenticated": PROTOCOL.md, "Record"
    shard_bytes: int = SHARD_CONTENT_BYTES_DEFAULT
    chunk_bytes: int = 2 * MIB
    pull_deadline_s: float = 600.0  # of one shard
    call_deadline_s: float = 30.0  # of one call of an actor
    head_wait_s: float = 120.0  # that clients wait for actors of the head that are gone to come back, on a standby too
    # classes of what a node sends: weights share out a busy link, caps (such as "100MB" or "1gbit" per second; 0: none)
    # hold all that a node sends, what it sends to each peer, and each class
    read_weight: int = 16
    checkpoint_weight: int = 8
    ship_weight: int = 4
    repair_weight: int = 2
    node_cap_bytes_per_s: int = 0
    peer_cap_bytes_per_s: int = 0
    read_cap_bytes_per_s: int = 0
    checkpoint_cap_bytes_per_s: int = 0
    ship_cap_bytes_per_s: int = 0
    repair_cap_bytes_per_s: int = 0
    # upkeep
    reconcile_period_s: float = 2.0
    sample_period_s: float = 1.0
    lost_after_s: float = 10.0  # a silent node's replicas are made again after this
    scrub_bytes_per_s: int = 64 * MIB  # at which a node reads back and checks what it stores; 0: never
    scrub_period_s: float = 7 * 86400.0  # from the start of one such round to that of the next
    orphan_grace_s: float = 600.0  # shards that no version names, and whose put is silent, are deleted after this

    def __post_init__(self) -> None:
        checks = {
            "chunk_bytes": (4096, CHUNK_CONTENT_BYTES_MAX),
            "shard_bytes": (self.chunk_bytes, SHARD_CONTENT_BYTES_MAX - SHARD_SPARE_BYTES),
            "streams": (1, 16),
            "port_first": (0, 65535),
            "port_last": (self.port_first, 65535),
            "arena_bytes": (0, 1 << 50),
            "disk_reserve_bytes": (0, 1 << 60),
            "checkpoint_reserve_bytes": (0, 1 << 60),
            "pull_deadline_s": (1, 86400),
            "call_deadline_s": (1, 3600),
            "head_wait_s": (0, 86400),
            "reconcile_period_s": (0.1, 3600),
            "sample_period_s": (0.1, 60),
            "lost_after_s": (1, 86400),
            "scrub_bytes_per_s": (0, 1 << 50),
            "scrub_period_s": (1, 365 * 86400),
            "orphan_grace_s": (1, 30 * 86400),
            **{f"{qos}_weight": (1, WEIGHT_MAX) for qos in QosClass},
            **{
                f"{of}_cap_bytes_per_s": (CAP_BYTES_PER_S_MIN if getattr(self, f"{of}_cap_bytes_per_s") else 0, 1 << 50)
                for of in ("node", "peer", *QosClass)
            },
        }
        _ = self.backup_urls, self.disk_paths  # checked here, and not by the first that needs one
        for choice in (self.bind, *self.advertised):
            check_choice(choice)
        for name, (least, most) in checks.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise UsageError(f"expected {name} from {least} to {most}, got {value}")

    @property
    def advertised(self) -> tuple[str, ...]:
        return tuple(choice.strip() for choice in self.advertise.split(",") if choice.strip())

    @property
    def disk_paths(self) -> tuple[Path, ...]:
        """Those of `disks` that are on this machine; a node without one does without."""
        paths = [Path(path.strip()) for path in self.disks.split(",") if path.strip()]
        for path in paths:
            if not path.is_absolute():
                raise UsageError(f"expected absolute paths of folders in disks, got {str(path)!r}")
        return tuple(path for path in paths if path.is_dir())

    @property
    def backup_urls(self) -> tuple[str, ...]:
        return tuple(parse_backup(url.strip()) for url in self.backups.split(",") if url.strip())

    @property
    def keyring_path(self) -> Path:
        return self.state / "keyring" / "keyring.json"

    @property
    def authority_path(self) -> Path:
        return self.state / "keyring" / "authority.sealed"

    @property
    def envelopes_path(self) -> Path:
        return self.state / "keys" / "envelopes.sqlite"

    @property
    def join_token_path(self) -> Path:
        return self.state / "join" / "token.json"

    @property
    def catalog_path(self) -> Path:
        return self.state / "catalog"

    @property
    def drill_path(self) -> Path:
        """A file that is there in a cluster that was restored as a drill, and so writes to no backup."""
        return self.catalog_path / "drill"

    @property
    def state_id_path(self) -> Path:
        """What tells this machine's state from that of a standby."""
        return self.state / "state-id"

    @property
    def standby_path(self) -> Path:
        """Of a machine with a standby: what this has of the catalog's records."""
        return self.state / "standby"

    @property
    def overrules_path(self) -> Path:
        """A file beside a journal that a standby made: below which epoch what nodes have beyond it was never
        acknowledged."""
        return self.catalog_path / "overrules-below"

    @property
    def nodes_path(self) -> Path:
        return self.state / "nodes"

    def as_mapping(self) -> dict[str, Any]:
        """Plain values for printing and for a later `from_mapping`."""
        return {**asdict(self), "state": str(self.state)}


def load_settings(path: str | Path | None = None, **overrides: Any) -> Settings:
    """Settings from `path`, else from `raylog.toml` in the default state directory, else the defaults.

    `overrides` that are not None win over the file. Raises `UsageError` naming the file, the key and what was expected.
    """
    default = STATE_DEFAULT.expanduser() / CONFIG_NAME
    file = Path(path).expanduser() if path else default
    values: dict[str, Any] = {}
    if path or default.exists():
        try:
            parsed = tomllib.loads(file.read_text())
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise UsageError(f"expected a configuration file in TOML at {file}: {error}") from error
        for key, value in parsed.items():
            values.update(value if isinstance(value, dict) else {key: value})
    return from_mapping({**values, **{key: value for key, value in overrides.items() if value is not None}}, str(file))


def from_mapping(values: dict[str, Any], where: str = "settings") -> Settings:
    """Settings from plain values; bytes and durations may be texts such as "4GiB" and "30s"."""
    known = {field.name: field for field in fields(Settings)}
    parsed: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise UsageError(f"{where}: unknown setting {key!r}; known: {', '.join(sorted(known))}")
        parsed[key] = _parse(key, value, where)
    settings = Settings(**parsed)
    return replace(settings, state=settings.state.expanduser().absolute())


def _parse(key: str, value: Any, where: str) -> Any:
    parsed: Any
    if key == "state":
        expected, parsed = "a path", Path(value) if isinstance(value, (str, Path)) and str(value) else None
    elif key == "shared_memory":
        expected, parsed = "true or false", value if isinstance(value, bool) else None
    elif key in ("bind", "advertise", "backups", "disks"):
        expected = {"backups": "URLs", "disks": "paths of folders"}.get(key, "an address, a network or an interface")
        parsed = value if isinstance(value, str) else None
    elif key.endswith("_bytes_per_s"):
        expected = "a number of bytes per second such as 100000000, '100MB' or '1gbit'"
        parsed = parse_rate(value) if isinstance(value, str) else _number(value, int)
    elif key == "cargo_records":
        expected = " or ".join(f'"{kind}"' for kind in CargoRecords)
        parsed = CargoRecords(value) if value in list(CargoRecords) else None
    elif key.endswith("_s"):
        expected = "a duration such as 30 or '30s'"
        parsed = parse_seconds(value) if isinstance(value, str) else _number(value, float)
    elif key.endswith("_bytes"):
        expected = "a number of bytes such as 1048576 or '1MiB'"
        parsed = parse_bytes(value) if isinstance(value, str) else _number(value, int)
    else:
        expected, parsed = "a whole number", _number(value, int)
    if parsed is None:
        raise UsageError(f"{where}: expected {expected} for {key}, got {value!r}")
    return parsed


def _number(value: Any, kind: type[int] | type[float]) -> int | float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or (kind is int and not isinstance(value, int)):
        return None
    return kind(value)
