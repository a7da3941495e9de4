"""Copy an artifact to nodes: ray job submit -- python jobs/ship.py NAME[@NUMBER] [--to all | --to NODE_ID …]

With --source the data is put first, so one job ships a dataset from a file to every node.
The last line is one JSON object: where the shards lie now, bytes moved and the rate. Exit status: see 'raylog --help'.
"""

import argparse

import raylog
from raylog.jobs import run


def main(arguments: argparse.Namespace) -> dict[str, object]:
    with raylog.connect() as client:
        name = arguments.name
        if arguments.source:
            name = str(client.put(name, arguments.source, replicas=arguments.replicas))
        targets = "all" if arguments.to == ["all"] else arguments.to
        report = client.ship(name, to=targets, deadline_s=arguments.deadline_s).result(arguments.deadline_s)
        return {
            "shipped": report,
            "replicas": client.replicas(name),
            "bytes_per_s": report.moved_bytes / report.seconds,
        }


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("name", help="artifact name, or name@number")
parser.add_argument("--to", nargs="+", default=["all"], help="node ids, or 'all' (default)")
parser.add_argument("--source", help="path or URL to put under NAME first")
parser.add_argument("--replicas", type=int, default=1, help="copies on distinct nodes when --source is put (default 1)")
parser.add_argument("--deadline-s", type=float, default=600.0, help="give up after so many seconds (default 600)")

if __name__ == "__main__":
    run(main, parser)
