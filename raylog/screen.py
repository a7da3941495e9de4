"""What the command shows: progress bars on a terminal, tables, one JSON line where it was asked for."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import msgspec
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from raylog.units import format_bytes

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def print_json(value: Any) -> None:
    """One line of JSON on standard output, nothing else ever mixed with it."""
    sys.stdout.write(msgspec.json.encode(value, enc_hook=str).decode() + "\n")


def print_table(columns: list[str], rows: list[list[object]], *, right: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    """A plain table; columns named in `right` are numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*[str(cell) for cell in row])
    out.print(table)


class Bar:
    """A progress bar of bytes, on standard error and only on a terminal; appears after a second, so that quick work is
    quiet. Use as `on_progress`: called with (done, total) bytes, total 0 while unknown."""

    APPEARS_AFTER_S = 1.0

    def __init__(self, what: str, *, enabled: bool = True) -> None:
        self._what = what
        self._enabled = enabled and err.is_terminal
        self._started_s = time.monotonic()
        self._progress: Progress | None = None
        self._task: Any = None

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        if not self._enabled or time.monotonic() - self._started_s < self.APPEARS_AFTER_S:
            return
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(binary_units=True),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=err,
                transient=True,
            )
            self._task = self._progress.add_task(self._what, total=total_bytes or None)
            self._progress.start()
        self._progress.update(self._task, completed=done_bytes, total=total_bytes or None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()


@contextmanager
def waiting(what: str, *, enabled: bool = True) -> Iterator[None]:
    """A spinner on a terminal while something of unknown length goes on."""
    if enabled and err.is_terminal:
        with err.status(what):
            yield
    else:
        yield


def share(part: float, whole: float) -> str:
    """`"12.0 MiB of 96.0 MiB"`."""
    return f"{format_bytes(part)} of {format_bytes(whole)}"
