"""Python, and Ray: its version, its cluster, its token."""

import importlib.metadata
import re
import shlex
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from raylog.api import ray_access
from raylog.api.doctor.check import Check
from raylog.api.doctor.files import lax_mode
from raylog.api.ray_access import Access, ClusterAddress

PYTHON_FIRST, PYTHON_LAST = (3, 11), (3, 13)
RAY_LEAST = (2, 60)
_EXPORT = "export RAY_AUTH_MODE=token"


def python_version(version: tuple[int, int] = sys.version_info[:2]) -> Check:
    words = f"Python {version[0]}.{version[1]}"
    if PYTHON_FIRST <= version <= PYTHON_LAST:
        return Check("python", "ok", words)
    wanted = ".".join(map(str, PYTHON_LAST))
    return Check("python", "fail", f"{words}; raylog needs 3.11 to {wanted}", f"python{wanted} -m venv .venv")


def python_build(is_free_threaded: bool = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))) -> Check:
    if not is_free_threaded:
        return Check("python build", "ok", "with the GIL")
    wanted = ".".join(map(str, PYTHON_LAST))
    return Check(
        "python build", "fail", "free-threaded; Ray has no build for it", f"python{wanted} -m venv .venv  # without 't'"
    )


def ray_version(installed: str | None = None) -> Check:
    """`installed` is by default what this Python would import."""
    fix = f"{shlex.quote(sys.executable)} -m pip install --upgrade 'ray[default]>={'.'.join(map(str, RAY_LEAST))}'"
    try:
        version = installed or importlib.metadata.version("ray")
    except importlib.metadata.PackageNotFoundError:
        return Check("ray", "fail", "Ray is not installed for this Python", fix)
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers < RAY_LEAST:
        return Check("ray", "fail", f"Ray {version}, raylog needs {'.'.join(map(str, RAY_LEAST))} or newer", fix)
    return Check("ray", "ok", f"Ray {version}")


def ray_cluster(address: ClusterAddress | None, is_up: bool) -> Check:
    if address is None:
        return Check("ray cluster", "ok", "none named and none running here; raylog starts Ray on this machine")
    if is_up:
        return Check("ray cluster", "ok", f"{address} answers (from {address.origin})")
    if address.origin.startswith("/"):
        return Check(
            "ray cluster",
            "warn",
            f"nothing answers at {address}, which an earlier cluster left in {address.origin}; ray.init() waits for it",
            f"rm {shlex.quote(address.origin)}",
        )
    return Check(
        "ray cluster",
        "fail",
        f"nothing answers at {address} (from {address.origin})",
        f"RAY_AUTH_MODE=token ray start --head --port={address.port}  # on {address.host}, or name another address",
    )


def ray_token(address: ClusterAddress | None, environment: Mapping[str, str], home: Path) -> Check:
    """`address` is a cluster that answers, which is asked whether it serves a caller without a token; or None."""
    mode = environment.get("RAY_AUTH_MODE", "").lower()
    token = ray_access.token(environment, home)
    access = ray_access.access(address) if address else None
    if access is Access.OPEN:
        fix = f"{_EXPORT}; ray get-auth-token --generate >/dev/null  # on every node; then start Ray anew"
        found = f"Ray at {address} runs anybody's code: it was started without RAY_AUTH_MODE=token"
        return Check("ray token", "fail", found, fix)
    if token and token.path and (lax := lax_mode(token.path)):
        return Check("ray token", "fail", f"{token.path} {lax}", f"chmod 600 {shlex.quote(str(token.path))}")
    if token is None and mode != "disabled":
        return _missing_token(address, access, home)
    if access is Access.CLOSED and mode != "token":
        found = f"RAY_AUTH_MODE is {mode or 'not set'}, but Ray at {address} asks for its token"
        return Check("ray token", "fail", found, _EXPORT)
    if mode != "token":
        found = f"RAY_AUTH_MODE is {mode or 'not set'}: Ray started from here may be open, workers may hang at joining"
        return Check("ray token", "warn", found, _EXPORT)
    if access is Access.UNKNOWN:
        found = f"RAY_AUTH_MODE=token, but {address} did not say whether it asks for a token; is it Ray's port?"
        return Check("ray token", "warn", found, "ray status")
    asked = f"; Ray at {address} asks for it" if access else ""
    return Check("ray token", "ok", f"RAY_AUTH_MODE=token, the token is in {token.origin if token else ''}{asked}")


def _missing_token(address: ClusterAddress | None, access: Access | None, home: Path) -> Check:
    path = home / ".ray" / "auth_token"
    if address and access is Access.CLOSED:
        quoted = shlex.quote(str(path))
        fix = f"scp {address.host}:.ray/auth_token {quoted} && chmod 600 {quoted} && {_EXPORT}"
        return Check("ray token", "fail", f"Ray at {address} asks for a token and there is none here", fix)
    fix = f"ray get-auth-token --generate >/dev/null && chmod 600 {shlex.quote(str(path))} && {_EXPORT}"
    return Check("ray token", "warn", f"there is no token yet at {path}", fix)
