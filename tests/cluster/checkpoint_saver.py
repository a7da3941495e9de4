"""Saves a step after another until it is killed: `python checkpoint_saver.py ADDRESS STATE NAME`."""

import sys
from pathlib import Path

from test_checkpoints import state_of

import raylog
from raylog.settings import Settings


def main(address: str, state: str, name: str) -> None:
    with (
        raylog.connect(address, settings=Settings(state=Path(state))) as client,
        raylog.CheckpointManager(name, client=client) as manager,
    ):
        for step in range(1, 1000):
            manager.save(step, state_of(step))
            if step % 2:
                manager.wait()
            print("saved", step if step % 2 else step - 1, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
