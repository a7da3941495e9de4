"""Runs in a process of its own: samples GPUs through the library that LD_LIBRARY_PATH names, one report per line.

Each line of standard input is a step: {"script": TEXT or null, "advance_s": NUMBER, "timeout_s": NUMBER}. The script
replaces FAKE_NVML_SCRIPT in one rename, the sampler's clock moves on, and one sample is printed as JSON.
"""

import json
import os
import sys
from pathlib import Path

import msgspec

from raylog.monitor.nvml import NvmlSampler


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def main() -> None:
    clock = Clock()
    sampler: NvmlSampler | None = None
    for line in sys.stdin:
        step = json.loads(line)
        if step["script"] is not None:
            script = Path(os.environ["FAKE_NVML_SCRIPT"])
            script.with_suffix(".new").write_text(step["script"])
            script.with_suffix(".new").replace(script)
        clock.now_s += step["advance_s"]
        sampler = sampler or NvmlSampler(step["timeout_s"], monotonic=clock)
        sys.stdout.write(msgspec.json.encode(sampler.sample()).decode() + "\n")
    if sampler is not None:
        sampler.close()


main()
