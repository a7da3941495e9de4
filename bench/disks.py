"""From disk to disk: what a ship is measured against, where no arena has a part in it."""

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path


def forget(files: Sequence[Path]) -> None:
    """Has the kernel drop the files from its page cache, so that they are read from the disk."""
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # only clean pages are dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def cp_mover(files: Sequence[Path], folder: Path) -> Callable[[], float]:
    """`cp` of the files into a new folder, cold, and fsync of every copy and of the folder."""
    copies = [folder / f"copy-{number}" for number in range(len(files))]

    def move() -> float:
        folder.mkdir()
        forget(files)
        started_s = time.perf_counter()
        for path, copy in zip(files, copies, strict=True):
            subprocess.run(["cp", "--reflink=never", path, copy], check=True)
        for synced in (*copies, folder):
            descriptor = os.open(synced, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        seconds = time.perf_counter() - started_s
        for copy in copies:
            copy.unlink()
        folder.rmdir()
        return seconds

    return move


def cold_mover(move: Callable[[], float], files: Sequence[Path]) -> Callable[[], float]:
    """`move`, after the files have been dropped from the page cache."""

    def moved() -> float:
        forget(files)
        return move()

    return moved
