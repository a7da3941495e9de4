"""What every script in jobs/ does around its own few lines: arguments, one JSON line last, the exit status."""

import argparse
import signal
import sys
import traceback
from collections.abc import Callable

import msgspec

from raylog.errors import RaylogError


def run(main: Callable[[argparse.Namespace], dict[str, object]], parser: argparse.ArgumentParser) -> None:
    """Parses, calls `main`, prints its result as the last line and exits as the errors say (0 done, 1 failed, 2 bad
    usage, 3 damaged data, 4 not permitted)."""
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `ray job stop`: clean up as after Ctrl-C
    try:
        result, status = main(arguments), 0
    except RaylogError as error:
        details = {name: value for name, value in vars(error).items() if name == "report"}
        result, status = {"error": type(error).__name__, "message": str(error), **details}, error.exit_status
    except KeyboardInterrupt:
        result, status = {"error": "Interrupted", "message": "stopped before it was done"}, 130
    except Exception as error:  # noqa: BLE001 - the job's edge: whatever it is, the last line says so
        traceback.print_exc()
        result, status = {"error": type(error).__name__, "message": str(error)}, 1
    sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
    sys.stdout.flush()
    sys.exit(status)
