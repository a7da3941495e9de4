"""Fill the nodes alike, after some were added: ray job submit -- python jobs/rebalance.py

Replicas and pieces move from fuller nodes to emptier ones, each copy made before the one that it replaces goes; copies
of a shard stay on different nodes, racks and zones. The last line is one JSON object: copies planned to move, what each
node stores now. Exit status 1 when that was not done within --timeout seconds (it goes on by itself); the others: see
'raylog --help'.
"""

import argparse

import raylog
from raylog.jobs import run


def main(arguments: argparse.Namespace) -> dict[str, object]:
    with raylog.connect() as client:
        return {"rebalanced": client.rebalance(arguments.timeout)}


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--timeout", type=float, default=86400.0, metavar="SECONDS")

if __name__ == "__main__":
    run(main, parser)
