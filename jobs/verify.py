"""Read and verify every byte of an artifact on every node: ray job submit -- python jobs/verify.py NAME[@NUMBER]

Damaged chunks are replaced from another replica. The last line is one JSON object: chunks read, damaged, repaired.
Exit status 3 when something damaged could not be repaired; the others: see 'raylog --help'.
"""

import argparse

import raylog
from raylog.errors import DamagedData
from raylog.jobs import run


def main(arguments: argparse.Namespace) -> dict[str, object]:
    with raylog.connect() as client:
        report = client.verify(arguments.name)
    if report.problems:
        raise DamagedData(f"{arguments.name}: {'; '.join(report.problems)}", report=report)
    return {"verified": report}


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("name", help="artifact name, or name@number")

if __name__ == "__main__":
    run(main, parser)
