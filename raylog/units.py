"""Bytes and durations as people write them, and back."""

import re

from raylog.errors import UsageError

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40

_BYTE_UNITS = {
    "": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": KIB, "mib": MIB, "gib": GIB, "tib": TIB,
}  # fmt: skip
_BIT_UNITS = {"kbit": 125, "mbit": 125_000, "gbit": 125_000_000}
_SECONDS = {"": 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*")


def _parse(text: str, units: dict[str, float] | dict[str, int], what: str, example: str) -> float:
    match = _QUANTITY.fullmatch(text)
    if not match or match[2].lower() not in units:
        known = ", ".join(unit for unit in units if unit)
        raise UsageError(f"expected {what} such as {example!r} (units: {known}), got {text!r}")
    return float(match[1]) * units[match[2].lower()]


def parse_bytes(text: str) -> int:
    """`"64MiB"` -> 67108864. Decimal (MB) and binary (MiB) units are told apart; raises `UsageError`."""
    return int(_parse(text, _BYTE_UNITS, "a number of bytes", "64MiB"))


def parse_rate(text: str) -> int:
    """Bytes per second: `"100MB"`, `"100MB/s"` -> 100000000, `"1gbit"` -> 125000000; raises `UsageError`."""
    return int(_parse(text.strip().removesuffix("/s"), {**_BYTE_UNITS, **_BIT_UNITS}, "a rate", "100MB"))


def parse_seconds(text: str) -> float:
    """`"5m"` -> 300.0; raises `UsageError`."""
    return _parse(text, _SECONDS, "a duration", "30s")


def format_bytes(count: float) -> str:
    """67108864 -> `"64.0 MiB"`."""
    for unit, size in (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(count) >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"


def format_rate(bytes_per_s: float) -> str:
    """Bytes per second in decimal units, as links are quoted: 1.2e9 -> `"1.20 GB/s"`."""
    for unit, size in (("GB/s", 1e9), ("MB/s", 1e6), ("kB/s", 1e3)):
        if bytes_per_s >= size:
            return f"{bytes_per_s / size:.2f} {unit}"
    return f"{bytes_per_s:.0f} B/s"


def format_seconds(seconds: float) -> str:
    """0.0123 -> `"12 ms"`, 75 -> `"1 min 15 s"`."""
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
