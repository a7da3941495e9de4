"""Where Ray's cluster is, whether it answers, and whether it serves strangers: found out from outside, without joining.

Joining is no test: with a dead address or a missing token Ray waits for minutes.
Sources: Ray 2.60, ray/_private/services.py (address) and ray/_private/authentication (token); Ray's documentation,
"Ray token authentication".
"""

import enum
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from raylog.errors import NotPermitted, Unavailable, UsageError

PROBE_TIMEOUT_S = 1.0
ACCESS_TIMEOUT_S = 5.0
_ALIVE_CALL = "/ray.rpc.NodeInfoGcsService/CheckAlive"  # the cheapest of the calls that Ray guards by its token


@dataclass(frozen=True, slots=True)
class ClusterAddress:
    """An address and where it came from: "argument", "RAY_ADDRESS" or the file that `ray start` left."""

    host: str
    port: int
    origin: str

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Access(enum.Enum):
    """What a cluster's control port answers to a caller without a token."""

    CLOSED = "asks for a token"
    OPEN = "serves anybody"
    UNKNOWN = "did not say"


@dataclass(frozen=True, slots=True)
class Token:
    """Ray's token as this process would find it; `path` is None where the environment holds the token itself."""

    origin: str
    path: Path | None


def cluster_address(address: str | None, environment: Mapping[str, str]) -> ClusterAddress | None:
    """The cluster that Ray would join, in Ray's order: `address`, `$RAY_ADDRESS`, the file of the last cluster started
    here. None where there is none, or "local" asks for a new one. Raises `UsageError` for what is no address."""
    for text, origin in ((address, "argument"), (environment.get("RAY_ADDRESS"), "RAY_ADDRESS")):
        if text and text != "auto":
            return None if text == "local" else _parsed(text, origin)
    file = address_file(environment)
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return _parsed(text, str(file)) if text else None


def address_file(environment: Mapping[str, str]) -> Path:
    """Where the last `ray start` on this machine wrote its address."""
    folder = environment.get("RAY_TMPDIR") or environment.get("TMPDIR") or "/tmp"  # noqa: S108 - Ray's own default
    return Path(folder) / "ray" / "ray_current_cluster"


def answers(address: ClusterAddress, timeout_s: float = PROBE_TIMEOUT_S) -> bool:
    """Whether something listens there."""
    try:
        socket.create_connection((address.host, address.port), timeout_s).close()
    except OSError:
        return False
    return True


def access(address: ClusterAddress, timeout_s: float = PROBE_TIMEOUT_S) -> Access:
    """What the cluster does for a caller who shows no token: one gRPC call, at most `timeout_s`."""
    import grpc  # type: ignore[import-untyped]  # comes with ray[default]; not loaded where nobody asks

    options = [("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(str(address), options) as channel:
        try:
            channel.unary_unary(_ALIVE_CALL)(b"", timeout=timeout_s)
        except grpc.RpcError as error:
            return Access.CLOSED if error.code() is grpc.StatusCode.UNAUTHENTICATED else Access.UNKNOWN
    return Access.OPEN


def refuse_open(address: str) -> None:
    """Raises `NotPermitted` when the cluster serves anybody who reaches its port: whoever can submit code to Ray is
    this user on every machine. `Unavailable` when it does not say."""
    found = access(_parsed(address, "argument"), ACCESS_TIMEOUT_S)
    if found is Access.UNKNOWN:
        raise Unavailable(
            f"the Ray cluster at {address} did not say whether it asks for a token: try again in a moment"
        )
    if found is Access.OPEN:
        raise NotPermitted(
            f"the Ray cluster at {address} serves anybody who reaches its port: start Ray with RAY_AUTH_MODE=token on "
            "every machine ('ray get-auth-token --generate' makes the token), or accept it: 'raylog up --insecure-ray'"
        )


def refuse_without_token(address: ClusterAddress, environment: Mapping[str, str], home: Path) -> None:
    """Raises `NotPermitted` when the cluster asks for a token that Ray would not show in `environment`: it would knock
    for 20 s and then say only that it was not let in."""
    mode = environment.get("RAY_AUTH_MODE", "").lower()
    found = token(environment, home)
    if (mode == "token" and found) or access(address, ACCESS_TIMEOUT_S) is not Access.CLOSED:
        return
    if found:
        what = f"shows one only with RAY_AUTH_MODE=token, which is {mode or 'not set'}: export RAY_AUTH_MODE=token"
    else:
        what = f"finds none: copy {address.host}:.ray/auth_token to {home / '.ray'}, then export RAY_AUTH_MODE=token"
    raise NotPermitted(f"the Ray cluster at {address} asks for a token, and Ray here {what}")


def token(environment: Mapping[str, str], home: Path) -> Token | None:
    """Where Ray finds its token, in Ray's order; None where it finds none. Never reads what the token is."""
    if environment.get("RAY_AUTH_TOKEN"):
        return Token("RAY_AUTH_TOKEN", None)
    if named := environment.get("RAY_AUTH_TOKEN_PATH"):
        return _token_file("RAY_AUTH_TOKEN_PATH", Path(named).expanduser())
    return _token_file("~/.ray/auth_token", home / ".ray" / "auth_token")


def _token_file(origin: str, path: Path) -> Token | None:
    try:
        return Token(origin, path) if path.stat().st_size else None
    except OSError:
        return None


def _parsed(text: str, origin: str) -> ClusterAddress:
    host, colon, port = text.removeprefix("ray://").rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise UsageError(f"expected a Ray address such as 192.0.2.10:6379 in {origin}, got {text[:100]!r}")
    return ClusterAddress(host.strip("[]"), int(port), origin)
