"""What every script in jobs/ does around its own few lines: arguments, one JSON line last, the exit status."""

import argparse
import sys
from collections.abc import Callable

import msgspec

from raylog.errors import RaylogError


def run(main: Callable[[argparse.Namespace], dict[str, object]], parser: argparse.ArgumentParser) -> None:
    """Parses, calls `main`, prints its result as the last line and exits as the errors say (0 done, 1 failed, 2 bad
    usage, 3 damaged data, 4 not permitted)."""
    try:
        result, status = main(parser.parse_args()), 0
    except RaylogError as error:
        result, status = {"error": type(error).__name__, "message": str(error)}, error.exit_status
    except KeyboardInterrupt:
        result, status = {"error": "Interrupted", "message": "stopped by Ctrl-C; nothing of it is visible"}, 130
    sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
    sys.stdout.flush()
    sys.exit(status)
