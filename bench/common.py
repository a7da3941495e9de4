"""What the benchmarks share: payloads, arguments, JSON out."""

import argparse
import json
import sys
import sysconfig
from pathlib import Path
from typing import Any

REPEATS = 5


def text_bytes(size: int) -> bytes:
    """`size` bytes of real text: the standard library's sources, over and over in changing order."""
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(path for path in root.rglob("*.py") if "site-packages" not in path.parts)
    parts: list[bytes] = []
    have = turn = 0
    while have < size:
        for path in files[turn % 7 :: 7] if turn else files:
            parts.append(path.read_bytes())
            have += len(parts[-1])
            if have >= size:
                break
        turn += 1
    return b"".join(parts)[:size]


def parser(description: str) -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=description)
    found.add_argument("--json", action="store_true", help="one JSON line on standard output")
    found.add_argument("--quick", action="store_true", help="small payloads, one repeat: shows that it runs")
    return found


def report(result: dict[str, Any], as_json: bool) -> None:
    sys.stdout.write((json.dumps(result) if as_json else json.dumps(result, indent=2)) + "\n")
