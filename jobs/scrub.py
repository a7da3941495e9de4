"""Read and verify all that is stored, on nodes and in backups: ray job submit -- python jobs/scrub.py [PREFIX]

Every copy of every version whose name begins with PREFIX (default: all) is read; what is damaged is replaced from
another copy, from pieces or a backup, and a bad copy in a backup is written anew. The last line is one JSON object:
versions, copies, chunks read, damaged, repaired, and what is not well even now. Exit status 3 when something could not
be repaired; the others: see 'raylog --help'. Nodes scrub themselves all the time (scrub_period_s in raylog.toml): this
is for who wants to know now.
"""

import argparse

import raylog
from raylog.errors import DamagedData, NotFound
from raylog.jobs import run


def main(arguments: argparse.Namespace) -> dict[str, object]:
    totals = {"versions": 0, "replicas": 0, "backup_copies": 0, "chunks_read": 0, "damaged": 0, "repaired": 0}
    problems: list[str] = []
    with raylog.connect() as client:
        for latest in client.ls(arguments.prefix):
            for version in client.versions(latest.name):
                try:
                    report = client.verify(str(version), backups=not arguments.nodes_only)
                except NotFound:  # deleted meanwhile
                    continue
                totals["versions"] += 1
                for name in ("replicas", "backup_copies", "chunks_read", "damaged", "repaired"):
                    totals[name] += getattr(report, name)
                problems += [f"{version}: {problem}" for problem in report.problems]
    result: dict[str, object] = {**totals, "problems": problems}
    if problems:
        raise DamagedData("; ".join(problems), report=result)
    return {"scrubbed": result}


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("prefix", nargs="?", default="", help="only names that begin so")
parser.add_argument("--nodes-only", action="store_true", help="leave the copies in backups alone")

if __name__ == "__main__":
    run(main, parser)
