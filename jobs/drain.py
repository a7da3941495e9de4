"""Take a node out of use without losing a replica: ray job submit -- python jobs/drain.py NODE_ID

Ray and raylog place nothing new on it, and what only it keeps is brought to other nodes. The last line is one JSON
object: the node, the shards that were brought elsewhere, the seconds it took; then the node may be switched off. Exit
status 1 when that was not done within --timeout seconds; the others: see 'raylog --help'.
"""

import argparse

import raylog
from raylog.jobs import run


def main(arguments: argparse.Namespace) -> dict[str, object]:
    with raylog.connect() as client:
        return {"drained": client.drain(arguments.node, timeout_s=arguments.timeout)}


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("node", help="a node's id, or how it begins; 'raylog status' shows them")
parser.add_argument("--timeout", type=float, default=3600.0, metavar="SECONDS")

if __name__ == "__main__":
    run(main, parser)
