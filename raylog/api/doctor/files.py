"""Who may use the keyring, and room for what raylog keeps."""

import os
import shlex
import stat
import tempfile
from pathlib import Path

from raylog.api.doctor.check import Check
from raylog.settings import Settings
from raylog.units import GIB, format_bytes


def keyring(path: Path) -> Check:
    """Owner and modes only: the keyring is not opened."""
    try:
        found = path.stat()
        folder = path.parent.stat()
    except FileNotFoundError:
        where = f"none at {path}: right for a worker, the head's is made by the first 'raylog up'"
        return Check("keyring", "ok", where)
    except OSError as error:
        return Check("keyring", "fail", f"{path}: {error.strerror}", f"sudo chown -R $(id -u) {_quoted(path.parent)}")
    if found.st_uid != os.geteuid():
        fix = f"sudo chown $(id -u) {_quoted(path)}"
        return Check("keyring", "fail", f"{path} belongs to user {found.st_uid}, not to {os.geteuid()}", fix)
    if lax := lax_mode(path):
        return Check("keyring", "fail", f"{path} {lax}", f"chmod 600 {_quoted(path)}")
    if folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        words = f"others may replace files in {path.parent} (mode {stat.S_IMODE(folder.st_mode):04o})"
        return Check("keyring", "fail", words, f"chmod 700 {_quoted(path.parent)}")
    return Check("keyring", "ok", f"{path}, mode 0600, its owner's alone")


def state_directory(settings: Settings) -> Check:
    """Writes and removes a file, in the state directory or, where that is not made yet, in the folder it would be."""
    state = settings.state.expanduser()
    folder = next(place for place in (state, *state.absolute().parents) if place.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".raylog-doctor-"):
            pass
        found = os.statvfs(folder)
    except OSError as error:
        fix = f"sudo mkdir -p {_quoted(state)} && sudo chown $(id -u) {_quoted(state)}"
        return Check("state directory", "fail", f"{state}: cannot write in {folder}: {error.strerror}", fix)
    free_bytes = found.f_bavail * found.f_frsize
    words = f"{state}, {format_bytes(free_bytes)} free, {format_bytes(settings.disk_reserve_bytes)} kept free"
    if free_bytes > settings.disk_reserve_bytes + GIB:
        return Check("state directory", "ok", words)
    fix = f"du -xh --max-depth=1 {_quoted(folder)} | sort -h  # free some, or set state to a larger disk"
    return Check("state directory", "warn", words, fix)


def lax_mode(path: Path) -> str:
    """In words, what a file lets others do; empty for 0600 and stricter."""
    mode = stat.S_IMODE(path.stat().st_mode)
    return f"has mode {mode:04o}, others can use it; 0600 is needed" if mode & 0o077 else ""


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
