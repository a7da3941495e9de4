"""The `raylog` command: one function per command, thin over the client."""

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from raylog import screen
from raylog.cli import data, operate, recovery
from raylog.cli.options import Options
from raylog.errors import RaylogError, UsageError

INTERRUPTED = 130
MISUSED: tuple[type[Exception], ...] = typer.BadParameter.__bases__  # Typer's usage errors, which it does not export
app = typer.Typer(
    name="raylog",
    help="Gets datasets, checkpoints and weights to the machines of a Ray cluster: sealed, verified, replicated.\n\n"
    "Exit status: 0 done, 1 failed, 2 bad usage, 3 damaged data, 4 not permitted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(data.app)
app.add_typer(operate.app)
app.add_typer(recovery.catalog_app, name="catalog")
app.add_typer(recovery.keys_app, name="keys")


@app.callback()
def options(
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster, such as 192.0.2.10:6379; default: $RAY_ADDRESS, then this machine's"),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="raylog.toml; default: ~/.raylog/raylog.toml")] = None,
    state: Annotated[Path | None, typer.Option(help="state directory; default: ~/.raylog")] = None,
) -> None:
    Options.address, Options.config, Options.state = address, config, state


def main() -> None:
    """Entry point: runs a command, turns errors into one line on standard error and the exit status."""
    sys.exit(_guarded())


def _guarded() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stopped by a supervisor: clean up as after Ctrl-C
    try:
        status = app(standalone_mode=False)  # what `typer.Exit` carried, or nothing
    except MISUSED as error:
        error.show()  # type: ignore[attr-defined]  # Typer's own: usage, what was wrong, and a near match
        return UsageError.exit_status
    except RaylogError as error:
        screen.err.print(f"raylog: {error}", markup=False, style="red", soft_wrap=True)
        return error.exit_status
    if status == INTERRUPTED:  # Typer turns Ctrl-C into this
        screen.err.print("raylog: stopped by Ctrl-C; nothing half-written is visible", markup=False)
    return status if isinstance(status, int) else 0
