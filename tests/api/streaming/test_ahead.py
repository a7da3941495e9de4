"""Reading ahead when nobody closes it: what the process says at its end."""

import subprocess
import sys

PROGRAM = """
import builtins
import concurrent.futures.thread
import os

from raylog.api.streaming.ahead import ReadAhead


def batches():
    with ReadAhead((), (), None, 0, 0, threads=1, may_help=True):
        yield 1


os.left = batches()
next(os.left)
builtins.alive = concurrent.futures.thread, os  # cleared one after the other at the end, the later imported first
"""


def test_an_iteration_left_in_the_middle_ends_quietly_with_its_process() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
